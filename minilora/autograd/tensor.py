"""Reverse-mode differentiation over NumPy arrays: what happens inside `loss.backward()`.

What it replaces: `torch.Tensor` with `requires_grad=True`, for what a small transformer needs,
under torch's names.
How it works: every operation makes a new `Tensor` that remembers its inputs and, for each input, a
function that turns the gradient of the output into the gradient of that input (the chain rule, one
link at a time). `backward` walks from the loss to the leaves, each node once and after everything
that uses it, and adds up what arrives. Where NumPy broadcast an input, its gradient is summed back
to its shape.
What it leaves out: devices, views, in-place operations (change `.data` only after `backward`),
second derivatives, half precision, integer tensors (indices are plain arrays). `backward` keeps the
graph: a second call adds to `.grad`.
Where numerics differ: sums run in NumPy's order, so results agree with torch to rounding, not to
the bit (1e-6 in fp32, 1e-14 in fp64). NumPy warns of log(0). A zero-dimensional fp64 tensor
promotes fp32 ones, which torch does not do.
"""

from __future__ import annotations

import contextlib
import math

import numpy as np

from ..errors import MiniloraError

_grad_enabled = True

_erf = np.vectorize(math.erf, [np.float64])  # NumPy has none


@contextlib.contextmanager
def no_grad():
    """Inside this block (or a function decorated with it), results remember nothing and need no
    gradient.
    """
    global _grad_enabled
    before, _grad_enabled = _grad_enabled, False
    try:
        yield
    finally:
        _grad_enabled = before


def _elementwise(op: str, value, slope):
    """The Tensor method for one function of one element."""

    def method(self):
        out = value(self.data)
        return _result(out, op, ((self, lambda g: g * slope(self.data, out)),))

    return method


