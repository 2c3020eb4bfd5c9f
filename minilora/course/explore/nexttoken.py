"""Lesson 02: the shipped base's own distribution over the next token, by temperature and top-k.

What it replaces: a made-up distribution over five words.
How it works: the base reads a few words once, and the logits of the next token are kept.
`sampling.filter_logits`, the function that `generate` uses, divides them by the temperature and
cuts them to the top k; a softmax makes probabilities of them. The picture shows the likeliest
tokens, a tick where each stood before (temperature 1, nothing cut), and forty draws: forty fixed
numbers from 0 to 1, each of which picks the token on whose stretch it falls when all probabilities
lie end to end, the likeliest first.
What it leaves out: top-p; what is written after the next token.
Where numerics differ: the draws of `generate` come from torch's generator, these from NumPy's; the
probabilities are the same.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from . import palette, svg
from .widget import Explorer, Slider

PROMPT = "Ingo liked toast. Calren"

SHOWN, DRAWS = 12, 40

TOP_K = (1, 2, 3, 5, 8, 12, 20, 50, 200, "all")


@functools.cache
def observed() -> tuple[np.ndarray, tuple[str, ...]]:
    """The base's logits (V,) of the token after PROMPT, largest first, and the SHOWN likeliest
    tokens as text.
    """
    import torch

    from ...llama.model import Llama
    from ...system.files import data_folder
    from ...text.tokenizer import Tokenizer

    folder = data_folder() / "base"
    tokenizer = Tokenizer.from_pretrained(folder)
    with torch.no_grad():
        # (V,)
        logits = Llama.from_pretrained(folder)(torch.tensor([tokenizer.encode(PROMPT, bos=True)]))[
            0, -1
        ]
    ordered, ids = logits.sort(descending=True)
    words = (tokenizer.decode([i], skip_special=False) for i in ids[:SHOWN].tolist())
    return ordered.numpy(), tuple(word.replace(" ", "␣").replace("\n", "⏎") for word in words)


def probabilities(temperature: float, top_k: int | str) -> np.ndarray:
    """The distribution that is drawn from, (V,), largest first."""
    import torch

    from ...llama.generate import filter_logits

    logits = torch.tensor(observed()[0])[None]  # (1, V)
    return (
        filter_logits(logits, temperature, None if top_k == "all" else top_k)
        .softmax(-1)[0]
        .double()
        .numpy()
    )


@functools.cache
def uniforms() -> np.ndarray:
    """The forty numbers of the draws, always the same."""
    return np.random.default_rng(0).uniform(size=DRAWS)


def compute(temperature: float, top_k: int | str) -> dict:
    """Probabilities before and after, draws by token, and how many tokens the distribution is as
    good as.
    """
    p = probabilities(temperature, top_k)
    drawn = np.minimum(np.searchsorted(p.cumsum(), uniforms()), int((p > 0).sum()) - 1)
    positive = p[p > 0]
    return {
        "temperature": temperature,
        "top_k": top_k,
        "words": observed()[1],
        "p": p,
        "plain": probabilities(1.0, "all"),
        "left": len(positive),
        "drawn": np.bincount(drawn, minlength=len(p)),
        "choices": math.exp(-float((positive * np.log(positive)).sum())),
    }


def _row(y: int, word: str, share: float, before: float, times: int) -> str:
    """One token: its name, a bar, a tick where it stood before, its percentage and its draws."""
    left, room = 110, 360
    parts = [
        svg.text(left - 8, y + 14, word, "end"),
        f'<rect x="{left}" y="{y}" width="{max(room * share, 0.5):.1f}" height="18" '
        f'fill="{palette.hue(0)}"/>',
        f'<path d="M{left + room * before:.1f} {y - 2}v22" stroke="currentColor" '
        'stroke-width="2"/>',
        svg.text(left + room + 62, y + 14, f"{100 * share:.1f} %", "end"),
        svg.text(
            left + room + 76, y + 14, "●" * min(times, 14) + (f" {times}" if times > 14 else "")
        ),
    ]
    return "".join(parts)


def render(found: dict) -> tuple[str, str]:
    p, plain, drawn, words = found["p"], found["plain"], found["drawn"], found["words"]
    kept = (
        f"all {found['left']:,} tokens stay"
        if found["top_k"] == "all"
        else f"the {found['left']} likeliest stay"
        if found["left"] > 1
        else "only the likeliest stays"
    )
    label = (
        f"“{PROMPT} …”, temperature {found['temperature']:.1f}, {kept}: {words[0]} gets "
        f"{100 * p[0]:.1f} %. The choice is as wide as one among "
        f"{svg.number(found['choices'])} equally likely tokens; {DRAWS} draws hit "
        f"{int((drawn > 0).sum())} different tokens."
    )
    parts = [
        svg.text(
            2,
            16,
            f"after “{PROMPT}”; ␣: space, bar: probability, tick: at temperature 1 with "
            f"nothing cut, dots: {DRAWS} draws",
            font_size="12px",
        )
    ]
    for row, word in enumerate(words):
        parts.append(_row(30 + 26 * row, word, p[row], plain[row], int(drawn[row])))
    parts.append(
        _row(
            30 + 26 * SHOWN,
            "all others",
            p[SHOWN:].sum(),
            plain[SHOWN:].sum(),
            int(drawn[SHOWN:].sum()),
        )
    )
    return label, svg.canvas(740, 34 + 26 * (SHOWN + 1), *parts)


EXPLORER = Explorer(
    "nexttoken",
    compute,
    render,
    [
        Slider(
            "temperature", [round(0.1 * n, 1) for n in range(1, 31)], start=1.0, label="temperature"
        ),
        Slider("top_k", TOP_K, start="all", label="top-k"),
    ],
)
