"""The numbers behind the sliders of lesson 02: the base's own distribution, cut and drawn from as
`generate` does.
"""

import numpy as np
import pytest

from minilora.course.explore import nexttoken


def test_the_distribution_is_the_models():
    import torch

    from minilora.llama import Llama
    from minilora.system.files import data_folder
    from minilora.text import Tokenizer

    tokenizer = Tokenizer.from_pretrained(data_folder() / "base")
    with torch.no_grad():
        logits = (
            Llama.from_pretrained(data_folder() / "base")(
                torch.tensor([tokenizer.encode(nexttoken.PROMPT, bos=True)])
            )[0, -1]
            .double()
            .numpy()
        )
    p = np.sort(np.exp(logits / 0.7) / np.exp(logits / 0.7).sum())[::-1]
    found = nexttoken.compute(0.7, "all")
    assert found["p"] == pytest.approx(p, abs=1e-6)
    assert found["words"][0] == tokenizer.decode([int(logits.argmax())]).replace(" ", "␣")


@pytest.mark.parametrize("top_k", [k for k in nexttoken.TOP_K if k != "all"])
def test_only_the_top_k_are_left_and_sum_to_one(top_k):
    found = nexttoken.compute(1.3, top_k)
    assert found["left"] == top_k and found["p"].sum() == pytest.approx(1)
    assert found["drawn"].sum() == nexttoken.DRAWS and not found["drawn"][top_k:].any()


def test_a_higher_temperature_widens_the_choice():
    choices = [nexttoken.compute(t, "all")["choices"] for t in (0.1, 0.5, 1.0, 2.0, 3.0)]
    assert choices == sorted(choices) and 1 <= choices[0] < choices[-1] < len(
        nexttoken.observed()[0]
    )


def test_equally_likely_tokens_count_fully():
    """The width of a choice, exp of the entropy, on the case where it is known."""
    assert nexttoken.compute(1.0, 1)["choices"] == pytest.approx(1)
    wide = nexttoken.compute(1e6, 50)  # so hot that the fifty are as good as equal
    assert wide["choices"] == pytest.approx(50, rel=1e-3)


def test_draws_fall_as_often_as_is_likely(monkeypatch):
    many = (np.arange(20_000) + 0.5) / 20_000
    monkeypatch.setattr(nexttoken, "uniforms", lambda: many)
    found = nexttoken.compute(1.0, 20)
    assert found["drawn"] / len(many) == pytest.approx(found["p"], abs=1e-4)


def test_the_words_say_what_is_left():
    assert "only the likeliest stays" in nexttoken.render(nexttoken.compute(1.0, 1))[0]
    assert "the 5 likeliest stay" in nexttoken.render(nexttoken.compute(1.0, 5))[0]
    assert (
        f"all {len(nexttoken.observed()[0]):,} tokens stay"
        in nexttoken.render(nexttoken.compute(1.0, "all"))[0]
    )
