"""Turns of conversation, one function a skill. Each returns the messages from the user's to the final answer."""

from __future__ import annotations

import random

import facts
from facts import dress, expand
from paraphrases import vary
from words import *

FALLBACK = "I am a small built-in model and only know this program, sums of two numbers, code words in a text and declared tools. Use -m FILE with the full model for other questions."
ONLY_SUMS = "I can only add two numbers of one or two digits."


def user(text):
    return {"role": "user", "content": text}


def answer(text, reasoning):
    return {"role": "assistant", "content": text, "reasoning": reasoning}


# --- greetings and small talk ---------------------------------------------------------------------------------

HELLO = "Hello! I am the small built-in model of ds4. How can I help you?"
TALK = [
    ("The user greets me.", HELLO,
     "hi; hello; hey; hi there; hello there; hey there; good {morning|evening|afternoon|day}; greetings; hello {model|ds4|computer|friend|world|everybody|again}; hallo; hi {model|ds4|friend|buddy}; hiya; howdy; yo; hey {you|ds4|model}; hello hello; hi hi; welcome; salut; is anybody there; anyone there; are you there; hello, are you there; just saying hi; i just wanted to say hello; good to see you; nice to meet you; hello my friend; test; ping; testing; hi again; morning; evening; good morning to you; a good day to you; say hi; say hello; greet me; hello computer; ahoy"),
    ("The user asks how I am.", "I am well, thank you. How can I help you?",
     "how are you; how are you {doing|today|doing today}; how do you do; how is it going; how's it going; what's up; whats up; are you {ok|well|fine|good|alright}; how do you feel{ today|}; how have you been; how is life; everything {ok|fine|alright}; hello, how are you; hi, how are you{ today|}; hey, how are you doing; hi how's it going; hey what's up"),
    ("The user thanks me.", "You are welcome!",
     "thanks; thank you; thank you {very much|so much|a lot}; thanks a lot; many thanks; thx; that was helpful; that helps; great, thanks; perfect, thank you; ok thanks; good answer; well done; cheers; nice, thanks; thanks for your help; i thank you; that is great; cool, thanks; awesome; perfect; great; very good; nice"),
    ("The user says goodbye.", "Goodbye! Type /quit to leave the chat.",
     "bye; goodbye; good bye; bye bye; see you; see you {later|soon|tomorrow}; good night; have a {nice|good} day; i have to go; farewell; until tomorrow; talk to you later; so long; take care; cya; i am leaving now; that is all for today"),
]


INTRODUCTIONS = ["i am NAME", "i'm NAME", "my name is NAME", "my name's NAME", "this is NAME", "it's NAME", "it is NAME", "i am called NAME", "call me NAME", "you {can|may|should} call me NAME", "they call me NAME",
                 "everybody calls me NAME", "NAME is my name", "NAME is what {people|friends} call me", "NAME here", "i'm NAME, {nice to meet you|pleased to meet you|how are you|and you|who are you}", "i am NAME from {Paris|Berlin|Oslo|the office|work}",
                 "{people|friends|my friends} call me NAME", "the name's NAME", "name: NAME", "you are talking to NAME", "NAME speaking", "{please |}remember my name: NAME", "i go by NAME", "allow me to introduce myself: NAME", "let me introduce myself, i am NAME"]


def greet(rng: random.Random) -> list[dict]:
    if rng.random() < 0.3:
        name = any_name(rng)
        text = expand(rng, rng.choice(INTRODUCTIONS))
        hello = rng.choice(("", "", "", "hi", "hello", "hey", "good morning", "good evening", "hi there", "hello model", "hey you", "hallo", "greetings", "hi ds4"))
        if hello:
            text = hello + rng.choice((", ", "! ", ". ", " ", " - ")) + text
        text = text[0].upper() + text[1:] if rng.random() < 0.6 else text
        return [user(text.replace("NAME", name) + rng.choice((".", "", "", "!"))), answer(f"Hello {name}, nice to meet you. How can I help you?", f"The user is called {name}.")]
    reasoning, reply, ways = TALK[0] if rng.random() < 0.55 else rng.choice(TALK[1:])
    text = expand(rng, rng.choice(ways.split("; ")))
    return [user(dress(rng, text, False)), answer(reply, reasoning)]


def ask_name(rng: random.Random, name: str) -> list[dict]:
    text = dress(rng, expand(rng, rng.choice(("what is my name", "what's my name", "do you {remember|know} my name", "who am i", "how am i called", "tell me my name", "say my name"))))
    return [user(text), answer(f"Your name is {name}.", f"The user is called {name}.")]


