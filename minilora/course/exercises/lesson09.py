"""The exercises of lesson 09: rows, mix, log-probability, DPO's loss, advantage.

What it replaces: trusting that a trainer's loss is the paper's.
How it works: see `course.exercises`. Ranks, weights and scales all differ, one weight is
negative; no log-probability is 0; β is not 1; no two adapters are alike.
What it leaves out: batches of answers of unequal length (the lesson pads them), label smoothing,
PPO.
Where numerics differ: nowhere; mixtures are compared by their product B·A, so any order of the
stacked rows is right.
"""

from __future__ import annotations

import numpy as np

from . import Exercise, Wrong

# --------------------------------------------------------------------------------------------- rows


def _some(rng, inner, outer, *kinds):
    """Adapters (A, B, scale), each with its own rank and scale."""
    return {
        name: (rng.normal(size=(rank, inner)), rng.normal(size=(outer, rank)), scale)
        for name, rank, scale in kinds
    }


def _two(rng, inner, outer):
    return _some(rng, inner, outer, ("mood", 2, 1.5), ("sums", 3, 0.5))


def _rows_inputs(rng):
    names = ["sums", "mood", None, "sums", "mood"]
    return (
        rng.normal(size=(5, 7)),
        rng.normal(size=(4, 7)),
        _two(rng, 7, 4),
        [names[i] for i in rng.permutation(5)],
    )


def _rows(x, W, adapters, names, *, use=lambda name, i, names: name, scaled=True):
    y = x @ W.T
    for i in range(len(x)):
        name = use(names[i], i, names)
        if name is not None:
            A, B, scale = adapters[name]
            y[i] = y[i] + B @ (A @ x[i]) * (scale if scaled else 1)
    return y


def _overwritten(x, W, adapters, names):
    """y[i] = detour where y[i] += detour was meant."""
    bare = [name is None for name in names]
    return _rows(x, np.zeros_like(W), adapters, names) + (x @ W.T) * np.array(bare)[:, None]


def _kept_in_W(x, W, adapters, names):
    """W += scale · B A, row after row: what one row's adapter changed stays for the next rows."""
    W, y = W.copy(), []
    for row, name in zip(x, names):
        if name is not None:
            A, B, scale = adapters[name]
            W += scale * B @ A
        y.append(W @ row)
    return np.array(y)


def _scale_by_rank(adapters):
    return {name: (A, B, scale / len(A)) for name, (A, B, scale) in adapters.items()}


ROWS = Exercise(
    "09-rows",
    "One batch, an adapter for each row",
    _rows_inputs,
    _rows,
    [
        Wrong(
            "one adapter for all",
            lambda x, W, adapters, names: _rows(
                x, W, adapters, names, use=lambda name, i, names: next(n for n in names if n)
            ),
            "every row is answered by the first row's adapter; look up names[i] for row i",
        ),
        Wrong(
            "all adapters added",
            lambda x, W, adapters, names: (
                x @ W.T + sum((x @ A.T) @ B.T * s for A, B, s in adapters.values())
            ),
            "every row hears all adapters; row i has only the one called names[i]",
        ),
        Wrong(
            "a name for the rows without one",
            lambda x, W, adapters, names: _rows(
                x, W, adapters, names, use=lambda name, i, names: name or "mood"
            ),
            "a row whose name is None is answered by the base alone",
        ),
        Wrong(
            "scale forgotten",
            lambda x, W, adapters, names: _rows(x, W, adapters, names, scaled=False),
            "each adapter brings its own scale; multiply its detour by it",
        ),
        Wrong(
            "the base left out",
            lambda x, W, adapters, names: _rows(x, np.zeros_like(W), adapters, names),
            "this is the detours alone; the base answers every row, x Wᵀ",
        ),
        Wrong(
            "the base overwritten",
            _overwritten,
            "a row with an adapter has lost the base's part; add the detour to it with +=, or "
            "y[i] + …",
        ),
        Wrong(
            "adapters pile up in W",
            _kept_in_W,
            "W keeps what an earlier row's adapter added; leave W alone, or add to a copy for "
            "each row (W += writes into W itself)",
        ),
        Wrong(
            "scale divided by the rank",
            lambda x, W, adapters, names: _rows(x, W, _scale_by_rank(adapters), names),
            "scale is α/r already; multiply by it as it is",
        ),
    ],
)


# ---------------------------------------------------------------------------------------------- mix


