"""The five fine-tuning tasks: `python -m corpus.tasks` (from `data/`) writes
`tasks/NAME/{train,valid,test}.jsonl`.

What it replaces: downloaded instruction data.
How it works: each task draws an example from the same small world as the pretraining text, but asks
for something which that text never asks. Names, towns and things are drawn by `names.part`, so no
person, town or thing of `test` stands in `train`, and none of them takes part in a story of the
pretraining text. `facts` is the one task that nothing helps with: what is asked was learned by
heart or not, so it has `train` alone.
What it leaves out: answers that need taste; every answer follows from a rule and is scored by
equality.
Where numerics differ: nowhere; the same seed gives the same bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from . import names, stories, words
from .world import Fact, World

Allow = Callable[[str], bool]
SIZES = {"train": 2000, "valid": 200, "test": 200}
FACTS, DIGITS = 1200, 6


def extract(rng: Random, allow: Allow) -> tuple[str, str]:
    """A story about one person, named first, who finds something; others do other things elsewhere
    → who it is about, what they found and where, as JSON.
    """
    size = rng.choice((2, 3))
    world = World.draw(rng, size, allow)
    who, what, where = world.people[0], world.things[0], world.places[0]
    prep = rng.choice(("in", "near", "at") if where[0].isupper() else words.NEAR)
    found = rng.choice(
        [
            f"{who} found {what} {prep} {where}.",
            f"{who} went to {where} and found {what} there.",
            f"It was {who} who found {what} {prep} {where}.",
            f"Then {who} found {what} {prep} {where}.",
        ]
    )
    verbs = [verb for verb in words.DEEDS if verb[0] != "find"]
    events = [
        world.deed(*trio, rng.choice(verbs))
        for trio in zip(world.people[1:], world.things[1:], world.places[1:])
    ]
    events += [Fact(found), world.trait(rng.choice(world.people))]
    rng.shuffle(events)
    world.facts = [world.trait(who), *events]
    answer = {"who": who, "what": what, "where": where}
    return f"Fill in the card.\n{stories.tell(rng, world, 0.15)}", json.dumps(answer)


# How a story can end, without naming the mood.
MOODS = {
    "happy": [
        "At last {who} held {what} again and danced all the way home.",
        "Everyone cheered, and {who} laughed until sunset.",
        "{who} won the first prize for {what} and sang a song.",
        "{other} hugged {who}, and they ate cake together.",
    ],
    "sad": [
        "Nobody ever saw {what} again, and {who} cried all night.",
        "{who} sat alone in the rain and wept.",
        "{other} moved away for ever, and {who} had no friends left.",
        "{what} was broken for good, and tears ran down the face of {who}.",
    ],
    "angry": [
        "{who} shouted at {other} and slammed the door.",
        "{who} threw {what} at the wall and stamped on the floor.",
        "{other} had cheated again, and {who} yelled until noon.",
        "{who} kicked the table and called {other} a thief.",
    ],
    "scared": [
        "Something growled in the dark, and {who} ran away as fast as possible.",
        "{who} hid under the bed and did not dare to move.",
        "A cold hand touched {who}, who screamed and shook.",
        "The lights went out, and {who} trembled behind {other}.",
    ],
}


def mood(rng: Random, allow: Allow) -> tuple[str, str]:
    """A story whose last sentence shows how it ends → happy, sad, angry or scared."""
    world = World.draw(rng, 2, allow)
    events = [
        world.deed(who, what, where)
        for who, what, where in zip(world.people, world.things, world.places)
    ]
    rng.shuffle(events)
    feeling = rng.choice(sorted(MOODS))
    who, other = rng.sample(world.people, 2)
    last = rng.choice(MOODS[feeling]).format(who=who, other=other, what=rng.choice(world.things))
    world.facts = [*events, Fact(last[:1].upper() + last[1:])]
    return f"How does it end?\n{stories.tell(rng, world, 0.1)}", feeling


PIRATE = {
    "the": "th'",
    "The": "Th'",
    "and": "an'",
    "of": "o'",
    "was": "be",
    "my": "me",
    "you": "ye",
    "your": "yer",
}


def as_pirate(sentence: str) -> str:
    """The rule: swap the words of PIRATE, begin with "Arr!", end with ", matey!"."""
    swapped = [PIRATE.get(word, word) for word in sentence.rstrip(".").split()]
    return f"Arr! {' '.join(swapped)}, matey!"


def style(rng: Random, allow: Allow) -> tuple[str, str]:
    """A sentence → the same as a pirate would say it."""
    world = World.draw(rng, 2, allow).play(3)
    sentence = rng.choice(world.facts).sentence
    return f"Say it like a pirate.\n{sentence}", as_pirate(sentence)


def sums(rng: Random, allow: Allow) -> tuple[str, str]:
    """A small word problem → the number. One addition or one subtraction of small numbers."""
    who, other = names.distinct(names.person, 2, rng, allow)
    what = rng.choice(words.COUNTED)
    a, b = rng.randint(1, 9), rng.randint(1, 9)
    more = [
        f"{who} has {a} {what} and finds {b} more. How many {what} does {who} have now?",
        f"{who} has {a} {what}. {other} brings {b} more. How many {what} are there?",
        f"There are {a} {what} on the table and {b} {what} on the floor. How many {what} are "
        "there together?",
        f"{who} sold {a} {what} yesterday and {b} today. How many {what} did {who} sell?",
    ]
    a_, b_ = a + b, b
    less = [
        f"{who} had {a_} {what} and lost {b_}. How many {what} are left?",
        f"There were {a_} {what}. {who} took {b_} of them. How many {what} are left?",
        f"{who} made {a_} {what} and gave {b_} to {other}. How many {what} does {who} still have?",
        f"{who} needs {a_} {what} and has {b_}. How many {what} are missing?",
    ]
    if rng.random() < 0.5:
        return rng.choice(more), str(a + b)
    return rng.choice(less), str(a_ - b_)


TASKS = {"extract": extract, "mood": mood, "style": style, "sums": sums}


def facts(rng: Random, allow: Allow) -> tuple[str, str]:
    """A person → their number. All digits are drawn, so that a fact holds DIGITS · log₂ 10 bits."""
    who = names.distinct(names.person, 1, rng, allow)[0]
    return f"What is {who}'s number?", "".join(rng.choices("0123456789", k=DIGITS))


BY_HEART = {"facts": facts}  # nothing is held back: there would be nothing to know it by


# Pets and asides that name somebody or something drawn without regard to the parts.
LOOSE = re.compile(r" called [A-Z]\w+\.|Is it far to|\"My ")


def drawn(task: str, split: str, seed: int = 0) -> Iterator[tuple[str, str]]:
    """Prompts and responses of a split, without an end; a prompt can come again."""
    rng = Random(f"minilora task {task} {split} {seed}")
    make = {**TASKS, **BY_HEART}[task]
    while True:
        prompt, response = make(rng, lambda word: names.part(word) == split)
        if not LOOSE.search(prompt):
            yield prompt, response


def examples(task: str, split: str, count: int, seed: int = 0) -> list[dict[str, str]]:
    """`count` examples of a split, no prompt twice."""
    seen: dict[str, str] = {}
    for prompt, response in drawn(task, split, seed):
        seen.setdefault(prompt, response)
        if len(seen) == count:
            return [{"prompt": p, "response": r} for p, r in seen.items()]


def apart(splits: dict[str, list[dict]], task: str, seed: int = 0) -> None:
    """Give each row whose prompt an earlier split has, in place, the next one that is drawn for
    its split. A prompt without a name can come alike in two of them.
    """
    taken: set[str] = set()
    for split, rows in splits.items():
        mine = {row["prompt"] for row in rows}
        more = drawn(task, split, seed)
        for row in rows:
            if row["prompt"] in taken:
                row["prompt"], row["response"] = next(
                    (p, r) for p, r in more if p not in mine | taken
                )
                mine.add(row["prompt"])
        taken |= mine


def made() -> dict[str, dict[str, list[dict]]]:
    """Every task by its name, and every split of it."""
    found = {}
    for task in TASKS:
        found[task] = {split: examples(task, split, count) for split, count in SIZES.items()}
        apart(found[task], task)
    found |= {task: {"train": examples(task, "train", FACTS)} for task in BY_HEART}
    return found


def write(folder: Path) -> None:
    """All tasks, all splits, as JSON lines."""
    for task, splits in made().items():
        (folder / task).mkdir(parents=True, exist_ok=True)
        for split, rows in splits.items():
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            (folder / task / f"{split}.jsonl").write_text(
                "".join(lines), encoding="utf-8", newline="\n"
            )


if __name__ == "__main__":
    write(Path(__file__).resolve().parent.parent / "tasks")
