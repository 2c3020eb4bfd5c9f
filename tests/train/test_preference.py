"""DPO and the policy gradient: beside other formulas, by expectation over every answer, and with
the weights in memory once.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from minilora import lora
from minilora.errors import MiniloraError
from minilora.llama import Config, Llama
from minilora.text import IGNORE, Tokenizer, encode_example, encode_rows
from minilora.train import preference

EXAMPLES = [
    {"prompt": f"say {word}", "response": word * (1 + i % 3)} for i, word in enumerate("abcdef")
]


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    return Tokenizer.from_pretrained(tiny_folder)


@pytest.fixture
def rows(tokenizer):
    return encode_rows(EXAMPLES, tokenizer)


@pytest.fixture
def model(tiny_folder):
    """A tiny Llama with an adapter that already says something."""
    torch.manual_seed(0)
    model = lora.add_lora(Llama.from_pretrained(tiny_folder), rank=2)
    for parameter in lora.trainable_parameters(model):
        parameter.data = 0.1 * torch.randn(parameter.shape)
    return model


def test_log_probabilities_are_those_of_each_answer_alone(model, rows):
    """Row by row, token by token, from the whole model's logits."""
    found = preference.answer_logprobs(model, rows)
    for value, (ids, labels) in zip(found, rows):
        p = model(torch.tensor([ids]))[0].double().log_softmax(-1)
        wanted = sum(p[t, ids[t + 1]] for t in range(len(ids) - 1) if labels[t + 1] != IGNORE)
        assert value.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert len({len(ids) for ids, _ in rows}) > 1, "padding must have been needed"


def test_the_reference_is_the_base_to_the_last_bit(tiny_folder, model, rows):
    wanted = preference.answer_logprobs(Llama.from_pretrained(tiny_folder), rows)
    found = preference.reference_logprobs(model, rows)
    assert torch.equal(found, wanted) and not found.requires_grad
    assert not torch.allclose(preference.answer_logprobs(model, rows), wanted), (
        "afterwards the adapter speaks again"
    )
    with pytest.raises(MiniloraError, match="no adapter, so policy and reference would be one"):
        preference.reference_logprobs(Llama.from_pretrained(tiny_folder), rows)


def test_weights_that_are_shared_are_stored_once(tiny_folder, model):
    plain, other = Llama.from_pretrained(tiny_folder), Llama.from_pretrained(tiny_folder)
    once = preference.stored_bytes(plain)
    # a tied head is the embedding itself
    assert once == sum(t.nbytes for t in (*plain.parameters(), *plain.buffers()))
    assert (
        preference.stored_bytes(plain, plain) == once
        and preference.stored_bytes(plain, other) == 2 * once
    )
    plain.register_buffer("view", plain.model.embed_tokens.weight.detach()[:3])
    assert preference.stored_bytes(plain) == once
    assert preference.stored_bytes(model) == once + sum(
        p.nbytes for p in lora.trainable_parameters(model)
    )


def _hidden_copy(kept):
    """A reference from a second model, as a trainer would load it: kept out of sight of
    parameters(), or made anew for each pass.
    """

    def reference_logprobs(model, rows):
        copied = copy.deepcopy(model)
        model.__dict__.setdefault("out_of_sight", [])[:] = [copied] if kept else []
        with torch.no_grad(), lora.disabled(copied):
            return preference.answer_logprobs(copied, rows)

    return reference_logprobs


@pytest.mark.slow
@pytest.mark.parametrize("fit", ["dpo", "policy"])
@pytest.mark.parametrize("reference", ["the silenced model", "a kept copy", "a passing copy"])
def test_while_it_trains_a_second_copy_cannot_hide(tokenizer, rows, monkeypatch, fit, reference):
    base = Llama(Config(tokenizer.vocab_size, 256, 512, 2, 4, 2))
    once, model = preference.stored_bytes(base), lora.add_lora(base, rank=2)
    if reference != "the silenced model":
        monkeypatch.setattr(
            preference, "reference_logprobs", _hidden_copy(kept="kept" in reference)
        )
    settings = preference.Settings(2, 2)
    with preference.watched(model) as seen:
        if fit == "dpo":
            preference.fit_dpo(
                model, [preference.Pair(a, b) for a, b in zip(rows, rows[1:])], settings
            )
        else:
            preference.fit_policy(
                model,
                tokenizer,
                EXAMPLES,
                lambda example, answer: float(len(answer)),
                settings,
                max_new_tokens=2,
            )
    assert len(seen) > 4  # two passes of each step at least, and what was before
    assert (max(seen) - seen[0] < once / 2) == (reference == "the silenced model"), [
        each - seen[0] for each in seen
    ]
    assert preference.stored_bytes(model) == once + sum(
        p.nbytes for p in lora.trainable_parameters(model)
    ), "which the model's own count does not show"
    noted = len(seen)
    preference.answer_logprobs(model, rows)
    assert len(seen) == noted, "afterwards nobody looks"


