"""Make the shipped base from nothing: corpus, tokenizer, a few million parameters, about an hour on
one core.

What it replaces: downloading a small Llama.
How it works: documents from `data/corpus` are tokenized and packed whole into rows; a Llama learns
the next token of every row, the tokens of answers counting `answer_weight` times, in two stages
with different mixtures. Weight matrices step with Muon (their update is orthogonalised, Jordan et
al. 2024, as torch.optim.Muon does it), embedding and norms with AdamW; the learning rate rises,
stays, and falls to zero. What can be looked up in held-out documents is measured on the way.
What it leaves out: masks between the documents of a row, dropout, several machines.
Where numerics differ: products run in bf16 under autocast; the same seed gives the same data and
the same model up to the order of additions, which depends on threads and compiler. The weights are
stored in bf16.
"""

from __future__ import annotations

import contextlib
import json
import math
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import MiniloraError
from ..system.files import atomic_folder, data_folder
from ..system.outputs import alone
from ..train.divergence import ROUNDING
from .pretrain_card import TRAINING, describe, read_training

POSITIONS = 512  # a fine-tuned model may go beyond the rows of the training

LOOKUPS = ("dictionary", "codes", "record", "looking")  # families whose answers stand in their text


@dataclass
class Stage:
    """Some steps on one mixture of the corpus. The rate warms up, stays, and from step `hold` falls
    towards 0 at `zero`.
    """

    mixture: str
    steps: int
    warmup: int
    hold: int
    zero: int

    def rate_at(self, step: int, peak: float) -> float:
        left = (self.zero - step) / (self.zero - self.hold)
        return peak * min(1.0, (step + 1) / self.warmup, left)


# The second stage starts from the saved (bf16) weights with fresh moments (see corpus/families.py
# for why).
STAGES = (Stage("first", 2400, 100, 1800, 3600), Stage("second", 1000, 30, 400, 1000))


@dataclass
class Plan:
    """Everything that fixes a pretraining run."""

    stages: tuple[Stage, ...] = STAGES
    rows: int = 26  # per step
    length: int = 320  # tokens a row; no document is longer
    vocabulary: int = 3072
    hidden: int = 256
    layers: int = 5
    heads: int = 4
    groups: int = 2
    mlp: int = 512
    rate: float = 3e-3  # AdamW, and Muon scaled to the same size of update
    answer_weight: float = 3.0
    seed: int = 0

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)


def corpus():
    """The generator package in `data/corpus`."""
    folder = str(data_folder())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    import corpus as package
    import corpus.families
    import corpus.tokens

    return package


def pack_rows(
    encoded: Iterator[tuple[list[int], list[bool]]], length: int, pool: int = 64
) -> Iterator[tuple[list[int], list[bool]]]:
    """Rows of exactly `length` tokens made of whole documents, the longest that fits first; the
    rest is padding (id 0).
    """
    waiting: list[tuple[list[int], list[bool]]] = []
    while True:
        waiting += islice(encoded, pool - len(waiting))
        waiting.sort(key=lambda d: -len(d[0]))
        ids, answer = [], []
        for document in list(waiting):
            if len(ids) + len(document[0]) <= length:
                ids += document[0]
                answer += document[1]
                waiting.remove(document)
        yield ids + [0] * (length - len(ids)), answer + [False] * (length - len(ids))


def batches(plan: Plan, tokenizer, mixture: str) -> Iterator[tuple[Tensor, Tensor]]:
    """(ids, answer) tensors of shape (rows, length), for ever."""
    made = corpus()
    encoded = (
        made.tokens.encode(tokenizer, d) for _, d in made.families.documents(plan.seed, mixture)
    )
    rows = pack_rows((d for d in encoded if len(d[0]) <= plan.length), plan.length)
    while True:
        chosen = list(islice(rows, plan.rows))
        yield torch.tensor([r[0] for r in chosen]), torch.tensor([r[1] for r in chosen])


