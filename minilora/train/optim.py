"""Optimizers: what turns gradients into steps. SGD, momentum, AdamW, and AdamW that remembers in 8
bits.

What it replaces: `torch.optim.SGD`, `torch.optim.AdamW` and `bitsandbytes.optim.AdamW8bit`, with
their arguments.
How it works: `step` goes through the parameters that have a gradient and asks the rule (`update`)
for their new values.
    A parameter is anything with `.data` and `.grad`: the rules run on NumPy (`autograd.Tensor`) and
    on torch alike. AdamW8bit keeps its two averages as 8-bit codes with one fp32 scale per block of
    256, decodes them, does AdamW's step in fp32, and encodes them again.
What it leaves out: parameter groups (change `.lr` between steps, or use two optimizers), amsgrad,
sparse gradients,
    bf16 parameters (they round differently from torch), paging, and the fused and foreach variants
    (only faster).
Where numerics differ: on torch tensors in fp32 and fp64 nowhere, the bits are torch.optim's. On
NumPy in fp32 SGD has
    torch's bits too; so have AdamW's averages, but its parameters differ in the last bit in up to 1
    % of elements, because torch's square root on a CPU is not always the nearest number. In NumPy's
    fp64 a step agrees to 1e-15 of the numbers in it. AdamW8bit takes the nearest code; bitsandbytes
    on a CPU first moves numbers to the nearest of 65,536 even bins, so that 0 decodes to 2e-5 of
    the block's largest: `bins=65536` does so too and has its bits.
"""

from __future__ import annotations

import numpy as np

from ..errors import MiniloraError
from ..quantize.codebooks import dynamic_levels
from ..quantize.kernels.plain import SMALLEST_SCALE


def fma(a, x, y):
    """a·x + y, rounded once, as the processor's fused multiply-add does it that torch uses. `a`: a
    number or an array.

    In fp32 the product of two numbers is exact in fp64, so one rounding at the end is left; fp64 is
    rounded twice.
    """
    if _namespace(y) is not np:
        return y.add(x, alpha=a) if isinstance(a, (int, float)) else y.addcmul(a, x)
    if y.dtype != np.float32:
        return a * x + y
    return np.asarray(np.multiply(np.asarray(a, np.float32), x, dtype=np.float64) + y, np.float32)


def lerp(start, end, weight: float):
    """start + weight·(end − start), from the nearer end, as torch.lerp computes it."""
    return fma(weight, end - start, start) if weight < 0.5 else fma(weight - 1, end - start, end)


class Optimizer:
    """The walk over the parameters; a subclass gives `update(p, g, state) -> new p`. `.lr` may
    change at any time.
    """

    def __init__(self, params, lr: float):
        self.params = list(params)
        if not self.params:
            raise MiniloraError(
                "the optimizer got no parameters; hand in a list of tensors with requires_grad=True"
            )
        if len({id(p) for p in self.params}) < len(self.params):
            raise MiniloraError(
                "a parameter was handed in twice and would be stepped twice; hand in tied "
                "weights once"
            )
        _between("lr", lr, 0, float("inf"))
        self.lr = lr
        self.state: list[dict] = [{} for _ in self.params]

    def update(self, p, g, state: dict):
        """The new values of a parameter `p` with the gradient `g`; what is remembered stays in
        `state`.
        """
        raise NotImplementedError("a rule is named by a subclass")

    def step(self) -> None:
        """Move every parameter that has a gradient, in place."""
        for p, state in zip(self.params, self.state):
            if p.grad is not None:
                state["step"] = state.get("step", 0) + 1
                gradient = p.grad if _namespace(p.grad) is np else p.grad.detach()
                p.data[...] = self.update(p.data, gradient, state)

    def zero_grad(self) -> None:
        for p in self.params:
            p.grad = None

    def state_bytes(self) -> int:
        """The memory of what the optimizer remembers (the step counters aside)."""
        return sum(
            value.nbytes for state in self.state for key, value in state.items() if key != "step"
        )

    def state_dict(self) -> dict:
        """All memory as a flat dict of arrays, `{"0.step": …, "0.exp_avg": …}`, ready for a
        safetensors file.
        """
        flat = {}
        for i, (p, state) in enumerate(zip(self.params, self.state)):
            flat.update(
                {f"{i}.{key}": _namespace(p.data).asarray(value) for key, value in state.items()}
            )
        return flat

    def load_state_dict(self, flat: dict) -> None:
        """Take over what `state_dict` of an optimizer with the same parameters gave."""
        state: list[dict] = [{} for _ in self.params]
        for name, value in flat.items():
            index, _, key = name.partition(".")
            if not index.isdigit() or int(index) >= len(state):
                raise MiniloraError(
                    f"optimizer state {name!r} fits none of {len(state)} parameters; check the file"
                )
            p = self.params[int(index)].data
            found, wanted = tuple(np.shape(value)), tuple(p.shape)
            if key != "step" and "absmax" not in key and found != wanted:
                raise MiniloraError(
                    f"optimizer state {name!r} has shape {found}, not {wanted}; check the file"
                )
            state[int(index)][key] = int(value) if key == "step" else _copy(value)
        self.state = state


