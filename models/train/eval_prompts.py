"""Fresh prompts for every skill, with what a right reply must hold.

    python eval_prompts.py OUT.jsonl [PROMPTS_PER_SKILL] [SEED]

Each line: id, skill, thinking, messages, prompt (the rendered text), expected (the reply the data program would write)
and check: `contains` (every string must occur in the answer after the reasoning) or `tool_calls` (names and arguments
must be equal). A reply counts only when it ends by itself, and in thinking mode only when it has reasoning.
Names, numbers, words, tools and wordings come from lists that the training data never uses.
"""

from __future__ import annotations

import json
import random
import sys

import skills
from chat import DSML, END_THINK, render, tool_calls_text
from facts import FACTS
from tools import KINDS, UNSEEN, Tool, result
from words import *

GREETINGS = p("""Hi there, computer!, Hello small model., Good evening to you, A very good morning!, hey, anybody home?, HELLO THERE, hullo, Greetings, machine., Hi! I just installed this., Well hello,
Hey model, Hello? Is this on?, hi hi hi, Hello from my laptop, good afternoon everyone""".replace("hey, anybody", "hey - anybody").replace("Greetings, machine", "Greetings machine"))
INTRODUCTIONS = ["Hello, people call me {x}.", "Good day! The name is {x}.", "Hi model, I am {x}", "hey, {x} here", "Hello! You can call me {x}, nice to meet you."]
SUMS = ["Could you kindly total {a} and {b} for me?", "{a} plus {b} makes what?", "I wonder what {a} + {b} might be.", "Quickly: {a} + {b}", "So, {a} + {b}?", "Take {a}, add {b}, and tell me the result.",
        "My basket has {a} eggs. I put in {b} eggs. How many eggs are in it?", "What would {a} + {b} come to?", "Give the total when {b} is added to {a}.", "{a} + {b}, please."]
PLANTS = ["Everyone should know that the code word is {x}.", "The code word is {x}.", "Listen: the code word is {x}!", "It was agreed that the code word is {x}.", "Write it down, the code word is {x}."]
ASKS = ["What is the code word?", "Which code word did you see in the text?", "Somewhere above there is a code word. What is it?", "Tell me the code word that the text mentions.", "Please give me the code word."]
OTHERS = ["Who wrote Hamlet?", "How do I repair my bicycle chain?", "What is the tallest mountain in Africa?", "Compose a limerick on autumn.", "Which team won yesterday?", "Is coffee healthy?", "Describe the French Revolution.",
          "Why do cats purr?", "What should I cook tonight?", "Give me investment advice.", "How many moons does Jupiter have?", "Who painted the Mona Lisa?", "Sing me a lullaby.", "Tell me a joke about lawyers.", "What is photosynthesis?"]


class Case:
    def __init__(self, skill, thinking, messages, reply, check):
        self.skill, self.thinking, self.messages, self.reply, self.check = skill, thinking, messages, reply, check

    def prompt(self) -> str:
        return render(self.messages, self.thinking)

    def expected(self) -> str:
        body = self.reply["content"] + (tool_calls_text(self.reply["tool_calls"]) if self.reply.get("tool_calls") else "")
        return (self.reply["reasoning"] + END_THINK if self.thinking else "") + body


def long_system(rng, n_chars):
    return {"role": "system", "content": "\n\n".join([rules(rng)] + filler(rng, n_chars, unseen=True))}


def case_text(rng, n_chars):
    x = rng.choice((code_word(rng), invented(rng, 3).capitalize(), f"{invented(rng, 2)}-{rng.randrange(10, 99)}"))
    text = skills.plant(rng, filler(rng, n_chars, unseen=True), [rng.choice(PLANTS).replace("{x}", x)])
    return x, text


