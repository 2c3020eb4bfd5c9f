"""What the tests of texts share: the small tokenizer, and the same one without a chat template."""

import pytest

from minilora.text import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    return Tokenizer.from_pretrained(tiny_folder)


@pytest.fixture(scope="module")
def plain(tokenizer):
    """No chat template, and PAD is EOS: the pair that makes models never stop."""
    return Tokenizer(tokenizer.backend, "<|bos|>", "<|eos|>", None, None)
