"""Learning from judgements: DPO, and a policy gradient with a KL penalty, with one copy of the
model in memory.

What it replaces: TRL's `DPOTrainer` and `RLOOTrainer`, and the second model that their simplest
form loads as a reference.
How it works: π_θ is the model with its adapter, π_ref the same model with the adapter silenced
(`lora.disabled`): the weights exist once, which `watched` lets one see while either method trains.
log π(y|x) is the sum of the log-probabilities of an answer's tokens. From pairs (x, y_w preferred,
y_l not) DPO (Rafailov et al. 2023) learns by

    L = −log σ( β [ log π_θ(y_w|x)/π_ref(y_w|x) − log π_θ(y_l|x)/π_ref(y_l|x) ] )

The policy gradient (Williams 1992) needs no pairs: it draws answers y ~ π_θ, rewards them with R =
r(x, y) − β log π_θ(y|x)/π_ref(y|x), and raises log π_θ(y|x) in proportion to R minus the mean R of
the batch's other answers, which leaves the expected gradient as it is.
What it leaves out: PPO's clipping, several updates per draw, value networks, label smoothing,
dropout (silenced here).
Where numerics differ: the loss of DPO is computed by softplus, in float32; answers of one batch are
padded, which moves last bits.
"""

from __future__ import annotations

import contextlib
import gc
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import lora
from ..errors import MiniloraError
from ..system.precision import device_of, mode
from ..text.ends import answer_ends, end_of, require_ids
from ..text.prompts import encode_prompt
from ..text.rows import IGNORE, Row
from ..text.tokenizer import Tokenizer
from .loss import tensors
from .scoring import left_pad

if TYPE_CHECKING:
    from ..llama.model import Llama

CLIP = 1.0  # largest gradient norm


@dataclass
class Settings:
    """What decides a run of either kind beside its data. Raises MiniloraError on values that cannot
    be.
    """

    steps: int = 20
    batch_size: int = 8  # pairs, or drawn answers
    lr: float = 1e-3
    beta: float = 0.1  # how strongly the reference holds the policy
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise MiniloraError(
                    f"{name} is {getattr(self, name)!r}; give a whole number of 1 or more"
                )
        for name in ("lr", "beta"):
            if not 0 < getattr(self, name) < float("inf"):
                raise MiniloraError(
                    f"{name} is {getattr(self, name)!r}; give a number above 0, such as "
                    f"{1e-3 if name == 'lr' else 0.1}"
                )


# --------------------------------------------------------------------- log-probabilities of answers


def answer_logprobs(model: Llama, rows: Sequence[Row]) -> Tensor:
    """log π(y|x) of each row's learned tokens, (B,) float32, as a minilora Llama gives it now.
    Keeps the graph where gradients are on.
    """
    ids, labels, _ = tensors(rows, model)  # (B, T) each
    wanted = labels[:, 1:] != IGNORE  # (B, T-1): position t predicts token t+1
    # (N, C); padding is on the right, the causal order hides it
    hidden = model.model(ids)[:, :-1][wanted]
    logits = model.head(hidden).float()  # (N, V)
    each = -F.cross_entropy(logits, labels[:, 1:][wanted], reduction="none")  # (N,)
    owner = wanted.nonzero()[:, 0]  # (N,): the row of each token
    return each.new_zeros(len(rows)).index_add(0, owner, each)


@torch.no_grad()
def reference_logprobs(model: Llama, rows: Sequence[Row]) -> Tensor:
    """log π_ref(y|x), (B,): the same weights with every adapter silenced. Raises MiniloraError if
    there is no adapter to silence.
    """
    if not lora.adapters(model):
        raise MiniloraError(
            "the model has no adapter, so policy and reference would be one; call "
            "lora.add_lora(model) first"
        )
    with lora.disabled(model):
        return answer_logprobs(model, rows)


def stored_bytes(*models: nn.Module) -> int:
    """Bytes of all parameters and buffers of `models` together; a storage that several tensors or
    models share counts once.

    A copy that stands elsewhere, such as the old weights that a merge keeps, is not seen here;
    `watched` sees it.
    """
    return _bytes(tensor for model in models for tensor in (*model.parameters(), *model.buffers()))


def _bytes(tensors: Iterable[Tensor]) -> int:
    found = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


@contextlib.contextmanager
def watched(model: nn.Module) -> Iterator[list[int]]:
    """Inside, whenever a minilora Llama reads whole rows, the bytes of all tensors in this process,
    whoever holds them, join the list.

    The first entry is the state before. A second copy of the weights shows as growth, be it hidden
    in a list or made for one pass alone.
    """

    def living() -> int:
        return _bytes(
            each
            for each in gc.get_objects()
            if type(each) in (Tensor, nn.Parameter) and each.device.type != "meta"
        )

    def note(module: nn.Module, given: tuple) -> None:
        if (
            isinstance(module, type(model.model)) and given[0].shape[1] > 1
        ):  # not at every token that is drawn
            seen.append(living())

    gc.collect()  # what is garbage already must not make room, unseen, for a copy
    seen = [living()]
    # of every model: a copy is one, too
    hook = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield seen
    finally:
        hook.remove()


# ---------------------------------------------------------------------------------------------- DPO


@dataclass(frozen=True)
class Pair:
    """One judgement: the row of the preferred answer y_w and the row of the other one, y_l, both to
    the same prompt.
    """

    chosen: Row
    rejected: Row


def dpo_margin(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
) -> Tensor:
    """β times how much further than the reference the policy prefers y_w to y_l; from four
    log-probabilities of shape (B,).
    """
    return beta * ((policy_chosen - reference_chosen) - (policy_rejected - reference_rejected))


