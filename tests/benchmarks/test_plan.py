"""Stored results by one command: what is left is told without a run, and how long it takes."""

import json
import subprocess
import sys
from argparse import Namespace

import pytest

from benchmarks import make_results
from benchmarks.kit import machine, plan, points, short_runs


def never(*arguments):
    raise AssertionError("a run was begun")


@pytest.fixture
def lines(tmp_path, monkeypatch):
    file = tmp_path / "plan.jsonl"
    monkeypatch.setenv(plan.ASKED, str(file))
    return lambda: [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_sweep_tells_what_is_left_and_ends_before_its_first_run(tmp_path, lines):
    recipe = {**short_runs.RECIPE, "rank": 4}
    path = tmp_path / "table.json"
    done = [{**recipe, "seed": seed, "seconds": 10.0 * seed} for seed in (1, 2, 5)]
    path.write_text(json.dumps({"base": short_runs.fingerprint(), "runs": done}))
    asked = [{**recipe, "seed": seed} for seed in range(6)]
    with pytest.raises(SystemExit) as ended:
        short_runs.sweep(path, "", asked, 1, never)
    assert not ended.value.code
    assert lines() == [{"file": "table.json", "there": 3, "to_go": 3, "seconds": 20.0}]
    assert short_runs.sweep(path, "", [asked[i] for i in (1, 2, 5)], 1, never) == done
    assert lines()[1]["to_go"] == 0


def test_points_tell_what_is_left(tmp_path, lines):
    out = tmp_path / "points.json"
    out.write_text(json.dumps({"points": [{"key": "a/one"}, {"key": "a/two", "seconds": 3}]}))
    options = Namespace(out=out, only=[], again=False)
    with pytest.raises(SystemExit):
        points.run(options, {}, ["a/one", "a/two", "b/one"], never)
    assert lines() == [{"file": "points.json", "there": 2, "to_go": 1, "seconds": 3}]
    options.again = True
    with pytest.raises(SystemExit):
        points.run(options, {}, ["a/one", "a/two", "b/one"], never)
    assert lines()[1]["to_go"] == 3


def test_without_the_question_nothing_is_told(tmp_path, monkeypatch):
    monkeypatch.delenv(plan.ASKED, raising=False)
    assert not plan.only_asked(tmp_path / "x.json", [], 7)


@pytest.mark.parametrize(
    "to_go, seconds, time",
    [(0, 9.0, "nothing to do"), (10, 60.0, "about 5 min"), (1, 2.0, "about 1 min")]
    + [(4, None, "never run: not known")],
)
def test_a_line_says_how_long_it_takes(to_go, seconds, time):
    found = {"file": "a.json", "there": 2, "to_go": to_go, "seconds": seconds}
    assert make_results.told("tasks.taste", found, 2).endswith(time)


def test_every_script_is_there_and_says_what_is_left(tmp_path):
    """One is asked for real; a script that fails ends the command with what it said."""
    for script in make_results.SCRIPTS:
        assert (machine.ROOT / "benchmarks" / (script.replace(".", "/") + ".py")).is_file()
    found = make_results.asked("tasks.taste")
    assert [each["file"] for each in found] == ["taste.json"] and found[0]["to_go"] == 0
    with pytest.raises(SystemExit, match="benchmarks.nothing: .*No module named"):
        make_results.asked("nothing")


def test_the_command_shows_the_plan_and_begins_nothing(monkeypatch, capsys):
    plans = {"tasks.taste": [{"file": "taste.json", "there": 1, "to_go": 3, "seconds": 40.0}]}
    monkeypatch.setattr(make_results, "asked", lambda script: plans.get(script, []))
    monkeypatch.setattr(subprocess, "run", never)
    monkeypatch.setattr(sys, "argv", ["make_results", "--plan"])
    make_results.main()
    said = capsys.readouterr().out.splitlines()
    assert said[1].split()[:4] == ["tasks.taste", "taste.json", "1", "3"]
    assert said[-1] == "about 1 min, and what depends on these runs. To stop is safe."
