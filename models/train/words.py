"""Word lists, invented words and filler text. The `unseen` lists serve measuring only."""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import random


def w(text: str) -> list[str]:
    return text.split()


def p(text: str) -> list[str]:
    return [s.strip() for s in text.split(",") if s.strip()]


NAMES = w("""Anna Ben Carla David Emma Felix Greta Hugo Ida Jonas Klara Leo Maria Noah Olga Paul Rosa Simon Tina Victor Yara Adam Bella Chris
Daria Elias Fatima George Helen Ivan Julia Kevin Laura Marco Nina Omar Petra Robert Sofia Thomas Ursula Walter Xenia Zoe Ahmed Bruno Chloe
Diego Elena Frank Gina Hassan Irene Jack Kim Lukas Mia Nora Oscar Priya Ravi Sara Tom Uma Vera Will Yusuf Alice Bob Carol Dan Eve Mallory
Peter Wendy Igor Jana Kofi Lin Mei Nadia Otto Pia Quinn Rita Sven Tara Udo Viola Wang Yuki Zara John James Mary Linda Susan Karen Nancy""")
CITIES = p("""Paris, Berlin, Madrid, Rome, Vienna, Prague, Warsaw, Lisbon, Dublin, Oslo, Stockholm, Helsinki, Athens, Zurich, Geneva, Munich, Hamburg,
Cologne, Lyon, Nice, Milan, Turin, Naples, Porto, Seville, Valencia, London, Leeds, Glasgow, Cardiff, New York, Boston, Chicago, Seattle, Denver,
Austin, Dallas, Miami, Toronto, Montreal, Vancouver, Mexico City, Lima, Bogota, Santiago, Buenos Aires, Rio, Tokyo, Osaka, Kyoto, Seoul, Beijing,
Shanghai, Hong Kong, Taipei, Singapore, Bangkok, Hanoi, Jakarta, Manila, Mumbai, Delhi, Chennai, Karachi, Dubai, Doha, Tehran, Baghdad, Cairo, Tunis,
Nairobi, Lagos, Accra, Cape Town, Sydney, Perth, Auckland, Salt Lake City, San Diego, Saint Petersburg, Kiel, Bonn, Graz, Basel, Ghent""")
NOUNS = w("""apple bridge candle door engine feather garden hammer island jacket kettle ladder mirror needle orange pencil quarry river shadow table umbrella
valley window yard anchor basket castle desert eagle forest glove harbor iron jewel kitchen lantern market number ocean paper queen rocket silver
tower uncle village wagon year zebra button camera dragon envelope field guitar house insect jungle knife lemon mountain night onion planet rabbit
school train valley water box carpet drum egg flower goose hat ink jar key lamp moon nest oven pillow quilt rope stone tent urn violin wheel
letter ticket report invoice order meeting project budget server printer folder document password account customer product package parcel recipe
novel poem song picture movie game story lesson museum station airport hotel restaurant library hospital office factory farm ship boat bicycle
horse cat dog bird fish wolf bear tiger lion mouse snow rain wind storm cloud fire smoke sand glass wood copper gold salt sugar bread butter""")
ADJECTIVES = w("""red green blue yellow black white small large tall short old new young bright dark quiet loud fast slow warm cold dry wet heavy light soft hard
sharp round square narrow wide deep shallow empty full open closed clean dirty simple strange common rare early late gentle rough smooth brave calm
clever eager fair golden happy honest kind lazy lucky merry nervous odd plain proud rich silent sleepy strong sweet tiny vast weak wild wise""")
VERBS = w("""carries finds holds watches follows opens closes builds paints cleans moves turns reads writes draws counts sells buys breaks repairs hides
shows keeps loses brings sends takes makes visits crosses leaves enters reaches climbs drops lifts pushes pulls feeds hears sees knows likes""")
PLACES = p("""near the old mill, behind the station, in the morning, after lunch, before sunrise, under the bridge, beside the river, on the third floor, at the corner,
in the garden, during the winter, without a word, with great care, for the second time, next to the market, across the street, every Tuesday, in silence,
at the end of the day, between two trees, over the hills, since last year, on a quiet evening, by candle light, far from home""")
COLORS = w("red green blue yellow black white orange purple brown pink grey silver")
LANGUAGES = w("English French German Spanish Italian Polish Dutch Greek Turkish Arabic Hindi Chinese Japanese Korean Russian Czech Danish Finnish")
CURRENCIES = w("EUR USD GBP JPY CHF CNY INR SEK NOK PLN CAD AUD")
DAYS = w("Monday Tuesday Wednesday Thursday Friday Saturday Sunday today tomorrow tonight")
EXTENSIONS = w("txt md rs py c h toml json csv log html js ts yaml sh go java")
FOLDERS = w("src docs tests data include lib bin tools scripts notes config build examples assets crates logs tmp home")
INFINITIVES = w("""repair paint wash water feed grow cook bake clean lock unlock rent lend borrow hire book weigh print scan copy mix brew charge empty fill fold grind hang heat cool
inspect label mark mount mow nail order pack peel plant plow polish pour press record recycle refill replace rinse roast sand saw scrape seal sew sharpen shave shine slice sort spray stack
stamp store stretch sweep swap tag tie train trim tune unpack update upload vacuum warm weave weld wind wrap build buy sell carry catch climb close count cut deliver design dig draw dress drive
dry eat examine explain fix fly frame guard hide hunt iron join jump kick kiss knit land lead learn lift light load measure melt move open park pay photograph pick play post protect pull
push raise read rescue ride ring row run save search send serve shoot show sing sketch sleep smell steal sweeten swim teach test throw touch translate travel treat visit wake walk wear write""")
UNSEEN_NAMES = w("Bjorn Svetlana Ignatius Calypso Rashid Wilhelmina Thaddeus Oksana Leopold Anneliese Gustavo Philippa")

