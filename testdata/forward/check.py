"""Compare an engine's logits with the stored ones.

    python check.py FILE.f32 NAME

FILE.f32 holds little-endian f32 `[n_tokens, n_vocab]`, row by row: the logits after each token of
NAME/tokens.json. Exits with 1 when a logit is off by more than the tolerance or an argmax differs.
"""

import argparse
import os
import sys

import numpy as np


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", metavar="FILE.f32")
    parser.add_argument("name", metavar="NAME", help="a folder beside this script")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="absolute, default %(default)s")
    args = parser.parse_args()

    stored = np.load(os.path.join(os.path.dirname(os.path.abspath(__file__)), args.name, "logits.npy"))
    found_bytes = os.path.getsize(args.file)
    if found_bytes != stored.nbytes:
        n_tokens, n_vocab = stored.shape
        sys.exit(
            f"{args.file}: found {found_bytes} bytes, expected {stored.nbytes} "
            f"({n_tokens} tokens x {n_vocab} logits x 4)"
        )
    mine = np.fromfile(args.file, "<f4").reshape(stored.shape)

    difference = np.abs(mine - stored)
    # A NaN compares as neither small nor large; count it as infinitely far.
    difference[np.isnan(difference)] = np.inf
    position, token = np.unravel_index(difference.argmax(), difference.shape)
    same = mine.argmax(-1) == stored.argmax(-1)
    far = np.flatnonzero((difference > args.tolerance).any(axis=-1))
    print(
        f"max abs difference {difference.max():.3e} at position {position}, token {token} "
        f"(found {mine[position, token]}, expected {stored[position, token]})"
    )
    print(f"argmax agrees at {same.sum()}/{len(same)} positions" + ("" if same.all() else f", first not at {np.flatnonzero(~same)[0]}"))
    if len(far):
        print(f"{len(far)} positions differ by more than {args.tolerance:g}, first {far[0]}")
    sys.exit(0 if same.all() and not len(far) else 1)


if __name__ == "__main__":
    main()
