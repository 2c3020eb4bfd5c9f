"""A few rows of x times a packed weight, without decoding the weight to a matrix.

What it replaces: bitsandbytes' `gemv_4bit`, and llama.cpp's products over packed weights.
How it works: one token at a time is bound by the bytes of the weights, which 4 bits make eight
times fewer. Decoding to a matrix of fp32 first writes and reads the eightfold again. `product.h`
decodes one row of W at a time in the processor's first cache, takes its products with the rows of x
there, and adds bias and adapter. A dense W goes the same way, so that one loop serves both. Here
stands what describes a layer's weights to it.
What it leaves out: training and long prompts, whose products take longer than decoding; codes of
other widths than 4 bits, blocks that run over the end of a row, 16 bits. `matrix` returns None.
Where numerics differ: a decoded number has `dequantize`'s bits. Only the order of additions differs
from decode-then-multiply. Each of the two sums of n products is off from the true one by at most
n·2⁻²⁴·Σ|w x|, whatever the order (Higham 2002, §3.1), so they are at most 2 n 2⁻²⁴ Σ|w x| apart; in
practice a hundredth of it.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int64, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .blockwise import Quantized

PIECE = 32  # numbers that are decoded at once


@dataclass
class Product:
    """What a linear layer computes: x Wᵀ + bias + ((x Aᵀ) Bᵀ) scale. W (out, in), A (r, in),
    B (out, r).
    """

    weight: Tensor | Quantized
    bias: Tensor | None = None
    A: Tensor | None = None
    B: Tensor | None = None
    scale: float = 0.0


def product_of(module: nn.Module) -> Product | None:
    """What a linear layer computes, if it is a plain one or says so by `as_product`."""
    if type(module) is nn.Linear:
        return Product(module.weight.detach(), module.bias)
    says = getattr(module, "as_product", None)
    return None if says is None else says()


class Matrix(ctypes.Structure):
    """`Matrix` of product.h; the arrays that it points to stand in `kept` of `matrix`'s result."""

    _fields_ = [
        ("out", c_int64),
        ("in", c_int64),
        ("dense", c_void_p),
        ("packed", c_void_p),
        ("levels", c_void_p),
        ("block", c_int64),
        ("absmax", c_void_p),
        ("codes", c_void_p),
        ("nested", c_void_p),
        ("outer", c_void_p),
        ("nested_block", c_int64),
        ("offset", c_float),
        ("bias", c_void_p),
        ("rank", c_int64),
        ("A", c_void_p),
        ("B", c_void_p),
        ("scale", c_float),
    ]


def address(tensor: Tensor, kind: torch.dtype = torch.float32) -> int:
    """Where a tensor's numbers begin; raises ValueError if they are not plain ones on a processor,
    one after the other, of this kind.
    """
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu"
    if not plain or tensor.dtype != kind or not tensor.is_contiguous():
        raise ValueError("not for C++ as it is")
    return tensor.data_ptr()


def matrix(product: Product) -> tuple[Matrix, list[Any]] | None:
    """`product` for product.h, and the arrays that have to live as long; None where it does not
    fit.
    """
    kept: list[Any] = []

    def at(array: Any, kind: torch.dtype = torch.float32) -> int:
        kept.append(array if isinstance(array, Tensor) else torch.tensor(array))
        return address(kept[-1], kind)

    made = Matrix(scale=product.scale)
    try:
        weight = product.weight
        made.out, fan_in = weight.shape
        setattr(made, "in", fan_in)  # a word of Python
        if isinstance(weight, Tensor):
            made.dense = at(weight)
        else:
            _pack(made, weight, fan_in, at)
        if product.bias is not None:
            made.bias = at(product.bias)
        if product.A is not None and product.B is not None:
            made.rank, made.A, made.B = product.A.shape[0], at(product.A), at(product.B)
    except ValueError:
        return None
    return made, kept


def _pack(made: Matrix, weight: Quantized, fan_in: int, at) -> None:
    """Fill in a packed weight; raises ValueError where it does not fit."""
    if weight.book.bits != 4 or weight.by_column or weight.block % PIECE or fan_in % weight.block:
        raise ValueError
    levels = np.pad(weight.book.levels, (0, 16 - weight.book.levels.size))
    made.packed, made.levels = at(weight.packed, torch.uint8), at(levels)
    made.block, nested = weight.block, weight.nested
    if nested is None:
        made.absmax = at(weight.absmax)
        return
    made.codes, made.nested = at(weight.absmax, torch.uint8), at(nested.levels)
    made.outer, made.nested_block = at(nested.absmax), nested.block
    made.offset = nested.offset


def plain(product: Product, x: Tensor) -> Tensor:
    """x (rows, in) → (rows, out), as the compiled one has to be: decode, then multiply."""
    weight = product.weight
    W = weight if isinstance(weight, Tensor) else weight.dequantize(x.dtype)
    y = torch.nn.functional.linear(x, W, product.bias)
    if product.A is None or product.B is None:
        return y
    return y + (x @ product.A.T) @ product.B.T * product.scale


def compiled(library: ctypes.CDLL, product: Product, x: Tensor) -> Tensor | None:
    """The same by `product` of a library that includes product.h; None where it does not fit."""
    made = matrix(product)
    if made is None:
        return None
    y = x.new_empty(x.shape[0], made[0].out)
    library.product(
        ctypes.byref(made[0]),
        c_void_p(x.contiguous().data_ptr()),
        c_int64(x.shape[0]),
        c_void_p(y.data_ptr()),
        c_int64(torch.get_num_threads()),
    )
    return y
