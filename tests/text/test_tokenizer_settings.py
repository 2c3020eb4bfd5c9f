"""What stands beside tokenizer.json: templates by name, special tokens, BOS, and odd values."""

import json
from types import SimpleNamespace

import pytest
from tokenizers_of_kinds import BOS, folder_of

from minilora.errors import MiniloraError
from minilora.text import Tokenizer, encode_example, tokenizer_settings

NAMED = {"tool_use": "tools", "rag": "documents"}


def as_list(named):
    return [{"name": name, "template": template} for name, template in named.items()]


@pytest.mark.parametrize("form", [dict, as_list])
@pytest.mark.parity
def test_named_templates_are_read_as_transformers_reads_them(tmp_path, form):
    transformers = pytest.importorskip("transformers")
    with_default = form({**NAMED, "default": "chosen {{ eos_token }}"})
    folder = folder_of(tmp_path / "a", chat_template=with_default)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "x"}]
    ours = Tokenizer.from_pretrained(folder)
    assert ours.chat(messages) == theirs.apply_chat_template(messages, tokenize=False)
    folder = folder_of(tmp_path / "b", chat_template=form(NAMED))
    with pytest.raises(MiniloraError, match='templates named "rag", "tool_use", and none named'):
        Tokenizer.from_pretrained(folder)
    with pytest.raises(ValueError, match="no default"):
        transformers.AutoTokenizer.from_pretrained(folder).get_chat_template()


@pytest.mark.parity
def test_files_of_templates_go_before_the_settings(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = folder_of(tmp_path, chat_template="of the settings")
    more = folder / "additional_chat_templates"
    more.mkdir()
    (more / "tool_use.jinja").write_text("tools")
    with pytest.raises(MiniloraError, match='named "tool_use", and none named default'):
        Tokenizer.from_pretrained(folder)
    (folder / "chat_template.jinja").write_bytes(b"of a file\r\n{{ 1 }}")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "x"}]
    assert Tokenizer.from_pretrained(folder).chat(messages) == theirs.apply_chat_template(
        messages, tokenize=False
    )


def test_a_template_of_an_older_processor_is_read_where_there_is_no_other(tmp_path):
    folder = folder_of(tmp_path)
    (folder / "chat_template.json").write_text('{"chat_template": "old"}')
    assert Tokenizer.from_pretrained(folder).template == "old"
    assert Tokenizer.from_pretrained(folder_of(folder, chat_template="new")).template == "new"


@pytest.mark.parametrize("processor", [True, False])
@pytest.mark.parity
def test_bos_stands_where_transformers_puts_one(tmp_path, processor):
    """Before a text, and not before a chat, which has its template's."""
    transformers = pytest.importorskip("transformers")
    folder = folder_of(
        tmp_path, change=lambda made: setattr(made, "post_processor", BOS if processor else None)
    )
    ours = Tokenizer.from_pretrained(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in ("the cat", "", " é"):
        ids = theirs(text).input_ids
        assert ours.encode_text(text) == ours.encode(text, bos=True) == ids
        assert encode_example({"text": text or "x"}, ours)[0][: len(ids)] == ids[: len(ids) or None]
    assert ours.encode_text("<s>the cat") == ours.encode("<s>the cat")  # one, and its own
    assert ours.encode_text("<s><s>the cat") == ours.encode("<s>the cat")


def test_without_a_post_processor_the_settings_may_ask_for_bos(tmp_path):
    for asked, opening in ((True, [1]), (False, []), (None, [])):
        folder = folder_of(tmp_path / str(asked), add_bos_token=asked)
        assert Tokenizer.from_pretrained(folder).opening == opening
    both = folder_of(
        tmp_path / "both", change=lambda made: setattr(made, "post_processor", BOS),
        add_bos_token=True,
    )  # fmt: skip
    assert Tokenizer.from_pretrained(both).encode_text("a")[:2].count(1) == 1


@pytest.mark.parity
def test_a_special_token_that_the_file_does_not_mark_is_one_token(tmp_path):
    """Else an EOS in a text is spelled out, and no answer ends."""
    transformers = pytest.importorskip("transformers")
    folder = folder_of(tmp_path, additional_special_tokens=["[INST]", "<|new|>"])
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"added_tokens": []}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            json.loads((folder / "tokenizer_config.json").read_text())
            | {"added_tokens_decoder": {"9": {"content": "<|x|>", "lstrip": True, "special": True}}}
        )
    )
    ours = Tokenizer.from_pretrained(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in ("<s>the cat</s>", "a <|x|>b [INST] <|new|> </s>", "<unk>"):
        assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids
    assert ours.encode("</s>") == [ours.eos_id]


@pytest.mark.parametrize("other", ["tokenizer.model", "vocab.json", "tekken.json", "vocab.txt"])
def test_a_tokenizer_of_another_form_is_named_with_its_conversion(tmp_path, other):
    (tmp_path / other).write_bytes(b"\n\x0e")
    with pytest.raises(MiniloraError, match=f"only {other}; convert it once: .*save_pretrained"):
        Tokenizer.from_pretrained(tmp_path)


ODD = [
    None,
    True,
    5,
    -1,
    1.5,
    "",
    "x",
    [],
    {},
    [1],
    [None],
    ["x"],
    {"a": 1},
    {"content": 5},
    10**400,
]


@pytest.mark.parametrize(
    "field",
    ["eos_token", "bos_token", "pad_token", "chat_template", "additional_special_tokens",
     "extra_special_tokens", "added_tokens_decoder", "add_bos_token", "tokenizer_class", "legacy",
     "add_prefix_space"],
)  # fmt: skip
def test_an_odd_value_loads_or_names_its_file_and_field(tmp_path, field):
    folder = folder_of(tmp_path)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    for value in ODD:
        file.write_text(json.dumps(settings | {field: value}) if value != 10**400 else
                        json.dumps(settings)[:-1] + f', "{field}": 1{"0" * 5000}}}')  # fmt: skip
        try:
            tokenizer = Tokenizer.from_pretrained(folder)
            tokenizer.encode("the cat")
        except MiniloraError as error:
            line = str(error)
            assert "\n" not in line and ("tokenizer_config.json" in line or "template" in line)


@pytest.mark.parametrize(
    "content", [b"[]", b"5", b"\xff", b"[" * 10**5, b'{"eos_token": "\\ud800"}']
)
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_settings_that_are_no_object_are_one_line(tmp_path, name, content):
    folder = folder_of(tmp_path)
    (folder / name).write_bytes(content)
    with pytest.raises(MiniloraError, match=name):
        Tokenizer.from_pretrained(folder)


def test_a_template_that_is_no_text_is_one_line(tmp_path):
    folder = folder_of(tmp_path)
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe{")
    with pytest.raises(MiniloraError, match="chat_template.jinja holds bytes that are no UTF-8"):
        Tokenizer.from_pretrained(folder)


def test_a_text_that_its_own_processor_takes_apart_has_no_opening():
    """Where the bare text is not in the whole one, nothing can be said to stand before it."""

    def encode(text, add_special_tokens=True):
        return SimpleNamespace(ids=[1, 8] if add_special_tokens else [7])

    backend = SimpleNamespace(post_processor=object(), encode=encode)
    assert tokenizer_settings.opening(backend, {}, 1) == []
