"""A GPU that is not there: tensors that say cuda:0, compute with real numbers on the processor, and
refuse what CUDA refuses.

What it replaces: nothing that a card shows; but a table made without `device=`, a mask left on the
host, `.numpy()` or a generator of the wrong device are found on any machine.
How it works: a wrapper subclass holds the numbers and tells Python another device. A function mode
turns `device="cuda"` and `.to` into wrapping; a dispatch mode wraps what operations on the card
make inside, and every operation on the card looks whether all its tensors are there. As in torch a
number without dimensions may come from the host, and so may the index of an indexed tensor.
What it leaves out: kernels, memory and time of a card; classes of other libraries that make a
tensor anew (bitsandbytes' Params4bit).
Where numerics differ: nowhere from a processor; autocast is the processor's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from unittest import mock

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CARD, HOST = torch.device("cuda", 0), torch.device("cpu")
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
# which arguments beside the first must be there
INDEXING = {
    aten.index.Tensor: (),
    aten.index_put_.default: (2,),
    aten.index_put.default: (2,),
    aten._index_put_impl_.default: (2,),
}
FACTORIES = {
    "empty",
    "empty_strided",
    "zeros",
    "ones",
    "full",
    "arange",
    "scalar_tensor",
    "eye",
    "linspace",
    "rand",
    "randn",
    "randint",
    "randperm",
}
OWN = {"numpy", "__array__", "tolist", "data_ptr", "get_device", "untyped_storage", "__repr__"}


# under this name the package knows a tensor that is no special kind of weight
class FakeTensor(torch.Tensor):
    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=HOST,
        )

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    device = property(lambda self: CARD)
    is_cuda, is_cpu = property(lambda self: True), property(lambda self: False)

    def numpy(self, *args, **kwargs):
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the "
            "tensor to host memory first."
        )

    __array__ = numpy

    def tolist(self):
        return self.inner.tolist()

    def data_ptr(self):
        return self.inner.data_ptr()

    def get_device(self):
        return 0

    def untyped_storage(self):
        return self.inner.untyped_storage()

    def __repr__(self, *args, **kwargs):
        return f"on_card({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return on_card(func, args, kwargs or {})


def wrapped(x):
    return FakeTensor(x) if isinstance(x, torch.Tensor) and not isinstance(x, FakeTensor) else x


def bare(x):
    return x.inner if isinstance(x, FakeTensor) else x


def is_card(device) -> bool:
    return device is not None and (isinstance(device, int) or torch.device(device).type == "cuda")


def on_card(func, args, kwargs):
    """An operation with at least one tensor on the card."""
    require_one_device(func, args, kwargs)
    given = tree_map(bare, kwargs)
    if is_card(kwargs.get("device")):
        given["device"] = HOST
    out = func(*tree_map(bare, args), **given)
    results = func._schema.returns
    if not results:
        return None
    if (
        results[0].alias_info is not None and results[0].alias_info.is_write
    ):  # in place: what was handed in is handed back
        places = [
            (i, each.name)
            for i, each in enumerate(func._schema.arguments)
            if each.alias_info is not None and each.alias_info.is_write
        ]
        same = tuple(kwargs[name] if name in kwargs else args[i] for i, name in places)
        return same[0] if len(results) == 1 else same
    return out if func is aten._local_scalar_dense.default else tree_map(wrapped, out)


def require_one_device(func, args, kwargs) -> None:
    if func in COPIES:
        return
    looked_at = (
        [args[0], *(args[i] for i in INDEXING[func] if i < len(args))]
        if func in INDEXING
        else (args, kwargs)
    )
    tensors = [x for x in tree_leaves(looked_at) if isinstance(x, torch.Tensor)]
    off = [x for x in tensors if not isinstance(x, FakeTensor) and x.ndim > 0]
    if off:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"cuda:0 and cpu: {func}, {[tuple(x.shape) for x in off]}"
        )
    if any(
        isinstance(x, torch.Generator) and not is_card(x.device)
        for x in tree_leaves((args, kwargs))
    ):
        raise RuntimeError(f"Expected a 'cuda' device type for generator but found 'cpu': {func}")


class Inside(TorchDispatchMode):
    """What an operation on the card makes for itself is on the card."""

    def __init__(self, state: SimpleNamespace) -> None:
        super().__init__()
        self.state = state

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        if any(isinstance(x, FakeTensor) for x in tensors):
            return on_card(func, args, kwargs)
        if is_card(kwargs.get("device")):
            return tree_map(wrapped, func(*args, **{**kwargs, "device": HOST}))
        out = func(*args, **kwargs)
        return (
            tree_map(wrapped, out)
            if self.state.inside
            and not tensors
            and func._schema.name.rpartition("::")[2] in FACTORIES
            else out
        )


class Outside(TorchFunctionMode):
    """`device="cuda"` and moves from one device to the other."""

    def __init__(self, state: SimpleNamespace) -> None:
        super().__init__()
        self.state = state

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name, first = (
            dict(kwargs or {}),
            getattr(func, "__name__", ""),
            args[0] if args else None,
        )
        if isinstance(first, torch.Tensor) and name in ("to", "cuda", "cpu"):
            return moved(first, name, list(args[1:]), kwargs)
        if name in ("__get__", "__set__"):
            return func(*args, **kwargs)
        if isinstance(first, FakeTensor) and name in OWN:
            return getattr(first, name)(*args[1:], **kwargs)
        asked = is_card(kwargs.get("device"))
        elsewhere = kwargs.get("device") is not None and not asked
        if asked:
            kwargs["device"] = HOST
        before = self.state.inside
        self.state.inside = not elsewhere and (
            asked or before or any(isinstance(x, FakeTensor) for x in tree_leaves((args, kwargs)))
        )
        try:
            out = func(*args, **kwargs)
        finally:
            self.state.inside = before
        return tree_map(wrapped, out) if asked else out


class _ToCard(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return FakeTensor(x.detach().clone())

    @staticmethod
    def backward(ctx, g):
        return bare(g)


class _ToHost(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return bare(x).detach().clone()

    @staticmethod
    def backward(ctx, g):
        return wrapped(g)


def moved(x: torch.Tensor, name: str, rest: list, kwargs: dict) -> torch.Tensor:
    """`x.to(…)`, `x.cuda()`, `x.cpu()`."""
    device, dtype = kwargs.get("device"), kwargs.get("dtype")
    if name != "to":
        device, rest = CARD if name == "cuda" else HOST, []
    for each in rest:
        if isinstance(each, torch.Tensor):
            device, dtype = each.device, each.dtype
        elif isinstance(each, torch.dtype):
            dtype = each
        elif isinstance(each, (str, torch.device)):
            device = each
    if dtype is not None and dtype != x.dtype:
        x = aten.to.dtype(x, dtype)
    if device is None or is_card(device) == isinstance(x, FakeTensor):
        return x
    if torch.device(device).type == "meta":
        return torch.empty_like(bare(x), device="meta")
    return (_ToCard if is_card(device) else _ToHost).apply(x)


class Generator(torch.Generator):
    """A generator that says which device it was made for."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls, HOST)
        made.place = CARD if is_card(device) else HOST
        return made

    device = property(lambda self: self.place)


