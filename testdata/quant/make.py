#!/usr/bin/env python3
"""Write blocks.npz: blocks of every type, with the values that the `gguf` package decodes.

Needs: pip install gguf numpy. The result is deterministic.

usage: make.py [OUT]        (default: blocks.npz beside this file)
"""
import pathlib
import sys

import numpy as np
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

# Where the half-precision scales of a block lie.
HALVES = {
    "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
    "IQ2_XXS": [0], "IQ2_XS": [0], "IQ2_S": [0], "IQ3_XXS": [0], "IQ3_S": [0], "IQ1_S": [0],
    "IQ4_NL": [0], "IQ4_XS": [0],
}
# Scales of the three blocks of a type: ordinary, negative, and the subnormal 3 * 2^-24.
SCALES = np.array([0.0371, -1.75, 3 * 2.0**-24], dtype=np.float16)


def random_blocks(name, block_bytes, rng):
    blocks = rng.integers(0, 256, (len(SCALES), block_bytes), dtype=np.uint8)
    for at in HALVES.get(name, []):
        blocks[:, at:at + 2] = SCALES.view(np.uint8).reshape(-1, 2)
    if name == "IQ1_M":
        # The scale is the top nibbles of the four words at 48.
        words = blocks[:, 48:56].copy().view(np.uint16)
        nibbles = (SCALES.view(np.uint16)[:, None] >> np.array([0, 4, 8, 12], dtype=np.uint16)) & 15
        blocks[:, 48:56] = ((words & 0x0FFF) | (nibbles << 12)).astype(np.uint16).view(np.uint8)
    if name == "MXFP4":
        blocks[:, 0] = [0, 1, 124]
    return blocks


def plain_values(name, rng):
    x = rng.normal(size=64).astype(np.float32)
    x[:8] = [0, -0.0, 1, -2.5, 65504, 2**-24, 1e-7, 3.14159274]
    if name == "F32":
        return x
    return quants.quantize(x, GGMLQuantizationType[name])


def encode_inputs(rng):
    x = rng.normal(size=(6, 32)).astype(np.float32)
    x[1] = 0
    x[2] = np.arange(32) - 15.5          # with an amax of 127 the scale is 1 and these are ties
    x[2, 0] = -127
    x[3] *= 1e-9                         # a scale that a half cannot hold: it becomes zero
    x[4] *= 1000
    x[5, 1:] = 0
    return x.reshape(-1)


def main():
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).with_name("blocks.npz")
    rng = np.random.default_rng(20260801)
    arrays = {}
    for name in ["F32", "F16", "BF16"]:
        raw = plain_values(name, rng)
        arrays[f"{name}_raw"] = raw.view(np.uint8).reshape(1, -1)
        arrays[f"{name}_f32"] = quants.dequantize(raw, GGMLQuantizationType[name]).astype(np.float32).reshape(1, -1)
    for name in [*HALVES, "IQ1_M", "MXFP4"]:
        ty = GGMLQuantizationType[name]
        block_bytes = GGML_QUANT_SIZES[ty][1]
        raw = random_blocks(name, block_bytes, rng)
        arrays[f"{name}_raw"] = raw
        arrays[f"{name}_f32"] = quants.dequantize(raw, ty)
    x = encode_inputs(rng)
    arrays["encode_in"] = x
    for name in ["F16", "BF16", "Q8_0"]:
        encoded = quants.quantize(x, GGMLQuantizationType[name])
        arrays[f"encode_{name}"] = encoded.reshape(-1).view(np.uint8)
    np.savez(out, **arrays)
    print(f"{out}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
