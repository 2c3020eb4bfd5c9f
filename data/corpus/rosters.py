"""Rosters: a few short facts of one shape, and who, what or where asked for each of them.

What it replaces: hoping that longer stories teach who did what. They do not: after 2,000 steps without this family
the base knew what somebody did, and guessed who had done it.
How it works: two to six people each get one thing, place or food; the sentence goes from "A has the hat." to the forms
that stories use; most questions ask for the person, who stands before the answer's cue.
What it leaves out: asides, times, and anything that happens twice.
Where numerics differ: nowhere.
"""

from __future__ import annotations

from random import Random

from . import names, words
from .lookups import turns
from .stories import Document, allowed
from .world import capital, deed_sentence, place, thing


def roster(rng: Random) -> Document:
    """One shape of fact for everybody, or (one time in three) a shape of its own for each."""
    size = rng.choice((2, 2, 3, 3, 4, 5, 6))
    people = names.distinct(names.person, size, rng, allowed)
    shapes = [rng.choice(SHAPES)] * size if rng.random() < 0.67 else [rng.choice(SHAPES) for _ in people]
    made = [shape(rng, who, what, where) for shape, who, what, where in zip(
        shapes, people, names.distinct(thing, size, rng, allowed), names.distinct(place, size, rng, allowed))]
    text = rng.choice([" ", " ", "\n"]).join(sentence for sentence, _ in made)
    pairs = [rng.choice(questions) if rng.random() < 0.25 else questions[0] for _, questions in made]
    if len({question for question, _ in pairs}) < len(pairs):
        pairs = pairs[:1]
    rng.shuffle(pairs)
    return turns(text, pairs)


def has(rng: Random, who: str, what: str, where: str):
    verb = rng.choice(["has", "had", "wants", "keeps", "made"])
    return f"{who} {verb} {what}.", [(f"Who {verb} {what}?", who), (f"What of {who}?", what)]


def was(rng: Random, who: str, what: str, where: str):
    prep = rng.choice(("in", "near", "at") if where[0].isupper() else words.NEAR)
    return f"{who} was {prep} {where}.", [(f"Who was at {where}?", who), (f"Where was {who}?", where)]


def went(rng: Random, who: str, what: str, where: str):
    how = rng.choice(["went", "walked", "ran", "rode", "hurried", "drove", "came", "moved", "returned"])
    return f"{who} {how} to {where}.", [(f"Who went to {where}?", who), (f"Where did {who} go?", where)]


def did(rng: Random, who: str, what: str, where: str):
    base, past = rng.choice(words.DEEDS)
    return f"{who} {past} {what}.", [(f"Who {past} {what}?", who), (f"What did {who} {base}?", what)]


def did_there(rng: Random, who: str, what: str, where: str):
    base, past = rng.choice(words.DEEDS)
    return deed_sentence(rng, who, past, what, where), [
        (f"Who {past} {what}?", who), (f"Who was at {where}?", who), (f"Where did {who} {base} {what}?", where),
        (f"Where was {what}?", where), (f"What did {who} {base}?", what), (f"Who {past} {what}, and where?", f"{who}, {where}"),
    ]  # fmt: skip


def lay(rng: Random, who: str, what: str, where: str):
    prep = rng.choice(("in", "near", "at") if where[0].isupper() else words.NEAR)
    return f"{capital(what)} was {prep} {where}.", [(f"What was at {where}?", what), (f"Where was {what}?", where)]


SHAPES = [has, was, went, did, did, did_there, did_there, did_there, lay]