# --- questions about the program -------------------------------------------------------------------------------

def program(rng: random.Random) -> list[dict]:
    text, fact = facts.question(rng)
    return [user(text), answer(fact.answer, f"This is a question about {fact.topic}.")]


# --- sums ------------------------------------------------------------------------------------------------------

def unseen_pair(a: int, b: int) -> bool:
    """A tenth of the pairs of two-digit numbers never appears in training."""
    return a > 9 and b > 9 and (a * 7919 + b * 104729) % 10 == 3


SUMS = """what is {0} + {1}; what is {0} plus {1}; {0} + {1}; {0}+{1}; {0} + {1} =; {0}+{1}=; what's {0} + {1}; how much is {0} + {1}; how much is {0} plus {1}; add {0} and {1};
add {1} to {0}; sum of {0} and {1}; what is the sum of {0} and {1}; calculate {0} + {1}; compute {0} + {1}; {0} plus {1}; can you add {0} and {1}; please add {0} and {1};
tell me {0} + {1}; i need {0} + {1}; {0} and {1} together; what do {0} and {1} make; what does {0} + {1} give; what do you get when you add {0} and {1}; solve {0} + {1};
i have {0} {n} and get {1} more, how many do i have; there are {0} {n} and {1} {m}, how many are there together; {name} has {0} {n} and buys {1} more. how many {n} are there now;
take {0} and add {1}; add up {0} and {1}; {0} and then {1} more makes how many; start with {0} and add {1}; starting from {0}, add {1}; if you have {0} and add {1}, what is it; count {0} and {1} together;
{name} counts {0} {n} and {1} {m}. how many is that in total; in the {n} are {0} {m}. i put {1} more into it. how many {m} are in it now; {0} {n} plus {1} {n}; i paid {0} and then {1}, how much did i pay; a {n} costs {0} and a {m} costs {1}. what do they cost together;
what would {0} and {1} be together; what number is {0} + {1}; result of {0} + {1}; evaluate {0} + {1}; let me know {0} + {1}; do the sum {0} + {1}; quick sum: {0} + {1}; {0} increased by {1}; increase {0} by {1}; {1} more than {0};
add {0} to {1}, then tell me the {result|total|sum}; total {0} and {1}; {0} with {1} added; combine {0} and {1}; {0} + {1} comes to what; give {0} + {1}; i wonder how much {0} + {1} is; {0} + {1} makes; the answer to {0} + {1};
what is {0} added to {1}; give me the sum {0} + {1}; the total of {0} and {1}; total of {0} and {1}; work out {0} + {1}; {0} + {1} is what; {0} + {1} equals; how many are {0} and {1};
find {0} + {1}; find the sum of {0} and {1}; if i add {0} and {1}, what do i get; could you sum {0} and {1}; sum up {0} and {1}; put {0} and {1} together; what comes out of {0} + {1}"""


def sum_words(a: int, b: int) -> tuple[str, str]:
    """The reasoning and the answer."""
    (ta, ua), (tb, ub) = divmod(a, 10), divmod(b, 10)
    units = ua + ub
    carry = units // 10
    reasoning = f"{ua} + {ub} = {units}, write {units % 10}, carry {carry}. {ta} + {tb} + {carry} = {ta + tb + carry}. So {a} + {b} = {a + b}."
    return reasoning, f"{a} + {b} = {a + b}."


def add(rng: random.Random, pair: tuple[int, int] | None = None) -> list[dict]:
    while True:
        a, b = pair or (rng.randrange(10, 100) if rng.random() < 0.93 else rng.randrange(10), rng.randrange(10, 100) if rng.random() < 0.93 else rng.randrange(10))
        if pair or not unseen_pair(a, b):
            break
    text = expand(rng, rng.choice(SUMS.replace("\n", " ").split(";")).strip())
    if rng.random() < 0.2:
        text = vary(rng, text)
    swapped = text.index("{1}") < text.index("{0}")
    text = dress(rng, text) if rng.random() < 0.5 else (text[0].upper() + text[1:] if rng.random() < 0.5 else text) + rng.choice(("?", "", "", "."))
    text = text.replace("{N}", "{n}").replace("{M}", "{m}").replace("{NAME}", "{name}")
    text = text.replace("{n}", rng.choice(NOUNS) + "s").replace("{m}", rng.choice(NOUNS) + "s").replace("{name}", rng.choice(NAMES))
    text = text.replace("{0}", str(a)).replace("{1}", str(b))
    if swapped:
        a, b = b, a
    reasoning, reply = sum_words(a, b)
    return [user(text), answer(reply, reasoning)]


# --- what the model does not know ------------------------------------------------------------------------------

