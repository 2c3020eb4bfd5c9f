"""tokenizer.json as scripts leave it, and as it must not be: what it does to this process."""

import json
import subprocess
import time

import pytest
from tokenizers_of_kinds import KINDS, folder_of

from minilora.errors import MiniloraError
from minilora.system.files import data_folder
from minilora.text import Tokenizer, encode_example, tokenizer_file
from minilora.text.tokenizer_file import no_panic

LONG = "where is the cat and why is the dog red " * 4
LEFT = {
    "truncation": lambda made: made.enable_truncation(12),
    "truncation from the left": lambda made: made.enable_truncation(3, direction="left"),
    "padding": lambda made: made.enable_padding(length=64, pad_id=2, pad_token="</s>"),
    "padding on the left": lambda made: made.enable_padding(
        direction="left", pad_to_multiple_of=16, pad_id=0, pad_token="<unk>"
    ),
}


@pytest.mark.parametrize("kind", ["byte level", "prepend", "unigram"])
@pytest.mark.parametrize("left", LEFT)
@pytest.mark.parity
def test_what_a_training_script_left_in_the_file_is_reset(tmp_path, left, kind):
    """transformers keeps truncation and padding of a call, and writes them into the file."""
    transformers = pytest.importorskip("transformers")
    folder = folder_of(tmp_path, kind, LEFT[left])
    ours = Tokenizer.from_pretrained(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in (LONG, "a", ""):
        assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids
    example = {"prompt": LONG, "response": LONG}
    rows = [encode_example(example, ours)]
    rows += [encode_example(example, Tokenizer.from_pretrained(
        damaged(folder, truncation=None, padding=None)))]  # fmt: skip
    assert rows[0] == rows[1]


def test_a_file_whose_merges_are_dropped_by_chance_gives_the_same_row_each_time(tmp_path):
    def drop(made):
        made.model.dropout = 0.5

    dropped = Tokenizer.from_pretrained(folder_of(tmp_path / "a", change=drop))
    whole = Tokenizer.from_pretrained(folder_of(tmp_path / "b"))
    assert all(dropped.encode(LONG) == whole.encode(LONG) for _ in range(5))


def damaged(folder, **changes):
    """The folder's tokenizer.json with other values at the paths that are given."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    for path, value in changes.items():
        *way, last = path.split("__")
        parent = content
        for name in way:
            parent = parent[name]
        parent[last] = value
    file.write_text(json.dumps(content))
    return folder


def split(pattern):
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


def replace(pattern, content):
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def precompiled(charsmap):
    return {"type": "Precompiled", "precompiled_charsmap": charsmap}


UNKNOWN = {"type": "TemplateProcessing", "pair": [], "special_tokens": {},
           "single": [{"SpecialToken": {"id": "q", "type_id": 0}}]}  # fmt: skip
KILLING = {
    "a prefix longer than its words": {"model__continuing_subword_prefix": "######"},
    "a charsmap cut short": {"normalizer": precompiled("AAAA")},
    "a charsmap of 4 GB": {"normalizer": precompiled("/////wAAAAA=")},
    "a charsmap that points beyond itself": {"normalizer": precompiled("CAAAAAAAAAD/////AAAAAAA=")},
    "a space of 10 MB": {"normalizer": replace(" ", "x" * 10_000_000)},
    "a letter doubled forty times": {
        "normalizer": {"type": "Sequence", "normalizers": [replace("a", "aa")] * 40}
    },
    "nothing replaced by something": {"normalizer": replace("", "x")},
    "pieces of no letters": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "a pattern without end": {"pre_tokenizer": split({"Regex": "(x+x+)+y|(a|a)*c"})},
    "a pattern that is none": {"pre_tokenizer": split({"Regex": "("})},
    "a special token of nobody": {"post_processor": UNKNOWN},
    "a decoder that cuts what is not there": {
        "decoder": {"type": "Strip", "content": "e", "start": 0, "stop": 5}
    },
    "a type of nobody": {"pre_tokenizer": {"type": "Nothing"}},
    "a list for a part": {"normalizer": [1]},
    "an added token below zero": {"added_tokens": [{"id": -1, "content": "x"}]},
    "a word at a number beyond all": {"model__vocab": {"a": 10**15}},
    "no vocabulary": {"model": {"type": "BPE"}},
    "a text for a file": {"model": "x"},
}


@pytest.mark.parametrize("name", KILLING)
def test_a_file_that_would_end_the_process_is_one_line(tmp_path, name, capfd):
    folder = damaged(folder_of(tmp_path), **KILLING[name])
    with pytest.raises(MiniloraError) as caught:
        Tokenizer.from_pretrained(folder)
    assert str(folder / "tokenizer.json") in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # a panic's own words stay in the child


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"[" * 200_000, b'{"model"', b"\xff\xfe{}", b"1" * 9_999]
)
def test_a_file_that_is_no_object_is_one_line(tmp_path, content):
    folder = folder_of(tmp_path)
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(MiniloraError) as caught:
        Tokenizer.from_pretrained(folder)
    assert str(folder / "tokenizer.json") in str(caught.value) and "\n" not in str(caught.value)


def test_a_byte_order_mark_does_no_harm(tmp_path):
    folder = folder_of(tmp_path)
    file = folder / "tokenizer.json"
    wanted = Tokenizer.from_pretrained(folder).encode(LONG)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert Tokenizer.from_pretrained(folder).encode(LONG) == wanted


@pytest.fixture
def children(monkeypatch):
    """The processes that are started."""
    started, run = [], subprocess.run
    monkeypatch.setattr(
        tokenizer_file.subprocess, "run", lambda *a, **k: started.append(a) or run(*a, **k)
    )
    monkeypatch.setattr(tokenizer_file, "_tried", set())
    return started


def test_an_unknown_file_is_tried_once_and_the_shipped_one_never(tmp_path, children):
    folder = folder_of(tmp_path)
    for _ in range(3):
        Tokenizer.from_pretrained(folder)
    assert len(children) == 1
    Tokenizer.from_pretrained(folder_of(tmp_path / "another", "unigram"))
    assert len(children) == 2
    if (data_folder() / "base" / "tokenizer.json").is_file():
        Tokenizer.from_pretrained(data_folder() / "base")
        assert len(children) == 2


def test_a_child_that_takes_too_long_or_cannot_be_had(tmp_path, children, monkeypatch):
    folder = folder_of(tmp_path)

    def hangs(*args, **options):
        raise subprocess.TimeoutExpired("python", 1)

    monkeypatch.setattr(tokenizer_file.subprocess, "run", hangs)
    with pytest.raises(MiniloraError, match="takes too long to load or to use"):
        Tokenizer.from_pretrained(folder)

    def none(*args, **options):
        raise OSError("no process for you")

    monkeypatch.setattr(tokenizer_file.subprocess, "run", none)
    assert Tokenizer.from_pretrained(folder).encode("a")


def test_a_trial_is_quick(tmp_path, children):
    folder = folder_of(tmp_path)
    started = time.perf_counter()
    Tokenizer.from_pretrained(folder)
    assert len(children) == 1 and time.perf_counter() - started < 20  # .2 s on a quiet machine


def test_a_panic_of_a_certain_text_is_one_line():
    class PanicException(BaseException):
        """What the library raises; it cannot be imported."""

    with pytest.raises(MiniloraError, match=r"fails while a text is encoded \(at 5\); take"):
        with no_panic("a text is encoded"):
            raise PanicException("at\n5")
    with pytest.raises(KeyboardInterrupt):
        with no_panic("a text is encoded"):
            raise KeyboardInterrupt
    with pytest.raises(ValueError):
        with no_panic("a text is encoded"):
            raise ValueError


@pytest.mark.parametrize("legacy", [None, False, True])
@pytest.mark.parametrize("space", [None, True, False])
@pytest.mark.parametrize("kind", ["prepend", "always", "byte level"])
@pytest.mark.parity
def test_the_class_llama_tokenizer_puts_its_space_where_transformers_does(
    tmp_path, kind, space, legacy
):
    """transformers' class of that name takes words and merges from the file and the rest from the
    settings, but for byte-level files, which only bear its name.
    """
    transformers = pytest.importorskip("transformers")
    settings = {"legacy": legacy, "add_prefix_space": space, "tokenizer_class": "LlamaTokenizer"}
    folder = folder_of(tmp_path, kind, **settings)
    ours = Tokenizer.from_pretrained(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in ("the cat", " the cat", "<s>[INST] the cat [/INST] é </s><s> who", "x</s>y", "\n"):
        ids = ours.encode(text)
        assert ids == theirs(text, add_special_tokens=False).input_ids
        assert ours.decode(ids, skip_special=False) == theirs.decode(
            ids, clean_up_tokenization_spaces=False
        )


def test_all_kinds_of_tokenizers_stand_their_trial(tmp_path):
    for number, kind in enumerate(KINDS):
        tokenizer = Tokenizer.from_pretrained(folder_of(tmp_path / str(number), kind))
        assert tokenizer.decode(tokenizer.encode("the cat")) == "the cat"
