"""People and towns out of syllables, so that there are always names which nobody has seen before.

What it replaces: a list of first names.
How it works: a start, perhaps a middle, an end; a hash-free rule sends each name to one of the
parts `base`, `train`, `valid`, `test`, so that the tasks' test names are never in the tasks'
training text.
What it leaves out: meaning and gender; the stories say "they" or repeat the name.
"""

from __future__ import annotations

import zlib
from random import Random

STARTS = """
A Al An Ar Be Bel Bo Bra Bri Ca Cal Ce Cla Co Cor Da Dan De Del Do Dra E El Em En Er Fa Fe Fen Fi
Flo Fra Ga Gar Ge Gi Gra Gwen Ha Hal He Hen Ho Hu I Il In Is Ja Jen Jo Ju Ka Kar Ke Kel Ki Ko La Lan
Le Len Li Lo Lu Ly Ma Mar Me Mel Mi Mo Mu Na Nel Ni No Nu O Ol Or Os Pa Per Pe Pi Po Pri Qui Ra Ran
Re Ri Ro Ru Sa Sel Se Si So Ste Su Ta Tam Te Ti To Tri Tu U Ul Va Ve Ver Vi Vo Wa Wen Wi Wil Xa Ya
Yo Yu Za Zel Zi Zo
""".split()
MIDDLES = (
    "ba be bi da de di do fe ga gi la le li lo ma me mi mo na ne ni no ra re ri ro sa se si so ta "
    "te ti va ve vi ya"
).split()
ENDS = """
bel bert bin by da dan den der dia don dor dra dy fa fred gan gar go ka kin ko la lan las len li lia
lin lo lus ly ma man mer mi mon mus na nan nard nas ne nel ni nia nie no nor ny phie ra ram ran ras
ren ria ric rin ris rix ro ron rus ry sa san sel sha sia sie sky son sy ta tan tar ter tha ti tin to
ton tra tte tus ty va van vin vy wen win za zo
""".split()
TOWN_STARTS = """
Alder Amber Ash Barrow Birch Black Bram Bright Brook Cedar Clear Cliff Cold Copper Crow Dale Deer
Dun Eagle East Elder Elm Fair Fern Fox Frost Gold Green Grey Hare Hazel Heron High Holly Iron Ivy
King Lake Lark Linden Long Marsh Mill Moon Moss North Oak Otter Owl Pine Queen Raven Red River Rook
Rose Rush Salt Sand Silver South Spring Stag Star Stone Storm Summer Swan Thorn Wave West Whale
White Willow Winter Wolf Wood
""".split()
TOWN_ENDS = (
    "bay borough bridge brook burn bury by cliff combe dale den end fall field ford gate ham "
    "haven hill holm hurst land leigh ley marsh mere mont moor mouth port ridge shore side stead "
    "stoke ton vale view ville wall water way well wick wood worth"
).split()


def share(word: str) -> int:
    """A number from 0 to 99 that depends on the word alone (CRC-32, the same everywhere)."""
    return zlib.crc32(word.encode()) % 100


def part(word: str) -> str:
    """Which part a word belongs to: 60 % base, 24 % train, 8 % valid, 8 % test."""
    s = share(word)
    return "base" if s < 60 else "train" if s < 84 else "valid" if s < 92 else "test"


def person(rng: Random) -> str:
    middle = rng.choice(MIDDLES) if rng.random() < 0.35 else ""
    return rng.choice(STARTS) + middle + rng.choice(ENDS)


def town(rng: Random) -> str:
    start, end = rng.choice(TOWN_STARTS), rng.choice(TOWN_ENDS)
    return start + (end if end != start.lower() else "ton")


def made_up(rng: Random) -> str:
    """A word that means nothing yet, in lower case."""
    return (
        rng.choice(STARTS) + rng.choice(MIDDLES) * (rng.random() < 0.5) + rng.choice(ENDS)
    ).lower()


def distinct(make, count: int, rng: Random, allow=lambda word: True) -> list[str]:
    """`count` different words from `make(rng)` that `allow` accepts."""
    seen: dict[str, None] = {}
    while len(seen) < count:
        word = make(rng)
        if allow(word):
            seen.setdefault(word)
    return list(seen)
