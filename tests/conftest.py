"""What all tests share: hypothesis without a stopwatch, since other work may run on the same two
cores.
"""

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


@pytest.fixture(scope="session", autouse=True)
def faults_are_raised():
    """The last door of the command line would show a fault of ours as a line like any other.
    Imported here, since some tests pretend another system before anything of minilora is.
    """
    from minilora.cli import main

    main.debugging = True


def pytest_collection_modifyitems(items):
    """Files with slow tests first, and lessons: of two workers that take a file each, one would
    else end with the longest, alone.
    """
    long = {each.path for each in items if each.get_closest_marker("slow")}
    long |= {each.path for each in items if each.path.suffix == ".ipynb"}
    items.sort(key=lambda each: each.path not in long)


TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}{{ eos_token }}"
    "{% else %}<|user|>{{ message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A random Llama of 0.1M parameters with a byte-level tokenizer, as a Hugging Face folder. Do
    not write into it.
    """
    import json

    import torch
    from llama_sizes import sizes
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from minilora.llama import Config, Llama

    folder = tmp_path_factory.mktemp("tiny")
    special = ["<|pad|>", "<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(
        ["the cat sat on the mat", "who was there", "the dog and the bird"], trainer
    )
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    config = Config(
        **sizes(vocab=320, hidden=64, ffn=128, layers=2, heads=4, kv_heads=2, context=256),
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.1,
    )
    Llama(config).save_pretrained(folder)
    torch.random.set_rng_state(state)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {
        "bos_token": "<|bos|>",
        "eos_token": "<|eos|>",
        "pad_token": "<|pad|>",
        "add_bos_token": True,
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names})
    )
    return folder
