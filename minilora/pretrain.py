"""Make the shipped base from nothing: corpus, tokenizer, a few million parameters, about an hour on two cores.

What it replaces: downloading a small Llama.
How it works: documents from `data/corpus` are tokenized and packed whole into rows; a Llama learns the next token of
every row, the tokens of answers counting `answer_weight` times. Weight matrices step with Muon (their update is
orthogonalised, Jordan et al. 2024, as torch.optim.Muon does it), embedding and norms with AdamW; the learning rate
rises, stays, and falls to zero. What can be looked up in held-out documents is measured on the way.
What it leaves out: masks between the documents of a row, dropout, several machines.
Where numerics differ: products run in bf16 under autocast; the same seed gives the same data and the same model up to
the order of additions, which depends on threads and compiler. The weights are stored in bf16.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import MiniloraError
from .files import atomic_folder, atomic_write, data_folder

LOOKUPS = ("reading", "dictionary", "codes", "record")  # families whose answers stand in their text


@dataclass
class Plan:
    """Everything that fixes a pretraining run."""

    steps: int = 4000
    rows: int = 26  # per step
    length: int = 320  # tokens a row; no document is longer
    vocabulary: int = 3072
    hidden: int = 256
    layers: int = 5
    heads: int = 4
    groups: int = 2
    mlp: int = 512
    rate: float = 3e-3  # AdamW, and Muon scaled to the same size of update
    warmup: int = 100
    decay: float = 0.5  # share of the steps in which the rate falls to zero
    answer_weight: float = 3.0
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """Warm up, stay, then fall linearly to zero."""
        left = (self.steps - step) / max(1, self.steps * self.decay)
        return self.rate * min(1.0, (step + 1) / self.warmup, left)


def corpus():
    """The generator package in `data/corpus`."""
    folder = str(data_folder())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    import corpus as package
    import corpus.families
    import corpus.tokens

    return package


def pack_rows(encoded: Iterator[tuple[list[int], list[bool]]], length: int, pool: int = 64) -> Iterator[tuple[list[int], list[bool]]]:
    """Rows of exactly `length` tokens made of whole documents, the longest that fits first; the rest is padding (id 0)."""
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


def batches(plan: Plan, tokenizer) -> Iterator[tuple[Tensor, Tensor]]:
    """(ids, answer) tensors of shape (rows, length), for ever."""
    made = corpus()
    encoded = (made.tokens.encode(tokenizer, d) for _, d in made.families.documents(plan.seed))
    rows = pack_rows((d for d in encoded if len(d[0]) <= plan.length), plan.length)
    while True:
        chosen = list(islice(rows, plan.rows))
        yield torch.tensor([r[0] for r in chosen]), torch.tensor([r[1] for r in chosen])


def attention_by_products(q, k, v, attn_mask=None, is_causal=True, enable_gqa=True) -> Tensor:
    """softmax(q kᵀ / √d) v as two products: on a CPU, at a few hundred tokens, faster backward than the fused kernel.

    q (B, H, T, D), k and v (B, G, T, D); the H/G query heads of a group are laid behind each other as one head.
    """
    (B, H, T, D), G = q.shape, k.shape[1]
    scores = (q.reshape(B, G, H // G * T, D) @ k.transpose(-1, -2)).view(B, G, H // G, T, T) * D**-0.5
    later = torch.ones(T, T, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(later, float("-inf")).float().softmax(-1).to(v.dtype)
    return (weights.view(B, G, H // G * T, T) @ v).view(B, H, T, D)


def weighted_loss(model, ids: Tensor, answer: Tensor, weight: float) -> Tensor:
    """Mean cross-entropy of each next token, padding left out, answers counted `weight` times."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids[:, :-1])  # (B, T-1, V)
    target = ids[:, 1:]
    losses = F.cross_entropy(logits.float().flatten(0, 1), target.flatten(), reduction="none")
    share = (1.0 + (weight - 1.0) * answer[:, 1:].float()) * (target != 0).float()
    return (losses * share.flatten()).sum() / share.sum()


def optimizers(model, plan: Plan) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=plan.rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=plan.rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


@torch.no_grad()
def examine(model, tokenizer, count: int = 60) -> dict[str, float]:
    """On held-out documents: loss (nats per token, unweighted) and, per look-up family, the share of answers that
    greedy decoding gets exactly right. (It does if every token of the answer is the likeliest after the right ones.)"""
    made = corpus()
    result, total, tokens = {}, 0.0, 0
    for family in made.families.FAMILIES:
        hits = asked = 0
        for document in made.families.held_out(family, count):
            ids, answer = made.tokens.encode(tokenizer, document)
            ids = torch.tensor([ids])
            logits = model(ids[:, :-1])[0].float()
            total += F.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
            tokens += ids.shape[1] - 1
            right = (logits.argmax(-1) == ids[0, 1:]).tolist()
            good = None
            for is_answer, ok in zip(answer[1:] + [False], right + [False]):
                if is_answer:
                    good = ok and (good is not False)
                elif good is not None:
                    hits, asked, good = hits + good, asked + 1, None
        if asked:
            result[family] = hits / asked
    result["lookup"] = sum(result[f] for f in LOOKUPS) / len(LOOKUPS)
    return {"loss": total / tokens, **{k: round(v, 4) for k, v in result.items()}}


