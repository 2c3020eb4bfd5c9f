"""Small skills: sums, counting and ordering, and instructions about a sentence.

What it replaces: arithmetic drills and instruction data.
How it works: each function draws one exercise and writes it as a conversation or as a plain line.
What it leaves out: word problems (a fine-tuning task) and retelling in another voice (another one).
"""

from __future__ import annotations

from random import Random

from . import names, words
from .lookups import turns
from .stories import Document, allowed
from .world import World, capital, place, thing


def one_sum(rng: Random) -> tuple[str, str]:
    """A bare sum and its result: never negative, two digits in most cases."""
    top = rng.choice((10, 20, 20, 50, 99))
    a, b = rng.randint(0, top), rng.randint(0, top)
    kind = rng.random()
    if kind < 0.45:
        return f"{a} + {b}", str(a + b)
    if kind < 0.8:
        return f"{max(a, b)} - {min(a, b)}", str(max(a, b) - min(a, b))
    if kind < 0.9:
        c = rng.randint(0, min(20, a + b))
        return f"{a} + {b} - {c}", str(a + b - c)
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    return f"{a} * {b}", str(a * b)


def sums(rng: Random) -> Document:
    """Some bare sums, as lines or as questions."""
    pairs = [one_sum(rng) for _ in range(rng.randint(3, 10))]
    if rng.random() < 0.35:
        return [("text", "\n".join(f"{left} = {right}" for left, right in pairs))]
    document: Document = []
    for left, right in pairs[:6]:
        document += [("user", spoken(rng, left)), ("assistant", right)]
    return document


def spoken(rng: Random, left: str) -> str:
    """The sum as a question about bare numbers."""
    parts = left.split()
    if len(parts) == 3 and rng.random() < 0.6:
        a, sign, b = parts
        forms = {
            "+": [
                f"Add {a} and {b}.",
                f"{a} plus {b}?",
                f"What is {a} and {b} together?",
                f"{a}, then {b} more?",
            ],
            "-": [
                f"Take {b} from {a}.",
                f"{a} minus {b}?",
                f"What is left of {a} without {b}?",
                f"{a}, then {b} less?",
            ],
            "*": [f"{a} times {b}?", f"Multiply {a} by {b}."],
        }
        return rng.choice(forms[sign])
    return rng.choice([f"{left} =", f"What is {left}?"])


def lists(rng: Random) -> Document:
    """A list of words or numbers: count, first, last, before, after, reversed, contained."""
    pool = rng.choice([words.ANIMALS, words.FOODS, words.COLORS, words.JOBS, None])
    size = rng.randint(3, 7)
    items = (
        names.distinct(names.person, size, rng, allowed) if pool is None else rng.sample(pool, size)
    )
    i = rng.randrange(size - 1)
    questions = [
        ("How many are there?", str(size)),
        ("Which is first?", items[0]),
        ("Which is last?", items[-1]),
        (f"What comes after {items[i]}?", items[i + 1]),
        (f"What comes before {items[i + 1]}?", items[i]),
        ("Say it backwards.", ", ".join(reversed(items))),
        ("Say it again.", ", ".join(items)),
        (f"Leave out {items[i]}.", ", ".join(x for x in items if x != items[i])),
        (f"Is {items[i]} there?", "yes"),
        (f"Is {rng.choice(words.THINGS)} there?", "no"),
    ]
    return turns(", ".join(items), rng.sample(questions, rng.randint(2, 4)))


def ordering(rng: Random) -> Document:
    """Numbers in order, runs of numbers, the larger of two."""
    kind = rng.randrange(3)
    if kind == 0:
        numbers = rng.sample(range(100), rng.randint(3, 6))
        text = ", ".join(map(str, numbers))
        pairs = [
            ("Smallest first.", ", ".join(map(str, sorted(numbers)))),
            ("Which is the largest?", str(max(numbers))),
        ]
        return turns(text, rng.sample(pairs, 2))
    if kind == 1:
        start, step = rng.randint(0, 60), rng.choice((1, 1, 1, 2, 5, 10))
        run = [str(start + step * i) for i in range(rng.randint(5, 9))]
        return [("text", f"Count from {run[0]} in steps of {step}: " + ", ".join(run) + ".")]
    a, b = rng.sample(range(100), 2)
    return [
        ("user", f"Which is more, {a} or {b}?"),
        ("assistant", str(max(a, b))),
        ("user", "And less?"),
        ("assistant", str(min(a, b))),
    ]


def sentence(rng: Random) -> str:
    """One sentence of a world that is not told further."""
    world = World.draw(rng, 2, allowed).play(2)
    return rng.choice(world.facts).sentence


def instruction(rng: Random) -> Document:
    """Do something with a sentence: copy, replace words, add words, pick words."""
    text = sentence(rng)
    tokens = text.rstrip(".").split()
    kind = rng.randrange(7)
    if kind == 0:
        return [("user", f"Repeat this. {text}"), ("assistant", text)]
    if kind in (1, 2):
        return replacing(rng, text)
    if kind == 3:
        first = f"{capital(rng.choice(words.TIMES))}! {text}"
        last = f"{text.rstrip('.')}, {rng.choice(words.RELATIONS)}!"
        word = first.split("!")[0]
        end = last.rsplit(", ", 1)[1]
        return turns(text, [(f'Begin with "{word}!"', first), (f'End with ", {end}"', last)])
    if kind == 4:
        return turns(
            text,
            [
                ("First word?", tokens[0]),
                ("Last word?", tokens[-1]),
                ("How many words?", str(len(tokens))),
            ],
        )
    if kind == 5:
        other = sentence(rng)
        return turns(f"A: {text}\nB: {other}", [("What is A?", text), ("What is B?", other)])
    a, b = thing(rng), place(rng)
    return [
        ("user", f"Make a question from {a} and {b}."),
        ("assistant", f"Where is {a}, and how far is {b}?"),
    ]


SAILOR = "th' an' o' ye yer me be aye matey arr".split()


def replacing(rng: Random, text: str) -> Document:
    """Write the sentence with one or two words replaced everywhere."""
    tokens = text.rstrip(".").split()
    lower = sorted({t.strip(",") for t in tokens if t.strip(",").islower()})
    old = rng.sample(lower, min(len(lower), rng.choice((1, 1, 2))))
    new = [
        rng.choice(
            [
                rng.choice(words.LOOKS),
                rng.choice(words.ANIMALS),
                names.made_up(rng),
                rng.choice(SAILOR),
            ]
        )
        for _ in old
    ]
    swap = dict(zip(old, new))
    out = (
        " ".join(
            swap.get(t.strip(","), t.strip(",")) + ("," if t.endswith(",") else "") for t in tokens
        )
        + "."
    )
    ask = " and ".join(f'"{n}" for "{o}"' for o, n in swap.items())
    return [("user", f"{text}\nWrite {ask}."), ("assistant", out)]