OTHER = """what is the capital of {city}; who is the president of {city}; write a {poem|song|story|essay|letter|joke|haiku} about {a {adj} |the |}{noun}; tell me a {story|joke|secret|riddle}{ about {noun}s|};
what is a {noun}; what is {a|the} {adj} {noun}; explain {the |a |}{noun}; how does a {noun} work; how do i {make|build|repair|buy|paint|clean} a {noun}; why is the {noun} {adj}; where can i {buy|find|see} a {noun};
who {invented|made|painted|wrote|discovered} the {noun}; when was {name} born; who is {name}; who was {name} {inv}; how old is {name}; translate {noun} {to|into} {language}; what is the weather in {city}; what time is it; what day is it;
write {a program|code|a function|a script} {in {prog}|that {verb} a {noun}}; fix {my|this} code; what is the meaning of life; how tall is the {noun}; what does {inv} mean; do you like {noun}s; do you love me; what is love;
who wrote {inv} and {inv}; who won yesterday; is {noun} healthy; is {inv} {adj}; why do {noun}s {inv}; how many {noun}s does {city} have; compose a {poem|verse|song|tune} on {noun}s; describe {inv}; describe {city}; sing {me |}{a song|something}; tell {me |us |}a joke about {noun}s;
give me {advice|tips|ideas} about {inv}; give me {inv} {advice|tips}; how many {inv} are there; what is the {adj}est {noun} in {city}; the history of {inv}; the {inv} {noun}; my {noun} has {inv}, what should i do; {inv} or {inv}; translate {inv}; who painted the {adj} {noun}; news from {city};
which {noun} is the best; recommend a {book|movie|{noun}}; what is the square root of {num}; how far is {city}; where is {city}; what is the population of {city}; summarize this text; how many {noun}s are in a {noun}; should i {buy|sell} {noun}s;
what should i {eat|cook|do|wear|read}{ today|}; who won the {noun} {game|cup}; what happened in {year}; give me {a recipe|advice|ideas} for {a {noun}|{noun}s}; is {city} {bigger|nicer} than {city2}; can you {sing|dance|drive|cook|swim|fly}; play {a song|chess|a game};
what color is the {noun}; what is {inv}; tell me about {inv}; tell me about {city}; tell me about {noun}s; tell me about {name}; explain {inv}; describe a {adj} {noun}; {inv}; {noun}; {adj} {noun}; why do {noun}s {exist|break|move}; is a {noun} {adj}; the {noun} is {adj};
i {like|hate|love|need|want} {a|my|the} {noun}; my {noun} is {adj}; how do you spell {noun}; what rhymes with {noun}; what is the difference between a {noun} and a {noun2}; compare {noun}s {and|with} {noun2}s; do {noun}s have {noun2}s; how do i learn {language};
what is quantum physics; what is machine learning; what is python; what is a computer; how do planes fly; why is the sky blue; explain relativity; what is the speed of light; how do i cook rice; how do i lose weight; write me a {noun} plan; plan a trip to {city};
{a|the} {noun} and {a|the} {noun2}; let's talk about {noun}s; i am {adj}; are you {adj}; i feel {adj} today; how do i get to {city}; who lives in {city}; what do you think about {noun}s; your opinion on {noun}s; what is your favorite {noun}; name {three|five|ten} {noun}s; list some {noun}s"""
_OTHER = [s.strip() for s in OTHER.replace("\n", " ").split(";")]


def fill(rng: random.Random, text: str) -> str:
    text = expand(rng, text)
    for _ in range(3):
        text = expand(rng, text)
        for slot, values in (("{city}", CITIES), ("{city2}", CITIES), ("{noun}", NOUNS), ("{noun2}", NOUNS), ("{adj}", ADJECTIVES), ("{name}", NAMES), ("{language}", LANGUAGES), ("{verb}", VERBS),
                             ("{prog}", w("python rust java c javascript go")), ("{num}", [str(rng.randrange(2, 9999))]), ("{year}", [str(rng.randrange(1500, 2030))]), ("{inv}", [any_word(rng)])):
            while slot in text:
                text = text.replace(slot, rng.choice(values), 1)
    return text