def dpo_loss(margin: Tensor) -> Tensor:
    """−log σ(margin), mean over pairs. softplus(−m) is the same and does not overflow."""
    return F.softplus(-margin).mean()


def fit_dpo(model: Llama, pairs: Sequence[Pair], settings: Settings) -> list[dict]:
    """Train the active adapter on judgements. In place. One record per step: loss, margin, and log
    π_θ/π_ref of either answer (means).

    Raises MiniloraError without pairs, or without an adapter that learns.
    """
    need(model, pairs, 1)
    dice, records, optimizer = random.Random(settings.seed), [], _optimizer(model, settings)
    with mode(model, False):
        for _ in range(settings.steps):
            batch = dice.sample(list(pairs), min(settings.batch_size, len(pairs)))
            # (2B) in one pass
            rows = [pair.chosen for pair in batch] + [pair.rejected for pair in batch]
            reference = reference_logprobs(model, rows)  # (2B,)
            policy = answer_logprobs(model, rows)
            (preferred, other), held = policy.chunk(2), reference.chunk(2)  # (B,) each
            margin = dpo_margin(preferred, other, held[0], held[1], settings.beta)  # (B,)
            loss = dpo_loss(margin)
            _update(model, optimizer, loss)
            chosen, rejected = (policy - reference).chunk(2)
            told = {
                "loss": loss,
                "margin": margin.mean(),
                "chosen": chosen.mean(),
                "rejected": rejected.mean(),
            }
            records.append({name: value.item() for name, value in told.items()})
    return records


# ---------------------------------------------------------------------------------- policy gradient


@torch.no_grad()
def sample_answers(
    model: Llama,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    seed: int,
    max_new_tokens: int = 24,
    temperature: float = 1.0,
) -> list[Row]:
    """One answer for each prompt, drawn from the model as it stands now: rows whose drawn tokens,
    their end included (see text/ends.py), are the learned ones.
    """
    require_ids(model, tokenizer)
    ends = answer_ends(model, tokenizer)
    given = [encode_prompt(prompt, tokenizer) for prompt in prompts]
    # (B, T)
    ids, mask = (tensor.to(device_of(model)) for tensor in left_pad(given, tokenizer.pad_id))
    with mode(model, False):
        out = model.generate(
            ids, max_new_tokens, temperature, attention_mask=mask, stop=ends, seed=seed
        )
    rows = []
    for prompt, drawn in zip(given, out[:, ids.shape[1] :].tolist()):
        drawn = drawn[: end_of(drawn, ends) + 1]
        rows.append((prompt + drawn, [IGNORE] * len(prompt) + drawn))
    return rows


def answer_text(row: Row, tokenizer: Tokenizer) -> str:
    """The learned part of a row, as text."""
    return tokenizer.decode([label for label in row[1] if label != IGNORE])


def policy_gradient_loss(policy: Tensor, reference: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """A number whose gradient is the policy gradient of E[r] − β KL(π_θ ‖ π_ref), turned downhill.

    policy and reference are log π(y|x) of answers drawn from π_θ, rewards their r(x, y), all (B,)
    with B ≥ 2. The baseline of an answer is the mean of the others', so that it does not depend on
    the answer itself and the gradient keeps its expectation.
    """
    total = rewards - beta * (policy.detach() - reference)  # (B,): R
    others = (total.sum() - total) / (len(total) - 1)
    return -((total - others) * policy).mean()


def fit_policy(
    model: Llama,
    tokenizer: Tokenizer,
    examples: Sequence[dict],
    reward: Callable[[dict, str], float],
    settings: Settings,
    max_new_tokens: int = 24,
) -> list[dict]:
    """Draw answers to prompts, reward them, follow the policy gradient. In place. One record per
    step: mean reward, KL to the reference.

    reward(example, answer) judges a text. Raises MiniloraError without an adapter that learns, and
    for fewer than two answers a step.
    """
    need(model, examples, 2)
    if settings.batch_size < 2:
        raise MiniloraError(
            f"batch_size is {settings.batch_size}; give 2 or more: an answer is compared with "
            "the others"
        )
    dice, records, optimizer = random.Random(settings.seed), [], _optimizer(model, settings)
    for step in range(settings.steps):
        batch = dice.sample(list(examples), min(settings.batch_size, len(examples)))
        rows = sample_answers(
            model,
            tokenizer,
            [example["prompt"] for example in batch],
            settings.seed * 100_003 + step,
            max_new_tokens,
        )
        judged = [
            float(reward(example, answer_text(row, tokenizer))) for example, row in zip(batch, rows)
        ]
        rewards = torch.tensor(judged, device=device_of(model))
        with mode(model, False):
            reference, policy = reference_logprobs(model, rows), answer_logprobs(model, rows)
            _update(
                model, optimizer, policy_gradient_loss(policy, reference, rewards, settings.beta)
            )
        # y is drawn from π_θ, so its mean log-ratio estimates KL(π_θ ‖ π_ref)
        kl = (policy.detach() - reference).mean().item()
        records.append({"reward": rewards.mean().item(), "kl": kl})
    return records


# ------------------------------------------------------------------------------------------- common


def need(model: nn.Module, data: Sequence, least: int) -> None:
    """Raise MiniloraError where nothing could be learned."""
    if not lora.adapters(model) or not lora.trainable_parameters(model):
        raise MiniloraError(
            "the model has no adapter that learns; call lora.add_lora(model), or "
            "lora.use_adapter(model, name)"
        )
    if len(data) < least:
        raise MiniloraError(
            f"{len(data)} examples are given; at least {least} must be there to learn from"
        )


def _optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    return torch.optim.AdamW(lora.trainable_parameters(model), lr=settings.lr, weight_decay=0.0)


def _update(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(lora.trainable_parameters(model), CLIP)
    optimizer.step()
