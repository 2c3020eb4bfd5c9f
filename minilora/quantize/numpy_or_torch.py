"""NumPy arrays and torch tensors as one: flat views of their memory, without a copy and without
importing torch.

What it replaces: `if isinstance(x, torch.Tensor)` in every function of the quantizer.
How it works: a CPU tensor lends its memory to NumPy; bf16, which NumPy does not know, is lent as
uint16, its bits.
What it leaves out: other devices; `on_cpu` tells them apart, and `kernels.torch_ops` is for them.
Where numerics differ: nowhere. fp32 is rounded to bf16 and fp16 by torch's own conversion, to
nearest, ties to even.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import MiniloraError

Array = Any  # a NumPy array or a torch tensor

# store(start, stop, values): rounds fp32 numbers and writes them to these places
Store = Callable[[int, int, np.ndarray], None]


def is_torch(x: Array) -> bool:
    """True for a torch tensor; never imports torch to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def on_cpu(x: Array) -> bool:
    """True for NumPy and for real CPU tensors: no other device, and no fake tensor, which has no
    memory to lend.
    """
    if not is_torch(x):
        return True
    torch = sys.modules["torch"]
    return x.device.type == "cpu" and type(x) in (torch.Tensor, torch.nn.Parameter)


def nbytes(x: Array) -> int:
    return x.numel() * x.element_size() if is_torch(x) else x.nbytes


def to_numpy(x: Array) -> np.ndarray:
    return x.detach().cpu().numpy() if is_torch(x) else x


def as_given(values: np.ndarray, model: Array) -> Array:
    """`values` as NumPy or torch, and on the device, as `model` is."""
    if not is_torch(model) or is_torch(values):
        return values
    return sys.modules["torch"].from_numpy(values).to(model.device)


def flat_raw(x: Array) -> np.ndarray:
    """The numbers of x in row-major order: fp32, fp64, fp16, or uint16 that stand for bf16. Copies
    only if it must.

    Raises MiniloraError if x does not hold floating-point numbers.
    """
    if is_torch(x):
        torch = sys.modules["torch"]
        x = x.detach().contiguous().reshape(-1)
        if x.dtype == torch.bfloat16:
            return x.view(torch.int16).numpy().view(np.uint16)
        x = x.numpy()
    require_floating(x)
    return np.ascontiguousarray(x).reshape(-1)


def require_floating(x: Array) -> None:
    """Raise MiniloraError if x does not hold floating-point numbers."""
    if not (x.is_floating_point() if is_torch(x) else x.dtype.kind == "f"):
        kind = str(x.dtype).removeprefix("torch.")
        raise MiniloraError(
            f"cannot quantize numbers of type {kind}; convert them to float32 first"
        )


def to_fp32(raw: np.ndarray, out: np.ndarray) -> np.ndarray:
    """`raw` in fp32: itself if it is, else written to `out`. uint16 stands for bf16, which is
    fp32's upper half.
    """
    if raw.dtype == np.float32:
        return raw
    out = out[: raw.size]
    if raw.dtype == np.uint16:
        bits = out.view(np.uint32)
        np.copyto(bits, raw)
        np.left_shift(bits, 16, out=bits)
    else:
        np.copyto(out, raw, casting="same_kind")
    return out


def serial_share() -> int:
    """How many numbers torch may be handed at once without starting threads of its own inside
    ours.
    """
    torch = sys.modules.get("torch")
    # it splits elementwise work above
    return 32768 if torch is not None and torch.get_num_threads() > 1 else sys.maxsize


def _empty_tensor(shape: tuple[int, ...], dtype):
    """torch.empty in memory that NumPy asked for: it asks for huge pages, which halves the time of
    touching them first.
    """
    torch = sys.modules["torch"]
    memory = torch.from_numpy(np.empty(math.prod(shape) * dtype.itemsize, dtype=np.uint8))
    return memory.view(dtype).view(shape)


def room(out: Array | None, shape: tuple[int, ...], dtype, like: Array) -> Array:
    """Where decoded numbers go: `out` if given, else new memory of `dtype`, of the kind and on the
    device of `like`.

    Raises MiniloraError if `out` has another shape or gaps.
    """
    if out is None:
        if not is_torch(like):
            return np.empty(shape, dtype)
        if not on_cpu(like):
            return sys.modules["torch"].empty(shape, dtype=dtype, device=like.device)
        return _empty_tensor(shape, dtype)
    if tuple(out.shape) != shape or not (
        out.is_contiguous() if is_torch(out) else out.flags.c_contiguous
    ):
        raise MiniloraError(
            f"out has shape {tuple(out.shape)}, or gaps; give a contiguous one of shape {shape}"
        )
    return out


def writer(values: Array) -> tuple[np.ndarray, Store | None]:
    """How fp32 numbers get into contiguous `values`: (flat, store).

    If they are fp32, `flat` is their memory and `store` None; else store(start, stop, numbers)
    rounds a piece and writes it.
    """
    flat = values.detach().reshape(-1) if is_torch(values) else values.reshape(-1)
    if not is_torch(values):
        if values.dtype == np.float32:
            return flat, None
        return (
            flat,
            lambda start, stop, numbers: np.copyto(flat[start:stop], numbers, casting="same_kind"),
        )
    torch = sys.modules["torch"]
    if flat.dtype == torch.float32:
        return flat.numpy(), None
    if flat.dtype == torch.bfloat16:
        memory = flat.view(torch.int16).numpy()
    else:
        memory = flat.numpy()

    share = serial_share()

    # wraps the memory anew: worker threads have modes of their own
    def store(start: int, stop: int, numbers: np.ndarray) -> None:
        for at in range(start, stop, share):
            end = min(at + share, stop)
            torch.from_numpy(memory[at:end]).view(flat.dtype).copy_(
                torch.from_numpy(numbers[at - start : end - start])
            )

    return memory, store


def block_size(x: Array, block: int | str) -> tuple[int, bool]:
    """How many numbers share a scale, and whether they stand in a column. Raises MiniloraError for
    what cannot be.
    """
    shape = tuple(x.shape)
    count = math.prod(shape)
    if count == 0:
        raise MiniloraError(f"the tensor of shape {shape} is empty; there is nothing to quantize")
    if block == "column" and len(shape) != 2:
        raise MiniloraError(
            f"block 'column' needs a matrix, not shape {shape}; take 'row', 'tensor' or a number"
        )
    named = {"tensor": count, "row": shape[-1] if shape else 1, "column": shape[0] if shape else 1}
    if isinstance(block, str) and block in named:
        return named[block], block == "column"
    if isinstance(block, (bool, str)) or int(block) != block or block < 1:
        raise MiniloraError(
            f"block {block!r} is not allowed; take a whole number from 1, or 'tensor', 'row', "
            "'column'"
        )
    return int(block), False


def require_finite(*extremes: np.ndarray) -> None:
    """Raise MiniloraError if NaN or infinity is among the blocks' extremes; a maximum hands NaN
    on.
    """
    if not all(np.isfinite(each).all() for each in extremes):
        raise MiniloraError(
            "the tensor holds NaN or infinity; find out where they come from before quantizing it"
        )
