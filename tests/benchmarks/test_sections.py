"""The parts of a benchmark that can be run alone."""

import subprocess
import sys

import pytest

from benchmarks.kit.machine import ROOT


@pytest.mark.parametrize(
    "module, option", [("tasks.peers_train", "--sections"), ("speed.cpu", "--only")]
)
def test_a_section_that_does_not_exist_is_named(module, option):
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", option, "nothing"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "there is no section nothing" in done.stderr
