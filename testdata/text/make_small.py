#!/usr/bin/env python3
"""Write small_tokenizer.json and small_cases.jsonl: a vocabulary of a few hundred tokens with the
algorithm, the splitter and the protocol tokens of the published one, and strings with the ids that
the reference library gives for them.

usage: pip install tokenizers==0.23.3 && python3 make_small.py
"""
import json
import random
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers

HERE = Path(__file__).parent
N_ORDINARY = 640

CORPUS = """
The engine reads a file, opens a session and answers a question. Weights are mapped into memory;
nothing is copied that can be shared. A prompt is rendered, split into pieces, and every piece is
merged until no pair of tokens has a rule. The answer comes back token by token, and the text that
it makes is held back where a later byte could still change what it means.

Il motore legge un file, apre una sessione e risponde a una domanda. La città è grande, perché no?
Der Motor liest eine Datei, öffnet eine Sitzung und beantwortet eine Frage; größer geht es kaum.
Двигатель читает файл, открывает сеанс и отвечает на вопрос. 引擎读取文件，打开会话，回答问题。
エンジンはファイルを読み、セッションを開いて、質問に答えます。모델은 질문에 답합니다. 😀 👍🏽 naïve café

fn main() {
    let mut total: u64 = 0;
    for (index, value) in values.iter().enumerate() {
        total += value * index as u64; // 0x1f, 1_000, 3.14159
    }
    println!("{total}");
}

def render(messages, thinking=True):
    return "".join(m["content"] for m in messages if m.get("role") != "tool")

{"name": "lookup", "parameters": {"type": "object", "properties": {"key": {"type": "string"}}}}
<tool_result>1234567890</tool_result> <p>a &amp; b</p> https://example.org/path?q=1&r=2#top
"""

# Special ones are cut out first, as in the published file; the ids are not those of that file.
SPECIAL = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<｜place▁holder▁no▁0｜>"]
NOT_NORMALIZED = ["<｜/table>｜", "<｜table｜>"]
NORMALIZED = [
    "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "｜DSML｜", "<｜latest_reminder｜>",
    "<｜action｜>", "<｜query｜>", "<｜authority｜>", "<｜domain｜>", "<｜title｜>",
    "<｜extracted_url｜>", "<｜read_url｜>", "<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>",
    "<dsml:", "</dsml:",
]  # fmt: skip

# Those of the splitter, byte for byte.
PATTERNS = [
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*"
    "|\\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
]


def build():
    tokenizer = Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in PATTERNS]
    bytes_step = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, bytes_step])
    trainer = trainers.BpeTrainer(
        vocab_size=N_ORDINARY,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in NOT_NORMALIZED])
    tokenizer.add_tokens([AddedToken(t, normalized=True) for t in NORMALIZED])
    return tokenizer


def texts():
    yield ""
    yield CORPUS
    yield from CORPUS.split("\n\n")
    for marker in SPECIAL + NOT_NORMALIZED + NORMALIZED:
        yield marker
        yield f"a{marker} b"
        yield f"{marker}{marker[:-1]} {marker[1:]}"
    yield "<｜/table>｜DSML｜"
    yield "<｜/table>｜DSML｜DSML｜"
    yield "<<think>think></think>"
    # Pieces around the borders of the splitter's rules.
    yield from [
        "x=1", "a  b", "。\n\n", "a・b", "  \n  x", "\r\n\r\n", " \u3000中", "1234567", "१२३४",
        "x\u0301\u0301y", "\u0301", " \u0301", "\u200b\u200bx", "\ue000\ue000!", "!a!!a", " !", "  !",
        "\t\tx", "\x85x", "\u2028\n", "½¾", "a_b-c", "don't", "\x00\x01a", "중한中カナ", "\ufeffx",
        "ab" * 40, " " * 50 + "x", "the " * 30, "\U0001fae9", "\U00010d40\U00010d41",
    ]  # fmt: skip
    rng = random.Random(20)
    alphabet = list("  \n\r\tabcTHE019.,;:!?<>|/&\"'=_-") + [
        "é", "ß", "я", "中", "文", "の", "カ", "・", "한", "😀", "\u0301", "\u200b", "\u3000", "\xa0",
        "｜", "▁", "½", "\U0001f3fd", "\ue000", "\U00020bb7", "think", "DSML", " the", "in", "\x85",
        "<think>", "｜DSML｜", "<｜User｜>", "<｜/table>｜",
    ]  # fmt: skip
    for _ in range(200):
        yield "".join(rng.choice(alphabet) for _ in range(rng.randrange(1, 60)))


def main():
    tokenizer = build()
    document = json.loads(tokenizer.to_str())
    with open(HERE / "small_tokenizer.json", "w", encoding="utf-8") as f:
        json.dump(document, f, ensure_ascii=False, indent=0, separators=(",", ":"))
        f.write("\n")
    with open(HERE / "small_cases.jsonl", "w", encoding="utf-8") as f:
        for i, text in enumerate(texts()):
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            f.write(json.dumps({"id": f"small-{i:03}", "text": text, "ids": ids}) + "\n")


main()
