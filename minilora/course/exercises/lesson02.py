"""The exercises of lesson 02: samples from a document, cross-entropy, and the pieces of a Llama
that people get wrong.

What it replaces: reading transformers' `modeling_llama.py` to find out whether one has understood
it.
How it works: see `course.exercises`. No wrong answer can hide: scores are large enough to
overflow, vectors have a mean, positions do not begin at zero, the values of attention differ from
row to row, the temperature is not 1.
What it leaves out: batches, several heads, caches; the lesson adds them.
Where numerics differ: nowhere; fp64, any order of addition is right within the tolerance.
"""

from __future__ import annotations

import math

from . import Exercise, Wrong

WORDS = "the quick brown fox jumps over lazy dog and a cat sleeps under one old tree".split()


# ------------------------------------------------------------------------------------------ samples


def _document(rng):
    return [str(word) for word in rng.permutation(WORDS)[: int(rng.integers(5, 9))]]


def _samples(tokens):
    return [(tokens[:i], tokens[i]) for i in range(1, len(tokens))]


SAMPLES = Exercise(
    "02-samples",
    "One document, many samples",
    _document,
    _samples,
    [
        Wrong(
            "the answer in the context",
            lambda t: [(t[: i + 1], t[i]) for i in range(1, len(t))],
            "the context holds the token that is to be predicted; it must end right before it",
        ),
        Wrong(
            "only the last token",
            lambda t: [(t[i - 1 : i], t[i]) for i in range(1, len(t))],
            "your contexts hold one token each; a language model is given *all* tokens before",
        ),
        Wrong(
            "one sample too many",
            lambda t: [(t[:i], t[i]) for i in range(len(t))],
            "the first sample has an empty context; the first token is given, the second is "
            "the first to be predicted",
        ),
        Wrong(
            "one sample",
            lambda t: [(t[:-1], t[-1])],
            "this is the last sample alone; every token but the first is the answer of one",
        ),
        Wrong(
            "the last left out",
            lambda t: _samples(t)[:-1],
            "the last token is never predicted; does the range end one too early?",
        ),
    ],
)


# ------------------------------------------------------------------------------------ cross-entropy


def _scores(rng):
    import torch

    logits = torch.tensor(rng.normal(size=(5, 7)) * 2)
    # adding a constant to a row changes nothing, unless exp overflows
    logits[int(rng.integers(5))] += 1000.0
    return logits, torch.tensor(rng.integers(0, 7, size=5))


def _picked(logits, targets, dim=-1):
    return logits.log_softmax(dim)[range(len(targets)), targets]


def _overflowing(logits, targets):
    p = logits.exp() / logits.exp().sum(-1, keepdim=True)
    return -p[range(len(targets)), targets].log().mean()


CROSS_ENTROPY = Exercise(
    "02-cross-entropy",
    "The loss of a language model",
    _scores,
    lambda z, t: -_picked(z, t).mean(),
    [
        Wrong(
            "exp overflows",
            _overflowing,
            "exp(1000) is infinite; subtract each row's largest score first (that changes no "
            "probability), or use logsumexp",
        ),
        Wrong(
            "the sum of exp overflows",
            lambda z, t: (z.exp().sum(-1).log() - z[range(len(t)), t]).mean(),
            "the sum of exp(1000) is infinite; subtract each row's largest score first, or "
            "use logsumexp",
        ),
        Wrong(
            "the largest subtracted once",
            lambda z, t: (
                (z - z.max(-1, keepdim=True).values).logsumexp(-1) - z[range(len(t)), t]
            ).mean(),
            "you subtract the largest score inside the sum only; pick the right token's score "
            "from the shifted scores, too",
        ),
        Wrong(
            "every row with every target",
            lambda z, t: -z.log_softmax(-1)[:, t].mean(),
            "[:, targets] picks all targets from every row; [range(len(targets)), targets] "
            "picks one from each",
        ),
        Wrong(
            "the sign",
            lambda z, t: _picked(z, t).mean(),
            "the logarithm of a probability is negative; the loss is minus that, so that "
            "lower is better",
        ),
        Wrong(
            "a sum, not a mean",
            lambda z, t: -_picked(z, t).sum(),
            "you add up the surprises; divide by how many targets there are",
        ),
        Wrong(
            "in bits",
            lambda z, t: -_picked(z, t).mean() / math.log(2),
            "this is the surprise in bits (log₂); losses are given in nats, with the natural "
            "logarithm",
        ),
        Wrong(
            "the logarithm of the mean",
            lambda z, t: -_picked(z, t).exp().mean().log(),
            "you average the probabilities and take the logarithm once; take it of each, then "
            "average",
        ),
        Wrong(
            "softmax over the wrong axis",
            lambda z, t: -_picked(z, t, dim=0).mean(),
            "each row is one position and must sum to 1; your softmax runs down the columns",
        ),
    ],
)


