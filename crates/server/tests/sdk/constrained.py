#!/usr/bin/env python3
"""Measures what constraints are worth and what they cost: random schemas, temperature 1, a running ds4-server.

usage   python3 -m venv VENV && VENV/bin/pip install jsonschema
        VENV/bin/python crates/server/tests/sdk/constrained.py [URL] [--n 1000] [--suite FOLDER] [--only TEXT] [--out FILE]

Composes N schemas, a sixth of them for each row: content or the one call of a reply, flat or nested, of one tool or of thirty. With
FOLDER (`tests/draft2020-12` of the JSON Schema Test Suite, which the source package of jsonschema has under `json`), also every
schema of the suite, as content and as a tool's argument. All are strict: what cannot be enforced is refused, and counted as that.
Every reply that ended is checked by another implementation of JSON Schema. Prints a row for each kind:

    n          requests answered           refused    400 with the place of what cannot be enforced
    ended      the reply came to its end   invalid    ended, and does not follow its schema
    first      ms between the request and its reply beside queue, prompt and tokens: compiling, above all (p50, p99)
    token      ms for a token (p50, p99)

Exit status 1 if any reply that ended is not valid.
"""
import argparse
import concurrent.futures
import datetime
import json
import pathlib
import random
import re
import time
import urllib.error
import urllib.request

from jsonschema import Draft202012Validator, FormatChecker

# RFC 3339 has a year 0, Python has none.
FORMATS = FormatChecker()
FORMATS.checks("date", raises=ValueError)(lambda text: datetime.date.fromisoformat(text.replace("0000-", "2000-", 1)))
DATE_TIME = FORMATS.checkers.get("date-time", (lambda text: True, ()))
FORMATS.checks("date-time", raises=DATE_TIME[1])(lambda text: DATE_TIME[0](re.sub("^0000-", "2000-", text)))

MODEL = "deepseek-v4-flash"
MAX_TOKENS = 300
# Requests that share their thirty tools, whose prompt is long.
SHARED = 10


class Composer:
    """Schemas with at most so many levels."""

    def __init__(self, seed):
        self.dice = random.Random(seed)

    def value(self, depth):
        dice = self.dice
        kind = dice.randrange(9 if depth == 0 else 16)
        if kind <= 1:
            return {"type": "string"}
        if kind == 2:
            return {"type": "string", "minLength": dice.randrange(4), "maxLength": dice.randrange(4, 24)}
        if kind == 3:
            return {"type": "string", "pattern": dice.choice(["^[a-z]+$", "^k[0-9]{2,4}$", "^(a|bc)+$", "^\\d+-\\w$", "x"])}
        if kind == 4:
            return {"enum": ["red", "green", "a b", 7, None]}
        if kind == 5:
            least = dice.randrange(-500, 500)
            return {"type": "integer", "minimum": least, "maximum": least + dice.randrange(900)}
        if kind == 6:
            return {"type": dice.choice([["number", "null"], "number", "integer"])}
        if kind == 7:
            return dice.choice([{"type": "boolean"}, {"const": dice.choice(["on", 0, None])}])
        if kind == 8:
            return {"type": "string", "format": dice.choice(["date", "uuid", "date-time", "email", "ipv4"])}
        if kind == 9:
            return {"type": "array", "items": self.value(depth - 1), "minItems": dice.randrange(2), "maxItems": dice.randrange(1, 5)}
        if kind == 10:
            return {"type": "array", "items": False, "minItems": 2, "prefixItems": [self.value(depth - 1), self.value(0)]}
        if kind == 11:
            return {"type": "object", "additionalProperties": self.value(depth - 1)}
        if kind == 12:
            return {"anyOf": [self.value(depth - 1), {"type": "null"}]}
        if kind == 13:
            return {"$ref": "#/$defs/" + dice.choice(["tree", "point"])}
        if kind == 14:
            return {"allOf": [{"$ref": "#/$defs/point"}, {"properties": {"y": {"maximum": 9}}}]}
        return self.object(depth)

    def object(self, depth):
        dice = self.dice
        names = [dice.choice(["name", "x", "list of", "größe"]) + str(i) for i in range(dice.randrange(1, 6))]
        return {"type": "object", "properties": {name: self.value(max(0, depth - 1)) for name in names},
                "required": [name for name in names if dice.random() < 0.5], "additionalProperties": False}

    def root(self, depth):
        node = {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]}
        return {**self.object(depth), "$defs": {
            "tree": {"type": "object", "properties": {"leaf": {"type": "boolean"}, "left": node}, "required": ["leaf", "left"],
                     "additionalProperties": False},
            "point": {"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "integer", "minimum": 0}},
                      "required": ["x", "y"]}}}


def ask(url, body):
    """The answer and the milliseconds that it took; the message of a refusal."""
    body = {"model": MODEL, "temperature": 1, "max_tokens": MAX_TOKENS, "reasoning_effort": "none", **body}
    request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    began = time.monotonic()
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.load(answer), (time.monotonic() - began) * 1000
    except urllib.error.HTTPError as error:
        return json.load(error)["error"]["message"], None


def content(schema):
    named = {"name": "s", "strict": True, "schema": schema}
    return {"messages": [{"role": "user", "content": "Write JSON."}], "response_format": {"type": "json_schema", "json_schema": named}}


