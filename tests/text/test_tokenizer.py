"""Ids, special tokens and chat templates, beside those of `tokenizers` and transformers."""

import json

import pytest

from minilora import text
from minilora.errors import MiniloraError
from minilora.system.files import data_folder
from minilora.text import Tokenizer
from minilora.text.tokenizer import compile_template


def test_special_ids(tokenizer, plain):
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert plain.pad_id == plain.eos_id == 2


def test_template_text_equals_transformers(tiny_folder, tokenizer):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tiny_folder)
    messages = [
        {"role": "user", "content": "who <b>?"},
        {"role": "assistant", "content": "the cat"},
        {"role": "user", "content": "é"},
    ]
    assert tokenizer.chat(messages, True) == theirs.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert tokenizer.encode("the cat sat 123") == theirs.encode(
        "the cat sat 123", add_special_tokens=False
    )


def test_a_template_with_todays_date_gives_the_same_rows_tomorrow(tokenizer, tiny_folder):
    dated = (
        "{{ bos_token }}{% if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') "
        "%}{% else %}{% set day = '26 Jul 2024' %}{% endif %}{{ day }} {{ messages[0]['content'] "
        "}}"
    )
    messages = [{"role": "user", "content": "who?"}]
    ours = Tokenizer(tokenizer.backend, tokenizer.bos, tokenizer.eos, tokenizer.pad, dated).chat(
        messages
    )
    assert ours == f"{tokenizer.bos}26 Jul 2024 who?"
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tiny_folder).apply_chat_template(
        messages, chat_template=dated, tokenize=False
    )
    assert len(theirs) == len(ours) and theirs != ours  # there it is today's


def test_a_template_that_refuses_is_one_clear_line(tokenizer):
    other = Tokenizer(
        tokenizer.backend, None, "<|eos|>", None, "{{ raise_exception('no system role') }}"
    )
    with pytest.raises(MiniloraError, match="no system role"):
        other.chat([{"role": "system", "content": "x"}])
    with pytest.raises(MiniloraError, match="cannot be compiled"):
        Tokenizer(tokenizer.backend, None, "<|eos|>", None, "{% if %}").chat([])


