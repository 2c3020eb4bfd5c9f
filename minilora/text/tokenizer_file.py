"""tokenizer.json of a stranger: read by the `tokenizers` library after a trial in another process.

What it replaces: `tokenizers.Tokenizer.from_file`, which a damaged file makes panic, fill the
memory or run for ever, and the program with it.
How it works: the file's bytes are checked as JSON, so that what is plainly no tokenizer costs
nothing. An unknown file is then loaded and used once in a child process, which has little memory
and little time; what kills the child is refused in one line. Truncation and padding that a training
script left in the file are reset, as transformers resets them. A panic that only a certain text
brings about becomes one line, too.
What it costs: 0.2 s for the child, and the file's loading twice; nothing for the shipped base, and
nothing for a file that this process has tried before.
What it leaves out: memory is bounded where the system can (Linux, macOS), time everywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import MiniloraError
from ..system.files import data_folder
from ..system.json_files import AGAIN, parse_json, read_bytes

MEGABYTES = 256  # of the file; the largest in use have 33
PIECE = {"type": ["object", "null"]}
SCHEMA = {
    "type": "object",
    "required": ["model"],
    "properties": {
        "model": {
            "type": "object",
            "required": ["vocab"],
            "properties": {
                "type": {"type": "string"},
                "vocab": {"type": ["object", "array"]},
                "merges": {"type": "array"},
                "dropout": {"type": ["number", "null"]},
                "unk_token": {"type": ["string", "null"]},
                "unk_id": {"type": ["integer", "null"], "minimum": 0},
                "continuing_subword_prefix": {"type": ["string", "null"]},
                "end_of_word_suffix": {"type": ["string", "null"]},
            },
        },
        "added_tokens": {
            "type": ["array", "null"],
            "items": {
                "type": "object",
                "required": ["id", "content"],
                "properties": {
                    "id": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
                    "content": {"type": "string"},
                },
            },
        },
        "normalizer": PIECE,
        "pre_tokenizer": PIECE,
        "post_processor": PIECE,
        "decoder": PIECE,
        "truncation": PIECE,
        "padding": PIECE,
    },
}

# run by a child: load what comes on standard input, and use it on texts of many kinds
TRIAL = """
import json, math, sys, time
sys.path[:] = json.loads(sys.argv[1])
data = sys.stdin.buffer.read()
megabytes = len(data) // 1_000_000
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, ((1 << 29) + 60 * len(data),) * 2)
    from tokenizers import Tokenizer
    started = time.process_time()  # on a busy machine all takes longer, and so did this
    limit = started + (2 + megabytes) * min(max(1, started / 0.05), 5)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit),) * 2)
except (ImportError, OSError, ValueError):
    pass
from tokenizers import Tokenizer
try:
    tokenizer = Tokenizer.from_buffer(data)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    added = [each.content for each in tokenizer.get_added_tokens_decoder().values()][:200]
    texts = ["", " ", "The cat sat.", "a" * 3000, "x" * 3000, " " * 300, "\\n\\n\\t x", "ab " * 1000, "12345678 9" * 99,
             "\\u20ac\\U0001d11e\\u0000\\u200d\\u0301e\\ufffd\\u4e2d\\u6587 \\u00e9\\u0130", "".join(added), " x ".join(added)]
    for text in texts:
        for special in (False, True):
            found = tokenizer.encode(text, add_special_tokens=special)
            tokenizer.decode(found.ids), tokenizer.decode(found.ids, skip_special_tokens=False)
    tokenizer.encode("a", "b")
    for number in range(min(tokenizer.get_vocab_size(), 2000)):
        tokenizer.decode([number])
except BaseException as error:
    print(str(error) or type(error).__name__)
    sys.exit(3)
"""  # noqa: E501
REFUSED = 3  # the child's exit code for what Python could catch
WAIT = 60  # seconds, for systems on which a child cannot be told how long it may work

_tried: set[bytes] = set()  # digests of files that have stood their trial in this process


@contextmanager
def no_panic(doing: str) -> Iterator[None]:
    """Inside, a panic of the library's Rust, which is no Exception, becomes one line."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise MiniloraError(
            f"the tokenizer fails while {doing} ({_short(error)}); take tokenizer.json from where "
            "it came"
        ) from error


def read_backend(path: Path):
    """The `tokenizers.Tokenizer` of the file, and the file's content as JSON.

    Raises MiniloraError for what is no tokenizer, and for what would take the process along.
    """
    from tokenizers import Tokenizer

    data = read_bytes(path, megabytes=MEGABYTES).removeprefix(b"\xef\xbb\xbf")
    content = parse_json(data, path, SCHEMA)
    if not _shipped(path):
        _try(path, data)
    try:
        with no_panic(f"{path} is read"):
            backend = Tokenizer.from_buffer(data)
    except Exception as error:  # tokenizers raises bare Exception
        if isinstance(error, MiniloraError):
            raise
        raise _no_tokenizer(path, _short(error)) from error
    backend.no_truncation()
    backend.no_padding()
    if getattr(backend.model, "dropout", None):
        backend.model.dropout = None  # it would cut the same text otherwise each time
    return backend, content


def _try(path: Path, data: bytes) -> None:
    """Raise MiniloraError unless a child process can load and use the tokenizer."""
    digest = hashlib.sha256(data).digest()
    if digest in _tried or not sys.executable:  # none where Python is part of another program
        return
    few = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    try:
        child = subprocess.run(
            [sys.executable, "-I", "-c", TRIAL, json.dumps(sys.path)],
            input=data,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=WAIT + len(data) / 1e6,
            env={**os.environ, **few},
        )
    except subprocess.TimeoutExpired as error:
        raise _no_tokenizer(path, "it takes too long to load or to use") from error
    except OSError:  # no child can be had here: it stands its trial in this process
        return
    if child.returncode == REFUSED:
        raise _no_tokenizer(path, _short(child.stdout.decode("utf-8", "replace")))
    if child.returncode != 0:
        raise _no_tokenizer(path, "it takes too much time or memory to load or to use")
    _tried.add(digest)


def _no_tokenizer(path: Path, why: str) -> MiniloraError:
    return MiniloraError(f"{path} is not a tokenizer file ({why}); {AGAIN}")


def _shipped(path: Path) -> bool:
    """Whether the file is that of the base that comes with the package."""
    try:
        return path.resolve() == (data_folder() / "base" / path.name).resolve()
    except (MiniloraError, OSError, RuntimeError):
        return False


def _short(error: object) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:159] + "…"
