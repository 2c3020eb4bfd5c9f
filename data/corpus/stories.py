"""Stories, and stories with questions about them.

What it replaces: a corpus of short stories.
How it works: a `World` supplies the facts; openings, weather, talk and small thoughts are strewn
between them, and an ending closes a plain story. Questions stand after the story as turns of a
conversation.
What it leaves out: long-range plots; a story is a string of events of the same people.
"""

from __future__ import annotations

from random import Random

from . import words
from .names import part, person, town
from .world import World, capital, one, passive_too, place, thing

Document = list[tuple[str, str]]  # (role, text) with role "text", "user" or "assistant"


def allowed(word: str) -> bool:
    """The base sees only names and things of the part `base`."""
    return part(word) == "base"


def sailor(rng: Random) -> str:
    """A sentence as old sailors speak. They turn up in stories; nobody retells anything in this
    voice.
    """
    forms = [
        f"Arr, matey, ye be late for th' {rng.choice(words.FOODS)} an' th' "
        f"{rng.choice(words.FOODS)}!",
        f"Aye, th' {rng.choice(words.LOOKS)} {rng.choice(words.THINGS)} be under th' "
        f"{rng.choice(words.PLACES)}!",
        f"Arr! Where be me {rng.choice(words.LOOKS)} {rng.choice(words.THINGS)}, matey?",
        f"Ye took me bag o' {rng.choice(words.FOODS)}, arr!",
        f"Th' {rng.choice(words.ANIMALS)} an' th' {rng.choice(words.ANIMALS)} be friends o' "
        f"yer {rng.choice(words.RELATIONS)}, aye!",
        f"Arr! There be {rng.choice(words.WEATHER)} at th' {rng.choice(words.PLACES)}, matey!",
        f"Give me th' {rng.choice(words.THINGS)} o' th' {rng.choice(words.JOBS)}, matey!",
    ]
    return rng.choice(forms)


def aside(rng: Random, who: str) -> str:
    """A sentence that no question is asked about."""
    a, b = rng.sample(words.ANIMALS, 2)
    forms = [
        f"There was {rng.choice(words.WEATHER)} all day.",
        f"The {rng.choice(words.WEATHER)} was over and the sky was {rng.choice(words.COLORS)}.",
        f"{capital(one(rng.choice(words.COLORS)))} {a} looked at {one(b)}.",
        f"Some {rng.choice(words.COUNTED)} lay on the {rng.choice(words.PLACES)} floor.",
        f"Nobody knew why the {a} was so {rng.choice(words.FEELINGS)}.",
        f"Everyone ate {rng.choice(words.FOODS)} with {rng.choice(words.FOODS)}.",
        f"The {rng.choice(words.JOBS)} told a story about {one(a)}.",
        f'"{capital(rng.choice(words.FOODS))} for everyone!" said the {rng.choice(words.JOBS)}.',
        f'"I am {rng.choice(words.FEELINGS)}," said {who}.',
        f'"Is it far to {place(rng)}?" asked {who}.',
        f'"{sailor(rng)}" said an old sailor.',
        f'"My {rng.choice(words.RELATIONS)} had {thing(rng)}," said {who}.',
        f"{capital(rng.choice(words.TIMES))} it was quiet, and the {a} went to sleep.",
    ]
    return rng.choice(forms)


def ending(rng: Random, who: str, other: str) -> str:
    forms = [
        f"And that was the end of the day for {who}.",
        f"So {who} and {other} went home together.",
        f"In the end {who} was {rng.choice(words.FEELINGS)}.",
        f"After that, {other} never saw {who} again.",
        f"From then on, {who} and {other} were friends.",
        f"They had {rng.choice(words.FOODS)} and {rng.choice(words.FOODS)}, and everyone was "
        f"{rng.choice(words.FEELINGS)}.",
        f"{who} said goodbye to {other} and slept until noon.",
    ]
    return rng.choice(forms)


def tell(rng: Random, world: World, asides: float) -> str:
    """The facts of the world as text, with asides before some of them."""
    lines = []
    for fact in world.facts:
        if rng.random() < asides:
            lines.append(aside(rng, rng.choice(world.people)))
        lines.append(fact.sentence)
    return " ".join(lines)


def story(rng: Random) -> Document:
    """A plain story with an opening, a title at times, and an ending."""
    world = World.draw(rng, rng.choice((2, 2, 3)), allowed).play(rng.randint(4, 9))
    who, other = world.people[:2]
    opening = (
        f"{rng.choice(words.OPENINGS)}, {who} and {other} lived in {town(rng)}. "
        if rng.random() < 0.6
        else ""
    )
    title = f"{capital(world.things[0])}\n" if rng.random() < 0.2 else ""
    return [("text", f"{title}{opening}{tell(rng, world, 0.4)} {ending(rng, who, other)}")]


def reading(rng: Random) -> Document:
    """A story as the first message, then two to six questions about it."""
    size = rng.choice((1, 2, 2, 3, 3, 4))
    world = World.draw(rng, size, allowed).play(size + rng.randint(0, 4))
    text = tell(rng, world, rng.choice((0.0, 0.2, 0.4)))
    pairs = world.questions()[: rng.randint(3, 8)]
    if rng.random() < 0.15:
        pairs.append(("Who is in the story?", ", ".join(p for p in world.people if p in text)))
    document: Document = []
    first = rng.random()
    for i, (question, answer) in enumerate(pairs):
        if i == 0:
            question = (
                f"{text}\n{question}"
                if first < 0.6
                else f"{question}\n{text}"
                if first < 0.8
                else f"{text} {question}"
            )
        document += [("user", question), ("assistant", answer)]
    return document


def looking(rng: Random) -> Document:
    """A story with distractors, then questions whose answers stand behind what they name."""
    size = rng.choice((1, 2, 2, 3, 3, 4))
    world = World.draw(rng, size, allowed)
    world.say = passive_too
    world.play(size + rng.randint(0, 3))
    text = tell(rng, world, rng.choice((0.0, 0.2, 0.3)))
    pairs = world.questions(later=True)[: rng.randint(3, 8)]
    document: Document = []
    for i, (question, answer) in enumerate(pairs):
        document += [("user", f"{text}\n{question}" if i == 0 else question), ("assistant", answer)]
    return document or story(rng)


def retelling(rng: Random) -> Document:
    """A story, then one sentence of it asked for by what it is about: copying whole sentences."""
    world = World.draw(rng, 2, allowed).play(rng.randint(3, 5))
    text = tell(rng, world, 0.2)
    document: Document = []
    for fact in rng.sample(world.facts, 2):
        key = fact.sentence.split()[-1].rstrip(".")
        if (
            sum(f.sentence.split()[-1].rstrip(".") == key for f in world.facts) > 1
            or key in document
        ):
            continue
        question = f"Which sentence ends with {key}?"
        document += [
            ("user", f"{text}\n{question}" if not document else question),
            ("assistant", fact.sentence),
        ]
    return document or story(rng)


__all__ = [
    "Document",
    "aside",
    "ending",
    "looking",
    "person",
    "reading",
    "retelling",
    "sailor",
    "story",
    "tell",
]