# ------------------------------------------------------------------------------------------ rmsnorm


def _vectors(rng):
    import torch

    return (
        torch.tensor(rng.normal(size=(4, 6)) + 1.0),
        torch.tensor(rng.uniform(0.5, 2.0, size=6)),
        0.1,
    )


def _rmsnorm(x, weight, eps):
    return x / ((x * x).mean(-1, keepdim=True) + eps) ** 0.5 * weight


RMSNORM = Exercise(
    "02-rmsnorm",
    "The norm before every layer",
    _vectors,
    _rmsnorm,
    [
        Wrong(
            "the mean subtracted",
            lambda x, w, eps: _rmsnorm(x - x.mean(-1, keepdim=True), w, eps),
            "that is LayerNorm; RMSNorm leaves the mean where it is",
        ),
        Wrong(
            "no root",
            lambda x, w, eps: x / ((x * x).mean(-1, keepdim=True) + eps) * w,
            "you divide by the mean square; divide by its root",
        ),
        Wrong(
            "a sum of squares",
            lambda x, w, eps: x / ((x * x).sum(-1, keepdim=True) + eps) ** 0.5 * w,
            "the S in RMS is the *mean* of the squares; you add them up",
        ),
        Wrong(
            "ε outside the root",
            lambda x, w, eps: x / ((x * x).mean(-1, keepdim=True) ** 0.5 + eps) * w,
            "ε is added to the mean of the squares, under the root",
        ),
        Wrong(
            "the weight forgotten",
            lambda x, w, eps: _rmsnorm(x, 1.0, eps),
            "each of the numbers has a weight of its own; multiply by it at the end",
        ),
        Wrong(
            "ε forgotten",
            lambda x, w, eps: _rmsnorm(x, w, 0.0),
            "add eps to the mean of the squares before you take the root",
        ),
        Wrong(
            "over all rows",
            lambda x, w, eps: x / ((x * x).mean() + eps) ** 0.5 * w,
            "you take one mean over everything; each row, each token, has a mean of its own",
        ),
    ],
)


# ------------------------------------------------------------------------------------------- rotate


def _positions(rng):
    import torch

    return torch.tensor(rng.normal(size=(5, 8))), torch.arange(5) + int(rng.integers(2, 9)), 100.0


