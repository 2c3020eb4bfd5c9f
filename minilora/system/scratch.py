"""Scratch memory that is kept between calls, bounded, and let go.

What it replaces: buffers that each room keeps for itself, and nobody knows how large they are.
How it works: each thread keeps one piece of memory for each name, never more than `most` bytes;
what is larger is made for that call alone. A thread's memory ends with the thread. `free` lets
everything go at once, `held` says how much there is.
What it leaves out: memory of a GPU, which torch's allocator keeps by itself.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

_all: weakref.WeakSet[Scratch] = weakref.WeakSet()
_lock = threading.RLock()  # a set that grows must not be walked


class _Room(dict[str, Any]):
    """One thread's memory, by name. A dict that can be pointed at weakly, and is equal to none
    other.
    """

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self is other


def numpy_bytes(size: int) -> np.ndarray:
    return np.empty(size, np.uint8)


def _members(group: weakref.WeakSet[Any]) -> list[Any]:
    with _lock:
        return list(group)


class Scratch:
    """Memory by name, apart for each thread.

    most: bytes that are kept under one name. make(size): so many bytes, an array or a tensor.
    """

    def __init__(self, most: int, make: Callable[[int], Any] = numpy_bytes) -> None:
        self.most, self.make = most, make
        self._mine = threading.local()
        self._rooms: weakref.WeakSet[_Room] = weakref.WeakSet()  # a thread's goes with the thread
        self._users = 0
        with _lock:
            _all.add(self)

    def bytes(self, name: str, size: int) -> Any:
        """`size` bytes, valid until this thread asks for the same name again."""
        if size > self.most:
            return self.make(size)
        room = self._mine.__dict__.get("room")
        if room is None:
            room = self._mine.room = _Room()
            with _lock:
                self._rooms.add(room)
        memory = room.get(name)
        if memory is None or memory.nbytes < size:
            memory = room[name] = self.make(size)
        return memory[:size]

    def held(self) -> int:
        """Bytes that all threads keep."""
        return sum(memory.nbytes for room in _members(self._rooms) for memory in [*room.values()])

    def free(self) -> None:
        """Let go of what all threads keep; what is in use stays until it no longer is."""
        for room in _members(self._rooms):
            room.clear()

    def serve(self, user: object) -> None:
        """Keep memory for `user`: when the last one is gone, so is the memory."""
        self._users += 1
        weakref.finalize(user, self._leave).atexit = False

    def _leave(self) -> None:
        self._users -= 1
        if not self._users:
            self.free()


def held() -> int:
    """Bytes of scratch memory that this process keeps."""
    return sum(scratch.held() for scratch in _members(_all))


def free() -> None:
    """Let go of all scratch memory of this process."""
    for scratch in _members(_all):
        scratch.free()
