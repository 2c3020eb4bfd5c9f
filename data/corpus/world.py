"""A tiny world per story: who did what to which thing, where and when, and every question that has
one answer.

What it replaces: annotated reading-comprehension data.
How it works: `World.draw` picks people, things and places, `World.play` makes facts from them. A
fact knows its sentence forms and its questions. `questions` keeps only those that no other fact of
the story answers differently.
What it leaves out: inference over several facts, apart from "who was where last".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from . import names, words

Pair = tuple[str, str]


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def one(noun: str) -> str:
    """The noun with its article: "a cat", "an owl"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


@dataclass
class Fact:
    """One thing that is true: its sentence, and (question, answer) pairs about it."""

    sentence: str
    questions: list[Pair] = field(default_factory=list)
    claim: Pair | None = None  # (subject, predicate) for yes/no questions


def thing(rng: Random) -> str:
    return f"the {rng.choice(words.LOOKS)} {rng.choice(words.THINGS)}"


def place(rng: Random) -> str:
    """A bare noun, a described one or a town: "the mill", "the old mill", "Thornwick"."""
    kind = rng.random()
    if kind < 0.25:
        return names.town(rng)
    if kind < 0.45:
        return f"the {rng.choice(words.PLACES)}"
    return f"the {rng.choice(words.PLACE_LOOKS)} {rng.choice(words.PLACES)}"


def deed_sentence(rng: Random, who: str, past: str, what: str, where: str, when: str = "") -> str:
    """One of several ways to say the same event."""
    prep = rng.choice(("in", "near", "at") if where[0].isupper() else words.NEAR)
    forms = [
        f"{who} {past} {what} {prep} {where}",
        f"{who} {past} {what} {prep} {where}",
        f"{capital(prep)} {where}, {who} {past} {what}",
        f"{who} went to {where} and {past} {what} there",
        f"it was {who} who {past} {what} {prep} {where}",
        f"{what} was {prep} {where}, and {who} {past} it there",
    ]
    text = rng.choice(forms)
    if when:
        text = (
            f"{when}, {text}"
            if rng.random() < 0.5
            and not text[0].isupper()
            or text.startswith(who)
            and rng.random() < 0.5
            else f"{text} {when}"
        )
    return capital(text) + "."


PARTICIPLES = {
    "stole": "stolen",
    "broke": "broken",
    "drew": "drawn",
    "threw": "thrown",
    "shook": "shaken",
    "chose": "chosen",
    "hid": "hidden",
    "forgot": "forgotten",
}


def passive_too(rng: Random, who: str, past: str, what: str, where: str, when: str = "") -> str:
    """Like deed_sentence, but in half of the cases the person comes after the thing."""
    prep = rng.choice(("in", "near", "at") if where[0].isupper() else words.NEAR)
    done = PARTICIPLES.get(past, past)
    forms = [
        f"{who} {past} {what} {prep} {where}",
        f"{who} went to {where} and {past} {what} there",
        f"it was {who} who {past} {what} {prep} {where}",
        f"{what} was {done} by {who} {prep} {where}",
        f"{prep} {where}, {what} was {done} by {who}",
        f"{what} was {prep} {where}, and {who} {past} it there",
    ]
    return capital(rng.choice(forms) + (f" {when}" if when else "")) + "."


def answered_later(sentence: str, question: str, answer: str) -> bool:
    """True if something that the question names comes before the answer in the sentence: the reader
    finds the name and reads on. The other way round (from "found the hat" back to who) is what a
    model of this size does not learn.
    """
    text = sentence.lower()
    end = text.find(answer.lower())
    named = [
        w
        for w in question.rstrip("?").split()[1:]
        if w.lower() not in ("did", "was", "the", "to", "of", "a", "an", "at", "go")
    ]
    return end > 0 and any(0 <= text.find(word.lower()) < end for word in named)