def _mix_inputs(rng):
    # more than two: nothing may be written for two alone
    parts = _some(rng, 6, 5, ("mood", 2, 1.5), ("sums", 3, 0.5), ("style", 4, 0.7))
    return list(parts.values()), [float(w) for w in rng.uniform(0.3, 1.2, size=3) * (1, 1, -1)]


def _mix(parts, weights, *, factor=lambda w, s: w * s, on_B=None):
    """A and B stacked, the rows of A scaled by `factor`, the columns of B by `on_B`."""
    A = np.concatenate([A * factor(w, s) for (A, _, s), w in zip(parts, weights)])
    B = np.concatenate(
        [B * (on_B(w, s) if on_B else 1) for (_, B, s), w in zip(parts, weights)], axis=1
    )
    return A, B


def _cross(parts, weights):
    """Factors added, the smaller ranks padded with zeros: what `linear` does, but for where the
    weights go.
    """
    rank = max(A.shape[0] for A, _, _ in parts)
    A = sum(
        np.pad(A * (w * s), ((0, rank - len(A)), (0, 0))) for (A, _, s), w in zip(parts, weights)
    )
    B = sum(np.pad(B, ((0, 0), (0, rank - B.shape[1]))) for _, B, _ in parts)
    return A, B


def _factor(made):
    """An answer's factor as one array; the mistake in words where it is a list of arrays of unlike
    shapes.
    """
    if isinstance(made, (list, tuple)):
        raise TypeError("A or B is a list of arrays; join them to one with np.concatenate")
    return np.asarray(made)


def _run_mix(answer, parts, weights):
    """The change that the answer's two factors make, and their rank; in words, if their shapes do
    not allow a product.
    """
    found = answer(parts, weights)
    if found is None:
        return None
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        return {
            "rank of the mixture": 0,
            "B A": "no pair (A, B): one array, or more than two things",
        }
    A, B = map(_factor, found)
    if A.ndim != 2 or B.ndim != 2 or B.shape[1] != A.shape[0]:
        return {
            "rank of the mixture": int(A.shape[0]),
            "B A": f"no product, for A is {A.shape} and B is {B.shape}",
        }
    return {"rank of the mixture": int(A.shape[0]), "B A": B @ A}


def _root_on_both(parts, weights):
    with np.errstate(invalid="ignore"):
        return _mix(
            parts, weights, factor=lambda w, s: np.sqrt(w * s), on_B=lambda w, s: np.sqrt(w * s)
        )


MIX = Exercise(
    "09-mix",
    "Several adapters as one",
    _mix_inputs,
    _mix,
    [
        Wrong(
            "factors added",
            _cross,
            "adding the factors gives cross terms, B of one times A of the other; put them "
            "beside each other instead",
        ),
        Wrong(
            "scales forgotten",
            lambda parts, weights: _mix(parts, weights, factor=lambda w, s: w),
            "each part speaks with weight times its own scale",
        ),
        Wrong(
            "weights forgotten",
            lambda parts, weights: _mix(parts, weights, factor=lambda w, s: s),
            "both parts speak in full here; multiply each by its weight",
        ),
        Wrong(
            "scaled twice",
            lambda parts, weights: _mix(parts, weights, on_B=lambda w, s: w * s),
            "A and B are both scaled, so the product is scaled by the square; scale one of them",
        ),
        Wrong(
            "a root on each factor",
            _root_on_both,
            "a weight may be negative, and its square root is no number; put weight · scale "
            "on A alone",
        ),
        Wrong(
            "B in another order",
            lambda parts, weights: (
                _mix(parts, weights)[0],
                np.concatenate([B for _, B, _ in parts[::-1]], axis=1),
            ),
            "the columns of B must stand in the order of the rows of A, or each B meets "
            "another's A",
        ),
        Wrong(
            "the product itself",
            lambda parts, weights: sum(w * s * B @ A for (A, B, s), w in zip(parts, weights)),
            "this is B A; return its two factors, A of the ranks' sum by in, and B",
        ),
        Wrong(
            "weights made to sum to 1",
            lambda parts, weights: _mix(parts, [w / sum(weights) for w in weights]),
            "the weights are taken as they are; two adapters may both speak in full",
        ),
        Wrong(
            "B returned first",
            lambda parts, weights: _mix(parts, weights)[::-1],
            "A and B are in the wrong order; return A, (r₁ + r₂ + …, in), first, then B, "
            "(out, r₁ + r₂ + …)",
        ),
    ],
    run=_run_mix,
)