class Tensor:
    """A differentiable copy of an array; fp64 stays, all else becomes fp32. `name` is what the
    graph view prints.
    """

    __array_ufunc__ = None  # lets `array + tensor` reach Tensor.__radd__

    def __init__(self, data, requires_grad: bool = False, name: str = ""):
        try:
            array = np.array(data.data if isinstance(data, Tensor) else data)
            double = hasattr(data, "dtype") and array.dtype == np.float64
            self.data = array.astype(np.float64 if double else np.float32, casting="same_kind")
        except (ValueError, TypeError):
            raise MiniloraError(
                f"cannot make a Tensor of {data!r:.60}; give numbers in rows of equal length"
            ) from None
        self.requires_grad, self.name, self.op = requires_grad, name, ""
        self.grad: np.ndarray | None = None
        self._inputs: tuple = ()  # pairs (input Tensor, function from our gradient to its gradient)

    shape = property(lambda self: self.data.shape)
    ndim = property(lambda self: self.data.ndim)
    dtype = property(lambda self: self.data.dtype)
    is_leaf = property(lambda self: not self._inputs)
    T = property(lambda self: self.permute(*reversed(range(self.ndim))))
    mT = property(lambda self: self.transpose(-1, -2))

    def __repr__(self) -> str:
        grown = f", op={self.op!r}" if self.op else ""
        return f"Tensor({self.data}{grown}{', requires_grad=True' if self.requires_grad else ''})"

    def item(self) -> float:
        return float(_apply("item() of one element", lambda x: x.reshape(()), self))

    def detach(self) -> Tensor:  # the same numbers, shared, without the history
        return _result(self.data, "", ())

    def zero_grad(self) -> None:
        self.grad = None

    def backward(self, gradient=None) -> None:
        """Add the derivative of self, weighted by `gradient`, to `.grad` of every leaf that
        requires it.
        """
        for tensor, grad in gradients(self, gradient):
            if tensor.is_leaf:
                tensor.grad = grad.copy() if tensor.grad is None else np.asarray(tensor.grad + grad)

    # in each pair (input, function), `g` is the gradient of the result
    def __add__(self, other):
        a, b = self, _wrap(other, self)
        return _op("+", np.add, (a, lambda g: g), (b, lambda g: g))

    def __mul__(self, other):
        a, b = self, _wrap(other, self)
        return _op("*", np.multiply, (a, lambda g: g * b.data), (b, lambda g: g * a.data))

    def __truediv__(self, other):
        a, b = self, _wrap(other, self)
        return _op(
            "/",
            np.divide,
            (a, lambda g: g / b.data),
            (b, lambda g: -g * a.data / (b.data * b.data)),
        )

    def __pow__(self, n):
        if not np.isscalar(n) or isinstance(n, str):
            raise MiniloraError(
                f"** takes a number as the exponent, not {type(n).__name__}; use (x.log() * "
                "n).exp()"
            )
        n = float(n)
        return _result(
            self.data**n,
            f"**{n:g}",
            ((self, lambda g: g * (n * self.data ** (n - 1) if n else 0.0)),),
        )

    def __matmul__(self, other):
        a, b = self, _wrap(other, self)
        out = _apply("@", np.matmul, a, b)
        left = a.data[None, :] if a.ndim == 1 else a.data  # a vector on the left is a row, (1, K)
        # a vector on the right is a column, (K, 1)
        right = b.data[:, None] if b.ndim == 1 else b.data
        rows = out.shape[:-1] if b.ndim > 1 else out.shape
        # the shape with both, (..., M, N)
        wide = (rows if a.ndim > 1 else rows + (1,)) + (right.shape[-1],)

        def to_left(g):  # dL/dA = dL/dC Bᵀ
            return _unbroadcast(g.reshape(wide) @ right.swapaxes(-1, -2), left.shape).reshape(
                a.shape
            )

        # dL/dB = Aᵀ dL/dC; with one matrix B for a whole batch, all rows go into one product
        def to_right(g):
            if right.ndim == 2:
                return (left.reshape(-1, left.shape[-1]).T @ g.reshape(-1, wide[-1])).reshape(
                    b.shape
                )
            return _unbroadcast(left.swapaxes(-1, -2) @ g.reshape(wide), right.shape).reshape(
                b.shape
            )

        return _result(out, "@", ((a, to_left), (b, to_right)))

    __radd__ = __add__
    __rmul__ = __mul__
    __neg__ = lambda self: self * -1.0
    __sub__ = lambda self, other: _op(
        "-", np.subtract, (self, lambda g: g), (_wrap(other, self), lambda g: -g)
    )
    __rsub__ = lambda self, other: _wrap(other, self) - self
    __rtruediv__ = lambda self, other: _wrap(other, self) / self
    __rmatmul__ = lambda self, other: _wrap(other, self) @ self

    # functions of one element: the value y at x, and the slope there
    exp = _elementwise("exp", np.exp, lambda x, y: y)
    log = _elementwise("log", np.log, lambda x, y: 1 / x)
    tanh = _elementwise("tanh", np.tanh, lambda x, y: 1 - y * y)
    relu = _elementwise("relu", lambda x: np.maximum(x, 0), lambda x, y: x > 0)
    sigmoid = _elementwise(
        "sigmoid", lambda x: np.exp(-np.logaddexp(0, -x)), lambda x, y: y * (1 - y)
    )

    def masked_fill(self, mask, value: float):
        """`value` where the boolean array `mask` (broadcast to our shape) is true; no gradient
        flows there.
        """
        fill = lambda x: np.where(mask, np.asarray(value, x.dtype), x)
        return _op("masked_fill", fill, (self, lambda g: np.where(mask, 0, g)))

    # reductions and shapes; `dim` is an integer, a tuple or None for all
    def sum(self, dim=None, keepdim: bool = False):
        add_up = lambda x: x.sum(axis=dim, keepdims=keepdim)
        return _op(
            f"sum(dim={dim})", add_up, (self, lambda g: _spread(g, self.shape, dim, keepdim))
        )

    def mean(self, dim=None, keepdim: bool = False):
        return (total := self.sum(dim, keepdim)) / (self.data.size // max(total.data.size, 1))

    def amax(self, dim=None, keepdim: bool = False):
        """The largest values; the gradient is shared evenly between ties (torch.amax, and torch.max
        over all).
        """
        top = _apply(f"amax(dim={dim})", lambda x: x.max(axis=dim, keepdims=True), self)
        hit = self.data == top
        share = hit / hit.sum(axis=dim, keepdims=True, dtype=self.dtype)
        out = top if keepdim else top.squeeze(tuple(range(self.ndim)) if dim is None else dim)
        return _result(
            out, "amax", ((self, lambda g: share * _spread(g, self.shape, dim, keepdim)),)
        )

    def log_softmax(self, dim: int = -1):
        z = _apply(f"log_softmax(dim={dim})", lambda x: x - x.max(axis=dim, keepdims=True), self)
        out = z - np.log(np.exp(z).sum(axis=dim, keepdims=True))
        return _result(
            out,
            "log_softmax",
            ((self, lambda g: g - np.exp(out) * g.sum(axis=dim, keepdims=True)),),
        )

    softmax = lambda self, dim=-1: self.log_softmax(dim).exp()

    def reshape(self, *shape):
        shape = tuple(int(n) for n in np.ravel(shape))  # reshape(2, 3) and reshape((2, 3))
        return _op(
            f"reshape{shape}", lambda x: x.reshape(shape), (self, lambda g: g.reshape(self.shape))
        )

    def permute(self, *dims):
        back = lambda g: g.transpose(np.argsort([d % self.ndim for d in dims]))
        return _op(f"permute{dims}", lambda x: x.transpose(dims), (self, back))

    def transpose(self, dim0: int, dim1: int):
        swap = lambda x: x.swapaxes(dim0, dim1)
        return _op(f"transpose({dim0}, {dim1})", swap, (self, swap))

    def __getitem__(self, index):
        """Slices, integers, integer arrays (an embedding look-up is `table[ids]`) and boolean
        arrays, as in NumPy.
        """

        def scatter(g):
            full = np.zeros_like(self.data)
            # slices: quicker, and they name no row twice
            plain = np.may_share_memory(self.data[index], self.data)
            # += would count a repeated row once
            (np.ndarray.__setitem__ if plain else np.add.at)(full, index, g)
            return full

        return _op("[]", lambda x: x[index], (self, scatter))


def gradients(root: Tensor, gradient=None):
    """Yield (tensor, d root / d tensor) for every tensor in the graph that requires it, from the
    root to the leaves.
    """
    if not root.requires_grad:
        raise MiniloraError(
            "backward: nothing here needs a gradient; set requires_grad=True, and not inside "
            "no_grad()"
        )
    seed = np.asarray(1 if gradient is None else _wrap(gradient, root).data, root.dtype)
    if seed.shape != root.shape and (gradient is not None or root.data.size != 1):
        raise MiniloraError(
            f"backward: shape {root.shape} needs a gradient of its shape, not {seed.shape}; "
            "or .sum()"
        )
    arrived = {id(root): seed.reshape(root.shape)}
    for tensor in reversed(topological_order(root)):
        if not tensor.requires_grad:
            continue
        g = arrived.pop(id(tensor))
        yield tensor, g
        for parent, pull_back in tensor._inputs:
            if parent.requires_grad:
                part = _unbroadcast(np.asarray(pull_back(g)), parent.shape).astype(
                    parent.dtype, copy=False
                )
                arrived[id(parent)] = arrived[id(parent)] + part if id(parent) in arrived else part


def topological_order(root: Tensor) -> list[Tensor]:
    """All tensors that `root` depends on, each after its inputs (a loop: recursion would overflow
    on long chains).
    """
    order, seen, stack = [], set(), [(root, False)]
    while stack:
        tensor, inputs_done = stack.pop()
        if inputs_done:
            order.append(tensor)
        elif id(tensor) not in seen:
            seen.add(id(tensor))
            stack.append((tensor, True))
            stack.extend((parent, False) for parent, _ in tensor._inputs)
    return order


def cat(tensors, dim: int = 0) -> Tensor:
    """Join a list of tensors along `dim`; their other dimensions must agree."""
    out = _apply(f"cat(dim={dim})", lambda *arrays: np.concatenate(arrays, axis=dim), *tensors)
    ends = np.cumsum([t.shape[dim] for t in tensors])[:-1]
    return _result(
        out,
        "cat",
        [(t, lambda g, i=i: np.split(g, ends, axis=dim)[i]) for i, t in enumerate(tensors)],
    )


def silu(x: Tensor) -> Tensor:
    return x * x.sigmoid()


def gelu(x: Tensor) -> Tensor:
    """x·Φ(x) with the normal distribution's Φ, as torch's default (not the tanh approximation)."""
    cdf = lambda z: np.asarray(0.5 + 0.5 * _erf(z / math.sqrt(2)), z.dtype)
    return x * _elementwise("Φ", cdf, lambda z, y: np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi))(x)