def call(schemas):
    tools = [{"type": "function", "function": {"name": f"tool_{i}", "strict": True, "parameters": schema}} for i, schema in enumerate(schemas)]
    return {"messages": [{"role": "user", "content": "Call a tool."}], "tools": tools, "tool_choice": "required", "parallel_tool_calls": False}


class Row:
    def __init__(self, name):
        self.name, self.n, self.n_refused, self.n_ended, self.n_bad = name, 0, 0, 0, 0
        self.first, self.token, self.n_tokens = [], [], 0
        self.findings = []

    def take(self, schemas, answer, ms):
        if ms is None:
            self.n_refused += 1
            self.findings.append({"refused": answer})
            return
        self.n += 1
        choice, timings = answer["choices"][0], answer["timings"]
        self.n_tokens += timings["predicted_n"]
        self.first.append(ms - timings["queue_ms"] - timings["prompt_ms"] - timings["predicted_ms"])
        if timings["predicted_n"]:
            self.token.append(timings["predicted_ms"] / timings["predicted_n"])
        calls = choice["message"].get("tool_calls") or []
        if choice["finish_reason"] not in ("stop", "tool_calls"):
            self.findings.append({"cut": choice["message"], "schema": schemas[0]})
            return
        self.n_ended += 1
        if calls:
            function = calls[0]["function"]
            schema, text = schemas[int(function["name"].removeprefix("tool_"))], function["arguments"]
        else:
            schema, text = schemas[0], choice["message"]["content"]
        try:
            errors = Draft202012Validator(schema, format_checker=FORMATS).iter_errors(json.loads(text))
            first = next(errors, None)
            why = first and first.message
        except ValueError as error:
            why = f"no JSON: {error}"
        if why:
            self.n_bad += 1
            self.findings.append({"why": why, "schema": schema, "text": text})
            print(f"{self.name}: {why[:200]}\n  {json.dumps(schema)[:400]}\n  {text[:300]}", flush=True)

    def __str__(self):
        def at(values, share):
            return sorted(values)[int((len(values) - 1) * share)] if values else 0

        times = [f"{at(values, share):8.1f}" for values in (self.first, self.token) for share in (0.5, 0.99)]
        return (f"{self.name:<28} {self.n:>6} {self.n_refused:>8} {100 * self.n_ended / max(1, self.n):>7.1f}% {self.n_bad:>8} {' '.join(times)} "
                f"{self.n_tokens:>8}")


def suite(folder):
    """Every schema that is an object, with the file that it is from."""
    for path in sorted(pathlib.Path(folder).glob("*.json")):
        for group in json.loads(path.read_text()):
            if isinstance(group["schema"], dict):
                schema = dict(group["schema"])
                schema.pop("$schema", None)
                yield schema


def refers(value):
    if isinstance(value, dict):
        return any(name in ("$ref", "$dynamicRef", "$id", "$anchor") for name in value) or any(map(refers, value.values()))
    return isinstance(value, list) and any(map(refers, value))


def main():
    options = argparse.ArgumentParser()
    options.add_argument("url", nargs="?", default="http://127.0.0.1:8000")
    options.add_argument("--n", type=int, default=1000)
    options.add_argument("--suite")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--only", default="")
    options.add_argument("--out")
    options = options.parse_args()
    rows = []
    composer = Composer(options.seed)
    n = -(-options.n // 6)
    for name, depth, n_tools in [("content, flat", 0, 0), ("content, nested", 3, 0), ("a call, flat, 1 tool", 0, 1),
                                 ("a call, nested, 1 tool", 3, 1), ("a call, flat, 30 tools", 0, 30), ("a call, nested, 30 tools", 3, 30)]:
        asked = []
        for i in range(n):
            if n_tools < 30 or i % SHARED == 0:
                schemas = [composer.root(depth) for _ in range(max(1, n_tools))]
            asked.append((schemas, call(schemas) if n_tools else content(schemas[0])))
        rows.append((name, asked))
    if options.suite:
        every = list(suite(options.suite))
        rows.append(("the suite, content", [([schema], content(schema)) for schema in every]))
        wrapped = [{"type": "object", "properties": {"value": schema}, "required": ["value"], "additionalProperties": False}
                   for schema in every if not refers(schema)]
        rows.append(("the suite, an argument", [([schema], call([schema])) for schema in wrapped]))
    print(f"{'replies':<28} {'n':>6} {'refused':>8} {'ended':>8} {'invalid':>8} {'first50':>8} {'first99':>8} {'token50':>8} {'token99':>8} {'tokens':>8}")
    n_bad = 0
    findings = {}
    for name, asked in rows:
        if options.only not in name:
            continue
        row = Row(name)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            answers = pool.map(lambda one: ask(options.url, one[1]), asked)
            for (schemas, _), (answer, ms) in zip(asked, answers):
                row.take(schemas, answer, ms)
        print(row, flush=True)
        n_bad += row.n_bad
        findings[name] = row.findings
    if options.out:
        pathlib.Path(options.out).write_text(json.dumps(findings, indent=1))
    return int(n_bad > 0)


if __name__ == "__main__":
    raise SystemExit(main())