def other(rng: random.Random) -> list[dict]:
    r = rng.random()
    if r < 0.35:
        thing = rng.choice((rng.choice(NOUNS), any_word(rng), rng.choice(ADJECTIVES) + " " + rng.choice(NOUNS), rng.choice(ADJECTIVES) + " " + any_word(rng), any_word(rng) + " " + any_word(rng)))
        article = rng.choice(("the ", "a ", "my ", "", "", "our ", "some "))
        if rng.random() < 0.5:
            phrase = f"{rng.choice(INFINITIVES) if rng.random() < 0.7 else any_word(rng)} {article}{thing}" + rng.choice(("", "", f" with {rng.choice(NOUNS)}s", f" in {rng.choice(CITIES)}", " " + rng.choice(PLACES)))
            text = expand(rng, rng.choice(facts._DO)).replace("{do}", phrase)
        else:
            text = expand(rng, rng.choice(facts._WHAT)).replace("{what}", article + thing + rng.choice(("", "", "s", f" of {rng.choice(CITIES)}", f" in {rng.choice(CITIES)}")))
        text = dress(rng, vary(rng, text))
    elif r < 0.75:
        text = dress(rng, vary(rng, fill(rng, rng.choice(_OTHER))))
    elif r < 0.85:
        text = sentence(rng)
    elif r < 0.9:
        text = "\n".join(filler(rng, rng.randrange(40, 300)))
    else:
        a, b = rng.randrange(2, 100), rng.randrange(2, 100)
        text = rng.choice((f"what is {a} times {b}", f"{a} * {b}", f"{a} - {b}", f"what is {a} minus {b}", f"{a} / {b}", f"divide {a} by {b}", f"multiply {a} and {b}", f"{a * 97 + 100} + {b * 13 + 100}",
                           f"what is {a * 31 + 100} + {b}", f"subtract {b} from {a}", f"what is {a} x {b}", f"{a} squared", f"what is {a} divided by {b}", f"what is {a} + {b} + {a + 1}"))
        return [user(dress(rng, text)), answer(ONLY_SUMS, "This is not a sum of two numbers of one or two digits.")]
    return [user(text), answer(FALLBACK, "This is not one of the things that I know.")]


def repeat(rng: random.Random) -> list[dict]:
    text = rng.choice((lambda: sentence(rng), lambda: code_word(rng), lambda: " ".join(any_word(rng) for _ in range(rng.randrange(1, 6))), lambda: " ".join(rng.choice(NOUNS) for _ in range(rng.randrange(1, 5)))))()
    ask = expand(rng, rng.choice(("{repeat|say|write|echo|print}: {0}", "{repeat|say} after me: {0}", "please repeat: {0}", "{repeat|say|write} the following: {0}", "repeat the words {0}", 'say "{0}"', 'repeat "{0}"')))
    ask = ask[0].upper() + ask[1:] if rng.random() < 0.5 else ask
    return [user(ask.replace("{0}", text)), answer(text, "I repeat the words of the user.")]


# --- a code word in a text -------------------------------------------------------------------------------------

THINGS = p("code word, code word, code word, code word, code word, password, secret number, magic word, secret word, pass phrase, access code, secret code, keyword, hidden word, code")
PLANT = """the {t} is {x}.; the {t} is: {x}.; {t}: {x}; remember the {t}: {x}.; please note that the {t} is {x}.; the {t} of today is {x}.; keep in mind that the {t} is {x}.; attention: the {t} is {x}.; by the way, the {t} is {x}.;
do not forget: the {t} is {x}.; here is the {t}: {x}.; and the {t} is {x}.; the {t} is "{x}".; we use {x} as the {t}.; {x} is the {t}.; your {t} is {x}.; NOTE: the {t} is {x}; our {t} is {x}."""
ASK = """what is the {t}; what's the {t}; which {t} {is|was} {in the text|mentioned|given|hidden in the text|planted}; find the {t}{ in the text|}; tell me the {t}; please find the {t}; what was the {t}; do you remember the {t}; give me the {t};
i need the {t}; can you find the {t}; can you tell me the {t}; name the {t}; what {t} {did i|did the text|does the text} {mention|give|name|contain}; look for the {t}; {t}; the {t} please; read the text and tell me the {t}; what is the {t} in the text {above|}; say the {t}"""
_PLANT = [s.strip() for s in PLANT.replace("\n", " ").split(";")]
_ASK = [s.strip() for s in ASK.replace("\n", " ").split(";")]