def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """x (..., D) divided by the root of its mean square over the last dimension, times weight
    (D,).
    """
    normed = x * ((x * x).mean(-1, keepdim=True) + eps) ** -0.5
    return normed if weight is None else normed * weight


def cross_entropy(logits: Tensor, targets, ignore_index: int = -100) -> Tensor:
    """Mean of −log p(target) over the targets that are not `ignore_index`; NaN if none is left, as
    in torch.

    logits (..., C), targets (...) integers. The classes stand in the *last* dimension (torch: in
    the second).
    """
    targets = np.asarray(targets)
    classes = logits.shape[-1] if logits.ndim else 0
    if targets.shape != logits.shape[:-1] or targets.dtype.kind not in "iu":
        raise MiniloraError(
            f"cross_entropy: logits {logits.shape} need integer targets of shape "
            f"{logits.shape[:-1]}, "
            f"not {targets.dtype} of shape {targets.shape}"
        )
    targets = targets.reshape(-1)
    kept = np.flatnonzero(targets != ignore_index)
    wrong = targets[kept][(targets[kept] < 0) | (targets[kept] >= classes)]
    if wrong.size:
        raise MiniloraError(
            f"cross_entropy: target {wrong[0]} is none of {classes} classes, nor {ignore_index}"
        )
    log_p = logits.reshape(targets.size, classes).log_softmax(-1)  # (N, C)
    return -log_p[kept, targets[kept]].sum() / len(kept)