class World:
    """The people, things and places of one story."""

    say = staticmethod(deed_sentence)  # how a deed is told

    def __init__(self, rng: Random, people: list[str], things: list[str], places: list[str]):
        self.rng, self.people, self.things, self.places = rng, people, things, places
        self.facts: list[Fact] = []

    @classmethod
    def draw(
        cls, rng: Random, size: int, allow: Callable[[str], bool] = lambda word: True
    ) -> World:
        """`size` people, things and places each, all different; `allow` restricts the words (see
        names.part).
        """
        return cls(
            rng,
            names.distinct(names.person, size, rng, allow),
            names.distinct(thing, size, rng, allow),
            names.distinct(place, size, rng, allow),
        )

    # --- kinds of facts
    # -------------------------------------------------------------------------------------------

    def deed(self, who: str, what: str, where: str, verb: Pair | None = None) -> Fact:
        base, past = verb or self.rng.choice(words.DEEDS)
        when = self.rng.choice(words.MOMENTS) if self.rng.random() < 0.25 else ""
        pairs = [
            (f"Who {past} {what}?", who),
            (f"What did {who} {base}?", what),
            (f"Where did {who} {base} {what}?", where),
            (f"Where was {what}?", where),
            (f"Who was at {where}?", who),
            (f"What was at {where}?", what),
            (f"Who {past} {what}, and where?", f"{who}, {where}"),
            (f"What did {who} {base}, and where?", f"{what}, {where}"),
        ]
        if when:
            pairs.append((f"When did {who} {base} {what}?", when))
        sentence = self.say(self.rng, who, past, what, where, when)
        if " went to " in sentence:
            pairs += [(f"Where did {who} go?", where), (f"Who went to {where}?", who)]
        return Fact(sentence, pairs, (f"Did {who} {base} {what}?", what))

    def gift(self, who: str, whom: str, what: str) -> Fact:
        past, base = self.rng.choice(
            [
                ("gave", "give"),
                ("sent", "send"),
                ("lent", "lend"),
                ("showed", "show"),
                ("brought", "bring"),
            ]
        )
        pairs = [
            (f"Who {past} {what} to {whom}?", who),
            (f"What did {who} {base} to {whom}?", what),
            (f"To whom did {who} {base} {what}?", whom),
        ]
        return Fact(f"{who} {past} {what} to {whom}.", pairs)

    def walk(self, who: str, where: str) -> Fact:
        how = self.rng.choice(
            ["went", "walked", "ran", "rode", "hurried", "drove", "came", "moved", "returned"]
        )
        return Fact(
            f"{who} {how} to {where}.",
            [
                (f"Where did {who} go?", where),
                (f"Who went to {where}?", who),
                (f"Who was at {where}?", who),
            ],
        )

    def trait(self, who: str) -> Fact:
        rng = self.rng
        kind = rng.randrange(6)
        if kind == 0:
            job = rng.choice(words.JOBS)
            return Fact(
                f"{who} was {one(job)}.",
                [(f"What was {who}?", one(job)), (f"Who was {one(job)}?", who)],
            )
        if kind == 1:
            food, verb = (
                rng.choice(words.FOODS),
                rng.choice(["liked", "hated", "cooked", "sold", "wanted", "ate"]),
            )
            base = {
                "liked": "like",
                "hated": "hate",
                "cooked": "cook",
                "sold": "sell",
                "wanted": "want",
                "ate": "eat",
            }[verb]
            return Fact(
                f"{who} {verb} {food}.",
                [(f"What did {who} {base}?", food), (f"Who {verb} {food}?", who)],
            )
        if kind == 2:
            animal, name = rng.choice(words.ANIMALS), names.person(rng)
            return Fact(
                f"{who} had {one(animal)} called {name}.",
                [
                    (f"What was the {animal} called?", name),
                    (f"Who had {one(animal)}?", who),
                    (f"Who was {name}?", f"the {animal} of {who}"),
                ],
            )
        if kind == 3:
            feeling = rng.choice(words.FEELINGS)
            return Fact(
                f"{who} {rng.choice(['felt', 'was', 'looked'])} {feeling}.",
                [(f"How did {who} feel?", feeling), (f"Who felt {feeling}?", who)],
            )
        if kind == 4:
            count, items = rng.randint(2, 60), rng.choice(words.COUNTED)
            verb = rng.choice(["had", "saw", "counted", "bought", "made"])
            return Fact(
                f"{who} {verb} {count} {items}.",
                [(f"How many {items}?", str(count)), (f"Who {verb} {count} {items}?", who)],
            )
        other, relation = (
            rng.choice([p for p in self.people if p != who] or [names.person(rng)]),
            rng.choice(words.RELATIONS),
        )
        return Fact(
            f"{who} was the {relation} of {other}.", [(f"Who was the {relation} of {other}?", who)]
        )

    def look(self, what: str) -> Fact:
        quality = self.rng.choice(words.QUALITIES)
        return Fact(
            f"{capital(what)} was {quality}.",
            [(f"How was {what}?", quality), (f"What was {quality}?", what)],
        )

    # --- a story's worth of them
    # ----------------------------------------------------------------------------------

    def play(self, events: int) -> World:
        """Fill `facts` with `events` facts; the first ones use every person, thing and place
        once.
        """
        rng = self.rng
        for i in range(events):
            who, what, where = (
                pool[i % len(pool)] for pool in (self.people, self.things, self.places)
            )
            kind = rng.random()
            if i < len(self.people) and kind < 0.8:
                fact = self.deed(who, what, where)
            elif kind < 0.3:
                fact = self.deed(
                    rng.choice(self.people), rng.choice(self.things), rng.choice(self.places)
                )
            elif kind < 0.5 and len(self.people) > 1:
                fact = self.gift(*rng.sample(self.people, 2), rng.choice(self.things))
            elif kind < 0.65:
                fact = self.walk(rng.choice(self.people), rng.choice(self.places))
            elif kind < 0.75:
                fact = self.look(rng.choice(self.things))
            else:
                fact = self.trait(rng.choice(self.people))
            self.facts.append(fact)
        return self

    def questions(self, later: bool = False) -> list[Pair]:
        """All pairs whose question has one answer in this story, in random order; with `later` only
        those that are answered later in their sentence than what they name.
        """
        answers: dict[str, set[str]] = {}
        for fact in self.facts:
            for question, answer in fact.questions:
                answers.setdefault(question, set()).add(answer)
        pairs = [(q, next(iter(a))) for q, a in answers.items() if len(a) == 1]
        if later:
            told = {q: fact.sentence for fact in self.facts for q, _ in fact.questions}
            pairs = [(q, a) for q, a in pairs if answered_later(told[q], q, a)]
            self.rng.shuffle(pairs)
            return pairs
        pairs += self._yes_or_no()
        self.rng.shuffle(pairs)
        return pairs

    def _yes_or_no(self) -> list[Pair]:
        claims = [fact.claim for fact in self.facts if fact.claim]
        true = {question for question, _ in claims}
        pairs = []
        for question, what in claims[:2]:
            other = question.replace(what, self.rng.choice(self.things))
            asked = question if self.rng.random() < 0.5 else other
            pairs.append((asked, "yes" if asked in true else "no"))
        return pairs