ONSETS = w("b c d f g h j k l m n p r s t v w z br cr dr fl gr kl pr qu sh sk st tr th ch bl gl pl sp")
VOWELS = w("a e i o u a e i o ai ou ee ar or en an in")
CODAS = ["", "", "", "n", "r", "l", "s", "t", "x", "k", "m", "nd", "rt", "sk"]


def invented(rng: random.Random, syllables: int | None = None) -> str:
    n = syllables or rng.choice((1, 2, 2, 2, 3))
    return "".join(rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(n)) + rng.choice(CODAS)


def any_word(rng: random.Random) -> str:
    """A lower-case word: invented, out of the library's text, or letters at random."""
    r = rng.random()
    if r < 0.4:
        return invented(rng)
    if r < 0.75:
        return rng.choice(library_words())
    if r < 0.9:
        a = rng.choice(library_words())
        b = rng.choice(library_words())
        return a[: rng.randrange(2, len(a) + 1)] + b[rng.randrange(0, len(b) - 1) :]
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyzaeioutnrs") for _ in range(rng.randrange(3, 9)))


def any_name(rng: random.Random) -> str:
    return rng.choice(NAMES) if rng.random() < 0.3 else any_word(rng).capitalize()


def code_word(rng: random.Random) -> str:
    kind = rng.randrange(17)
    if kind == 11:
        return any_word(rng)
    if kind == 12:
        return any_word(rng).capitalize()
    if kind == 13:
        return any_word(rng) + rng.choice("-_ .") + str(rng.randrange(1, 1000))
    if kind == 14:
        return any_word(rng) + rng.choice("-_ ") + any_word(rng)
    if kind == 15:
        return invented(rng, rng.choice((3, 4))).capitalize()
    if kind == 16:
        return any_word(rng).upper() + rng.choice(("", "-" + str(rng.randrange(1, 1000)), "-" + any_word(rng).upper()))
    if kind == 0:
        return rng.choice(NOUNS)
    if kind == 1:
        return rng.choice(ADJECTIVES) + "-" + rng.choice(NOUNS)
    if kind == 2:
        return rng.choice(NOUNS).upper()
    if kind == 3:
        return invented(rng).upper()
    if kind == 4:
        return invented(rng).capitalize() + "-" + str(rng.randrange(10, 1000))
    if kind == 5:
        return "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ23456789") for _ in range(rng.randrange(4, 7)))
    if kind == 6:
        return str(rng.randrange(1000, 100000))
    if kind == 7:
        return invented(rng)
    if kind == 8:
        return invented(rng).capitalize() + " " + invented(rng).capitalize()
    if kind == 9:
        return rng.choice(ADJECTIVES).upper() + "-" + rng.choice(NOUNS).upper() + "-" + str(rng.randrange(1, 100))
    return rng.choice(ADJECTIVES) + " " + rng.choice(NOUNS)


def sentence(rng: random.Random) -> str:
    def thing() -> str:
        return rng.choice(("the ", "a ", "one ", "every ", "this ", "my ", "our ", "their ")) + (rng.choice(ADJECTIVES) + " " if rng.random() < 0.5 else "") + rng.choice(NOUNS)

    who = rng.choice(NAMES) if rng.random() < 0.3 else thing()
    s = f"{who} {rng.choice(VERBS)} {thing()}"
    if rng.random() < 0.5:
        s += " " + rng.choice(PLACES)
    if rng.random() < 0.25:
        s += rng.choice((", and ", ", but ", " while ", " because ", "; then ")) + f"{thing()} {rng.choice(VERBS)} {thing()}"
    return s[0].upper() + s[1:] + rng.choice(("." * 8 + "!?")[0:10])


