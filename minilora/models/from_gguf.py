"""A GGUF as a model's folder in Hugging Face's layout, which all commands read.

What it replaces: `AutoModelForCausalLM.from_pretrained(…, gguf_file=…).save_pretrained(…)`, which
leaves a `quantization_config` behind that no longer holds.
How it works: what the file has in 16 or 32 bits stays as it is; what it has in blocks of few bits
is decoded and rounded to bf16, as transformers does for bf16. The card says what the weights went
through.
What it leaves out: keeping the blocks, which our kernels do not compute with.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

from ..llama import gguf as weights
from ..system.files import atomic_folder
from ..system.gguf_reader import Header, read_header
from ..text import gguf_tokenizer
from . import cache
from .cache import Source
from .progress import bar

PLAIN = ("F32", "F16", "BF16")


def write(file: Path, target: Path, card: str, source: Source) -> None:
    """Decode the GGUF `file` into the folder `target`, which appears when it is complete.

    Raises MiniloraError for what is no Llama, is damaged, or has a tokenizer that is not read here.
    """
    from ..llama.model import Llama

    header = read_header(file)
    weights.config_of(header)  # what is no Llama is told before its tokenizer
    gguf_tokenizer.build(header)  # and what is refused, before the weights are decoded
    source.went_through = went_through(header)
    with bar(f"decoding {file.name}", numbers(header), " numbers") as progress:
        model = weights.load(Llama, file, dtype=None, told=progress)
    ends = model.config.eos_token_id
    model.generation = {"bos_token_id": model.config.bos_token_id, "eos_token_id": ends}
    with atomic_folder(target) as folder:
        model.save_pretrained(folder)
        gguf_tokenizer.write(header, folder)
        (folder / "README.md").write_text(card, encoding="utf-8")
        cache.write_source(folder, source)


def went_through(header: Header) -> str:
    """The types of few bits that the weights were in: "Q4_1, Q8_0"; empty where there were none."""
    kinds = {entry.kind: 0 for entry in header.tensors.values()}
    for entry in header.tensors.values():
        kinds[entry.kind] += entry.size
    few = [kind for kind in kinds if kind not in PLAIN]
    return ", ".join(sorted(few, key=lambda kind: -kinds[kind]))


def stays(header: Header) -> str:
    """How the card says what happened to the weights."""
    few = went_through(header)
    if not few:
        return "The weights are those of the file, to the bit."
    return (
        f"The weights went through {few}: they were rounded to a few bits by whoever made the "
        "GGUF, and are decoded here and rounded to bf16. They are not those of the published "
        "model; say so where precision is the subject."
    )


def of_user(file: Path) -> Path:
    """The folder for a user's own GGUF, decoded once; again if the file has changed."""
    file = file.resolve()
    told = file.stat()
    mark = f"{file}\0{told.st_size}\0{told.st_mtime_ns}"
    stem = "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in file.stem)
    name = f"{stem[:80]}-{hashlib.sha256(mark.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"
    if folder := cache.have(name):
        return folder
    with cache.alone(name):
        if folder := cache.have(name):
            return folder
        header = read_header(file)
        cache.require_room(name, weights.native(header).itemsize * numbers(header))
        cache.say(f"decoding {file} once, into {cache.place(name)}")
        title = header.fields.get("general.name")
        title = title if isinstance(title, str) else stem
        card = f"# {title}\n\nDecoded from {file}. {stays(header)}\n"
        licence = header.fields.get("general.license")
        source = Source(name, str(file), licence if isinstance(licence, str) else "as the file's")
        write(file, cache.place(name), card, source)
    return cache.place(name)


def numbers(header: Header) -> int:
    """How many numbers the file's tensors have."""
    return sum(math.prod(entry.shape) for entry in header.tensors.values())