def _result(data, op: str, inputs) -> Tensor:
    """A Tensor made by `op`, with its history if anything in it needs a gradient."""
    out = Tensor.__new__(Tensor)
    out.data, out.op, out.name, out.grad = np.asarray(data), op, "", None
    out.requires_grad = _grad_enabled and any(t.requires_grad for t, _ in inputs)
    out._inputs = tuple(inputs) if out.requires_grad else ()
    return out


def _op(op: str, function, *inputs) -> Tensor:
    return _result(_apply(op, function, *(t for t, _ in inputs)), op, inputs)


def _wrap(value, like: Tensor) -> Tensor:
    """Turn a number or array into a constant Tensor; numbers take the dtype of the tensor beside
    them.
    """
    if isinstance(value, Tensor):
        return value
    return Tensor(
        value if isinstance(value, np.ndarray) and value.ndim else np.asarray(value, like.dtype)
    )


def _apply(what: str, function, *tensors) -> np.ndarray:
    try:
        return function(*(t.data for t in tensors))
    except (ValueError, IndexError) as error:
        shapes = " and ".join(str(t.shape) for t in tensors)
        raise MiniloraError(
            f"{what}: does not fit shape {shapes} ({str(error).splitlines()[0]})"
        ) from None


def _unbroadcast(g: np.ndarray, shape: tuple) -> np.ndarray:
    """Sum `g` over the dimensions that broadcasting added or stretched, so that it has `shape`
    again.
    """
    if g.shape == shape:
        return g
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    return g.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)


def _spread(g: np.ndarray, shape: tuple, dim, keepdim: bool) -> np.ndarray:
    """Undo a reduction: copy `g` along the dimensions that were reduced."""
    return np.broadcast_to(g if keepdim or dim is None else np.expand_dims(g, dim), shape)