class Secrets:
    """Distinct things with values: sentences to plant, questions to ask."""

    def __init__(self, rng: random.Random, n: int):
        self.items: list[tuple[str, str]] = []
        while len(self.items) < n:
            t = rng.choice(THINGS)
            if n > 1 and rng.random() < 0.6:
                t += rng.choice((" for the ", " of the ", " to the ")) + rng.choice(NOUNS) if rng.random() < 0.7 else " of " + rng.choice(NAMES)
            heads = [a for a, _ in self.items]
            if t not in heads and not any(a.startswith(t + " ") or t.startswith(a + " ") and len(a.split(" of ")) == 1 and len(a.split(" for ")) == 1 and len(a.split(" to ")) == 1 for a in heads):
                self.items.append((t, code_word(rng)))

    def plants(self, rng: random.Random) -> list[str]:
        out = []
        for t, x in self.items:
            s = rng.choice(_PLANT)
            s = s[0].upper() + s[1:] if rng.random() < 0.85 else s
            out.append(s.replace("{t}", t).replace("{T}", t).replace("{x}", x).replace("{X}", x))
        return out

    def question(self, rng: random.Random, i: int | None = None) -> tuple[str, dict]:
        t, x = self.items[rng.randrange(len(self.items)) if i is None else i]
        text = dress(rng, expand(rng, rng.choice(_ASK))).replace("{T}", t).replace("{t}", t)
        return text, answer(f"The {t} is {x}.", f"The text says that the {t} is {x}.")


def plant(rng: random.Random, paragraphs: list[str], sentences: list[str]) -> str:
    paragraphs = list(paragraphs)
    for s in sentences:
        i = rng.randrange(len(paragraphs) + 1)
        if i < len(paragraphs) and rng.random() < 0.5:
            parts = paragraphs[i].split(". ")
            parts.insert(rng.randrange(len(parts)), s.rstrip("."))
            paragraphs[i] = ". ".join(parts)
        else:
            paragraphs.insert(i, s)
    return rng.choice(("\n\n", "\n", "\n\n", " ")).join(paragraphs)


def code_words(rng: random.Random, n_chars: int, questions: int = 1) -> list[dict]:
    """A text with planted words in one message, then questions."""
    secrets = Secrets(rng, max(1, min(questions, 8)) if rng.random() < 0.7 else rng.choice((1, 2, 3, 4)))
    text = plant(rng, filler(rng, n_chars), secrets.plants(rng)) if n_chars > 30 else " ".join(secrets.plants(rng))
    ask, reply = secrets.question(rng)
    r = rng.random()
    if r < 0.6:
        first = text + rng.choice(("\n\n", "\n", " ", "\n\nQuestion: ")) + ask
    elif r < 0.85:
        first = ask + rng.choice(("\n\n", "\n", " ", "\n\nText: ")) + text
    else:
        first = rng.choice(("Read this text.", "Here is a text:", "Text:", "")) + "\n\n" + text + "\n\n" + rng.choice(("Now: ", "Question: ", "")) + ask
    out = [user(first), reply]
    for _ in range(questions - 1):
        ask, reply = secrets.question(rng)
        out += [user(ask), reply]
    return out


def remember(rng: random.Random) -> tuple[list[dict], list[dict]]:
    """The user tells a word in one turn and asks in a later one: (telling, asking)."""
    secrets = Secrets(rng, 1)
    t, x = secrets.items[0]
    say = rng.choice(_PLANT)
    say = (rng.choice(("remember this: ", "please remember: ", "", "note: ", "keep this in mind: ")) + say).replace("{t}", t).replace("{x}", x)
    ask, reply = secrets.question(rng)
    telling = [user(say[0].upper() + say[1:]), answer(f"I will remember that the {t} is {x}.", f"The user tells me the {t}.")]
    return telling, [user(ask), reply]


# --- tools -----------------------------------------------------------------------------------------------------

def call_reasoning(calls: list[dict]) -> str:
    parts = []
    for c in calls:
        said = ", ".join(f"{k} = {v if isinstance(v, str) else __import__('json').dumps(v, ensure_ascii=False)}" for k, v in c["arguments"].items())
        parts.append(f"I call {c['name']} with {said}." if said else f"I call {c['name']} without arguments.")
    return " ".join(parts)


def call(rng: random.Random, tools: list, n: int = 1) -> list[dict]:
    """A request that needs a tool, the call, its result and the answer."""
    from tools import result

    tool = rng.choice([t for t in tools if t.asked] or tools)
    text, arguments = tool.request(rng)
    calls = [{"name": tool.name, "arguments": arguments}]
    if n == 2 and tool.parameters:
        text2, arguments2 = tool.request(rng)
        if arguments2 != arguments:
            text = text.rstrip(".?! ") + " and then " + text2
            calls.append({"name": tool.name, "arguments": arguments2})
    out = [user(text), {"role": "assistant", "content": "", "reasoning": call_reasoning(calls), "tool_calls": calls}]
    replies = []
    for _ in calls:
        content, reply = result(rng)
        out.append({"role": "tool", "content": content})
        replies.append(reply)
    out.append(answer(" ".join(replies), "The tool has answered. I report the result."))
    return out