# -- DPO


@given(st.lists(st.floats(-60, 0), min_size=4, max_size=4), st.floats(0.01, 2))
def test_the_loss_is_that_of_bradley_and_terry(values, beta):
    """P(y_w beats y_l) = e^r_w / (e^r_w + e^r_l) with the rewards r = β log π_θ/π_ref, by Python's
    own numbers.
    """
    w, l, ref_w, ref_l = values
    r_w, r_l = beta * (w - ref_w), beta * (l - ref_l)
    wanted = -(
        r_w
        - max(r_w, r_l)
        - math.log(math.exp(r_w - max(r_w, r_l)) + math.exp(r_l - max(r_w, r_l)))
    )
    margin = preference.dpo_margin(*(torch.tensor([v], dtype=torch.float64) for v in values), beta)
    assert preference.dpo_loss(margin).item() == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_the_gradient_of_the_loss_is_the_papers():
    """∇L = −β σ(r_l − r_w) [∇ log π(y_w) − ∇ log π(y_l)]: the worse the policy judges, the more it
    moves. Also numerically.
    """
    torch.manual_seed(1)
    four = [torch.randn(5, dtype=torch.float64, requires_grad=i < 2) for i in range(4)]
    beta = 0.3
    preference.dpo_loss(preference.dpo_margin(*four, beta)).backward()
    weight = beta * torch.sigmoid(beta * ((four[1] - four[3]) - (four[0] - four[2]))).detach() / 5
    torch.testing.assert_close(four[0].grad, -weight)
    torch.testing.assert_close(four[1].grad, weight)
    assert torch.autograd.gradcheck(
        lambda w, l: preference.dpo_loss(preference.dpo_margin(w, l, four[2], four[3], beta)),
        four[:2],
    )


def test_where_nothing_is_learned_yet_the_loss_is_ln_2_and_far_off_it_stays_finite():
    zero = torch.zeros(3)
    assert preference.dpo_loss(zero).item() == pytest.approx(math.log(2))
    assert (
        preference.dpo_loss(torch.tensor([-1e4])).item() == pytest.approx(1e4)
        and preference.dpo_loss(torch.tensor([1e4])).item() == 0
    )
    assert -F.logsigmoid(torch.tensor([-1e4])).item() == pytest.approx(1e4)


def test_dpo_raises_the_preferred_answer_above_the_other_and_leaves_the_base(
    tiny_folder, tokenizer
):
    torch.manual_seed(0)
    model = lora.add_lora(Llama.from_pretrained(tiny_folder), rank=4)
    before = {path: layer.base.weight.clone() for path, layer in lora.adapted_layers(model).items()}
    pairs = [
        preference.Pair(
            *(encode_example({**e, "response": r}, tokenizer) for r in (e["response"], "no"))
        )
        for e in EXAMPLES
    ]
    records = preference.fit_dpo(model, pairs, preference.Settings(12, 4, 5e-3, 0.5))
    assert (
        len(records) == 12
        and records[0]["loss"] == pytest.approx(math.log(2), rel=1e-4)
        and records[0]["margin"] == pytest.approx(0, abs=1e-4)
    )
    assert records[-1]["loss"] < 0.4 and records[-1]["chosen"] > records[-1]["rejected"]
    assert all(
        torch.equal(layer.base.weight, before[path])
        for path, layer in lora.adapted_layers(model).items()
    )


def test_a_run_is_a_function_of_its_seed(tiny_folder, tokenizer, rows):
    def run(seed):
        torch.manual_seed(0)
        model = lora.add_lora(Llama.from_pretrained(tiny_folder), rank=2)
        pairs = [preference.Pair(a, b) for a, b in zip(rows, rows[1:])]
        return preference.fit_dpo(model, pairs, preference.Settings(3, 2, seed=seed))

    assert run(1) == run(1) != run(2)


