"""The second model in a lesson: taken from the cache, and never fetched."""

import shutil

import pytest

from minilora.course import real_model
from minilora.llama import Llama
from minilora.models import cache, names


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    for source in ("_from_hub", "_from_wheel"):
        monkeypatch.setattr(names, source, lambda model: pytest.fail("a lesson fetched a model"))
    return tmp_path


def test_a_model_that_is_not_there_costs_one_line_that_names_the_command(own_cache, capsys):
    assert real_model.opened() is None
    told = capsys.readouterr()
    assert told.err == "" and told.out.count("\n") == 1 and told.out.startswith("skipped: ")
    assert "SmolLM2-135M" in told.out and "`minilora models --fetch smollm2-135m`" in told.out
    assert str(own_cache) not in told.out
    assert not list(own_cache.iterdir())


def test_a_half_fetched_model_is_not_there(own_cache, capsys):
    (own_cache / "models" / real_model.NAME).mkdir(parents=True)
    assert real_model.opened() is None
    assert "skipped" in capsys.readouterr().out


def test_a_model_in_the_cache_is_read_without_a_word(own_cache, tiny_folder, capsys):
    place = cache.place(real_model.NAME)
    shutil.copytree(tiny_folder, place)
    cache.write_source(place, cache.Source(real_model.NAME, "a test", "MIT"))
    model, tokenizer = real_model.opened()
    assert capsys.readouterr().out == ""
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    state = Llama.from_pretrained(tiny_folder).state_dict()
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())
    assert tokenizer.encode("who") and next(model.parameters()).dtype.is_floating_point


def test_a_lesson_on_one_model_takes_it_and_else_the_tiny_one_and_a_line(own_cache, capsys):
    assert real_model.name_or_tiny() == "tiny"
    told = capsys.readouterr().out
    assert told.count("\n") == 1 and "`minilora models --fetch smollm2-135m`" in told
    place = cache.place(real_model.NAME)
    place.mkdir(parents=True)
    assert real_model.name_or_tiny() == "tiny"  # half fetched
    capsys.readouterr()
    cache.write_source(place, cache.Source(real_model.NAME, "a test", "MIT"))
    assert real_model.name_or_tiny() == real_model.NAME
    assert capsys.readouterr().out == ""