def test_a_template_cannot_reach_python(tokenizer):
    other = Tokenizer(
        tokenizer.backend, None, "<|eos|>", None, "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    )
    with pytest.raises(MiniloraError):
        other.chat([{"role": "user", "content": "x"}])


def test_a_template_may_mark_the_answer_as_generated():
    """The tag that transformers adds to Jinja, which the shipped template uses: its text is what
    stands in it.
    """
    marked = (
        "{% for m in messages %}{% generation %}<{{ m['content'] }}>{% endgeneration %}{% endfor %}"
    )
    assert (
        compile_template(marked).render(messages=[{"content": "a"}, {"content": "b"}]) == "<a><b>"
    )


def test_the_shipped_tokenizer_says_what_the_format_says():
    folder = data_folder() / "base"
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("no shipped model; build it with `minilora pretrain`")
    shipped = Tokenizer.from_pretrained(folder)
    assert [shipped.backend.id_to_token(i) for i in range(5)] == [
        "<|pad|>",
        "<|bos|>",
        "<|eos|>",
        "<|user|>",
        "<|assistant|>",
    ]
    ids, labels = text.encode_example({"prompt": "Who?", "response": "Mira 12"}, shipped)
    answer = shipped.encode("Mira 12")
    assert ids == [1, 3, *shipped.encode("Who?"), 4, *answer, 2] and labels[-len(answer) - 1 :] == [
        *answer,
        2,
    ]
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Mira 12"}]
    assert shipped.chat(messages) == theirs.apply_chat_template(messages, tokenize=False)
    assert shipped.encode('Mira saw 12 {"x"}') == theirs.encode(
        'Mira saw 12 {"x"}', add_special_tokens=False
    )


def test_a_bad_tokenizer_is_named(tmp_path, tiny_folder):
    with pytest.raises(MiniloraError, match="no tokenizer.json"):
        Tokenizer.from_pretrained(tmp_path)
    for broken, why in (("{", "cannot be read as JSON"), ('{"model": {"vocab": {}}}', "not a tok")):
        (tmp_path / "tokenizer.json").write_text(broken)
        with pytest.raises(MiniloraError, match=why):
            Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((tiny_folder / "tokenizer.json").read_bytes())
    with pytest.raises(MiniloraError, match="eos_token"):
        Tokenizer.from_pretrained(tmp_path)


def folder_with(tmp_path, tiny_folder, **files):
    """The small tokenizer's vocabulary beside other settings, one keyword for each JSON file."""
    (tmp_path / "tokenizer.json").write_bytes((tiny_folder / "tokenizer.json").read_bytes())
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def test_special_tokens_come_from_both_files_and_the_configuration_wins(tmp_path, tiny_folder):
    """A name may be bare or an added token's record; null is no name."""
    folder = folder_with(
        tmp_path,
        tiny_folder,
        special_tokens_map={
            "bos_token": {"content": "<|bos|>", "lstrip": False},
            "eos_token": "<|user|>",
            "pad_token": "<|pad|>",
        },
        tokenizer_config={"eos_token": {"content": "<|eos|>"}, "pad_token": None},
    )
    found = Tokenizer.from_pretrained(folder)
    assert (found.bos, found.eos, found.pad) == ("<|bos|>", "<|eos|>", "<|pad|>")
    assert (found.bos_id, found.eos_id, found.pad_id) == (1, 2, 0)


def test_a_named_token_must_be_in_the_vocabulary(tmp_path, tiny_folder):
    config = {"eos_token": "<|end|>"}
    with pytest.raises(MiniloraError, match=r"'<\|end\|>' is not in the tokenizer's vocabulary"):
        Tokenizer.from_pretrained(folder_with(tmp_path, tiny_folder, tokenizer_config=config))


def test_of_several_templates_the_default_and_above_all_the_file(tmp_path, tiny_folder):
    named = [{"name": "rag", "template": "rag"}, {"name": "default", "template": "chosen"}]
    config = {"eos_token": "<|eos|>", "chat_template": named}
    folder = folder_with(tmp_path, tiny_folder, tokenizer_config=config)
    assert Tokenizer.from_pretrained(folder).template == "chosen"
    (folder / "chat_template.jinja").write_text("é of its own", encoding="utf-8")
    assert Tokenizer.from_pretrained(folder).template == "é of its own"


def test_special_tokens_are_shown_where_asked_for(tokenizer):
    ids = tokenizer.encode("who", bos=True, eos=True)
    assert tokenizer.decode(ids) == "who"
    assert tokenizer.decode(ids, skip_special=False) == "<|bos|>who<|eos|>"


def test_added_tokens_count_as_vocabulary(tokenizer):
    backend = type(tokenizer.backend).from_str(tokenizer.backend.to_str())
    backend.add_special_tokens(["<|more|>"])
    more = Tokenizer(backend, None, "<|more|>")
    assert more.vocab_size == tokenizer.vocab_size + 1 == more.eos_id + 1


HARD = """
{%- set note = {"é": 1, "b": [true, none]} %}
{% for m in messages %}
    {% if loop.index0 > 1 %}{% break %}{% endif %}
  {% if m['role'] == 'user' %}
<u>{{ m['content'] | trim }}{{ note | tojson }}
    {% else %}
{{ m['content'] }}{{ eos_token }}
    {% endif %}
{% endfor %}
{{ note | tojson(indent=1) }}{{ bos_token }}
"""


def test_every_turn_of_jinja_gives_what_transformers_gives(tokenizer, tiny_folder):
    """Blocks trimmed on both sides, a loop that breaks, tojson in letters beyond ASCII."""
    transformers = pytest.importorskip("transformers")
    messages = [
        {"role": "user", "content": "  who?\n"},
        {"role": "assistant", "content": "é "},
        {"role": "user", "content": "never read"},
    ]
    ours = Tokenizer(tokenizer.backend, tokenizer.bos, tokenizer.eos, tokenizer.pad, HARD)
    theirs = transformers.AutoTokenizer.from_pretrained(tiny_folder).apply_chat_template(
        messages, chat_template=HARD, tokenize=False
    )
    assert ours.chat(messages) == theirs and "é" in theirs and "never" not in theirs
