"""Rows and models of short trainings."""

import pytest
from small_fits import EXAMPLES, with_adapter

from minilora.llama import Llama
from minilora.text import Tokenizer, encode_rows


@pytest.fixture(scope="module")
def rows(tiny_folder):
    return encode_rows(EXAMPLES, Tokenizer.from_pretrained(tiny_folder))


@pytest.fixture
def model(tiny_folder):
    return Llama.from_pretrained(tiny_folder)


@pytest.fixture
def adapted(model):
    return with_adapter(model)
