"""The model of CUDA's caching allocator, by sequences small enough to follow by hand."""

import random

import pytest

from minilora.budget.measure.allocator import (
    KIB,
    MIB,
    WORKSPACE,
    Allocator,
    replay,
    segment_size,
    up,
)
from minilora.errors import MiniloraError


def played(*sizes: int, **options):
    """Peaks of allocations (positive) and frees (−i frees the i-th allocation, counted from 1),
    without workspaces.
    """
    events, made = [], []
    for size in sizes:
        if size > 0:
            made.append(size)
            events.append((len(made), size))
        else:
            events.append((-size, -made[-size - 1]))
    return replay(events, **options)


@pytest.mark.parametrize(
    "size, segment",
    [
        (512, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 512, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (10 * MIB + 512, 12 * MIB),
        (64 * MIB, 64 * MIB),
    ],
)
def test_segments_are_of_the_sizes_that_cuda_is_asked_for(size, segment):
    assert segment_size(size) == segment
    assert played(size).reserved == segment


def test_requests_are_rounded_up_to_512_bytes():
    assert up(1, 512) == 512 and up(512, 512) == 512 and up(513, 512) == 1024
    assert played(1, 513).allocated == 512 + 1024


def test_small_blocks_share_a_segment_of_2_MiB():
    found = played(*[512 * KIB] * 4)
    assert (found.allocated, found.reserved, found.segments) == (2 * MIB, 2 * MIB, 1)
    assert played(*[512 * KIB] * 5).reserved == 4 * MIB


def test_the_last_512_bytes_of_a_segment_are_worth_a_block():
    assert played(MIB, MIB - 512, 512).reserved == 2 * MIB


def test_a_middle_block_leaves_the_rest_of_20_MiB_to_the_next():
    assert played(4 * MIB, 9 * MIB, 7 * MIB).reserved == 20 * MIB
    assert played(4 * MIB, 9 * MIB, 7 * MIB + 512).reserved == 40 * MIB


def test_a_rest_of_1_MiB_or_less_is_not_split_off_and_counts_as_allocated():
    # rounded to 20 MiB in its own segment, 1 MiB stays with it
    assert played(19 * MIB).allocated == 20 * MIB
    assert played(12 * MIB, -1, 11 * MIB).allocated == 12 * MIB
    assert played(12 * MIB, -1, 11 * MIB).segments == 1
    found = Allocator()
    found.release(found.take(12 * MIB))
    assert found.take(11 * MIB).size == 12 * MIB and found.take(1).size == 512
    found = Allocator()
    found.release(found.take(12 * MIB))
    # 1 MiB + 512 is worth a block of its own
    assert found.take(11 * MIB - 512).size == 11 * MIB - 512


def test_the_smallest_block_that_fits_is_taken():
    allocator = Allocator()
    big, _, fit, _ = (allocator.take(size * MIB) for size in (40, 12, 30, 12))
    allocator.release(big)
    allocator.release(fit)
    assert allocator.take(28 * MIB).address == fit.address
    assert allocator.take(20 * MIB).address == big.address
    assert allocator.reserved == 94 * MIB


def test_free_neighbours_join_and_the_pools_stay_apart():
    allocator = Allocator()
    parts = [allocator.take(5 * MIB) for _ in range(4)]  # one segment of 20 MiB
    for index in (0, 2, 3, 1):
        allocator.release(parts[index])
    assert [size for size, _ in allocator.pools[False]] == [20 * MIB] and not allocator.pools[True]
    assert allocator.take(20 * MIB).address == parts[0].address and allocator.reserved == 20 * MIB
    allocator.take(512)
    assert allocator.reserved == 22 * MIB  # a small request never cuts a large block


def test_freed_memory_stays_reserved_until_the_card_is_full():
    assert played(64 * MIB, -1, 80 * MIB).reserved == 144 * MIB
    found = played(64 * MIB, -1, 80 * MIB, capacity=100 * MIB)
    assert (found.reserved, found.retries, found.failed) == (80 * MIB, 1, None)
    found = played(64 * MIB, 80 * MIB, capacity=100 * MIB)
    assert (found.reserved, found.retries, found.failed) == (64 * MIB, 1, 80 * MIB)


def test_fragments_can_fail_what_their_sum_would_hold():
    sizes = [30 * MIB, 30 * MIB, 30 * MIB, -1, -3, 40 * MIB]
    # whole segments go back: 30 stands, 40 fits
    assert played(*sizes, capacity=90 * MIB).failed is None
    held = [30 * MIB, -1, 12 * MIB, 50 * MIB, -2]  # 12 is cut from the 30
    assert played(*held[:3], 60 * MIB, capacity=80 * MIB).failed == 60 * MIB


def test_workspaces_are_taken_where_the_phases_begin():
    events = [(1, 32 * MIB), (2, 32 * MIB), (2, -32 * MIB)]
    found = replay(events, starts=[1, 2])
    assert found.allocated == 64 * MIB + 2 * WORKSPACE and found.reserved == 64 * MIB + 20 * MIB
    assert replay(events).allocated == 64 * MIB


def test_a_free_without_an_allocation_is_refused():
    with pytest.raises(MiniloraError, match="event 1 frees storage 7"):
        replay([(1, 512), (7, -512)])


def test_nothing_is_lost_in_a_long_random_life():
    dice, allocator, held = random.Random(0), Allocator(), []
    for _ in range(3000):
        if held and dice.random() < 0.48:
            allocator.release(held.pop(dice.randrange(len(held))))
        else:
            held.append(allocator.take(int(2 ** dice.uniform(0, 26))))
        free = sum(size for pool in allocator.pools.values() for size, _ in pool)
        assert allocator.allocated == sum(block.size for block in held) == allocator.reserved - free
    spans = sorted(
        (block.address, block.address + block.size) for block in [*held, *allocator.blocks.values()]
    )
    assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:]))
    while held:
        allocator.release(held.pop())
    assert all(block.before is None and block.after is None for block in allocator.blocks.values())
