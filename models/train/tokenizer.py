"""Trains the byte-level BPE on text of the data program and writes tokenizer.json.

    python tokenizer.py OUT.json [VOCABULARY_SIZE]

Digits are kept apart while training, so no merge contains two of them and every number is written digit by digit;
the splitter of the finished tokenizer is the model family's own.
"""

from __future__ import annotations

import random
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from chat import render
from data import Mix, conversation

SPECIAL = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"]
PROTOCOL = ["<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>", "<｜User｜>", "<｜Assistant｜>", "<|EOT|>", "<think>", "</think>", "｜DSML｜", "<｜latest_reminder｜>",
            "<｜action｜>", "<｜query｜>", "<｜authority｜>", "<｜domain｜>", "<｜title｜>", "<dsml:", "</dsml:", "<｜extracted_url｜>", "<｜read_url｜>"]
SPLITS = [
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
]


def splitter(single_digits: bool):
    steps = [pre_tokenizers.Digits(individual_digits=True)] if single_digits else []
    steps += [pre_tokenizers.Split(Regex(s), "isolated") for s in SPLITS]
    return pre_tokenizers.Sequence(steps + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def corpus(n: int):
    rng = random.Random(77)
    mix = Mix(((1.0, 100, 1200),))
    for _ in range(n):
        text = render(*conversation(rng, rng.choice((100, 100, 200, 300, 600, 1000)), mix))
        head, marker, tail = text.partition("## Tools\n\nYou have access to a set")
        if marker and rng.random() < 0.7:  # the fixed block should not crowd out ordinary words
            tail = tail[tail.index("### Available Tool Schemas") :]
        yield head + tail


def main() -> None:
    size = int(sys.argv[2]) if len(sys.argv) > 2 else 2048
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = splitter(True)
    texts = []
    for text in corpus(9000):
        for marker in SPECIAL + PROTOCOL:
            text = text.replace(marker, "\n")
        texts.append(text)
    trainer = trainers.BpeTrainer(vocab_size=size - len(PROTOCOL), special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    t.train_from_iterator(texts, trainer)
    t.pre_tokenizer = splitter(False)
    t.decoder = decoders.ByteLevel()
    t.add_tokens([AddedToken(s, normalized=False, special=False) for s in PROTOCOL])
    assert t.get_vocab_size() == size, t.get_vocab_size()
    assert all(sum(c.isdigit() for c in token) <= 1 for token in t.get_vocab())
    t.save(sys.argv[1])
    n = sum(len(x) for x in texts[:500])
    print("characters per token", n / sum(len(e.ids) for e in t.encode_batch(texts[:500], add_special_tokens=False)))


if __name__ == "__main__":
    main()