def _rotate(x, positions, theta, *, direction=1, same=False, times=1.0, neighbours=False):
    """The reference, and by its switches the ways to get it wrong."""
    import torch

    D = x.shape[-1]
    exponent = torch.arange(0, D, 2) / D * times
    speed = torch.ones(D // 2) if same else theta**-exponent  # (D/2,)
    angle = direction * positions[:, None] * speed.double()  # (T, D/2)
    a, b = (x[:, ::2], x[:, 1::2]) if neighbours else (x[:, : D // 2], x[:, D // 2 :])
    turned = a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()
    return torch.stack(turned, -1).flatten(1) if neighbours else torch.cat(turned, -1)


def _mirrored(x, positions, theta):
    """The right first half, and the second with a minus."""
    D = x.shape[-1]
    right, back = _rotate(x, positions, theta), _rotate(x, positions, theta, direction=-1)
    right[:, D // 2 :] = back[:, D // 2 :]
    return right


ROTATE = Exercise(
    "02-rotate",
    "Positions as angles",
    _positions,
    _rotate,
    [
        Wrong(
            "neighbours as pairs",
            lambda *a: _rotate(*a, neighbours=True),
            "you pair numbers 0 and 1, 2 and 3, …, as the paper draws it; Hugging Face's "
            "Llama pairs i with i + D/2",
        ),
        Wrong(
            "backwards",
            lambda *a: _rotate(*a, direction=-1),
            "you turn by minus the angle; (a, b) becomes (a·cos − b·sin, b·cos + a·sin)",
        ),
        Wrong(
            "one speed for all",
            lambda *a: _rotate(*a, same=True),
            "all pairs turn equally fast; pair i turns by θ^(−2i/D) for each position",
        ),
        Wrong(
            "half the exponent",
            lambda *a: _rotate(*a, times=0.5),
            "the exponent of pair i is −2i/D, and i counts pairs, from 0 to D/2 − 1; yours is −i/D",
        ),
        Wrong(
            "twice the exponent",
            lambda *a: _rotate(*a, times=2.0),
            "torch.arange(0, D, 2) holds 2i already; do not double it again",
        ),
        Wrong(
            "a sign in the second half",
            _mirrored,
            "a becomes a·cos − b·sin, but b becomes b·cos + a·sin, with a plus",
        ),
        Wrong(
            "positions ignored",
            lambda x, positions, theta: _rotate(x, positions * 0 + 1, theta),
            "every row is turned by the same angle; multiply by the row's position",
        ),
    ],
    tolerance=1e-4,
)


# ---------------------------------------------------------------------------------------- attention


def _heads(rng):
    import torch

    return tuple(torch.tensor(rng.normal(size=(5, 4)) * s) for s in (1.5, 1.5, 1.0))


def _attend(q, k, v, *, scale=None, mask="causal", dim=-1):
    """The reference, and by its switches the ways to get it wrong."""
    import torch

    T, D = q.shape
    scores = q @ k.T / (D**0.5 if scale is None else scale(D))
    later = torch.ones(T, T, dtype=torch.bool).triu(1)
    if mask == "causal":
        scores = scores.masked_fill(later, -torch.inf)
    elif mask == "future":
        scores = scores.masked_fill(later.T, -torch.inf)
    elif mask == "itself":
        scores = scores.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(0), -torch.inf)
    elif mask == "zero":
        scores = scores.masked_fill(later, 0.0)
    weights = scores.softmax(dim)
    return (weights.masked_fill(later, 0.0) if mask == "after" else weights) @ v


ATTENTION = Exercise(
    "02-attention",
    "Attention that cannot look ahead",
    _heads,
    _attend,
    [
        Wrong(
            "no mask",
            lambda *a: _attend(*a, mask="none"),
            "every token sees all others, also those that come later, so it can read the "
            "answer; mask them",
        ),
        Wrong(
            "masked with zero",
            lambda *a: _attend(*a, mask="zero"),
            "a score of 0 is not no attention: exp(0) = 1; set the forbidden scores to −infinity",
        ),
        Wrong(
            "masked after the softmax",
            lambda *a: _attend(*a, mask="after"),
            "the weights that are left no longer sum to 1; mask the scores, before the softmax",
        ),
        Wrong(
            "only what comes later",
            lambda *a: _attend(*a, mask="future"),
            "your mask is the wrong way round: row t may see columns 0 … t",
        ),
        Wrong(
            "blind to itself",
            lambda *a: _attend(*a, mask="itself"),
            "a token may see itself; with triu(0) the first row sees nothing, and a softmax "
            "of nothing is NaN: take triu(1)",
        ),
        Wrong(
            "the length for the width",
            lambda q, k, v: _attend(q, k, v, scale=lambda D: len(q) ** 0.5),
            "you divide by the root of T, the number of tokens; D is the width of a query: "
            "q.shape[1]",
        ),
        Wrong(
            "scale forgotten",
            lambda *a: _attend(*a, scale=lambda D: 1.0),
            "divide the scores by √D, or the softmax gets too sharp the wider the head",
        ),
        Wrong(
            "divided by D",
            lambda *a: _attend(*a, scale=lambda D: D),
            "the scores are divided by D; by √D is right: a sum of D products grows like √D",
        ),
        Wrong(
            "softmax down the columns",
            lambda *a: _attend(*a, dim=0),
            "each row, one token's attention, must sum to 1; your softmax runs down the columns",
        ),
    ],
)


# ------------------------------------------------------------------------------------- distribution


def _choice(rng):
    import torch

    return (
        torch.tensor(rng.normal(size=9) * 2),
        float(rng.uniform(0.3, 0.8)),
        int(rng.integers(3, 6)),
    )


def _distribution(logits, temperature, top_k):
    import torch

    logits = logits / temperature
    return logits.masked_fill(logits < logits.topk(top_k).values[-1], -torch.inf).softmax(-1)


def _strictly(logits, temperature, top_k):
    import torch

    return (
        (logits / temperature)
        .masked_fill(logits <= logits.topk(top_k).values[-1], -torch.inf)
        .softmax(-1)
    )


DISTRIBUTION = Exercise(
    "02-distribution",
    "Temperature and top-k",
    _choice,
    _distribution,
    [
        Wrong(
            "temperature multiplied",
            lambda z, t, k: _distribution(z, 1 / t, k),
            "you multiply by the temperature; divide, so that a low one makes the differences "
            "larger",
        ),
        Wrong(
            "temperature ignored",
            lambda z, t, k: _distribution(z, 1.0, k),
            "the temperature changes nothing here (dividing probabilities by it and "
            "normalising again does nothing, either); divide the *logits* by it",
        ),
        Wrong(
            "not normalised again",
            lambda z, t, k: (z / t).softmax(-1) * (_distribution(z, t, k) > 0),
            "what is left does not sum to 1; cut the logits to −infinity first, then take the "
            "softmax",
        ),
        Wrong(
            "one too few",
            _strictly,
            "the k-th largest is cut off, too; keep all that are at least as large as it",
        ),
        Wrong(
            "top-k ignored",
            lambda z, t, k: (z / t).softmax(-1),
            "every token can still be drawn; only the k largest may keep a probability",
        ),
    ],
)


EXERCISES = [SAMPLES, CROSS_ENTROPY, RMSNORM, ROTATE, ATTENTION, DISTRIBUTION]
