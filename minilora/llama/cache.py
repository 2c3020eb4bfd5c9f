"""Keys and values of the tokens so far, so that generation computes each of them once."""

from __future__ import annotations

from torch import Tensor

from ..errors import MiniloraError


class Cache:
    """Keys and values of the tokens seen so far, (B, G, S, D) per layer, in memory set aside once
    for `capacity`.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0  # tokens seen
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write new keys and values (B, G, T, D) behind the old ones, in place; returns views on
        all so far.

        Raises MiniloraError when the memory set aside is full.
        """
        if layer not in self.layers:
            B, G, _, D = k.shape
            self.layers[layer] = (
                k.new_empty(B, G, self.capacity, D),
                v.new_empty(B, G, self.capacity, D),
            )
        keys, values = self.layers[layer]
        start, stop = self.length, self.length + k.shape[2]
        if stop > self.capacity:
            raise MiniloraError(
                f"the cache holds {self.capacity} tokens and {stop} are needed; make it with "
                f"Cache({stop})"
            )
        keys.narrow(2, start, stop - start).copy_(k)
        values.narrow(2, start, stop - start).copy_(v)
        return keys.narrow(2, 0, stop), values.narrow(2, 0, stop)
