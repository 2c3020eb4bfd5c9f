"""Random strings in all scripts, with what tokenizers treat in a way of their own."""

import functools
import random

# letters, digits, spaces, signs, marks that join, both directions, beyond 16 bits
BLOCKS = [(0x20, 0x7E)] * 5 + [
    (0x9, 0xD), (0x80, 0x24F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x52F), (0x531, 0x58F),
    (0x5D0, 0x5EA), (0x600, 0x6FF), (0x900, 0x97F), (0xB80, 0xBFF), (0xE00, 0xE7F),
    (0x10A0, 0x11FF), (0x1200, 0x137F), (0x1780, 0x17FF), (0x2000, 0x206F), (0x2150, 0x218F),
    (0x2200, 0x22FF), (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xFF00, 0xFFEF),
    (0x10330, 0x1034F), (0x1D400, 0x1D7FF), (0x1F300, 0x1F6FF),
    (0x20000, 0x2A6DF), (0xE000, 0xE0FF),
]  # fmt: skip
WORDS = [" ", "  ", "\n", "the", " cat", "12", " 345", "'s", "'LL", "...", "<|im_start|>", "\t"]


@functools.cache
def strings(count=2000):
    pick = random.Random(0)

    def piece():
        if pick.random() < 0.3:
            return pick.choice(WORDS)
        return chr(pick.randint(*pick.choice(BLOCKS)))

    return ["".join(piece() for _ in range(pick.randint(0, 40))) for _ in range(count)]