def learn(plan: Plan, tokenizer, out: Path, every: int, compiled: bool):
    """Run the plan; a checkpoint and an examination every `every` steps. Returns (model, curve)."""
    from tqdm.auto import tqdm

    from . import llama

    torch.manual_seed(plan.seed)
    model = llama.Llama(make_config(plan))
    llama.Attention.attend = staticmethod(attention_by_products)
    step_loss = torch.compile(weighted_loss) if compiled else weighted_loss
    steppers, stream = optimizers(model, plan), batches(plan, tokenizer)
    curve: dict[str, list] = defaultdict(list)
    started = time.time()
    bar = tqdm(range(plan.steps), unit="step", mininterval=5)
    for step in bar:
        ids, answer = next(stream)
        loss = step_loss(model, ids, answer, plan.answer_weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            for group in stepper.param_groups:
                group["lr"] = plan.rate_at(step)
            stepper.step()
            stepper.zero_grad()
        if not math.isfinite(loss.item()):
            raise MiniloraError(f"pretraining: the loss became {loss.item()} at step {step}; use a lower --rate")
        if step % 20 == 0:
            curve["step"].append(step)
            curve["loss"].append(round(loss.item(), 4))
            bar.set_postfix(loss=f"{loss.item():.3f}")
        if (step + 1) % every == 0 or step + 1 == plan.steps:
            state = examine(model, tokenizer)
            curve["examined"].append({"step": step + 1, "minutes": round((time.time() - started) / 60, 1), **state})
            bar.write(json.dumps(curve["examined"][-1]))
            save(model, plan, curve, out)
    return model, curve


def make_config(plan: Plan):
    from .llama import Config

    return Config(
        vocab_size=plan.vocabulary, hidden_size=plan.hidden, intermediate_size=plan.mlp, num_hidden_layers=plan.layers,
        num_attention_heads=plan.heads, num_key_value_heads=plan.groups, head_dim=plan.hidden // plan.heads,
        max_position_embeddings=512, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip


def save(model, plan: Plan, curve: dict, out: Path) -> None:
    """The weights in bf16 and the curve."""
    import copy

    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(out)
    with atomic_write(out / "training.json") as path:
        facts = {
            "command": "minilora pretrain",
            "plan": asdict(plan),
            "tokens": plan.steps * plan.rows * (plan.length - 1),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
            **curve,
        }
        path.write_text(json.dumps(facts, indent=1) + "\n")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `minilora pretrain`."""
    plan = Plan()
    parser.add_argument("--out", type=Path, required=True, help="folder for the base (Hugging Face layout)")
    parser.add_argument("--steps", type=int, default=plan.steps, help="optimizer steps (default %(default)s)")
    parser.add_argument("--rows", type=int, default=plan.rows, help="rows of a step (default %(default)s)")
    parser.add_argument("--rate", type=float, default=plan.rate, help="peak learning rate (default %(default)s)")
    parser.add_argument("--seed", type=int, default=plan.seed, help="seed of data and weights (default %(default)s)")
    parser.add_argument("--every", type=int, default=250, help="steps between checkpoints (default %(default)s)")
    parser.add_argument("--no-compile", action="store_true", help="do without torch.compile (no C++ compiler needed)")


def run(args: argparse.Namespace) -> int:
    """`minilora pretrain`: tokenizer, training, checkpoint. Raises MiniloraError on steps, rows or rate below 1."""
    for name in ("steps", "rows", "every"):
        if getattr(args, name) < 1:
            raise MiniloraError(f"--{name} is {getattr(args, name)}; it must be at least 1")
    if not args.rate > 0:
        raise MiniloraError(f"--rate is {args.rate}; it must be above 0")
    plan = Plan(steps=args.steps, rows=args.rows, rate=args.rate, seed=args.seed)
    made = corpus()
    tokenizer = made.tokens.train_tokenizer(plan.vocabulary)
    with atomic_folder(args.out) as folder:
        made.tokens.save_tokenizer(tokenizer, folder, 512)
    _, curve = learn(plan, tokenizer, args.out, args.every, compiled=not args.no_compile)
    print(f"saved {args.out}: look-up {curve['examined'][-1]['lookup']:.3f}, held-out loss {curve['examined'][-1]['loss']:.4f}")
    return 0
