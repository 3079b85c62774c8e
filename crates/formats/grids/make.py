#!/usr/bin/env python3
"""Write grids.bin: the codebooks of the IQ types, packed.

The grids are data, not derivable by formula. They come from the `gguf` package (MIT licence,
pip install gguf numpy). Each value is replaced by its index in the grid's list of levels, at 2 or
3 bits a value, little end first; the grids follow one another in the order below without gaps.

usage: make.py [OUT]        (default: grids.bin beside this file)
"""
import hashlib
import pathlib
import sys

import numpy as np
from gguf import quants

# name, bits of a packed value, levels, SHA-256 of the values as int8, row-major
GRIDS = [
    ("IQ2_XXS", 2, [8, 25, 43], "05826b5d3e472a3a78f196be62ac78acf81df0f909626e12ab9fa2a5d490dd54"),
    ("IQ2_XS", 2, [8, 25, 43], "06e47aaca60b4dc1d9b5a3f34540437058a6b142b4d7a59d5ded769b4d1bf1de"),
    ("IQ2_S", 2, [8, 25, 43], "e1aa1473412b0552c2174c30ef22ab4073f6a181b85a17056e8249bd2932fd88"),
    ("IQ3_XXS", 3, [4, 12, 20, 28, 36, 44, 52, 62], "46e35f5a997efdee6c99ce57854c8a0d4f0ff8ca57e5e8a60c0793ea580acf5d"),
    ("IQ3_S", 3, [1, 3, 5, 7, 9, 11, 13, 15], "bd1af4945a1717c65610b0284e4628b9a1ba3b306fae3a06f6e5f597356e349f"),
    ("IQ1_S", 2, [-1, 0, 1], "07540ffc1aeaf6ad4d97e96b0fcc765aae39671d4ae4a27bbd0e796fde167c6a"),
]


def main():
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).with_name("grids.bin")
    packed = b""
    for name, bits, levels, sha256 in GRIDS:
        source = getattr(quants, name)
        source.init_grid()
        values = source.grid.reshape(-1).astype(np.int8)
        assert hashlib.sha256(values.tobytes()).hexdigest() == sha256, f"{name}: the package's grid has changed"
        index = np.array([levels.index(v) for v in values.tolist()], dtype=np.uint8)
        planes = (index[:, None] >> np.arange(bits, dtype=np.uint8)) & 1
        packed += np.packbits(planes.reshape(-1), bitorder="little").tobytes()
    out.write_bytes(packed)
    print(f"{out}: {len(packed)} bytes")


if __name__ == "__main__":
    main()