def _apply(self: nn.Module, fn, recurse: bool = True) -> nn.Module:
    """`Module._apply` with a new parameter in the place of the old one, whose memory a pretended
    tensor cannot take over.
    """
    for child in self.children() if recurse else ():
        child._apply(fn)
    for key, parameter in self._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                new = fn(parameter)
            self._parameters[key] = (
                parameter if new is parameter else nn.Parameter(new, parameter.requires_grad)
            )
    self._buffers.update(
        {key: fn(buffer) for key, buffer in self._buffers.items() if buffer is not None}
    )
    return self


def index_of(device, optional: bool = False) -> int:
    """As torch.cuda._utils does it: some calls take "cuda", others want a number with it."""
    if isinstance(device, int):
        return device
    index = None if device is None else torch.device(device).index
    if index is None and not optional:
        raise ValueError(
            f"Expected a torch.device with a specified index or an integer, but got:{device}"
        )
    return index or 0


def _fraction(share: float, device=None) -> None:
    if not isinstance(share, float) or not 0 <= share <= 1:
        raise ValueError(f"Invalid fraction value: {share}. Allowed range: 0~1")
    index_of(0 if device is None else device)


@contextlib.contextmanager
def pretended_card(
    capability: tuple[int, int] = (9, 0), memory: int = 80 * 2**30
) -> Iterator[None]:
    """Inside, torch has a GPU."""
    about = SimpleNamespace(
        name="NVIDIA H100 80GB HBM3", total_memory=memory, major=capability[0], minor=capability[1]
    )
    state, nothing = SimpleNamespace(inside=False), lambda *args, **kwargs: None
    enabled, dtype, real = torch.is_autocast_enabled, torch.get_autocast_dtype, torch.autocast

    class autocast(real):
        def __init__(self, device_type, *args, **kwargs):
            super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    cuda = dict(
        is_available=lambda: True,
        device_count=lambda: 1,
        current_device=lambda: 0,
        get_device_name=lambda device=None: about.name,
        get_device_properties=lambda device=None: (index_of(device, True), about)[1],
        get_device_capability=lambda device=None: (index_of(device, True), capability)[1],
        mem_get_info=lambda device=None: (memory - 2**29, memory),
        memory_stats=lambda device=None: {"requested_bytes.all.peak": 900_000},
        max_memory_allocated=lambda device=None: 1_000_000,
        max_memory_reserved=lambda device=None: 2_000_000,
        memory_allocated=lambda device=None: 100_000,
        set_per_process_memory_fraction=_fraction,
        get_rng_state=lambda device="cuda": torch.get_rng_state(),
        **dict.fromkeys(
            (
                "set_rng_state",
                "manual_seed_all",
                "_lazy_init",
                "synchronize",
                "empty_cache",
                "reset_peak_memory_stats",
            ),
            nothing,
        ),
    )
    with contextlib.ExitStack() as stack:
        for owner, names in (
            (torch.cuda, cuda),
            (torch, {"Generator": Generator, "autocast": autocast}),
            (torch.amp, {"autocast": autocast}),
            (
                torch,
                {
                    "is_autocast_enabled": lambda device="cpu": enabled("cpu"),
                    "get_autocast_dtype": lambda device: dtype("cpu"),
                },
            ),
            (nn.Module, {"_apply": _apply}),
        ):
            for name, stand_in in names.items():
                stack.enter_context(mock.patch.object(owner, name, stand_in))
        stack.enter_context(Inside(state))
        stack.enter_context(Outside(state))
        yield
