"""Learning from judgements: DPO, and a policy gradient with a KL penalty, with one copy of the model in memory.

What it replaces: TRL's `DPOTrainer` and `RLOOTrainer`, and the second model that their simplest form loads as a reference.
How it works: π_θ is the model with its adapter, π_ref the same model with the adapter silenced (`lora.disabled`): the weights exist once.
log π(y|x) is the sum of the log-probabilities of an answer's tokens. From pairs (x, y_w preferred, y_l not) DPO (Rafailov et al. 2023) learns by

    L = −log σ( β [ log π_θ(y_w|x)/π_ref(y_w|x) − log π_θ(y_l|x)/π_ref(y_l|x) ] )

The policy gradient (Williams 1992) needs no pairs: it draws answers y ~ π_θ, rewards them with R = r(x, y) − β log π_θ(y|x)/π_ref(y|x), and
raises log π_θ(y|x) in proportion to R minus the mean R of the batch's other answers, which leaves the expected gradient as it is.
What it leaves out: PPO's clipping, several updates per draw, value networks, label smoothing, dropout (silenced here).
Where numerics differ: the loss of DPO is computed by softplus, in float32; answers of one batch are padded, which moves last bits.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import lora
from .errors import MiniloraError
from .scoring import device_of, left_pad, mode, tensors
from .text import IGNORE, Row, Tokenizer, encode_prompt

CLIP = 1.0  # largest gradient norm


# ------------------------------------------------------------------------------------------ log-probabilities of answers


def answer_logprobs(model: nn.Module, rows: Sequence[Row]) -> Tensor:
    """log π(y|x) of each row's learned tokens, (B,) float32, as a minilora Llama gives it now. Keeps the graph where gradients are on."""
    ids, labels, _ = tensors(rows, model)  # (B, T) each
    wanted = labels[:, 1:] != IGNORE  # (B, T-1): position t predicts token t+1
    hidden = model.model(ids)[:, :-1][wanted]  # (N, C); padding is on the right, the causal order hides it
    logits = model.head(hidden).float()  # (N, V)
    each = -F.cross_entropy(logits, labels[:, 1:][wanted], reduction="none")  # (N,)
    owner = wanted.nonzero()[:, 0]  # (N,): the row of each token
    return each.new_zeros(len(rows)).index_add(0, owner, each)


@torch.no_grad()
def reference_logprobs(model: nn.Module, rows: Sequence[Row]) -> Tensor:
    """log π_ref(y|x), (B,): the same weights with every adapter silenced. Raises MiniloraError if there is no adapter to silence."""
    if not lora.adapters(model):
        raise MiniloraError("the model has no adapter, so policy and reference would be one; call lora.add_lora(model) first")
    with lora.disabled(model):
        return answer_logprobs(model, rows)


def stored_bytes(*models: nn.Module) -> int:
    """Bytes of all parameters and buffers of `models` together; a storage that several tensors or models share counts once."""
    found = {}
    for model in models:
        for tensor in (*model.parameters(), *model.buffers()):
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


# ------------------------------------------------------------------------------------------------------------------ DPO


@dataclass(frozen=True)
class Pair:
    """One judgement: the row of the preferred answer y_w and the row of the other one, y_l, both to the same prompt."""

    chosen: Row
    rejected: Row


def dpo_margin(policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta: float) -> Tensor:
    """β times how much further than the reference the policy prefers y_w to y_l; from four log-probabilities of shape (B,)."""
    return beta * ((policy_chosen - reference_chosen) - (policy_rejected - reference_rejected))


def dpo_loss(margin: Tensor) -> Tensor:
    """−log σ(margin), mean over pairs. softplus(−m) is the same and does not overflow."""
    return F.softplus(-margin).mean()


def fit_dpo(
    model: nn.Module, pairs: Sequence[Pair], steps: int = 40, batch_size: int = 8, lr: float = 1e-3, beta: float = 0.1, seed: int = 0
) -> list[dict]:
    """Train the active adapter on judgements. In place. One record per step: loss, margin, and log π_θ/π_ref of either answer (means).

    Raises MiniloraError without pairs, without an adapter, or for a β that is not above 0.
    """
    check_settings(model, pairs, beta, batch_size)
    dice, records, optimizer = random.Random(seed), [], _optimizer(model, lr)
    with mode(model, False):
        for _ in range(steps):
            batch = dice.sample(list(pairs), min(batch_size, len(pairs)))
            rows = [pair.chosen for pair in batch] + [pair.rejected for pair in batch]  # (2B) in one pass
            reference = reference_logprobs(model, rows)  # (2B,)
            ratio = answer_logprobs(model, rows) - reference
            chosen, rejected = ratio.chunk(2)  # (B,) each
            margin = beta * (chosen - rejected)
            loss = dpo_loss(margin)
            _update(model, optimizer, loss)
            told = {"loss": loss, "margin": margin.mean(), "chosen": chosen.mean(), "rejected": rejected.mean()}
            records.append({name: value.item() for name, value in told.items()})
    return records


