"""What the tests of the checks share."""

import pytest

from minilora.course import check, check_bounds


@pytest.fixture
def short(monkeypatch):
    """A check gives up soon."""
    monkeypatch.setattr(check, "SECONDS", 0.6)
    monkeypatch.setattr(check_bounds, "PATIENCE", 0.5)
    monkeypatch.setattr(check_bounds, "PRINTED", 2000)
    monkeypatch.setattr(check, "PRINTED", 2000)
    monkeypatch.delenv("MINILORA_STRICT", raising=False)
