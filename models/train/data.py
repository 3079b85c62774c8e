"""Conversations for training: mixed skills, system texts, tool schemas, filler; tokenised and packed into rows."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

import skills
from chat import ASSISTANT, EOS, PAD, render
from tools import choose
from words import *

SYSTEM = p("""You are a helpful assistant., You are ds4., Answer briefly., Be kind., You are a helpful assistant. Answer in short sentences., Help the user., You are a coding agent.,
You are an assistant in a terminal., Be concise and correct., Always answer in English., You are a careful assistant that uses tools., Today is Monday., Do your best.""")


@dataclass(frozen=True)
class Mix:
    """How long the documents of a stage are: (share, tokens from, tokens to)."""

    lengths: tuple[tuple[float, int, int], ...]
    chars_per_token: float = 2.9


def system_text(rng: random.Random, n_chars: int) -> str | None:
    if n_chars > 300:
        return rng.choice(("\n\n", "\n")).join(([rules(rng)] if rng.random() < 0.5 else []) + filler(rng, n_chars))
    r = rng.random()
    return None if r < 0.45 else "" if r < 0.5 else rng.choice(SYSTEM) if r < 0.8 else rules(rng)


def small_turn(rng: random.Random) -> list[dict]:
    r = rng.random()
    if r < 0.13:
        return skills.greet(rng)
    if r < 0.48:
        return skills.program(rng)
    if r < 0.74:
        return skills.add(rng)
    if r < 0.88:
        return skills.other(rng)
    if r < 0.94:
        return skills.repeat(rng)
    return skills.code_words(rng, rng.randrange(0, 200))


def conversation(rng: random.Random, n_tokens: int, mix: Mix) -> tuple[list[dict], bool, str | None]:
    """Messages of about n_tokens tokens, whether thinking is on, the effort prefix."""
    thinking = rng.random() < 0.5
    effort = rng.choice((None,) * 12 + ("absolute", "beyond")) if thinking and n_tokens > 250 else None
    n_chars = int(n_tokens * mix.chars_per_token)
    kind = rng.random()
    messages: list[dict] = []

    if kind < 0.45 and n_tokens > 450:  # tools
        room = n_chars - 1500
        n_tools = rng.choice((1, 1, 2, 2, 3, 4, 6, 9)) if room > 800 else rng.choice((1, 2, 2, 3))
        long = room > 1500 and rng.random() < 0.3
        tools = choose(rng, n_tools)
        schemas = [t.schema(rng, long) for t in tools]
        room -= sum(len(str(s)) for s in schemas)
        text_chars = rng.randrange(0, max(1, room - 600)) if room > 900 and rng.random() < 0.6 else 0
        messages.append({"role": "system", "content": system_text(rng, text_chars) or "", "tools": schemas})
        room -= text_chars
        turns = 0
        while room > 0 or turns == 0:
            r = rng.random()
            turn = skills.call(rng, tools, 2 if r < 0.04 else 1) if r < 0.78 else small_turn(rng)
            size = sum(len(m["content"]) + 2 * len(m.get("reasoning") or "") * thinking + 120 * ("tool_calls" in m) for m in turn)
            if turns and size > room:
                break
            messages += turn
            room -= size
            turns += 1
            if rng.random() < 0.12:
                break
        return messages, thinking, effort

    room = n_chars
    if kind < 0.66 and n_tokens > 150:  # a text with planted words
        questions = rng.choice((1, 1, 1, 2, 3, 5)) if n_tokens < 500 else rng.choice((1, 2, 4, 6, 8))
        text_chars = max(0, int((room - 60 * questions) * rng.uniform(0.6, 1.0)))
        if rng.random() < 0.3:
            secrets = skills.Secrets(rng, min(questions, 6))
            messages.append({"role": "system", "content": skills.plant(rng, filler(rng, text_chars), secrets.plants(rng))})
            for _ in range(questions):
                ask, reply = secrets.question(rng)
                messages += [skills.user(ask), reply] if rng.random() < 0.85 else small_turn(rng)
        else:
            system = system_text(rng, 0)
            if system is not None:
                messages.append({"role": "system", "content": system})
            if rng.random() < 0.2:
                messages += small_turn(rng)
            messages += skills.code_words(rng, text_chars, questions)
        return messages, thinking, effort

    text_chars = rng.randrange(300, n_chars) if n_tokens > 250 and rng.random() < 0.6 else 0
    system = system_text(rng, text_chars)
    if system is not None:
        messages.append({"role": "system", "content": system})
        room -= len(system)
    single = rng.random() < 0.3
    name, asking = None, None
    while True:
        r = rng.random()
        if asking and r < 0.25:
            turn, asking = asking, None
        elif name and r < 0.35:
            turn = skills.ask_name(rng, name)
        elif r < 0.06:
            turn, asking = skills.remember(rng)
        else:
            turn = small_turn(rng)
            reply = turn[-1]["content"]
            if reply.startswith("Hello ") and ", nice to meet you" in reply:
                name = reply[6 : reply.index(",")]
        messages += turn
        room -= sum(len(m["content"]) + 12 for m in turn)
        if single or room < 60:
            return messages, thinking, effort


class Packer:
    """Rows of documents, each document at a multiple of 128; what does not belong to one is marked -1."""

    ALIGN = 128

    def __init__(self, tokenizer, n_tokens: int, mix: Mix, seed: int):
        self.tokenizer, self.n_tokens, self.mix = tokenizer, n_tokens, mix
        self.rng = random.Random(seed)
        self.assistant = tokenizer.token_to_id(ASSISTANT)
        self.eos, self.pad = tokenizer.token_to_id(EOS), tokenizer.token_to_id(PAD)
        self.waiting: list[np.ndarray] = []

    def document(self, limit: int) -> np.ndarray:
        rng, mix = self.rng, self.mix
        r, acc = rng.random(), 0.0
        for share, low, high in mix.lengths:
            acc += share
            if r < acc:
                break
        n = rng.randrange(low, high)
        while True:
            messages, thinking, effort = conversation(rng, n, mix)
            ids = self.tokenizer.encode(render(messages, thinking, effort), add_special_tokens=False).ids
            if len(ids) <= limit:
                return np.array(ids, dtype=np.int32)
            n = max(40, int(n * 0.8))

    def row(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """tokens, document number, position, target weight (1 where the next token is the assistant's)."""
        t = self.n_tokens
        tokens = np.full(t, self.pad, dtype=np.int32)
        doc = np.full(t, -1, dtype=np.int32)
        position = np.zeros(t, dtype=np.int32)
        said = np.zeros(t, dtype=np.int8)
        at, number = 0, 0
        while t - at >= self.ALIGN:
            room = t - at
            ids = next((d for d in self.waiting if len(d) <= room), None)
            if ids is None:
                if len(self.waiting) > 40:
                    break
                ids = self.document(t)
                if len(ids) > room:
                    self.waiting.append(ids)
                    continue
            else:
                self.waiting = [d for d in self.waiting if d is not ids]
            n = len(ids)
            end = min(t, at + -(-n // self.ALIGN) * self.ALIGN)
            tokens[at : at + n] = ids
            doc[at:end] = number
            position[at:end] = np.arange(end - at)
            said[at : at + n] = self.mask(ids)
            at, number = end, number + 1
        # A target exists inside a document only; 2 marks the user's and the system's tokens.
        weight = np.zeros(t, dtype=np.int8)
        inside = (doc[1:] == doc[:-1]) & (doc[1:] >= 0) & (tokens[1:] != self.pad)
        weight[:-1] = np.where(inside, np.where(said[1:] > 0, 1, 2), 0)
        return tokens, doc, position, weight

    def mask(self, ids: np.ndarray) -> np.ndarray:
        """1 on tokens that the assistant writes: from after the think token to the end of sentence, inclusive."""
        out = np.zeros(len(ids), dtype=np.int8)
        start = None
        for i in np.flatnonzero((ids == self.assistant) | (ids == self.eos)):
            if ids[i] == self.assistant:
                start = i + 2
            elif start is not None:
                out[start : i + 1] = 1
                start = None
        return out


def batches(tokenizer, rows: int, n_tokens: int, mix: Mix, seed: int):
    packer = Packer(tokenizer, n_tokens, mix, seed)
    while True:
        yield tuple(np.stack(x) for x in zip(*(packer.row() for _ in range(rows))))


if __name__ == "__main__":
    import sys

    rng = random.Random(int(sys.argv[1]))
    mix = Mix(((1.0, int(sys.argv[2]), int(sys.argv[2]) + 100),))
    for _ in range(int(sys.argv[3])):
        print(render(*conversation(rng, rng.randrange(int(sys.argv[2]) // 2, int(sys.argv[2])), mix)))
        print("=" * 100)
