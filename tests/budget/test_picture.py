"""The budget's picture: sizes to scale, every part named and numbered, cards as lines, and nothing
known by its colour alone.
"""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from minilora import budget
from minilora.budget import catalog, picture
from minilora.budget.table import decimal
from minilora.course.explore.palette import HUES
from minilora.errors import MiniloraError

NAME = "{http://www.w3.org/2000/svg}"
CASES = {
    "qlora": dict(model="llama-7b", method="qlora", rank=8),
    "full": dict(model="tinyllama-1.1b", method="full"),
    "paged": dict(model="llama-7b", method="qlora", rank=64, optimizer="paged_adamw8bit"),
    "tiny": dict(model="tiny", library="minilora", device="cpu"),
    "huge": dict(model="llama-3.1-405b", method="lora", batch=4),
}


@pytest.fixture(params=CASES)
def told(request):
    return budget.estimate(**CASES[request.param])


def drawn(told, asked=()):
    return ElementTree.fromstring(picture.svg(told, HUES, asked))


def test_the_bar_is_to_scale(told):
    plan, root = picture.layout(told), drawn(told)
    boxes = [rect for rect in root.iter(f"{NAME}rect") if rect.get("y") == str(picture.BAR_TOP)]
    assert len(boxes) == len(plan.segments)
    per_byte = (picture.RIGHT - picture.LEFT) / plan.end
    for box, segment in zip(boxes, plan.segments):
        assert float(box.get("width")) == pytest.approx(
            max(segment.bytes * per_byte, 0.5), abs=0.011
        )
        assert float(box.get("x")) == pytest.approx(
            picture.LEFT + segment.start * per_byte, abs=0.011
        )
    assert sum(segment.bytes for segment in plan.segments) == told.total
    assert all(
        float(box.get("x")) + float(box.get("width")) <= picture.RIGHT + 0.5 for box in boxes
    )


def test_every_part_has_a_title_a_row_and_its_size(told):
    root = drawn(told)
    titles = [title.text for title in root.iter(f"{NAME}title")]
    rows = "\n".join(text.text for text in root.iter(f"{NAME}text"))
    for number, segment in enumerate(picture.layout(told).segments, 1):
        assert any(
            title.startswith(f"{segment.name}: {decimal(segment.bytes, told.total)}")
            for title in titles
        )
        assert f"{number}  {segment.name}" in rows and decimal(segment.bytes, told.total) in rows
    assert (
        root.get("role") == "img"
        and root.find(f"{NAME}title").text
        and decimal(told.peak_allocated, told.total) in root.find(f"{NAME}desc").text
    )


def test_neighbours_differ_in_colour_and_repeat_only_with_another_number(told):
    root = drawn(told)
    hues = [
        rect.get("fill")
        for rect in root.iter(f"{NAME}rect")
        if rect.get("y") == str(picture.BAR_TOP)
    ]
    assert all(a != b for a, b in zip(hues, hues[1:])) and set(hues) <= set(HUES)


def test_the_asked_card_is_a_line_and_so_are_its_neighbours():
    told = budget.estimate(
        "llama-7b", method="qlora", rank=8, batch=8, seq=2048, checkpointing=False
    )
    lines = [
        line.find(f"{NAME}title").text
        for line in drawn(told, [catalog.gpu("T4")]).iter(f"{NAME}line")
    ]
    cards = picture.near(told.with_context, [catalog.gpu("T4")])
    assert any(line.startswith("T4: 15.83 GB") for line in lines) and len(lines) == len(cards)
    assert [card.usable for card in cards] == sorted(card.usable for card in cards)
    assert any(card.usable < told.with_context for card in cards) and any(
        card.usable >= told.with_context for card in cards
    )


def test_card_labels_do_not_run_into_each_other():
    told = budget.estimate("llama-65b", method="qlora", rank=64, batch=4)
    asked = [catalog.gpu(name) for name in ("T4", "L4", "RTX 5090")]
    labels = [
        (float(t.get("x")), float(t.get("y")), len(t.text))
        for t in drawn(told, asked).iter(f"{NAME}text")
        if "usable" in t.text
    ]
    assert len(labels) >= 5 and len({y for _, y, _ in labels}) >= 3, (
        "no two of them are close, so this test could not fail"
    )
    for i, (x, y, length) in enumerate(labels):
        for other_x, other_y, _ in labels[i + 1 :]:
            assert y != other_y or other_x >= x + 7 * length


def test_text_is_escaped(tmp_path):
    import json

    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 100,
    }
    folder = tmp_path / "a<b>&c"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    told = budget.estimate(str(folder))
    text = picture.svg(told, HUES)
    assert "<b>" not in text and "a&lt;b&gt;&amp;c" in text


@pytest.mark.parametrize("kind, head", [("svg", b"<svg"), ("png", b"\x89PNG"), ("SVG", b"<svg")])
def test_files_are_written_whole(tmp_path, kind, head):
    path = tmp_path / f"budget.{kind}"
    picture.write(budget.estimate("llama-7b"), path, HUES, [catalog.gpu("T4")])
    assert path.read_bytes().startswith(head) and [p.name for p in tmp_path.iterdir()] == [
        path.name
    ]
    assert kind == "png" or re.search(r"</svg>\s*$", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["budget.gif", "budget", "budget.svg.txt"])
def test_other_endings_are_refused(tmp_path, name):
    with pytest.raises(MiniloraError, match="svg or a .png"):
        picture.write(budget.estimate("llama-7b"), tmp_path / name, HUES)
    assert not list(tmp_path.iterdir())


def test_the_picture_is_the_same_every_time(told):
    assert picture.svg(told, HUES) == picture.svg(told, HUES)
