#!/usr/bin/env python3
"""Write sample.gguf with the `gguf` package: a small file with a value of every type.

Needs: pip install gguf numpy. The result is deterministic.

usage: make.py [OUT]        (default: sample.gguf beside this file)
"""
import pathlib
import sys

import numpy as np
from gguf import GGMLQuantizationType as Q
from gguf import GGUFValueType as V
from gguf import GGUFWriter


def main():
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).with_name("sample.gguf")
    w = GGUFWriter(out, "sample")
    w.add_key_value("a.u8", 200, V.UINT8)
    w.add_key_value("a.i8", -100, V.INT8)
    w.add_key_value("a.u16", 60000, V.UINT16)
    w.add_key_value("a.i16", -30000, V.INT16)
    w.add_key_value("a.u32", 4_000_000_000, V.UINT32)
    w.add_key_value("a.i32", -2_000_000_000, V.INT32)
    w.add_key_value("a.f32", 0.1, V.FLOAT32)
    w.add_key_value("a.bool", True, V.BOOL)
    w.add_key_value("a.u64", 2**64 - 1, V.UINT64)
    w.add_key_value("a.i64", -(2**63), V.INT64)
    w.add_key_value("a.f64", 0.1, V.FLOAT64)
    w.add_key_value("a.tokens", ["", "a", "日本"], V.ARRAY, V.STRING)
    w.add_key_value("a.flags", [True, False, True], V.ARRAY, V.BOOL)
    w.add_key_value("a.ratios", [0, 4, 128], V.ARRAY, V.INT32)
    w.add_key_value("a.nested", [[1, 2], [3]], V.ARRAY, V.ARRAY)

    count = lambda n: np.arange(n, dtype=np.uint64) * 37 % 251
    w.add_tensor("norm.weight", np.arange(5, dtype=np.float32) - 1.5)
    w.add_tensor("table.weight", np.arange(6, dtype=np.int32).reshape(2, 3))
    w.add_tensor("attn.weight", count(3 * 68).astype(np.uint8).reshape(3, 68), raw_dtype=Q.Q8_0)
    w.add_tensor("exps.weight", count(4 * 66).astype(np.uint8).reshape(2, 2, 66), raw_dtype=Q.IQ2_XXS)
    # Its data fill the alignment, so that the file ends with the last byte of a tensor.
    w.add_tensor("embd.weight", np.arange(32, dtype=np.float16).reshape(2, 1, 1, 16) / 8)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    print(f"{out}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
