"""Measures the success of a checkpoint or GGUF file on the prompts of eval_prompts.py.

    python evaluate.py PROMPTS.jsonl MODEL [--quantise] [--failures N]

MODEL is checkpoint.npz or a .gguf; --quantise rounds the matrices of a checkpoint as the Q8_0 file does. Greedy
replies, cache rounding and index selection as in the engine. A reply equal to the expected one at every token needs no
decoding: greedy decoding would produce exactly it. The others are decoded and checked.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re

import numpy as np
import torch
from tokenizers import Tokenizer

import names
from chat import DSML, END_THINK, EOS
from decode import Sequence
from network import Config, Network

HERE = pathlib.Path(__file__).parent


def q8_0(x: np.ndarray) -> np.ndarray:
    """Round trip through Q8_0: blocks of 32, f16 scale amax/127, round half away from zero."""
    b = x.astype(np.float32).reshape(-1, 32)
    d = np.abs(b).max(1, keepdims=True) / 127
    q = np.divide(b, d, out=np.zeros_like(b), where=d > 0)
    q = np.sign(q) * np.floor(np.abs(q) + 0.5)
    return (q * d.astype(np.float16).astype(np.float32)).reshape(x.shape)


def load(net: Network, path: str, quantise: bool) -> None:
    if path.endswith(".gguf"):
        from prove import read_gguf

        names.load(net, read_gguf(path))
        return
    out = {}
    for k, v in np.load(path).items():
        if v.dtype.kind != "f":
            out[k] = torch.from_numpy(v.astype(np.int64))
        else:
            kind = names.kind_of(k, v.shape, "q8_0" if quantise else "f16")
            v = q8_0(v) if kind == "q8_0" else v.astype(np.float32)
            out[k] = torch.from_numpy(v)
    names.load(net, out)


def parse(reply: str, thinking: bool) -> tuple[str, str, list[dict] | None]:
    """reasoning, content, tool calls (None when the block is not well-formed)."""
    reasoning = ""
    if thinking:
        reasoning, marker, reply = reply.partition(END_THINK)
        if not marker:
            return reasoning, "", None
    content, marker, block = reply.partition(f"\n\n<{DSML}tool_calls>\n")
    if not marker:
        return reasoning, content, []
    end = f"\n</{DSML}tool_calls>"
    if not block.endswith(end):
        return reasoning, content, None
    calls, rest = [], block[: -len(end)] + "\n"
    while rest:
        m = re.match(rf'<{DSML}invoke name="([^"]*)">\n(.*?)\n?</{DSML}invoke>\n', rest, re.S)
        if not m:
            return reasoning, content, None
        arguments, inner = {}, m.group(2)
        while inner.strip("\n"):
            a = re.match(rf'<{DSML}parameter name="([^"]*)" string="(true|false)">(.*?)</{DSML}parameter>\n?', inner, re.S)
            if not a:
                return reasoning, content, None
            try:
                arguments[a.group(1)] = a.group(3) if a.group(2) == "true" else json.loads(a.group(3))
            except ValueError:
                return reasoning, content, None
            inner = inner[a.end() :]
        calls.append({"name": m.group(1), "arguments": arguments})
        rest = rest[m.end() :]
    return reasoning, content, calls


def right(case: dict, reply: str, ended: bool) -> bool:
    reasoning, content, calls = parse(reply, case["thinking"])
    if not ended or calls is None or (case["thinking"] and not reasoning.strip()):
        return False
    if "tool_calls" in case["check"]:
        return calls == case["check"]["tool_calls"]
    return not calls and all(s in content for s in case["check"]["contains"])


def main() -> None:
    a = argparse.ArgumentParser()
    a.add_argument("prompts")
    a.add_argument("model")
    a.add_argument("--quantise", action="store_true")
    a.add_argument("--failures", type=int, default=0)
    a.add_argument("--most", type=int, default=250, help="tokens of a reply at most")
    a.add_argument("--threads", type=int, default=1)
    a.add_argument("--limit", type=int, help="prompts per skill")
    args = a.parse_args()
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = Network(Config())
    load(net, args.model, args.quantise)
    net.to(device)
    tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))

    def encode(s: str) -> list[int]:
        return tokenizer.encode(s, add_special_tokens=False).ids

    cases, per = [], {}
    for line in open(args.prompts, encoding="utf-8"):
        c = json.loads(line)
        per[c["skill"]] = per.get(c["skill"], 0) + 1
        if not args.limit or per[c["skill"]] <= args.limit:
            cases.append(c)
    eos = tokenizer.token_to_id(EOS)

    def answer(c: dict) -> None:
        """One greedy reply; decoded only from where it leaves the expected one."""
        n = len(c["ids"])
        said = Sequence(net).prefill(c["ids"] + c["want"]).argmax(-1)[n - 1 : -1].tolist()
        wrong = next((i for i, (x, y) in enumerate(zip(said, c["want"])) if x != y), None)
        if wrong is None:
            c["said"], c["ended"] = said[:-1], True
            return
        c["said"] = said[:wrong]
        sequence = Sequence(net)
        top = sequence.prefill(c["ids"] + c["said"])[-1].argmax().item()
        while top != eos and len(c["said"]) < args.most:
            c["said"].append(top)
            top = sequence.step(top).argmax().item()
        c["ended"] = top == eos

    for c in cases:
        c["ids"] = encode(c["prompt"])
        c["want"] = encode(c["expected"]) + [eos]
        answer(c)
    score: dict[str, list[int]] = {}
    shown: dict[str, int] = {}
    for c in cases:
        reply = tokenizer.decode(c["said"], skip_special_tokens=False)
        ok = right(c, reply, c["ended"])
        got = score.setdefault(c["skill"], [0, 0, 0])
        got[0] += ok
        got[1] += 1
        got[2] += len(c["ids"])
        if not ok and shown.get(c["skill"], 0) < args.failures:
            shown[c["skill"]] = shown.get(c["skill"], 0) + 1
            print(f"--- {c['skill']} ({'thinking' if c['thinking'] else 'direct'}): ...{c['prompt'][-150:]!r}\n    wanted {c['expected']!r}\n    said   {reply!r}")
    print("| skill | prompts | mean tokens of a prompt | right |")
    print("| --- | --- | --- | --- |")
    for skill, (n, of, tokens) in score.items():
        print(f"| {skill} | {of} | {tokens // of} | {100 * n / of:.0f}% |")


if __name__ == "__main__":
    main()
