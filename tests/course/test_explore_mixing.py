"""The slider of lesson 09 shows what its table says, and what is missing is said."""

import json

import pytest

from minilora.course.explore import mixing, stored
from minilora.errors import MiniloraError


def test_scores_are_the_tables_by_hand():
    runs = [run for run in mixing.table()["runs"] if run["adapters"] == ["mood", "style"]]
    found = mixing.scores("mood + style")
    for place in ((0.5, 1.0), (0.0, 0.25)):
        points = [
            next(point for point in run["points"] if tuple(point[:2]) == place) for run in runs
        ]
        assert found[place] == tuple(
            [100 * point[2 + k] / run["asked"] for point, run in zip(points, runs)] for k in (0, 1)
        )
    assert len(runs) == 3 and set(found) == {(a, b) for a in mixing.WEIGHTS for b in mixing.WEIGHTS}


def test_an_adapter_alone_does_its_task_and_not_the_other():
    for pair in mixing.PAIRS:
        for place, (own, other) in (((1.0, 0.0), (0, 1)), ((0.0, 1.0), (1, 0))):
            here = mixing.scores(pair)[place]
            assert sum(here[own]) / 3 > 80 and sum(here[other]) / 3 < 25, f"{pair} at {place}"


def test_the_label_tells_mean_and_spread():
    found = {
        **mixing.compute("mood + sums", 0.5, 0.25),
        "scores": {(0.5, 0.25): ([20.0, 40.0, 30.0], [0.0, 0.0, 6.0])},
    }
    label, picture = mixing.render(found)
    assert (
        label
        == "mood at weight 0.5: 30 % right (20 to 40); sums at weight 0.25: 2 % right (0 to 6)."
    )
    assert picture.count("percent right, by weight of mood") == 2 and "mood, wanted" in picture


def test_answers_from_a_model_are_escaped(monkeypatch):
    found = {**mixing.compute("mood + sums", 0.0, 0.0), "answers": ["<script>&", "\n"]}
    _, picture = mixing.render(found)
    assert "&lt;script&gt;&amp;" in picture and "<script" not in picture


def test_a_missing_table_or_pair_is_said(monkeypatch, tmp_path):
    with pytest.raises(MiniloraError, match="no pair 'mood [+] mood'; it has extract [+] style, "):
        mixing.scores("mood + mood")
    monkeypatch.setattr(stored, "results_folder", lambda: tmp_path)
    mixing.table.cache_clear()
    with pytest.raises(MiniloraError, match="make it with `python -m benchmarks.tasks.mixing`"):
        mixing.table()
    (tmp_path / "sweep-mixing.json").write_text(json.dumps({"runs": []}))
    assert mixing.table() == {"runs": []}
    mixing.table.cache_clear()
