"""What the tests of exported GGUF files share."""

import pytest


@pytest.fixture(scope="module")
def tokenizer():
    """As GPT-2's, of 400 tokens."""
    from exported_gguf import CUTS, byte_level  # skips where `gguf` is missing

    return byte_level(CUTS["gpt-2"])
