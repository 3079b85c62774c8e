#!/usr/bin/env python3
"""Write src/splitter/classes.rs: the Unicode 16.0 classes that the splitter needs.

usage: pip install unicodedata2==16.0.0 && python3 generate.py > ../src/splitter/classes.rs

The class of a character is the first letter of its general category, for the five
majors L, M, N, P and S. Everything else (separators, controls, formats, private use,
unassigned) has no row. The version is fixed because the vocabulary was trained with it:
another version would give other token ids.
"""
import sys

import unicodedata2

VERSION = "16.0.0"
MAJORS = "LMNPS"
PER_LINE = 6

if unicodedata2.unidata_version != VERSION:
    sys.exit(f"found Unicode {unicodedata2.unidata_version}, expected {VERSION}")

rows = []
for code in range(0x80, 0x110000):
    major = unicodedata2.category(chr(code))[0]
    if major not in MAJORS:
        continue
    if rows and rows[-1][1] == code - 1 and rows[-1][2] == major:
        rows[-1][1] = code
    else:
        rows.append([code, code, major])

print(f"// Unicode {VERSION}, written by unicode/generate.py; do not edit.")
print()
print("use super::Class::{self, Letter as L, Mark as M, Number as N, Punctuation as P, Symbol as S};")
print()
print("/// First and last character of a run, and its class; ascending, from U+0080 on.")
print("#[rustfmt::skip]")
print(f"pub(super) static CLASSES: [(u32, u32, Class); {len(rows)}] = [")
for at in range(0, len(rows), PER_LINE):
    line = " ".join(f"(0x{a:04x}, 0x{b:04x}, {major})," for a, b, major in rows[at : at + PER_LINE])
    print(f"    {line}")
print("];")
