"""Writes sample.gguf and sample.dat beside itself: see README.md."""

import struct
from pathlib import Path

import gguf
import numpy as np

HERE = Path(__file__).parent
PLAIN = np.array([[10.0, 4.0, 0.25]], np.float32)
MIXTURE = np.array([[0.0, 0.0], [4.0, 16.0], [9.0, 1.0]], np.float32)

writer = gguf.GGUFWriter(HERE / "sample.gguf", "imatrix")
writer.add_type("imatrix")
writer.add_array("imatrix.datasets", ["text"])
writer.add_uint32("imatrix.chunk_count", 2)
writer.add_uint32("imatrix.chunk_size", 512)
writer.add_tensor("a.weight.in_sum2", PLAIN)
writer.add_tensor("a.weight.counts", np.array([[2.0]], np.float32))
writer.add_tensor("b.weight.in_sum2", MIXTURE)
writer.add_tensor("b.weight.counts", np.array([[0.0], [1.0], [2.0]], np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

# Number of entries; name, calls, mean squares times calls; chunks and the data set.
with (HERE / "sample.dat").open("wb") as file:
    file.write(struct.pack("<i", 2))
    for name, calls, values in ((b"a.weight", 2, PLAIN), (b"b.weight", 1, MIXTURE)):
        file.write(struct.pack("<i", len(name)) + name + struct.pack("<ii", calls, values.size) + values.tobytes())
    file.write(struct.pack("<ii", 2, 4) + b"text")
