"""Made-up words, codes and records: the reader can only answer by finding the right line and
copying from it.

What it replaces: dictionaries and tables.
How it works: entries are drawn afresh for each document and written as prose, as JSON lines, with
arrows or as a list; the questions go in both directions.
What it leaves out: words with a settled meaning; the same letters mean something else in the next
document.
"""

from __future__ import annotations

import json
from random import Random

from . import names, words
from .stories import Document, allowed
from .world import one


def meaning(rng: Random) -> str:
    kind, quality = rng.choice(words.KINDS), rng.choice(words.QUALITIES)
    end = rng.random()
    tail = (
        f" for {rng.choice(words.PURPOSES)}"
        if end < 0.5
        else f" of the {rng.choice(words.JOBS)}"
        if end < 0.7
        else ""
    )
    return f"{one(quality)} {kind}{tail}"


def dictionary(rng: Random) -> Document:
    """Three to six made-up words with meanings, then questions."""
    entries = {
        w: meaning(rng) for w in names.distinct(names.made_up, rng.randint(3, 6), rng, allowed)
    }
    style = rng.randrange(4)
    if style == 0:
        text = " ".join(f'"{w}" means {m}.' for w, m in entries.items())
    elif style == 1:
        text = "\n".join(json.dumps({"word": w, "means": m}) for w, m in entries.items())
    elif style == 2:
        text = "\n".join(f'"{w}" -> "{m}"' for w, m in entries.items())
    else:
        text = "\n".join(f'- "{w}": {m}' for w, m in entries.items())
    pairs = []
    for w, m in rng.sample(sorted(entries.items()), min(4, len(entries))):
        ask = rng.randrange(4)
        if ask == 0:
            pairs.append((f'What does "{w}" mean?', m))
        elif ask == 1:
            pairs.append((f"Which word means {m}?", w))
        elif ask == 2:
            pairs.append((f'Write the entry of "{w}".', json.dumps({"word": w, "means": m})))
        else:
            pairs.append((f'"{w}" ->', f'"{m}"'))
    return turns(text, pairs)


def codes(rng: Random) -> Document:
    """Names with numbers or colours: a phone book of this document alone."""
    people = names.distinct(names.person, rng.randint(3, 7), rng, allowed)
    kind = rng.choice(["number", "color", "food", "town", "age"])
    make = {
        "number": lambda: str(rng.randint(100, 9999)),
        "color": lambda: rng.choice(words.COLORS),
        "food": lambda: rng.choice(words.FOODS),
        "town": lambda: names.town(rng),
        "age": lambda: str(rng.randint(3, 99)),
    }[kind]
    table = {p: make() for p in people}
    sign = rng.choice([": ", " = ", " -> ", ", "])
    text = "\n".join(f"{p}{sign}{v}" for p, v in table.items())
    pairs = [(f"What is the {kind} of {p}?", v) for p, v in rng.sample(sorted(table.items()), 3)]
    values = list(table.values())
    pairs += [(f"Who has the {kind} {v}?", p) for p, v in table.items() if values.count(v) == 1][:1]
    return turns(text, pairs)


KEYS = """
who what where when why how which whose animal box color day door end feeling food friend gift hat
house item job key kind label letter line lost found made mood name number owner part pet place
price result room season shape size song sum thing time title tool town tree uses value weather word
year
""".split()


def value(rng: Random) -> str:
    """Anything that can stand in a field."""
    return rng.choice(
        [
            lambda: names.person(rng),
            lambda: names.town(rng),
            lambda: rng.choice(words.FEELINGS),
            lambda: str(rng.randint(0, 99)),
            lambda: f"the {rng.choice(words.LOOKS)} {rng.choice(words.THINGS)}",
            lambda: rng.choice(words.FOODS),
            lambda: f"the {rng.choice(words.PLACE_LOOKS)} {rng.choice(words.PLACES)}",
        ]
    )()


def record(rng: Random) -> Document:
    """Some fields, as JSON, as a list or in a line; asked for in another of these forms."""
    if rng.random() < 0.5:
        return reformat(rng, {key: value(rng) for key in rng.sample(KEYS, rng.randint(2, 4))})
    fields = {
        "name": names.distinct(names.person, 1, rng, allowed)[0],
        "job": rng.choice(words.JOBS),
        "food": rng.choice(words.FOODS),
        "pet": f"the {rng.choice(words.COLORS)} {rng.choice(words.ANIMALS)}",
        "town": names.distinct(names.town, 1, rng, allowed)[0],
        "age": str(rng.randint(5, 95)),
        "tool": f"the {rng.choice(words.LOOKS)} {rng.choice(words.THINGS)}",
        "room": f"the {rng.choice(words.PLACE_LOOKS)} {rng.choice(words.PLACES)}",
    }
    keys = rng.sample(sorted(fields), rng.randint(2, 4))
    return reformat(rng, {k: fields[k] for k in keys})


def reformat(rng: Random, chosen: dict[str, str]) -> Document:
    """The fields in one form; asked for in another, or one of them by its key."""
    plain = "; ".join(f"{k} = {v}" for k, v in chosen.items())
    lines = "\n".join(f"{k}: {v}" for k, v in chosen.items())
    packed = json.dumps(chosen)
    source, target, ask = rng.choice(
        [
            (plain, packed, "As JSON."),
            (lines, packed, "As JSON."),
            (packed, plain, "As a line."),
            (packed, lines, "As a list."),
        ]
    )
    pairs = [(ask, target)]
    key = rng.choice(sorted(chosen))
    pairs.append((f"What is the {key}?", chosen[key]))
    if rng.random() < 0.5:
        pairs.reverse()
    return turns(source, pairs)


def turns(text: str, pairs: list[tuple[str, str]]) -> Document:
    """The text and the first question as one message, every further question as its own."""
    document: Document = []
    for i, (question, answer) in enumerate(pairs):
        document += [("user", f"{text}\n{question}" if i == 0 else question), ("assistant", answer)]
    return document