# ------------------------------------------------------------------------------------------------------ policy gradient


@torch.no_grad()
def sample_answers(
    model: nn.Module, tokenizer: Tokenizer, prompts: Sequence[str], seed: int, max_new_tokens: int = 24, temperature: float = 1.0
) -> list[Row]:
    """One answer for each prompt, drawn from the model as it stands now: rows whose drawn tokens, EOS included, are the learned ones."""
    given = [encode_prompt(prompt, tokenizer) for prompt in prompts]
    ids, mask = (tensor.to(device_of(model)) for tensor in left_pad(given, tokenizer.pad_id))  # (B, T)
    with mode(model, False):
        out = model.generate(ids, max_new_tokens, temperature, attention_mask=mask, stop=tokenizer.eos_id, seed=seed)
    rows = []
    for prompt, drawn in zip(given, out[:, ids.shape[1] :].tolist()):
        if tokenizer.eos_id in drawn:
            drawn = drawn[: drawn.index(tokenizer.eos_id) + 1]
        rows.append((prompt + drawn, [IGNORE] * len(prompt) + drawn))
    return rows


def answer_text(row: Row, tokenizer: Tokenizer) -> str:
    """The learned part of a row, as text."""
    return tokenizer.decode([label for label in row[1] if label != IGNORE])


def policy_gradient_loss(policy: Tensor, reference: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """A number whose gradient is the policy gradient of E[r] − β KL(π_θ ‖ π_ref), turned downhill.

    policy and reference are log π(y|x) of answers drawn from π_θ, rewards their r(x, y), all (B,) with B ≥ 2. The baseline of an
    answer is the mean of the others', so that it does not depend on the answer itself and the gradient keeps its expectation.
    """
    total = rewards - beta * (policy.detach() - reference)  # (B,): R
    others = (total.sum() - total) / (len(total) - 1)
    return -((total - others) * policy).mean()


def fit_policy(
    model: nn.Module, tokenizer: Tokenizer, examples: Sequence[dict], reward: Callable[[dict, str], float], steps: int = 10,
    batch_size: int = 32, settings: "PolicyConfig | None" = None,
) -> list[dict]:
    """Draw answers to prompts, reward them, follow the policy gradient. In place. One record per step: mean reward, KL, answers.

    reward(example, answer) judges a text. Raises MiniloraError without examples or an adapter, for β below 0, and for a batch of one.
    """
    settings = settings or PolicyConfig()
    check_settings(model, examples, settings.beta, batch_size, least=2)
    dice, records, optimizer = random.Random(settings.seed), [], _optimizer(model, settings.lr)
    for step in range(steps):
        batch = dice.sample(list(examples), min(batch_size, len(examples)))
        prompts = [example["prompt"] for example in batch]
        rows = sample_answers(model, tokenizer, prompts, seed=settings.seed * 100_003 + step, max_new_tokens=settings.max_new_tokens)
        answers = [answer_text(row, tokenizer) for row in rows]
        rewards = torch.tensor([float(reward(example, answer)) for example, answer in zip(batch, answers)], device=device_of(model))
        with mode(model, False):
            reference, policy = reference_logprobs(model, rows), answer_logprobs(model, rows)
            _update(model, optimizer, policy_gradient_loss(policy, reference, rewards, settings.beta))
        kl = (policy.detach() - reference).mean().item()  # y is drawn from π_θ, so its mean log-ratio estimates KL(π_θ ‖ π_ref)
        records.append({"reward": rewards.mean().item(), "kl": kl, "answers": answers[:2]})
    return records


@dataclass(frozen=True)
class PolicyConfig:
    """What decides a policy-gradient run beside its data: β weighs the KL penalty, `seed` the draws."""

    lr: float = 1e-3
    beta: float = 0.05
    seed: int = 0
    max_new_tokens: int = 24


# --------------------------------------------------------------------------------------------------------------- common


def check_settings(model: nn.Module, data: Sequence, beta: float, batch_size: int, least: int = 1) -> None:
    """Raise MiniloraError for what would train nothing or cannot be computed."""
    if not lora.adapters(model) or not lora.trainable_parameters(model):
        raise MiniloraError("the model has no adapter that learns; call lora.add_lora(model), or lora.use_adapter(model, name)")
    if len(data) < least:
        raise MiniloraError(f"{len(data)} examples are given; at least {least} must be there to learn from")
    if batch_size < least:
        raise MiniloraError(f"batch_size is {batch_size}; give {least} or more" + (": an answer is compared with the others" if least > 1 else ""))
    if not 0 < beta < float("inf"):
        raise MiniloraError(f"beta is {beta!r}; it weighs the reference, so give a number above 0, such as 0.1")


def _optimizer(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(lora.trainable_parameters(model), lr=lr, weight_decay=0.0)


def _update(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(lora.trainable_parameters(model), CLIP)
    optimizer.step()