class SGD(Optimizer):
    """p ← p − lr·g, or with momentum b ← momentum·b + (1 − dampening)·g and p ← p − lr·b; b starts
    as the first g.

    Weight decay is added to the gradient (coupled). nesterov: step along g + momentum·b, a look
    ahead.
    """

    def __init__(
        self,
        params,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ):
        super().__init__(params, lr)
        _between("momentum", momentum, 0, float("inf"))
        _between("weight_decay", weight_decay, 0, float("inf"))
        if nesterov and (momentum == 0 or dampening != 0):
            raise MiniloraError("nesterov=True needs momentum above 0 and dampening 0")
        self.momentum, self.dampening, self.weight_decay, self.nesterov = (
            momentum,
            dampening,
            weight_decay,
            nesterov,
        )

    def update(self, p, g, state):
        if self.weight_decay:
            g = fma(self.weight_decay, p, g)
        if self.momentum:
            b = state.get("momentum_buffer")
            b = _copy(g) if b is None else fma(1 - self.dampening, g, self.momentum * b)
            state["momentum_buffer"] = b
            g = fma(self.momentum, b, g) if self.nesterov else b
        return fma(-self.lr, g, p)


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2).

    m and v are running averages of g and g²; dividing them by 1 − βᵗ undoes that they started at
    zero. A parameter moves by about lr whatever the size of its gradients, and shrinks by the
    factor 1 − lr·weight_decay beside that.
    """

    def __init__(
        self,
        params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ):
        super().__init__(params, lr)
        for beta in betas:
            _between("beta", beta, 0, 1)
        _between("eps", eps, 0, float("inf"))
        _between("weight_decay", weight_decay, 0, float("inf"))
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay

    def update(self, p, g, state):
        m, v = (state[key] if key in state else _zeros(g) for key in ("exp_avg", "exp_avg_sq"))
        m = lerp(m, g, 1 - self.betas[0])
        new_p, v = self._second_half(p, g, m, v, state["step"])
        state["exp_avg"], state["exp_avg_sq"] = m, v
        return new_p

    def _second_half(self, p, g, m, v, step: int):
        """The new p and v from the new m."""
        beta1, beta2 = self.betas
        v = fma((1 - beta2) * g, g, beta2 * v)
        p = p * (1 - self.lr * self.weight_decay)
        size = self.lr / (1 - beta1**step)
        scale = _namespace(v).sqrt(v) / (1 - beta2**step) ** 0.5 + self.eps
        return p + -size * m / scale, v


class AdamW8bit(AdamW):
    """AdamW whose averages take 8 bits per number (Dettmers et al. 2022, arXiv:2110.02861), blocks
    of 256.

    m is coded with the signed dynamic map, v with the unsigned one. Tensors of fewer than
    `smallest` elements keep fp32 averages, as bitsandbytes does: with 4,096, a LoRA matrix of rank
    8 is coded only from 512 columns on.
    """

    def __init__(
        self,
        params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        smallest: int = 4096,
        bins: int | None = None,
    ):
        super().__init__(params, lr, betas, eps, weight_decay)
        self.smallest, self.bins, self.block = smallest, bins, 256

    def update(self, p, g, state):
        size = int(np.prod(p.shape))
        if size < self.smallest:
            return super().update(p, g, state)
        m, v = self._remembered(g, state, "exp_avg"), self._remembered(g, state, "exp_avg_sq")
        m = fma(1 - self.betas[0], g, self.betas[0] * m)  # bitsandbytes' order; in AdamW it is lerp
        new_p, v = self._second_half(p, g, m, v, state["step"])
        state["exp_avg"], state["exp_avg_absmax"] = encode(m, True, self.block, self.bins)
        state["exp_avg_sq"], state["exp_avg_sq_absmax"] = encode(v, False, self.block, self.bins)
        return new_p

    def _remembered(self, g, state, key: str):
        if key not in state:
            return _zeros(g)
        return decode(state[key], state[f"{key}_absmax"], key == "exp_avg", self.block)


def encode(x, signed: bool = True, block: int = 256, bins: int | None = None):
    """8-bit dynamic codes of x (uint8, its shape) and the largest magnitude of each block of the
    flattened x (fp32).

    bins: first move each scaled number to the nearest of so many even bins over [−1, 1]
    (bitsandbytes, CPU: 65,536).
    """
    xp = _namespace(x)
    levels = dynamic_levels(signed)
    # midpoints: the nearest code lies between two
    thresholds = _beside(x, (levels[:-1] + levels[1:]) / np.float32(2))
    flat = xp.asarray(x.reshape(-1), dtype=xp.float32)
    filler = _zeros(flat[:1]).repeat(-flat.shape[0] % block)  # the last block may be short
    rows = xp.concatenate([flat, filler]).reshape(-1, block)
    absmax = xp.amax(xp.abs(rows), 1)
    held = absmax > float(SMALLEST_SCALE)  # below, 1/absmax overflows; such a block becomes zero
    scaled = rows * xp.where(held, 1 / xp.where(held, absmax, 1), 0)[:, None]
    if bins:
        scaled = xp.floor((scaled + 1) * ((bins - 1) / 2) + 0.5) * (2 / (bins - 1)) - 1
    codes = xp.asarray(xp.searchsorted(thresholds, scaled), dtype=xp.uint8)
    return codes.reshape(-1)[: flat.shape[0]].reshape(x.shape), absmax


def decode(codes, absmax, signed: bool = True, block: int = 256):
    """The fp32 numbers that `encode` stands for: level of the code times the largest magnitude of
    its block.
    """
    xp = _namespace(codes)
    flat = _beside(codes, dynamic_levels(signed))[xp.asarray(codes.reshape(-1), dtype=xp.int64)]
    scales = xp.broadcast_to(absmax[:, None], (absmax.shape[0], block)).reshape(-1)[: flat.shape[0]]
    return (flat * scales).reshape(codes.shape)


def _namespace(array):
    """The module whose functions work on `array`: numpy or torch."""
    if isinstance(array, (np.ndarray, np.generic)):
        return np
    import torch

    return torch


def _beside(array, constant: np.ndarray):
    """`constant` as the same kind of array as `array`, on its device."""
    xp = _namespace(array)
    return constant if xp is np else xp.tensor(constant, device=array.device)


def _zeros(array):
    return _namespace(array).zeros_like(array)


def _copy(array):
    return array.copy() if _namespace(array) is np else array.detach().clone()


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value < high:
        raise MiniloraError(f"{name} {value} is out of range; choose {low} ≤ {name} < {high}")
