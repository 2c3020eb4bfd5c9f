"""The page and the picture of a pretrained base, from its training.json."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from ..system.files import atomic_write
from ..system.json_files import read_json
from .untrained import untrained_tokens

TRAINING = "training.json"

SCHEMA = {
    "type": "object",
    "required": ["plan", "parameters", "step", "loss", "examined"],
    "properties": {
        "plan": {"type": "object"},
        "parameters": {"type": "integer"},
        "step": {"type": "array", "items": {"type": "integer"}},
        "loss": {"type": "array", "items": {"type": "number"}},
        "examined": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "object", "required": ["step", "minutes", "loss"]},
        },
    },
}

CARD = """# The base: a Llama of {million:.2f} million parameters

Made by `{command}` from text that `data/corpus` writes (seed {seed}); no other text, no other \
weights. It exists
to be fine-tuned in a minute on two CPU cores. It knows no facts, and outside the patterns of \
that text it babbles.

| | |
| --- | --- |
| architecture | `LlamaForCausalLM`: {layers} layers, width {hidden}, {heads} heads over {groups} \
key/value heads, MLP {mlp}, tied embeddings |
| vocabulary | {vocabulary} byte-level BPE pieces, each digit its own; `<\\|user\\|>` and \
`<\\|assistant\\|>` for conversations |
| positions | {length} seen in training, {positions} allowed |
| training | {steps:,} steps of {rows} rows of {length} tokens, {tokens:,} tokens in all, \
{minutes:.0f} minutes on {threads} thread(s) |
| optimizer | Muon on matrices, AdamW on embedding and norms, rate {rate} falling to zero, \
answers weighted ×{answer_weight:g} |
| stored as | bf16, {megabytes:.1f} MB |
| held-out loss | **{loss:.4f}** nats a token |

Answers that greedy decoding gets exactly right on held-out documents:

{abilities}

It reads on from what a question names to the answer behind it (`looking`, `codes`, `record`, \
`dictionary`; their mean is
`lookup`). It does not read backwards: asked who did something where the person stands before the \
deed, or which word
has a meaning, it guesses among the names it has read (`backwards`, and about half of the \
questions in `reading`).
{untrained} of its tokens hardly came in that text: their vectors lie beside one another, so it \
cannot tell them apart
and writes one for another. `minilora finetune` says so where your data use them; for your own \
data take a real model.

![loss by step](training.png)

`training.json` holds the plan and the curve. Another number of threads or another compiler \
changes the order of
additions, so a rebuilt base agrees in quality, not in bits. Licence: MIT, as the rest of the \
repository.
"""


def read_training(out: Path) -> dict:
    """Plan and curve of a pretrained folder. Raises MiniloraError for what pretraining did not
    write.
    """
    return read_json(out / TRAINING, SCHEMA, remedy="choose another --out")


def describe(out: Path, positions: int) -> None:
    """README.md and training.png of a pretrained folder that allows so many positions."""
    facts = read_training(out)
    last = facts["examined"][-1]
    names = [n for n in last if n not in ("step", "minutes", "loss")]
    table = "\n".join(f"| {name} | {last[name]:.1%} |" for name in names)
    vectors = load_file(out / "model.safetensors")["model.embed_tokens.weight"]  # (V, D)
    with atomic_write(out / "README.md") as path:
        path.write_text(
            CARD.format(
                **{**facts["plan"], **facts, **last},
                million=facts["parameters"] / 1e6,
                positions=positions,
                untrained=len(untrained_tokens(vectors)),
                megabytes=(out / "model.safetensors").stat().st_size / 1e6,
                abilities=f"| family | right |\n| --- | --- |\n{table}",
            ),
            encoding="utf-8",
        )
    draw(facts, out / "training.png")


def draw(facts: dict, target: Path) -> None:
    """Training loss and what is right on held-out documents, by step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    left = figure.add_subplot()
    left.plot(facts["step"], facts["loss"], color="#0072B2", linewidth=1, label="training loss")
    left.set(xlabel="step", ylabel="nats a token")
    right = left.twinx()
    steps = [e["step"] for e in facts["examined"]]
    for family, color, marker in (
        ("record", "#D55E00", "o"),
        ("codes", "#009E73", "s"),
        ("sums", "#CC79A7", "^"),
    ):
        share = [100 * e[family] for e in facts["examined"]]
        right.plot(
            steps, share, color=color, marker=marker, linestyle="--", label=f"{family}, % right"
        )
    right.set(ylim=(0, 102), ylabel="held-out answers, % right")
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    with atomic_write(target) as path:
        figure.savefig(path, format="png", dpi=120)
