"""What the C library keeps goes back, where there is a way to ask for it."""

import sys
from pathlib import Path

import pytest

from minilora.system import heap, memory


def test_other_systems_have_no_way(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert heap.give_back() is False


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux' /proc")
def test_a_process_has_held_at_least_what_it_holds():
    import psutil

    assert memory.most_held() >= 0.9 * psutil.Process().memory_info().rss
