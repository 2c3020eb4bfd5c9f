"""Where a text ends, by config.json and generation_config.json, beside transformers' `generate`."""

import json

import pytest
import torch
from llama_folders import PLAIN, write

from minilora.errors import MiniloraError
from minilora.llama import Config, Llama
from minilora.llama import generation_config as generation

IDS = torch.tensor([[1, 10, 20, 30, 41]])
NEW = 10


@pytest.fixture(scope="module")
def free(tmp_path_factory):
    """A folder, and what its model writes if nothing stops it; no token comes twice at first."""
    folder = write(tmp_path_factory.mktemp("free"), {}, seed=1)
    said = Llama.from_pretrained(folder).generate(IDS, NEW, stop=[])[0, IDS.shape[1] :].tolist()
    assert len(set(said[:5])) == 5
    return folder, said


@pytest.fixture
def folder(free, tmp_path):
    """A copy to write in, without generation_config.json."""
    for file in free[0].iterdir():
        if file.name != generation.NAME:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def name_ends(folder, own, fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": own}))
    (folder / generation.NAME).unlink(missing_ok=True)
    if fields is not None:
        (folder / generation.NAME).write_text(json.dumps(fields))


def theirs(folder, **settings):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    out = model.generate(IDS, max_new_tokens=NEW, do_sample=False, **settings)
    return out[0, IDS.shape[1] :].tolist()


def ours(folder):
    return Llama.from_pretrained(folder).generate(IDS, NEW)[0, IDS.shape[1] :].tolist()


# by the place of each end in what the model writes; UNSAID: an id that it does not write
UNSAID = "unsaid"
ENDS = {
    "one in config.json": (3, None, 3),
    "a list in config.json": ([UNSAID, 2], None, 2),
    "the list's first comes later": ([4, 1], None, 1),
    "generation_config.json alone": (None, {"eos_token_id": 2}, 2),
    "a list there alone": (None, {"eos_token_id": [UNSAID, 2]}, 2),
    "Llama 3: more there than in config.json": (UNSAID, {"eos_token_id": [UNSAID, 1]}, 1),
    "both the same": (2, {"eos_token_id": 2}, 2),
    "beside how to draw": (UNSAID, {"eos_token_id": [0], "temperature": 0.6, "top_p": 0.9}, 0),
    "a first token": ([0], None, 0),
    "the file is there and empty": (None, {}, None),
    "none anywhere": (None, None, None),
    "null in both": (None, {"eos_token_id": None}, None),
}


@pytest.mark.parity
@pytest.mark.parametrize("own, fields, last", ENDS.values(), ids=ENDS)
def test_a_text_ends_where_transformers_ends_it(free, folder, own, fields, last):
    said = free[1]
    unsaid = next(i for i in range(3, PLAIN["vocab_size"]) if i not in said)

    def real(ends):
        if isinstance(ends, list):
            return [real(each) for each in ends]
        return unsaid if ends == UNSAID else None if ends is None else said[ends]

    if fields and "eos_token_id" in fields:
        fields = fields | {"eos_token_id": real(fields["eos_token_id"])}
    name_ends(folder, real(own), fields)
    expected = said if last is None else said[: last + 1]
    assert ours(folder) == theirs(folder) == expected

    Llama.from_pretrained(folder).save_pretrained(folder / "again")
    assert ours(folder / "again") == theirs(folder / "again") == expected


def test_an_end_of_either_file_is_one(free, folder):
    """transformers forgets config.json's where the other file names any; all of ours are ends."""
    said = free[1]
    name_ends(folder, said[1], {"eos_token_id": said[3]})
    assert ours(folder) == said[:2]
    assert Llama.from_pretrained(folder).config.eos_token_id == [said[1], said[3]]
    Llama.from_pretrained(folder).save_pretrained(folder / "again")
    assert theirs(folder / "again") == said[:2]  # and by the saved folder for transformers, too


@pytest.mark.parametrize("named", [-1, PLAIN["vocab_size"], [-1, 200], 2.0, [2]], ids=str)
def test_ids_that_never_come_are_no_ends(folder, named):
    name_ends(folder, 2, {"eos_token_id": named})
    config = Llama.from_pretrained(folder).config
    assert config.eos_token_id == 2 and isinstance(config.eos_token_id, int)


def test_the_last_id_of_the_vocabulary_may_end_a_text(folder):
    name_ends(folder, 2, {"eos_token_id": [0, PLAIN["vocab_size"] - 1]})
    assert Llama.from_pretrained(folder).config.eos_token_id == [2, 0, PLAIN["vocab_size"] - 1]


def test_the_other_fields_are_kept(folder, tmp_path):
    name_ends(folder, 2, {"eos_token_id": [2, 5], "temperature": 0.6, "bos_token_id": 1})
    Llama.from_pretrained(folder).save_pretrained(folder / "again")
    saved = json.loads((folder / "again" / generation.NAME).read_text())
    assert saved == {"eos_token_id": [2, 5], "temperature": 0.6, "bos_token_id": 1}


def test_a_file_from_an_earlier_save_does_not_speak_for_the_next_model(folder):
    """transformers would stop by it alone."""
    name_ends(folder, 2, {"eos_token_id": [7]})
    model = Llama(Config(**PLAIN | {"eos_token_id": 5}))
    model.save_pretrained(folder)
    assert json.loads((folder / generation.NAME).read_text()) == {"eos_token_id": 5}
    model.save_pretrained(folder / "elsewhere")
    assert not (folder / "elsewhere" / generation.NAME).exists()


@pytest.mark.parametrize(
    "content, told",
    [
        ('{"eos_token_id": "2"}', 'eos_token_id is "2"'),
        ('{"eos_token_id": [1, null]}', "eos_token_id.1 is null"),
        ('{"eos_token_id": true}', "eos_token_id is true"),
        ("[2]", "an object"),
        ('{"eos_token_id": ', "cannot be read as JSON"),
    ],
)
def test_a_damaged_file_is_named(folder, content, told):
    (folder / generation.NAME).write_text(content)
    with pytest.raises(MiniloraError) as caught:
        Llama.from_pretrained(folder)
    assert generation.NAME in str(caught.value) and told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_of_that_name_is_named(folder):
    (folder / generation.NAME).mkdir()
    with pytest.raises(MiniloraError, match=f"{generation.NAME} is no regular file"):
        Llama.from_pretrained(folder)


@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_a_row_that_has_ended_is_filled_with_an_id_of_the_model(free, beyond):
    """An end that the vocabulary does not have cannot stand in for padding, which is read."""
    model, said = Llama.from_pretrained(free[0]), free[1]
    other = IDS.clone()
    other[0, 1] += 1
    rows = torch.cat([IDS, other])
    end = PLAIN["vocab_size"] + beyond
    out = model.generate(rows, 6, stop=[end, said[1]])
    filled = end if beyond < 0 else said[1]
    assert out[0, IDS.shape[1] :].tolist() == [*said[:2], *[filled] * 4]
    alone = model.generate(other, 6, stop=[end, said[1]])
    assert out[1, : alone.shape[1]].tolist() == alone[0].tolist() and alone.shape == (1, 11)
