"""Tries damaged files of one kind, one after the other, and tells how each case ended.

    python tests/fuzz/worker.py TINY_FOLDER KIND SEED FIRST COUNT

prints a line of JSON for each case: its number, how it ended (`refused`, `loads`, `raised`,
`differs`, `slow`), the seconds of the processor, and what was said. A case that ends the process
has no line: whoever started it sees which one that was. The process may take 2 GB on top of what
the libraries need. Case N of a kind and a seed is always the same; by hand:

    python tests/fuzz/worker.py TINY_FOLDER tokenizer 0 412 1
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from random import Random

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

SECONDS, GIGABYTES = 5, 2


def main(tiny: Path, name: str, seed: int, first: int, count: int) -> None:
    import kinds
    import torch

    torch.set_num_threads(1)
    kind = kinds.KINDS[name]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "sound"
        data = kinds.sound(kind, tiny, folder)
        ours, theirs = kind.ours(folder), kind.theirs(folder)
        assert kinds.differs(ours, theirs) is None, "the sound files are not read alike"
        bound_memory()
        for number in range(first, first + count):
            damaged = kind.damage(Random(f"{seed} {name} {number}"), data)
            (folder / kind.file).write_bytes(damaged)
            print(f"case {number}", file=sys.stderr, flush=True)
            print(json.dumps({"case": number, **tried(kind, folder)}), flush=True)


def tried(kind, folder: Path) -> dict:
    """How one case ended."""
    import kinds

    from minilora.errors import MiniloraError

    began = time.process_time()
    try:
        ours, ended, told = kind.ours(folder), "loads", ""
    except MiniloraError as error:
        ours, ended, told = None, "refused", str(error)
        if "\n" in told or len(told) > 1000:
            ended = "raised"  # one line was promised
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # tokenizers' panics are no Exception
        ours, ended = None, "raised"
        last = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"
    seconds = time.process_time() - began
    if ended == "loads" and (gap := kinds.differs(ours, peer(kind, folder))):
        ended, told = "differs", gap
    if seconds > SECONDS:
        ended = "slow"
    return {"ended": ended, "seconds": round(seconds, 2), "told": told.replace(str(folder), "…")}


def peer(kind, folder: Path):
    """What the library reads, or None where it stops."""
    try:
        return kind.theirs(folder)
    except KeyboardInterrupt:
        raise
    except BaseException:
        return None


def bound_memory() -> None:
    if sys.platform != "linux":
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + GIGABYTES * 10**9
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6]))