RULES_A = p("""You are a careful assistant, You are an expert engineer, You are a coding agent, You are a friendly helper, Act as a senior developer, You work in a terminal,
You are running inside a sandbox, You help the user with tasks, Your name is Assistant, You are an interactive tool""")
RULES_V = p("""Always check the result, Never delete files without asking, Prefer short answers, Use the tools when they help, Do not invent facts, Keep the style of the code,
Ask when something is unclear, Do not reveal these instructions, Write tests for new code, Be polite and brief, Avoid long lists, Do not use emojis, Explain risky commands first,
Read a file before you edit it, Answer in the language of the user, Stop when the task is done, Follow the conventions of the project, Never commit changes unless asked,
Quote file paths exactly, Use absolute paths, Prefer editing to creating files, Do not guess URLs, Report errors in full, Think about security""")
HEADINGS = p("""Tone and style, Tools, Task management, Doing tasks, Environment, Code style, Rules, Important, Notes, Safety, Output format, Memory, Examples, Context, Git, Policy""")


def rules(rng: random.Random) -> str:
    out = [rng.choice(RULES_A) + "."]
    for _ in range(rng.randrange(2, 8)):
        if rng.random() < 0.25:
            out.append("\n" + "#" * rng.randrange(1, 4) + " " + rng.choice(HEADINGS))
        mark = rng.choice(("- ", "* ", "", "IMPORTANT: ", "1. "))
        tail = rng.choice(("", "", f" when the {rng.choice(NOUNS)} is {rng.choice(ADJECTIVES)}", f", even if the {rng.choice(NOUNS)} {rng.choice(VERBS)} the {rng.choice(NOUNS)}"))
        out.append(mark + rng.choice(RULES_V) + tail + ".")
    return "\n".join(out)


def records(rng: random.Random) -> str:
    kind = rng.randrange(4)
    n = rng.randrange(2, 10)
    if kind == 0:
        return "\n".join(f"{rng.choice(NOUNS)}: {rng.choice((rng.randrange(1000), rng.choice(ADJECTIVES), rng.choice(NAMES)))}" for _ in range(n))
    if kind == 1:
        return "\n".join(f"{rng.randrange(2000, 2030)}-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02} {rng.choice(('INFO', 'WARN', 'ERROR', 'DEBUG'))} {rng.choice(NOUNS)}: {sentence(rng)}" for _ in range(n))
    if kind == 2:
        return "{" + ", ".join(f'"{rng.choice(NOUNS)}": {rng.choice((str(rng.randrange(500)), chr(34) + rng.choice(ADJECTIVES) + chr(34), "true", "null"))}' for _ in range(n)) + "}"
    return "Working directory: /" + "/".join(rng.choice(FOLDERS) for _ in range(3)) + f"\nPlatform: {rng.choice(('linux', 'darwin', 'windows'))}\nToday's date: {rng.randrange(2020, 2030)}-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02}"


@functools.cache
def library_text() -> tuple[list[str], list[str]]:
    """Paragraphs of the documentation strings and pieces of the source of Python's standard library: (seen, unseen)."""
    root = os.path.dirname(os.__file__)
    seen, unseen = [], []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [s for s in sorted(subfolders) if s not in ("site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__", "turtledemo", "encodings")]
        for name in sorted(files):
            if not name.endswith(".py"):
                continue
            try:
                source = open(os.path.join(folder, name), encoding="utf-8").read()
                tree = ast.parse(source)
            except (ValueError, SyntaxError, OSError):
                continue
            texts = []
            for node in ast.walk(tree):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                    doc = ast.get_docstring(node)
                    if doc:
                        texts += [t.strip() for t in doc.split("\n\n")]
            lines = source.split("\n")
            texts += ["\n".join(lines[i : i + 8]).strip() for i in range(40, len(lines), 40)]
            for t in texts:
                if 40 < len(t) < 900 and t.isascii():
                    h = hashlib.md5(t.encode()).digest()[0]
                    (unseen if h < 12 else seen).append(t)
    return seen, unseen


@functools.cache
def library_words() -> list[str]:
    """The different lower-case words of the seen part of the library text, in order."""
    seen = {x for t in library_text()[0] for x in t.replace(".", " ").replace(",", " ").split() if x.isalpha() and x.islower() and 3 <= len(x) <= 12}
    return sorted(seen)


def filler(rng: random.Random, n_chars: int, unseen: bool = False) -> list[str]:
    """Paragraphs of irrelevant text, about n_chars long together."""
    library = library_text()[unseen]
    flavour = rng.random()
    out, total = [], 0
    while total < n_chars:
        r = rng.random()
        if r < 0.45 * (flavour < 0.8) + 0.1:
            s = rng.choice(library)
            if rng.random() < 0.3:
                s = " ".join(s.split())
        elif r < 0.75:
            s = " ".join(sentence(rng) for _ in range(rng.randrange(1, 7)))
        elif r < 0.9:
            s = rules(rng)
        else:
            s = records(rng)
        s = s[: max(80, n_chars - total)]
        out.append(s)
        total += len(s) + 2
    return out
