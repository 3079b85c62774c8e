#!/usr/bin/env python3
"""Checks constrained replies by another implementation of JSON Schema.

usage   python3 -m venv VENV && VENV/bin/pip install jsonschema
        cargo bench -p ds4-server --bench constrained -- 1000 OUT.jsonl
        VENV/bin/python crates/server/tests/sdk/schemas.py OUT.jsonl

Every line of OUT.jsonl has a schema, the text of a reply, and whether the reply ended. Prints the replies that ended and are not valid,
and a summary; exit status 1 if there is any.
"""
import json
import sys

from jsonschema import Draft202012Validator, FormatChecker


def fault(schema, text):
    """Why a text does not follow its schema; None if it does."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"no JSON: {error}"
    errors = Draft202012Validator(schema, format_checker=FormatChecker()).iter_errors(value)
    first = next(errors, None)
    return first and first.message


def main():
    n, n_bad, n_cut = 0, 0, 0
    for line in open(sys.argv[1], encoding="utf-8"):
        pair = json.loads(line)
        n += 1
        why = fault(pair["schema"], pair["text"])
        if why and pair["ended"]:
            n_bad += 1
            print(f"{why[:300]}\n  {pair['text'][:300]}")
        elif why:
            n_cut += 1
    print(f"{n} replies, {n_bad} not valid, {n_cut} cut short")
    return int(n_bad > 0)


if __name__ == "__main__":
    sys.exit(main())