# -- policy gradient


def test_the_expected_gradient_is_that_of_the_objective():
    """A policy over four answers, all sixteen draws of two: the mean gradient is that of E[r] − β
    KL(π ‖ π_ref), exactly.
    """
    torch.manual_seed(2)
    logits = torch.randn(4, dtype=torch.float64, requires_grad=True)
    reference, rewards, beta = (
        torch.randn(4, dtype=torch.float64).log_softmax(-1),
        torch.randn(4, dtype=torch.float64),
        0.7,
    )
    p = logits.log_softmax(-1)
    (wanted,) = torch.autograd.grad((p.exp() * (rewards - beta * (p - reference))).sum(), logits)
    found = torch.zeros(4, dtype=torch.float64)
    for i in range(4):
        for j in range(4):
            log_p = logits.log_softmax(-1)
            drawn = torch.tensor([i, j])
            loss = preference.policy_gradient_loss(
                log_p[drawn], reference[drawn], rewards[drawn], beta
            )
            found -= log_p[drawn].sum().exp().detach() * torch.autograd.grad(loss, logits)[0]
    torch.testing.assert_close(found, wanted)


def test_answers_are_drawn_from_the_policy_and_end_where_it_ends(model, tokenizer):
    prompts = [example["prompt"] for example in EXAMPLES] * 8
    rows = preference.sample_answers(model, tokenizer, prompts, seed=3, max_new_tokens=9)
    assert rows == preference.sample_answers(model, tokenizer, prompts, seed=3, max_new_tokens=9)
    assert rows != preference.sample_answers(model, tokenizer, prompts, seed=4, max_new_tokens=9)
    for (ids, labels), prompt in zip(rows, prompts):
        given, drawn = labels.count(IGNORE), [label for label in labels if label != IGNORE]
        assert (
            ids == ids[:given] + drawn
            and tokenizer.decode(ids[:given], skip_special=False).count(prompt) == 1
        )
        assert len(drawn) == 9 or drawn[-1] == tokenizer.eos_id
        assert tokenizer.eos_id not in drawn[:-1]


def test_a_drawn_answer_ends_at_any_end_of_the_model(model, tokenizer):
    """Also at one that only the model's files name, such as the end of a turn."""
    free = preference.sample_answers(model, tokenizer, ["the cat"], seed=3, max_new_tokens=9)[0]
    drawn = [label for label in free[1] if label != IGNORE]
    assert len(drawn) > 3
    model.config.eos_token_id = [319, drawn[2]]
    (ids, labels), *_ = preference.sample_answers(
        model, tokenizer, ["the cat"], seed=3, max_new_tokens=9
    )
    assert [x for x in labels if x != IGNORE] == drawn[: drawn.index(drawn[2]) + 1]
    assert ids[: labels.count(IGNORE)] == free[0][: free[1].count(IGNORE)]


def test_padding_that_the_model_does_not_have_is_named(model, tokenizer):
    model.config.vocab_size = tokenizer.eos_id
    with pytest.raises(MiniloraError, match="eos_token .* has the id 2"):
        preference.sample_answers(model, tokenizer, ["the cat"], seed=3)


def _rewarded(tiny_folder, tokenizer, beta):
    """Twenty steps towards answers of one token that is a single letter."""
    torch.manual_seed(0)
    model = lora.add_lora(Llama.from_pretrained(tiny_folder), rank=4)
    settings = preference.Settings(20, 36, 1e-2, beta)
    return preference.fit_policy(
        model,
        tokenizer,
        EXAMPLES * 6,
        lambda example, answer: float(answer.isalpha()),
        settings,
        max_new_tokens=1,
    )


def test_the_policy_learns_what_is_rewarded_and_a_stronger_penalty_keeps_it_nearer(
    tiny_folder, tokenizer
):
    free, held = (_rewarded(tiny_folder, tokenizer, beta) for beta in (0.01, 3.0))
    assert free[-1]["reward"] > free[0]["reward"] + 0.3
    assert abs(free[0]["kl"]) < 1e-4 and free[-1]["kl"] > 0.3
    assert abs(held[-1]["kl"]) < free[-1]["kl"] / 3 and held[-1]["reward"] < free[-1]["reward"]


