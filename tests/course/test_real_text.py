"""Text from the standard library: always the same, of the asked size, scored and learned apart."""

import math

import pytest
import torch
from torch.nn import functional as F

from minilora.course import real_text
from minilora.errors import MiniloraError
from minilora.llama import Llama
from minilora.text import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    return Tokenizer.from_pretrained(tiny_folder)


def test_rows_are_the_same_each_time_and_as_long_as_was_asked(tokenizer):
    rows = real_text.rows_to_score(tokenizer, 4, 32)
    real_text.files.cache_clear()
    assert rows == real_text.rows_to_score(tokenizer, 4, 32)
    assert rows == real_text.rows_to_score(tokenizer, 6, 32)[:4]
    assert len(rows) == 4 and all(len(ids) == 32 for ids, _ in rows)
    other = real_text.rows_to_score(tokenizer, 3, 32)
    assert real_text.fingerprint(rows) != real_text.fingerprint(other)


def test_all_is_learned_but_what_the_tokenizer_puts_in_front(tokenizer):
    given = len(tokenizer.opening)
    for ids, labels in [
        *real_text.rows_to_score(tokenizer, 2, 16),
        *real_text.rows_to_learn(tokenizer, 2, 16),
    ]:
        assert ids[:given] == tokenizer.opening and labels == [-100] * given + ids[given:]


def test_what_is_scored_is_never_learned():
    scored, learned = map(set, real_text.files())
    assert scored and learned and not scored & learned
    for path in scored | learned:
        assert not {"test", "site-packages"} & set(path.parts[-3:])


def test_pieces_follow_one_another_without_a_gap(tokenizer):
    rows = real_text.rows_to_learn(tokenizer, 3, 16)
    text = next(t for p in real_text.files()[1] for t in real_text.docstrings(p) if len(t) >= 300)
    given = len(tokenizer.opening)
    joined = [id for ids, _ in rows for id in ids[given:]]
    assert joined == tokenizer.encode(text)[: len(joined)]


def test_the_loss_is_the_mean_over_each_next_token(tokenizer, tiny_folder):
    model = Llama.from_pretrained(tiny_folder)
    total, count = 0.0, 0
    for ids, labels in real_text.rows_to_score(tokenizer, 5, 24):
        with torch.no_grad():
            logits = model(torch.tensor([ids]))[0, :-1]
        total += F.cross_entropy(logits, torch.tensor(labels[1:]), reduction="sum").item()
        count += sum(label != -100 for label in labels[1:])
    found = real_text.loss_on(model, tokenizer, 5, 24)
    assert math.isclose(found, total / count, rel_tol=1e-5)


def test_too_much_is_refused_in_a_line(tokenizer, monkeypatch):
    few = tuple(paths[:3] for paths in real_text.files())
    monkeypatch.setattr(real_text, "files", lambda: few)
    with pytest.raises(MiniloraError, match="ask for fewer or shorter"):
        real_text.rows_to_score(tokenizer, 2, 10**6)


def test_a_file_that_is_no_python_is_passed_over(tmp_path):
    (tmp_path / "a.py").write_text("def f(:")
    (tmp_path / "b.py").write_text('"""One."""\ndef f():\n    """Two."""\n')
    assert real_text.docstrings(tmp_path / "a.py") == ()
    assert real_text.docstrings(tmp_path / "b.py") == ("One.", "Two.")