def attention_by_products(q, k, v, attn_mask=None, is_causal=True, enable_gqa=True) -> Tensor:
    """softmax(q kᵀ / √d) v as two products: on a CPU, at a few hundred tokens, faster backward than
    the fused kernel.

    q (B, H, T, D), k and v (B, G, T, D); the H/G query heads of a group are laid behind each other
    as one head.
    """
    (B, H, T, D), G = q.shape, k.shape[1]
    scores = (q.reshape(B, G, H // G * T, D) @ k.transpose(-1, -2)).view(
        B, G, H // G, T, T
    ) * D**-0.5
    later = torch.ones(T, T, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(later, float("-inf")).float().softmax(-1).to(v.dtype)
    return (weights.view(B, G, H // G * T, T) @ v).view(B, H, T, D)


@contextlib.contextmanager
def products_as_attention() -> Iterator[None]:
    """Within the block every Llama attends by products. (No padding masks: packed rows need
    none.)
    """
    from ..llama.decoder import Attention

    before = Attention.attend
    Attention.attend = staticmethod(attention_by_products)
    try:
        yield
    finally:
        Attention.attend = staticmethod(before)


def weighted_loss(model, ids: Tensor, answer: Tensor, weight: float) -> Tensor:
    """Mean cross-entropy of each next token, padding left out, answers counted `weight` times."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids[:, :-1])  # (B, T-1, V)
    target = ids[:, 1:]
    losses = F.cross_entropy(logits.float().flatten(0, 1), target.flatten(), reduction="none")
    share = (1.0 + (weight - 1.0) * answer[:, 1:].float()) * (target != 0).float()
    return (losses * share.flatten()).sum() / share.sum()


def require_muon() -> None:
    """Raise MiniloraError where torch is too old for it; all else runs from torch 2.5 on."""
    if not hasattr(torch.optim, "Muon"):
        raise MiniloraError(
            f"pretraining steps with torch.optim.Muon, which torch {torch.__version__} does not "
            "have; it came with 2.9: pip install 'torch>=2.9'"
        )


def optimizers(model, plan: Plan) -> list[torch.optim.Optimizer]:
    require_muon()
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=plan.rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=plan.rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


# questions whose answer stands before what they name
BACKWARDS = ("Which word means", "Who has the")


def answers(
    document, ids: list[int], answer: list[bool], right: list[bool]
) -> Iterator[tuple[str, bool]]:
    """(question, was every token of its answer the likeliest?) for each answer of an encoded
    document.
    """
    questions = [text.rsplit("\n", 1)[-1] for role, text in document if role == "user"]
    good: bool | None = None
    for is_answer, ok in zip([*answer[1:], False], [*right, False]):
        if is_answer:
            good = ok and good is not False
        elif good is not None:
            yield questions.pop(0), good
            good = None


@torch.no_grad()
def examine(model, tokenizer, count: int = 60) -> dict[str, float]:
    """On held-out documents: loss (nats per token, unweighted) and, per family, the share of
    answers that greedy decoding gets exactly right. (It does if every token of the answer is the
    likeliest after the right ones.) `lookup` is the mean over LOOKUPS; what has to be read
    backwards is counted apart, in `backwards`.
    """
    made = corpus()
    hits: dict[str, list[bool]] = {}
    total, tokens = 0.0, 0
    for family in made.families.FAMILIES:
        for document in made.families.held_out(family, count):
            ids, answer = made.tokens.encode(tokenizer, document)
            row = torch.tensor([ids])
            logits = model(row[:, :-1])[0].float()  # (T-1, V)
            total += F.cross_entropy(logits, row[0, 1:], reduction="sum").item()
            tokens += len(ids) - 1
            for question, good in answers(
                document, ids, answer, (logits.argmax(-1) == row[0, 1:]).tolist()
            ):
                hits.setdefault(
                    "backwards" if question.startswith(BACKWARDS) else family, []
                ).append(good)
    result = {family: sum(good) / len(good) for family, good in hits.items()}
    result["lookup"] = sum(result[f] for f in LOOKUPS) / len(LOOKUPS)
    return {"loss": total / tokens, **{k: round(v, 4) for k, v in result.items()}}


def learn(
    plan: Plan, tokenizer, out: Path, every: int, compiled: bool, first: int = 1
) -> dict[str, list]:
    """Run the plan's stages from number `first` on; a checkpoint and an examination every `every`
    steps and at the end of each stage. Returns the curve.
    """
    from ..llama.model import Llama

    torch.manual_seed(plan.seed)
    step_loss = torch.compile(weighted_loss) if compiled else weighted_loss
    curve: dict[str, list] = {"step": [], "loss": [], "examined": []}
    model = Llama(make_config(plan))
    done = 0
    for number, stage in enumerate(plan.stages, 1):
        if number < first:
            done += stage.steps
            continue
        if number > 1:
            model = Llama.from_pretrained(out)
        if number == first > 1:
            curve = {k: v for k, v in read_training(out).items() if k in curve}
        run_stage(
            model,
            plan,
            stage,
            tokenizer,
            step_loss,
            lambda: save(model, plan, tokenizer, curve, out),
            curve,
            done,
            every,
        )
        done += stage.steps
    return curve


def run_stage(
    model, plan: Plan, stage: Stage, tokenizer, step_loss, keep, curve: dict, done: int, every: int
) -> None:
    """The steps of one stage. `done` steps came before it; `keep()` saves model and curve."""
    from tqdm.auto import tqdm

    steppers, stream = optimizers(model, plan), batches(plan, tokenizer, stage.mixture)
    started, before = time.time(), curve["examined"][-1]["minutes"] if curve["examined"] else 0.0
    bar = tqdm(range(stage.steps), desc=stage.mixture, unit="step", mininterval=5)
    for step in bar:
        loss = step_loss(model, *next(stream), plan.answer_weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            for group in stepper.param_groups:
                group["lr"] = stage.rate_at(step, plan.rate)
            stepper.step()
            stepper.zero_grad()
        if not math.isfinite(loss.item()):
            raise MiniloraError(
                f"pretraining: the loss became {loss.item()} at step {done + step}; use a "
                "lower --rate"
            )
        if step % 20 == 0:
            curve["step"].append(done + step)
            curve["loss"].append(round(loss.item(), 4))
            bar.set_postfix(loss=f"{loss.item():.3f}")
        if (step + 1) % every == 0 or step + 1 == stage.steps:
            minutes = round(before + (time.time() - started) / 60, 1)
            curve["examined"].append(
                {"step": done + step + 1, "minutes": minutes, **examine(model, tokenizer)}
            )
            bar.write(json.dumps(curve["examined"][-1]))
            keep()


def make_config(plan: Plan):
    from ..llama.config import Config

    return Config(
        vocab_size=plan.vocabulary,
        hidden_size=plan.hidden,
        intermediate_size=plan.mlp,
        num_hidden_layers=plan.layers,
        num_attention_heads=plan.heads,
        num_key_value_heads=plan.groups,
        head_dim=plan.hidden // plan.heads,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def save(model, plan: Plan, tokenizer, curve: dict, out: Path) -> None:
    """The weights in bf16, the tokenizer and the curve: a first time all at once."""
    import copy

    with atomic_folder(out) as folder:
        corpus().tokens.save_tokenizer(tokenizer, folder, POSITIONS)
        copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
        facts = {
            "command": "minilora pretrain --out data/base "
            f"--rows {plan.rows} --rate {plan.rate} --seed {plan.seed}",
            "steps": plan.steps,
            "plan": asdict(plan),
            "tokens": plan.steps * plan.rows * (plan.length - 1),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
            "parameters": sum(p.numel() for p in model.parameters()),
            **curve,
        }
        (folder / TRAINING).write_text(json.dumps(facts, indent=1) + "\n")


def shrink(stage: Stage, share: float) -> Stage:
    """The same stage with a share of its steps."""
    parts = {k: max(1, round(v * share)) for k, v in asdict(stage).items() if k != "mixture"}
    return Stage(stage.mixture, **{**parts, "zero": max(parts["zero"], parts["hold"] + 1)})


def require_own(out: Path, first: int, overwrite: bool) -> None:
    """Raise MiniloraError unless pretraining may write into `out`: it holds nothing, or what an
    earlier one left and is to be replaced or gone on with.
    """
    there = sorted(each.name for each in out.iterdir()) if out.is_dir() else []
    if TRAINING in there:
        read_training(out)
        if first == 1 and not overwrite:
            raise MiniloraError(
                f"{out} holds a pretrained base already; add --overwrite to replace it, or choose "
                "another --out"
            )
    elif there:
        raise MiniloraError(
            f"{out} holds {there[0]}, and no {TRAINING} of an earlier pretraining; choose another "
            "--out"
        )
    elif first > 1:
        raise MiniloraError(f"{out} holds no earlier stage; begin with --stage 1")


def require_learned(last: dict, plan: Plan) -> None:
    """Raise MiniloraError if the last examination is worse than a guess among the vocabulary."""
    guessing = math.log(plan.vocabulary)
    if not last["loss"] <= guessing + ROUNDING:
        raise MiniloraError(
            f"pretraining diverged: the held-out loss is {last['loss']:.2f}, and guessing gives "
            f"{guessing:.2f}; begin anew with a lower --rate (now {plan.rate:g}) and --overwrite"
        )


def run(
    plan: Plan,
    out: Path,
    share: float = 1.0,
    first: int = 1,
    every: int = 400,
    compiled=True,
    overwrite=False,
) -> dict:
    """Training, checkpoint with tokenizer, and card: a share of the plan's steps from stage `first`
    on. Returns the last examination. overwrite: replace what an earlier pretraining left in `out`.
    """
    require_muon()  # before minutes go into the tokenizer
    if share != 1:
        plan = replace(plan, stages=tuple(shrink(stage, share) for stage in plan.stages))
    with alone(out), products_as_attention():
        require_own(out, first, overwrite)
        tokenizer = corpus().tokens.train_tokenizer(plan.vocabulary)
        curve = learn(plan, tokenizer, out, every, compiled=compiled, first=first)
        describe(out, POSITIONS)
    return curve["examined"][-1]
