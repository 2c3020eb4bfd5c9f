"""Backpropagation from scratch: a tensor that remembers how it was made, and its picture."""

from .picture import draw
from .tensor import Tensor, cross_entropy, gradients, no_grad, topological_order

__all__ = ["Tensor", "cross_entropy", "draw", "gradients", "no_grad", "topological_order"]
