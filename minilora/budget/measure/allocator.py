"""CUDA's caching allocator as a model: what a sequence of allocations takes from the card.

What it replaces: `torch.cuda.max_memory_allocated()` and `max_memory_reserved()`, for a card that
is not there.
How it works: as in c10/cuda/CUDACachingAllocator.cpp. A request is rounded up to 512 bytes. Up to 1
MiB it is served from segments of 2 MiB; from there to 10 MiB from segments of 20 MiB; a larger one
gets a segment of its own size, rounded up to 2 MiB. The smallest free block that is large enough is
taken (of equal ones the one at the lowest address); what is left of it becomes a free block of its
own if it is worth it: 512 bytes among the small, more than 1 MiB among the large. A freed block
joins its free neighbours in the segment. Segments are given back to the driver only when a new one
would not fit. cuBLAS holds a workspace for the thread of the forward pass and one for that of the
backward pass.
What it leaves out: several streams, expandable segments, the settings of PYTORCH_CUDA_ALLOC_CONF.
Where numerics differ: `allocated` counts whole blocks, as torch does, so it lies a little above the
ledger; the addresses of segments are made up (ascending), so between blocks of equal size the real
choice can differ.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass, field

from ...errors import MiniloraError

KIB, MIB = 1 << 10, 1 << 20

ROUND = 512  # bytes that every request is rounded up to

SMALL = MIB  # requests up to here go to the small pool

SMALL_SEGMENT, MIDDLE_SEGMENT, MIDDLE_BELOW, LARGE_ROUND = 2 * MIB, 20 * MIB, 10 * MIB, 2 * MIB

# cuBLAS' before Hopper: ":4096:2:16:8", 2 × 4096 KiB + 8 × 16 KiB = 8.125 MiB
WORKSPACE = 8320 * KIB

WORKSPACE_HOPPER = 32 * MIB


def up(size: int, step: int) -> int:
    """`size` rounded up to a multiple of `step`."""
    return -(-size // step) * step


def segment_size(size: int) -> int:
    """What the driver is asked for when no free block fits a (rounded) request."""
    if size <= SMALL:
        return SMALL_SEGMENT
    return MIDDLE_SEGMENT if size < MIDDLE_BELOW else up(size, LARGE_ROUND)


@dataclass
class Block:
    """A piece of a segment, with its neighbours in it."""

    address: int
    size: int
    small: bool
    free: bool = False
    before: Block | None = None
    after: Block | None = None


@dataclass
class Outcome:
    """Peaks in bytes. `segments`: how many the driver gave in all; `retries`: how often cached ones
    had to go back first.

    `failed`: the request (rounded) that did not fit at last, None if all did.
    """

    allocated: int = 0
    reserved: int = 0
    segments: int = 0
    retries: int = 0
    failed: int | None = None


@dataclass
class Allocator:
    """The state of the allocator. capacity: bytes that the driver can give, None for no limit."""

    capacity: int | None = None
    allocated: int = 0
    reserved: int = 0
    peak: Outcome = field(default_factory=Outcome)

    def __post_init__(self) -> None:
        # free (size, address), sorted; True: small
        self.pools: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        self.blocks: dict[int, Block] = {}  # free blocks by address
        self.next_address = 0

    def take(self, size: int) -> Block:
        """Serve a request. Raises MemoryError if the driver has no segment left for it, even after
        all that is free went back.
        """
        size = up(max(size, 1), ROUND)
        block = self._fitting(size) or self._segment(size)
        self._split(block, size)
        self.allocated += block.size
        self.peak.allocated = max(self.peak.allocated, self.allocated)
        return block

    def release(self, block: Block) -> None:
        """Take a block back and join it with its free neighbours."""
        self.allocated -= block.size
        for other in (block.before, block.after):
            if other is not None and other.free:
                self._withdraw(other)
                first, second = (other, block) if other is block.before else (block, other)
                block = self._joined(first, second)
        self._offer(block)

    def _offer(self, block: Block) -> None:
        block.free = True
        bisect.insort(self.pools[block.small], (block.size, block.address))
        self.blocks[block.address] = block

    def _withdraw(self, block: Block) -> None:
        block.free = False
        pool = self.pools[block.small]
        pool.pop(bisect.bisect_left(pool, (block.size, block.address)))
        del self.blocks[block.address]

    def _joined(self, first: Block, second: Block) -> Block:
        first.size += second.size
        first.after = second.after
        if second.after is not None:
            second.after.before = first
        return first

    def _fitting(self, size: int) -> Block | None:
        """The smallest free block of the pool that holds `size`."""
        pool = self.pools[size <= SMALL]
        at = bisect.bisect_left(pool, (size, -1))
        if at == len(pool):
            return None
        block = self.blocks[pool[at][1]]
        self._withdraw(block)
        return block

    def _segment(self, size: int) -> Block:
        wanted = segment_size(size)
        if self.capacity is not None and self.reserved + wanted > self.capacity:
            self.peak.retries += 1
            self._give_back_unused()
            if self.reserved + wanted > self.capacity:
                self.peak.failed = size
                raise MemoryError(f"{wanted} bytes wanted, {self.capacity - self.reserved} left")
        self.reserved += wanted
        self.peak.reserved, self.peak.segments = (
            max(self.peak.reserved, self.reserved),
            self.peak.segments + 1,
        )
        block = Block(self.next_address, wanted, size <= SMALL)
        self.next_address += wanted + LARGE_ROUND  # a gap: segments are never joined
        return block

    def _give_back_unused(self) -> None:
        """Hand every segment that is wholly free back to the driver."""
        for block in [
            block for block in self.blocks.values() if block.before is None and block.after is None
        ]:
            self._withdraw(block)
            self.reserved -= block.size

    def _split(self, block: Block, size: int) -> None:
        """Keep `size` bytes of the block; the rest becomes a free block where it is worth it."""
        rest = block.size - size
        if rest < ROUND if block.small else rest <= SMALL:
            return
        tail = Block(block.address + size, rest, block.small, before=block, after=block.after)
        if block.after is not None:
            block.after.before = tail
        block.size, block.after = size, tail
        self._offer(tail)


def replay(
    events: Iterable[tuple[int, int]],
    starts: Iterable[int] = (),
    capacity: int | None = None,
    workspace: int = WORKSPACE,
) -> Outcome:
    """Play (storage, ±bytes) through the allocator. `starts`: event numbers before which cuBLAS
    takes another workspace.

    Empty tensors take nothing. Stops at the first request that does not fit into `capacity`; the
    outcome says which. Raises MiniloraError for a storage that is freed but was not allocated.
    """
    allocator, held, starts = Allocator(capacity), {}, sorted(starts, reverse=True)
    try:
        for index, (storage, size) in enumerate(events):
            while starts and starts[-1] <= index:
                starts.pop()
                allocator.take(workspace)
            if size > 0:
                held[storage] = allocator.take(size)
            elif size < 0:
                if storage not in held:
                    raise MiniloraError(
                        f"event {index} frees storage {storage}, which is not allocated; "
                        "check the order of the events"
                    )
                allocator.release(held.pop(storage))
    except MemoryError:
        pass  # the outcome tells it
    return allocator.peak
