"""The four fine-tuning tasks: `python -m corpus.tasks` (from `data/`) writes
`tasks/NAME/{train,valid,test}.jsonl`.

What it replaces: downloaded instruction data.
How it works: each task draws an example from the same small world as the pretraining text, but asks
for something which that text never asks. Names, towns and things are drawn by `names.part`, so no
person, town or thing of `test` stands in `train`, and none of them takes part in a story of the
pretraining text.
What it leaves out: answers that need taste; every answer follows from a rule and is scored by
equality.
Where numerics differ: nowhere; the same seed gives the same bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from random import Random

from . import names, stories, words
from .world import Fact, World

Allow = Callable[[str], bool]
SIZES = {"train": 2000, "valid": 200, "test": 200}


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


# Pets and asides that name somebody or something drawn without regard to the parts.
LOOSE = re.compile(r" called [A-Z]\w+\.|Is it far to|\"My ")


def examples(task: str, split: str, count: int, seed: int = 0) -> list[dict[str, str]]:
    """`count` examples of a split, no prompt twice."""
    rng = Random(f"minilora task {task} {split} {seed}")
    seen: dict[str, str] = {}
    while len(seen) < count:
        prompt, response = TASKS[task](rng, lambda word: names.part(word) == split)
        if not LOOSE.search(prompt):
            seen.setdefault(prompt, response)
    return [{"prompt": p, "response": r} for p, r in seen.items()]


def write(folder: Path) -> None:
    """All tasks, all splits, as JSON lines."""
    for task in TASKS:
        (folder / task).mkdir(parents=True, exist_ok=True)
        for split, count in SIZES.items():
            lines = [json.dumps(e, ensure_ascii=False) + "\n" for e in examples(task, split, count)]
            (folder / task / f"{split}.jsonl").write_text(
                "".join(lines), encoding="utf-8", newline="\n"
            )


if __name__ == "__main__":
    write(Path(__file__).resolve().parent.parent / "tasks")