# ------------------------------------------------------------------------------------------ logprob


def _logprob_inputs(rng):
    return (
        rng.normal(size=(9, 6)) * 2,
        [int(i) for i in rng.integers(0, 6, size=9)],
        int(rng.integers(3, 6)),
    )


def _log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def _logprob(logits, ids, start, *, shift=1, reduce=np.sum, normalized=True):
    p = _log_softmax(logits) if normalized else logits
    return float(reduce([p[t - shift, ids[t]] for t in range(start, len(ids))]))


LOGPROB = Exercise(
    "09-logprob",
    "The log-probability of an answer",
    _logprob_inputs,
    _logprob,
    [
        Wrong(
            "not shifted",
            lambda logits, ids, start: _logprob(logits, ids, start, shift=0),
            "logits[t] are for the token after position t; token ids[t] is predicted by "
            "logits[t − 1]",
        ),
        Wrong(
            "the prompt counted",
            lambda logits, ids, start: _logprob(logits, ids, 1),
            "the prompt is given, not chosen; begin at `start`",
        ),
        Wrong(
            "mean instead of sum",
            lambda logits, ids, start: _logprob(logits, ids, start, reduce=np.mean),
            "the probability of the answer is the product over its tokens, so the logarithms "
            "add up; no division by the length",
        ),
        Wrong(
            "logits not normalized",
            lambda logits, ids, start: _logprob(logits, ids, start, normalized=False),
            "a logit is no log-probability yet; subtract the logarithm of the sum of all "
            "exponentials of its row",
        ),
        Wrong(
            "a probability",
            lambda logits, ids, start: float(np.exp(_logprob(logits, ids, start))),
            "this is π(y|x); its logarithm is asked for, which does not vanish for long answers",
        ),
        Wrong(
            "the first token left out",
            lambda logits, ids, start: _logprob(logits, ids, start + 1),
            "the answer's first token stands at `start` and is predicted by logits[start − 1]",
        ),
        Wrong(
            "the last token left out",
            lambda logits, ids, start: _logprob(logits, ids[:-1], start),
            "the answer goes on to the end of ids; its last token is predicted by the last "
            "logits but one",
        ),
        Wrong(
            "the loss",
            lambda logits, ids, start: -_logprob(logits, ids, start),
            "this is −log π(y|x), the cross-entropy summed; log π(y|x) is below 0",
        ),
        Wrong(
            "normalized over positions",
            lambda logits, ids, start: _logprob(
                _log_softmax(logits.T).T, ids, start, normalized=False
            ),
            "the sum of exponentials runs over the vocabulary, along the last axis, for each "
            "position by itself",
        ),
    ],
)


# ---------------------------------------------------------------------------------------------- dpo


def _dpo_inputs(rng):
    return *(-rng.uniform(1, 12, size=5) for _ in range(4)), float(rng.uniform(0.1, 0.4))


def _dpo(chosen, rejected, ref_chosen, ref_rejected, beta):
    margin = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    return np.log1p(np.exp(-margin)).mean()


def _dpo_sum(chosen, rejected, ref_chosen, ref_rejected, beta):
    return len(chosen) * _dpo(chosen, rejected, ref_chosen, ref_rejected, beta)


def _softplus(m):
    return np.log1p(np.exp(m))


