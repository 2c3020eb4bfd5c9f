"""transformers' model behind the `generate` of our Llama: where its answers end."""

import json

import pytest
import torch
from llama_folders import write

from minilora import hub
from minilora.llama import Llama
from minilora.text import Tokenizer, encode_prompt
from minilora.text.chat import reply
from minilora.text.ends import tell_end
from minilora.train.scoring import exact_match

IDS, NEW = torch.tensor([[1, 10, 20, 30, 41]]), 8
pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("plain"), {}, seed=1)


@pytest.fixture
def pair(folder):
    """Our Llama and transformers', which name no end yet, and what both write without one."""
    ours, theirs = Llama.from_pretrained(folder), hub.load(str(folder), "lora", device="cpu")
    ours.config.eos_token_id = theirs.config.eos_token_id = None
    theirs.generation_config.eos_token_id = None
    said = ours.generate(IDS, NEW)[0, IDS.shape[1] :].tolist()
    return ours, theirs, hub.answering(theirs), said


def answer(model, **settings):
    return model.generate(IDS, NEW, **settings)[0, IDS.shape[1] :].tolist()


def test_without_a_stop_the_models_own_ends_end_a_text(pair):
    ours, theirs, speaker, said = pair
    assert answer(speaker) == answer(ours) == said
    theirs.generation_config.eos_token_id = [said[4], said[2]]
    ours.config.eos_token_id = [said[4], said[2]]
    assert answer(speaker) == answer(ours) == said[:3]
    theirs.config.eos_token_id, ours.config.eos_token_id = said[1], [*said[1:5]]
    assert answer(speaker) == answer(ours) == said[:2]


@pytest.mark.parametrize("places", [[], [3], [5, 1], [0]], ids=str)
def test_a_stop_that_is_given_is_the_only_one(pair, places):
    ours, theirs, speaker, said = pair
    theirs.generation_config.eos_token_id = ours.config.eos_token_id = said[2]
    stops = [said[place] for place in places]
    expected = said[: min(places) + 1] if places else said
    assert answer(speaker, stop=stops) == answer(ours, stop=stops) == expected
    if len(stops) == 1:
        assert answer(speaker, stop=stops[0]) == expected


def test_a_chat_and_a_score_end_where_ours_do(tiny_folder, tmp_path):
    """Only generation_config.json names the token that ends this answer."""
    tokenizer = Tokenizer.from_pretrained(tiny_folder)
    ids = encode_prompt("who", tokenizer)
    plain = Llama.from_pretrained(tiny_folder)
    free = plain.generate(torch.tensor([ids]), NEW, stop=[])[0, len(ids) :].tolist()
    last = next(place for place in range(1, NEW) if free[place] not in free[:place])
    for file in tiny_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [free[last]]}))

    wanted = tokenizer.decode(free[:last])
    examples = [{"prompt": "who", "response": "the cat sat on the mat there"}]
    for model in (
        Llama.from_pretrained(tmp_path),
        hub.answering(hub.load(str(tmp_path), "lora", device="cpu")),
    ):
        assert reply(model, tokenizer, ids, NEW) == wanted
        assert exact_match(model, tokenizer, examples)[2] == [wanted]


def test_a_model_that_was_told_the_tokenizers_end_says_so_in_its_folder(tiny_folder, tmp_path):
    """So that transformers stops there too, without the tokenizer."""
    from transformers import GenerationConfig

    tokenizer = Tokenizer.from_pretrained(tiny_folder)
    for file in tiny_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": 7}))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 9, "temperature": 0.6}')
    for name, model, save in (
        ("ours", Llama.from_pretrained(tmp_path), lambda m, to: m.save_pretrained(to)),
        ("theirs", hub.load(str(tmp_path), "full", device="cpu"), hub.save_model),
    ):
        tell_end(model, tokenizer)
        save(model, tmp_path / name)
        saved = GenerationConfig.from_pretrained(tmp_path / name)
        assert set(saved.eos_token_id) == {2, 7, 9} and saved.temperature == 0.6
