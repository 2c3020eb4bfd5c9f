"""More than 6,000 damaged files of all kinds that a fine-tuner reads.

Each either is refused in one line or means what the library people use takes it to mean. None may
end in another exception, end the process, take over 5 s of the processor or 2 GB. The seed is
fixed; worker.py says how a case is tried alone. For a longer run with other damage:

    FUZZ_SEED=7 FUZZ_TIMES=10 pytest tests/fuzz
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("worker.py")
PATIENCE = 300  # seconds by the clock, and one more for each case, on a machine however busy
COUNTS = {
    "config": 1000,
    "generation config": 200,
    "weights": 700,
    "index": 300,
    "4-bit config": 400,
    "4-bit weights": 700,
    "adapter config": 900,
    "adapter weights": 600,
    "tokenizer": 500,
    "tokenizer config": 400,
    "template": 300,
    "data": 500,
    "run": 80,
    "metrics": 40,
}
UNREAD = ("metrics",)  # which a resumed run writes anew, from its last state
RIGHT = ("refused", "loads")
SEED, TIMES = int(os.environ.get("FUZZ_SEED", 0)), int(os.environ.get("FUZZ_TIMES", 1))


def outcomes(tiny: Path, kind: str, count: int, seed: int = 0) -> list[dict]:
    """How each case ended. Where one ends the process, the next goes on behind it."""
    ended: list[dict] = []
    while len(ended) < count:
        order = [str(tiny), kind, str(seed), str(len(ended)), str(count - len(ended))]
        with tempfile.TemporaryFile("w+") as errors:
            patience = PATIENCE + count - len(ended)
            lines, reason = _lines([sys.executable, str(WORKER), *order], errors, patience)
            ended += [json.loads(line) for line in lines]
            if len(ended) == count:
                break
            errors.seek(0)
            said = errors.read().strip().splitlines()[-3:]
        assert any("case " in line for line in said) or lines, f"it did not begin: {said}"
        told = f"{reason}: {' '.join(said)}"[:300]
        ended.append({"case": len(ended), "ended": "killed", "seconds": 0, "told": told})
    return ended


def _lines(command: list[str], errors, patience: float) -> tuple[list[str], str]:
    """What the process printed, and how it ended."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    lines: list[str] = []
    try:
        printed, _ = process.communicate(timeout=patience)
        lines = printed.splitlines()
    except subprocess.TimeoutExpired:
        process.kill()
        lines = process.communicate()[0].splitlines()
        return lines, f"was not ready after {patience} s"
    return lines, f"ended with {process.returncode}"


def wrong(ended: list[dict]) -> list[dict]:
    return [each for each in ended if each["ended"] not in RIGHT]


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("kind", COUNTS)
def test_a_damaged_file_is_refused_or_read_as_the_library_reads_it(tiny_folder, kind):
    count = COUNTS[kind] * TIMES
    ended = outcomes(tiny_folder, kind, count, SEED)
    assert len(ended) == count
    assert not wrong(ended), "\n".join(map(str, wrong(ended)[:20]))
    kinds = Counter(each["ended"] for each in ended)
    assert kinds["loads"], kinds  # the damage is not too much
    assert kinds["refused"] or kind in UNREAD, kinds  # nor is it none


def test_there_are_enough():
    assert sum(COUNTS.values()) >= 6000