def build(seed: int, n: int, tokens_of) -> list[Case]:
    """tokens_of(text) gives the number of tokens, to plant words in prompts of a known length."""
    rng = random.Random(seed)
    out: list[Case] = []

    def put(skill, messages, reply, check, thinking=None):
        out.append(Case(skill, rng.random() < 0.5 if thinking is None else thinking, messages, reply, check))

    for i in range(n):
        if i % 3 == 0:
            x = rng.choice(UNSEEN_NAMES)
            put("greeting", [skills.user(rng.choice(INTRODUCTIONS).replace("{x}", x))], skills.answer(f"Hello {x}, nice to meet you. How can I help you?", f"The user is called {x}."), {"contains": ["Hello", x]})
        else:
            put("greeting", [skills.user(rng.choice(GREETINGS))], skills.answer(skills.HELLO, "The user greets me."), {"contains": ["Hello!", "help"]})

    questions = [(q + ("?" if not q.endswith("?") and rng.random() < 0.5 else ""), f) for f in FACTS for q in f.unseen]
    rng.shuffle(questions)
    for q, f in questions[:n]:
        put("questions about ds4", [skills.user(q[0].upper() + q[1:])], skills.answer(f.answer, f"This is a question about {f.topic}."), {"contains": [f.answer]})
    for q, f in questions[:n]:
        put("the same after a long system text", [long_system(rng, 3500), skills.user(q[0].upper() + q[1:])], skills.answer(f.answer, f"This is a question about {f.topic}."), {"contains": [f.answer]})

    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100) if skills.unseen_pair(a, b)]
    for thinking in (False, True):
        for a, b in rng.sample(pairs, n):
            text = rng.choice(SUMS)
            if text.index("{b}") < text.index("{a}"):
                a, b = b, a
                text = text.replace("{a}", "{t}").replace("{b}", "{a}").replace("{t}", "{b}")
            reasoning, reply = skills.sum_words(a, b)
            put("sums, thinking" if thinking else "sums, direct", [skills.user(text.replace("{a}", str(a)).replace("{b}", str(b)))], skills.answer(reply, reasoning), {"contains": [f"= {a + b}."]}, thinking)

    for i in range(n):
        n_chars, (x, text) = 4200, case_text(rng, 4200)
        while abs(tokens_of(text) - 1480) > 25:  # a prompt of 1,500 tokens
            n_chars = int(n_chars * 1480 / tokens_of(text) * rng.uniform(0.99, 1.01))
            x, text = case_text(rng, n_chars)
        ask = rng.choice(ASKS)
        reply = skills.answer(f"The code word is {x}.", f"The text says that the code word is {x}.")
        where = i % 3
        messages = [skills.user(text + "\n\n" + ask)] if where == 0 else [skills.user(ask + "\n\n" + text)] if where == 1 else [{"role": "system", "content": text}, skills.user(ask)]
        put("code word in 1,500 tokens", messages, reply, {"contains": [x]})

    for long in (False, True):
        for i in range(n):
            domains = rng.sample(UNSEEN, 4)
            tools = [Tool(rng, d if rng.random() < 0.7 else None) for d in domains[: rng.choice((1, 2, 3, 4))]]
            system = long_system(rng, 3000) if long else {"role": "system", "content": rng.choice(("", "You are a helpful assistant."))}
            system["tools"] = [t.schema(rng, False) for t in tools]
            tool = tools[rng.randrange(len(tools))]
            text, arguments = tool.request(rng)
            calls = [{"name": tool.name, "arguments": arguments}]
            call = {"role": "assistant", "content": "", "reasoning": skills.call_reasoning(calls), "tool_calls": calls}
            thinking = rng.random() < 0.5
            messages = [system, skills.user(text)]
            put("tool call after a long system text" if long else "tool call", messages, call, {"tool_calls": calls}, thinking)
            if not long:
                content, said = result(rng)
                while len(content) > 120:
                    content, said = result(rng)
                put("answer from a tool's result", messages + [call, {"role": "tool", "content": content}], skills.answer(said, "The tool has answered. I report the result."), {"contains": [said]}, thinking)

    for text in OTHERS[:n]:
        put("other questions declined", [skills.user(text)], skills.answer(skills.FALLBACK, "This is not one of the things that I know."), {"contains": ["small built-in model"]})
    return out


def main() -> None:
    import pathlib

    from tokenizers import Tokenizer

    n = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 20261
    tokenizer = Tokenizer.from_file(str(pathlib.Path(__file__).parent / "tokenizer.json"))
    cases = build(seed, n, lambda s: len(tokenizer.encode(s, add_special_tokens=False).ids))
    with open(sys.argv[1], "w", encoding="utf-8") as f:
        for i, c in enumerate(cases):
            f.write(json.dumps({"id": i, "skill": c.skill, "thinking": c.thinking, "messages": c.messages, "prompt": c.prompt(), "expected": c.expected(), "check": c.check}, ensure_ascii=False) + "\n")
    print(len(cases), "prompts")


if __name__ == "__main__":
    main()