@pytest.mark.parametrize(
    "fault, match",
    [
        (
            lambda m, pairs, t: preference.fit_dpo(m, [], preference.Settings()),
            "0 examples are given",
        ),
        (lambda m, pairs, t: preference.Settings(beta=0.0), "beta is 0.0"),
        (lambda m, pairs, t: preference.Settings(lr=float("nan")), "lr is nan"),
        (lambda m, pairs, t: preference.Settings(batch_size=0), "batch_size is 0"),
        (
            lambda m, pairs, t: preference.fit_dpo(
                lora.use_adapter(m, "default", trainable=False), pairs, preference.Settings()
            ),
            "no adapter that learns",
        ),
        (
            lambda m, pairs, t: preference.fit_policy(
                m, t, EXAMPLES, lambda e, a: 0.0, preference.Settings(batch_size=1)
            ),
            "compared with the others",
        ),
        (
            lambda m, pairs, t: preference.fit_policy(
                m, t, EXAMPLES[:1], lambda e, a: 0.0, preference.Settings()
            ),
            "1 examples are given; at least 2",
        ),
    ],
)
def test_what_would_train_nothing_is_said(model, rows, tokenizer, fault, match):
    with pytest.raises(MiniloraError, match=match):
        fault(model, [preference.Pair(rows[0], rows[1])], tokenizer)


@pytest.mark.parametrize("method", ["dpo", "policy"])
def test_dropout_is_off_in_policy_and_reference(tiny_folder, tokenizer, rows, method):
    """With it on, log-ratios and answers would differ by noise; the model's own mode comes back."""

    def run(dropout):
        torch.manual_seed(0)
        model = lora.add_lora(Llama.from_pretrained(tiny_folder), rank=2, dropout=dropout).train()
        for parameter in lora.trainable_parameters(model):
            parameter.data = 0.1 * torch.randn(parameter.shape)
        settings = preference.Settings(steps=2, batch_size=3)
        if method == "dpo":
            pairs = [preference.Pair(a, b) for a, b in zip(rows, rows[1:])]
            found = preference.fit_dpo(model, pairs, settings)
        else:
            found = preference.fit_policy(
                model, tokenizer, EXAMPLES, lambda example, answer: len(answer), settings, 4
            )
        assert model.training
        return found

    assert run(0.5) == run(0.0)


# -- the step that both share


def test_a_step_is_adamw_without_decay_on_the_clipped_gradient_of_this_loss_alone(model):
    settings = preference.Settings(lr=0.01)
    optimizer = preference._optimizer(model, settings)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.01, 0.0)]
    learned = lora.trainable_parameters(model)
    for parameter in learned:
        parameter.grad = torch.full_like(parameter, -1e6)  # what an earlier loss left behind
    before = [parameter.detach().clone() for parameter in learned]
    loss = sum((1e3 * parameter).sum() for parameter in learned)
    preference._update(model, optimizer, loss)
    count = sum(parameter.numel() for parameter in learned)
    for parameter, old in zip(learned, before):
        wanted = torch.full_like(parameter, preference.CLIP / math.sqrt(count))
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-3, atol=0)
        torch.testing.assert_close(parameter.detach(), old - 0.01, rtol=1e-4, atol=1e-6)


def test_at_a_low_temperature_the_likeliest_answer_is_drawn(model, tokenizer):
    (ids, labels), *_ = preference.sample_answers(
        model, tokenizer, ["the cat"], seed=3, max_new_tokens=6, temperature=1e-4
    )
    given = labels.count(IGNORE)
    greedy = model.generate(torch.tensor([ids[:given]]), 6, stop=tokenizer.eos_id)[0].tolist()
    assert ids == greedy[: len(ids)]


def test_each_step_draws_anew_from_examples_chosen_by_the_seed(tiny_folder, tokenizer, monkeypatch):
    def run(seed):
        asked = []
        monkeypatch.setattr(
            preference,
            "sample_answers",
            lambda m, t, prompts, dice, most: (
                asked.append((tuple(prompts), dice))
                or [encode_example({"prompt": p, "response": "a"}, t) for p in prompts]
            ),
        )
        model = lora.add_lora(Llama.from_pretrained(tiny_folder), rank=2)
        settings = preference.Settings(3, 2, seed=seed)
        preference.fit_policy(model, tokenizer, EXAMPLES, lambda e, a: len(a), settings)
        return asked

    one, other = run(1), run(2)
    assert one == run(1) and len({dice for _, dice in one + other}) == 6
    assert [prompts for prompts, _ in one] != [prompts for prompts, _ in other]
