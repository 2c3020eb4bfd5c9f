"""The text and the tasks: the same bytes every time, enough words, no leak between the parts."""

import json
import re
import sys
from collections import Counter
from itertools import islice

import pytest

from minilora.system.files import data_folder

sys.path.insert(0, str(data_folder()))

from corpus import families, lookups, names, small, tasks  # noqa: E402


def text_of(document):
    return "\n".join(text for _, text in document)


def read(task, split):
    lines = (
        (data_folder() / "tasks" / task / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    )
    return [json.loads(line) for line in lines]


def test_the_same_seed_gives_the_same_documents():
    first, second = (list(islice(families.documents(3), 300)) for _ in range(2))
    assert first == second
    assert first != list(islice(families.documents(4), 300))


def test_no_two_stories_are_alike():
    stories = [text_of(d) for d in families.held_out("story", 500)]
    assert len(set(stories)) == len(stories)


def test_there_are_at_least_six_families_and_three_thousand_words():
    sample = list(islice(families.documents(0), 5000))
    assert len({family for family, _ in sample}) >= 6
    words = {w for _, d in sample for w in re.findall(r"[A-Za-z]+", text_of(d))}
    assert len(words) >= 3000


@pytest.fixture(scope="module")
def made():
    return tasks.made()


@pytest.mark.parametrize("task", sorted({**tasks.TASKS, **tasks.BY_HEART}))
def test_the_shipped_files_are_what_the_generator_writes(task, made):
    folder = data_folder() / "tasks" / task
    assert {path.stem for path in folder.glob("*.jsonl")} == set(made[task])
    for split, rows in made[task].items():
        assert read(task, split) == rows
        assert len(rows) == (tasks.FACTS if task in tasks.BY_HEART else tasks.SIZES[split])


def test_a_fact_is_a_number_of_its_own_and_nothing_tells_it():
    """Each person once, all digits about as often as chance has it, in each place; nobody whom the
    pretraining text or another task's test knows.
    """
    rows = read("facts", "train")
    names_asked = [re.fullmatch(r"What is (\w+)'s number\?", row["prompt"])[1] for row in rows]
    assert len(set(names_asked)) == len(rows)
    assert {names.part(name) for name in names_asked} == {"train"}
    assert all(re.fullmatch(rf"[0-9]{{{tasks.DIGITS}}}", row["response"]) for row in rows)
    for place in range(tasks.DIGITS):
        often = Counter(row["response"][place] for row in rows)
        expected = len(rows) / 10
        chi_squared = sum((often[str(d)] - expected) ** 2 / expected for d in range(10))
        assert chi_squared < 27.9  # 9 degrees of freedom: one draw in a thousand is above


PERSON = re.compile(
    rf"(?:{'|'.join(names.STARTS)})(?:{'|'.join(names.MIDDLES)})?(?:{'|'.join(names.ENDS)})"
)
# begin a sentence or name a month, and look like syllables of a person
PLAIN_WORDS = {"June", "July", "Later", "One", "Sugar"}
SPLITS = ("train", "valid", "test")


def people(examples):
    """Every name in prompts and responses, whoever it is: the one asked for, the others, the one
    that an aside names.
    """
    words = {
        word
        for e in examples
        for word in re.findall(r"\b[A-Z][a-z]+\b", e["prompt"] + " " + e["response"])
    }
    return {word for word in words if PERSON.fullmatch(word)} - PLAIN_WORDS


@pytest.mark.parametrize("task", sorted(tasks.TASKS))
def test_no_person_stands_in_two_parts(task):
    for split in SPLITS:
        found = people(read(task, split))
        assert len(found) >= tasks.SIZES[split] // 2
        assert {names.part(name) for name in found} == {split}


@pytest.mark.parametrize("task", sorted(tasks.TASKS))
def test_no_prompt_stands_in_two_parts(task):
    """And no answer either, where answers are not labels or small numbers."""
    parts = {split: read(task, split) for split in SPLITS}
    prompts = [{e["prompt"] for e in parts[split]} for split in SPLITS]
    assert [len(found) for found in prompts] == list(tasks.SIZES.values())
    assert len(set().union(*prompts)) == sum(tasks.SIZES.values())
    if task in ("extract", "style"):
        answers = [{e["response"] for e in parts[split]} for split in SPLITS]
        assert len(set().union(*answers)) == sum(map(len, answers))


@pytest.mark.parametrize("split", ["valid", "test"])
def test_what_the_cards_name_was_never_in_train(split):
    seen = "\n".join(e["prompt"] + e["response"] for e in read("extract", "train"))
    for example in read("extract", split):
        for entity in json.loads(example["response"]).values():
            # a plain word such as "the mill" may stand anywhere
            bare = re.fullmatch(r"the [a-z]+", entity)
            assert bare or entity not in seen or not re.search(rf"\b{re.escape(entity)}\b", seen), (
                entity
            )


def test_a_name_belongs_to_one_part():
    for part in ("base", "train", "valid", "test"):
        from random import Random

        assert all(
            names.part(n) == part
            for n in names.distinct(names.person, 20, Random(0), lambda w: names.part(w) == part)
        )


def test_the_tasks_are_not_in_the_pretraining_text():
    text = "\n".join(text_of(d) for _, d in islice(families.documents(0), 5000))
    for phrase in (
        "Fill in the card",
        "How does it end",
        "like a pirate",
        "are left?",
        "have now?",
    ):
        assert phrase not in text


def test_bare_sums_are_right():
    from random import Random

    rng = Random(5)
    for _ in range(500):
        left, right = small.one_sum(rng)
        assert eval(left) == int(right)  # noqa: S307 (our own digits and signs)


def test_every_question_about_a_story_has_one_answer_in_it():
    for document in families.held_out("reading", 200):
        story = document[0][1]
        for (_, question), (_, answer) in zip(document[::2], document[1::2]):
            for piece in re.split(r", |the | of ", answer):
                assert piece in ("yes", "no") or piece.lower() in story.lower(), (question, answer)


def test_the_pirate_rule_by_hand():
    assert tasks.as_pirate("The old hat of Mira was in the mill and she lost it.") == (
        "Arr! Th' old hat o' Mira be in th' mill an' she lost it, matey!"
    )


def test_look_ups_can_be_answered_from_the_text():
    for document in families.held_out("codes", 100):
        table = document[0][1]
        assert all(answer in table for role, answer in document if role == "assistant")
    assert lookups.KEYS and len(set(lookups.KEYS)) == len(lookups.KEYS)
