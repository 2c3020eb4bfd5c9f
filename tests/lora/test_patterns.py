"""Regular expressions of others: what `re` answers, in a bounded time."""

import re
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from minilora import lora
from minilora.errors import MiniloraError
from minilora.lora.patterns import Bounded, fullmatch

PATHS = (
    "model",
    "lm_head",
    "model.layers.0.self_attn.q_proj",
    "model.layers.11.mlp.down_proj",
    "model.layers.10.post_attention_layernorm",
)
ENDLESS = (
    r"(\w|[a-z]|\.|\d)*[0-9]{3}[a-z]",
    r"(\.|\w|[a-z]|[0-9_])*[0-9]{3}[a-z_]",
)

pieces = st.sampled_from(
    ["model", "layers", r"\.", ".", ".*", r"\d+", r"\d", "q_proj", "(up|down)", "_proj", "[a-z_]+"]
    + ["(?:mlp|self_attn)", "(?i:MODEL)", "lm_head", "|", "?", "{1,2}", "(?!lm)", "$", "^", r"\w*?"]
)


@given(st.lists(pieces, max_size=8).map("".join))
def test_an_answer_is_that_of_re(pattern):
    try:
        wanted = [re.fullmatch(pattern, path) is not None for path in PATHS]
    except re.error:
        with pytest.raises(MiniloraError, match="no regular expression"):
            fullmatch(pattern, PATHS[0])
        return
    assert [fullmatch(pattern, path) for path in PATHS] == wanted


@pytest.mark.parametrize("pattern", ENDLESS)
def test_what_never_ends_is_ended(pattern):
    start = time.monotonic()
    for _ in range(2):
        with pytest.raises(MiniloraError, match="takes too long.*in a list"):
            for path in PATHS:
                fullmatch(pattern, path)
    assert time.monotonic() - start < 5


def test_time_is_shared_by_all_paths(monkeypatch):
    """Many paths that each take a little less than the limit must not add up to minutes."""
    bounded = Bounded("a*")
    clock = iter([0.0, 0.2, 1.0, 1.2, 2.0, 2.2])
    monkeypatch.setattr("minilora.lora.patterns.time.monotonic", lambda: next(clock))
    assert bounded.matches("aa") and not bounded.matches("ab")
    assert bounded.matches("aa")  # an answer that is there costs no time
    with pytest.raises(MiniloraError, match="takes too long"):
        bounded.matches("ac")


@pytest.mark.parametrize(
    "pattern, why",
    [
        ("(", "unterminated"),
        ("(" * 5000 + ")" * 5000, "recursion"),
        ("a{99999999999999999999}", "too large"),
        ("x" * 30_000, "30,000 characters"),
        (r"\pL", "bad escape"),
        ("(?:proj){e<=2}", "counts nothing"),  # `regex` would allow two errors
    ],
)
def test_what_is_none_is_said(pattern, why):
    with pytest.raises(MiniloraError, match=f"no regular expression .*{why}") as caught:
        lora.AdapterConfig(targets=pattern)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


@pytest.mark.parametrize("field", ["targets", "rank_pattern", "alpha_pattern"])
def test_every_pattern_of_an_adapter_is_bounded(field):
    model = nn.ModuleDict({"model_layers_0_self_attn_q_projection_of": nn.Linear(4, 4)})
    value = ENDLESS[0] if field == "targets" else {ENDLESS[0]: 2}
    start = time.monotonic()
    with pytest.raises(MiniloraError, match="takes too long"):
        lora.add_adapter(model, lora.AdapterConfig(2, **{field: value}))
    assert time.monotonic() - start < 5
    assert not lora.adapted_layers(model)


@pytest.mark.parametrize(
    "init", ["pissa_niter_999999999", "pissa_niter_101", "loftq_niter_9999", "pissa_niter_٣"]
)
def test_rounds_without_end_are_refused(init):
    with pytest.raises(MiniloraError, match="more than 100 rounds|is not known"):
        lora.AdapterConfig(init=init)
    lora.AdapterConfig(init="pissa_niter_100")


def test_many_long_names_are_no_patterns_and_cost_little():
    model = nn.ModuleDict({f"layer{i}": nn.Linear(2, 2) for i in range(40)})
    names = [f"layer{i}" for i in range(40)] + [f"other{i}" for i in range(50_000)]
    start = time.monotonic()
    lora.add_adapter(model, lora.AdapterConfig(1, targets=names), strict=False)
    assert time.monotonic() - start < 5 and len(lora.adapted_layers(model)) == 40


def test_a_rank_pattern_still_reaches_its_layers():
    model = nn.ModuleDict({name: nn.Linear(6, 6) for name in ("q_proj", "k_proj")})
    lora.add_adapter(
        model,
        lora.AdapterConfig(2, rank_pattern={"q_proj": 3}, alpha_pattern={"[k]_proj": 5}, alpha=4),
    )
    ranks = {
        path: layer.A["default"].shape[0] for path, layer in lora.adapted_layers(model).items()
    }
    scales = {path: layer.scale["default"] for path, layer in lora.adapted_layers(model).items()}
    assert ranks == {"q_proj": 3, "k_proj": 2} and scales == {"q_proj": 4 / 3, "k_proj": 2.5}
    assert torch.isfinite(model["q_proj"](torch.ones(1, 6))).all()
