"""From the log-probability of an answer to DPO's loss and the advantage within a group."""

from __future__ import annotations

import numpy as np

from .. import Exercise, Wrong

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