DPO = Exercise(
    "09-dpo",
    "The loss of DPO",
    _dpo_inputs,
    _dpo,
    [
        Wrong(
            "the reference forgotten",
            lambda c, r, rc, rr, beta: _dpo(c, r, 0 * rc, 0 * rr, beta),
            "this asks only that y_w be likelier than y_l; each log-probability is taken "
            "relative to the reference's",
        ),
        Wrong(
            "chosen and rejected swapped",
            lambda c, r, rc, rr, beta: _dpo(r, c, rr, rc, beta),
            "this teaches the answer that was not preferred; the chosen one's log-ratio comes "
            "first, with a plus, and −log σ(m) is log(1 + e^(−m))",
        ),
        Wrong(
            "beta forgotten",
            lambda c, r, rc, rr, beta: _dpo(c, r, rc, rr, 1.0),
            "the difference of the log-ratios is multiplied by β before the sigmoid",
        ),
        Wrong("sum instead of mean", _dpo_sum, "the loss is the mean over the pairs"),
        Wrong(
            "logarithm forgotten",
            lambda c, r, rc, rr, beta: (1 / (1 + np.exp(-beta * ((c - rc) - (r - rr))))).mean(),
            "this is σ(margin), how sure the policy is; the loss is −log of it",
        ),
        Wrong(
            "the reference added",
            lambda c, r, rc, rr, beta: _dpo(c, r, -rc, -rr, beta),
            "the reference's log-probability is subtracted: log π_θ/π_ref is a difference of "
            "logarithms",
        ),
        Wrong(
            "the minus forgotten",
            lambda c, r, rc, rr, beta: -_dpo(c, r, rc, rr, beta),
            "this is log σ(margin); the loss has a minus before it, so that less is better",
        ),
        Wrong(
            "beta on the first log-ratio only",
            lambda c, r, rc, rr, beta: _softplus((r - rr) - beta * (c - rc)).mean(),
            "β multiplies the whole difference; put it in brackets: β · (… − …)",
        ),
        Wrong(
            "the mean taken first",
            lambda c, r, rc, rr, beta: _softplus(-beta * ((c - rc) - (r - rr)).mean()),
            "each pair has its own loss; take the mean after −log σ, not before",
        ),
        Wrong(
            "logarithms divided",
            lambda c, r, rc, rr, beta: _softplus(-beta * (c / rc - r / rr)).mean(),
            "the arrays are logarithms already; log(π_θ/π_ref) is their difference, not their "
            "quotient",
        ),
    ],
)


# ---------------------------------------------------------------------------------------- advantage


def _advantage_inputs(rng):
    return (
        rng.uniform(0, 2, size=6),
        -rng.uniform(1, 9, size=6),
        -rng.uniform(1, 9, size=6),
        float(rng.uniform(0.1, 0.4)),
    )


def _total(rewards, policy, reference, beta):
    return rewards - beta * (policy - reference)


def _advantage(rewards, policy, reference, beta):
    total = _total(rewards, policy, reference, beta)
    return total - (total.sum() - total) / (len(total) - 1)


def _own_included(rewards, policy, reference, beta):
    total = _total(rewards, policy, reference, beta)
    return total - total.mean()


ADVANTAGE = Exercise(
    "09-advantage",
    "What an answer is worth beside the others",
    _advantage_inputs,
    _advantage,
    [
        Wrong("no baseline", _total, "this is R; subtract the mean R of the other answers"),
        Wrong(
            "its own R in the baseline",
            _own_included,
            "the mean is over the other answers, without this one: (sum − R) / (n − 1)",
        ),
        Wrong(
            "no penalty",
            lambda r, p, q, beta: _advantage(r, p, p, beta),
            "the reward alone lets the policy wander off; subtract β (log π_θ − log π_ref) "
            "from it first",
        ),
        Wrong(
            "penalty with the wrong sign",
            lambda r, p, q, beta: _advantage(r, p, q, -beta),
            "this rewards distance from the reference; β (log π_θ − log π_ref) is subtracted",
        ),
        Wrong(
            "beta forgotten",
            lambda r, p, q, beta: _advantage(r, p, q, 1.0),
            "the log-ratio is multiplied by β",
        ),
        Wrong(
            "divided by B",
            lambda r, p, q, beta: (lambda t: t - (t.sum() - t) / len(t))(_total(r, p, q, beta)),
            "there are n − 1 others, not n",
        ),
        Wrong(
            "penalty after the baseline",
            lambda r, p, q, beta: _advantage(r, p, p, beta) - beta * (p - q),
            "the others' mean is that of R, penalties included; make R of all answers first",
        ),
        Wrong(
            "its own R still in the sum",
            lambda r, p, q, beta: (lambda t: t - t.sum() / (len(t) - 1))(_total(r, p, q, beta)),
            "the sum over the others leaves this answer's R out: (sum − R) / (n − 1)",
        ),
        Wrong(
            "logarithms divided",
            lambda r, p, q, beta: _advantage(r, beta * p / q, 0, 1),
            "both are logarithms already; log(π_θ/π_ref) is their difference, not their quotient",
        ),
        Wrong(
            "divided by the spread",
            lambda r, p, q, beta: (lambda t: (t - t.mean()) / t.std())(_total(r, p, q, beta)),
            "this is R less the mean of all, in standard deviations, as GRPO has it; here it "
            "is R less the mean of the others, and no more",
        ),
    ],
)


EXERCISES = [ROWS, MIX, LOGPROB, DPO, ADVANTAGE]
