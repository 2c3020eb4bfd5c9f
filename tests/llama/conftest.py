"""Folders of each family."""

import pytest


@pytest.fixture(params=["llama", "mistral", "qwen2", "qwen3"])
def family(request):
    return request.param


@pytest.fixture
def make(tmp_path):
    """Fields → a folder that transformers wrote."""
    from family_twins import their_model

    def folder(**fields):
        their_model({"model_type": "llama"} | fields).save_pretrained(tmp_path)
        return tmp_path

    return folder
