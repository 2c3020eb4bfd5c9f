"""The kinds of files that are damaged, what is done with each, and the library that says what is
right.

A kind has a folder of sound files, the one of them that is damaged, how, `ours` (reads the folder
and returns what it means) and `theirs` (the same by transformers, PEFT or bitsandbytes, or None
where that library does not read it).
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import mutate
import torch

IDS = torch.tensor([[1, 30, 4, 200, 17, 99, 2, 31]])
TEXTS = ("the cat sat", "  two  spaces\n", "<|bos|>the<|eos|>", "Ünï 😀 1234", "")
CHAT = [
    {"role": "user", "content": "who was there"},
    {"role": "assistant", "content": "the cat"},
    {"role": "user", "content": "where"},
]
TOLERANCE = 1e-4  # of logits about 1 in size, in fp32


@dataclass(frozen=True)
class Kind:
    file: str
    damage: Callable[[Random, bytes], bytes]
    ours: Callable[[Path], Any]
    theirs: Callable[[Path], Any] = lambda folder: None
    source: Callable[[Path], None] | None = None  # makes the sound folder from the tiny one


@contextlib.contextmanager
def quiet():
    """The libraries' own warnings are not looked at."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


# -- models


def our_logits(folder: Path) -> torch.Tensor:
    from minilora.qlora import load_base

    model = load_base(folder, "cpu").eval()
    with torch.no_grad():
        return model(IDS).float()


def their_logits(folder: Path) -> torch.Tensor | None:
    """None too where weights are missing or do not fit: transformers draws those at random."""
    from transformers import AutoModelForCausalLM

    with quiet():
        model, told = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
        )
    if told["missing_keys"] or told["mismatched_keys"]:
        return None
    if getattr(model, "is_quantized", False):
        model = model.dequantize().float()  # its product on a CPU rounds to bf16
    with torch.no_grad():
        return model.eval()(IDS).logits.float()


def their_four_bits(folder: Path) -> torch.Tensor | None:
    """None too for packed bytes of shape (1, n): bitsandbytes takes those for a transposed matrix,
    and its older versions, which wrote that shape, meant none.
    """
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        packed = [name for name in file.keys() if name.endswith("proj.weight")]  # noqa: SIM118
        if any(file.get_slice(name).get_shape()[0] == 1 for name in packed):
            return None
    return their_logits(folder)


def quantized(folder: Path) -> None:
    from minilora.qlora import load_base, quantize_model
    from minilora.qlora.checkpoint import save_quantized

    model = load_base(folder, "cpu")
    quantize_model(model, "nf4", double=True)
    (folder / "model.safetensors").unlink()
    save_quantized(model, folder)


def in_shards(folder: Path) -> None:
    from minilora.llama import Llama

    model = Llama.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_bytes=150_000)


def telling(folder: Path) -> None:
    """A config.json each field of which moves the logits."""
    path = folder / "config.json"
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    fields = json.loads(path.read_text()) | {"rms_norm_eps": 0.01, "rope_theta": 100.0}
    path.write_text(json.dumps(fields | {"rope_scaling": scaling}))


# -- adapters


@cache
def _their_base(folder: str):
    from transformers import AutoModelForCausalLM

    with quiet():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def adapter(folder: Path) -> None:
    """Beside the base, an adapter over all its linear layers, A and B drawn at random."""
    from minilora import lora
    from minilora.qlora import load_base

    torch.manual_seed(1)
    model = load_base(folder, "cpu")
    lora.add_lora(model, rank=4, alpha=12)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    lora.save_adapter(model, folder / "adapter")


def our_adapted(folder: Path) -> torch.Tensor:
    from minilora import lora
    from minilora.qlora import load_base

    model = load_base(folder, "cpu")
    lora.load_adapter(model, folder / "adapter")
    lora.use_adapter(model, "default", trainable=False)
    with torch.no_grad():
        return model.eval()(IDS).float()


def their_adapted(folder: Path) -> torch.Tensor | None:
    import warnings

    from peft import PeftModel

    base = _their_base(str(folder))
    try:
        with quiet(), warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            model = PeftModel.from_pretrained(base, folder / "adapter")
        if any("missing adapter keys" in str(each.message) for each in told):
            return None  # PEFT goes on with what it drew at random
        with torch.no_grad():
            return model.eval()(IDS).logits.float()
    finally:
        _their_base.cache_clear()  # PEFT has changed it


# -- tokenizers, templates


def our_ids(folder: Path) -> list:
    from minilora.text import Tokenizer

    tokenizer = Tokenizer.from_pretrained(folder)
    return [tokenizer.encode(text) for text in TEXTS] + [tokenizer.chat(CHAT, True)]


def their_ids(folder: Path) -> list:
    from transformers import AutoTokenizer

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        ids = [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
        return [
            *ids,
            tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False),
        ]


def as_jinja(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "chat_template.jinja").write_text(settings.pop("chat_template"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def template(rng: Random, data: bytes) -> bytes:
    return mutate.template_damaged(rng, data.decode()).encode("utf-8", "replace")


# -- data and runs


def with_data(folder: Path) -> None:
    rows = [{"prompt": f"who is {i}", "response": f"the {i} cat"} for i in range(4)]
    rows += [{"messages": [*CHAT, {"role": "assistant", "content": "there"}]}, {"text": "the dog"}]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def our_rows(folder: Path) -> list:
    from minilora.text import Tokenizer, encode_example
    from minilora.text.examples import read_examples

    tokenizer = _tokenizer(str(folder))
    assert isinstance(tokenizer, Tokenizer)
    return [encode_example(row, tokenizer) for row in read_examples(folder / "data.jsonl")]


@cache
def _tokenizer(folder: str):
    from minilora.text import Tokenizer

    return Tokenizer.from_pretrained(folder)


def with_run(folder: Path) -> None:
    with_data(folder)
    command(folder, "--model", str(folder), "--data", str(folder / "data.jsonl"), "--steps", "2")


def command(folder: Path, *more: str) -> str:
    """`minilora finetune` in this process, with its errors raised. Returns what it printed last."""
    from minilora.cli.main import main
    from minilora.errors import MiniloraError

    told = io.StringIO()
    settings = ["--out", str(folder / "run"), "--batch", "2", "--device", "cpu", "--debug"]
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        code = main(["finetune", *settings, *more])
    if code == 2:
        raise MiniloraError(told.getvalue().strip().splitlines()[-1])
    return told.getvalue()


def resumed(folder: Path) -> str:
    return command(folder, "--resume")


# -- all


JSON, TENSORS = mutate.json_damaged, mutate.tensors_damaged
KINDS = {
    "config": Kind("config.json", JSON, our_logits, their_logits, telling),
    "generation config": Kind("generation_config.json", JSON, our_logits, their_logits),
    "weights": Kind("model.safetensors", TENSORS, our_logits, their_logits),
    "index": Kind("model.safetensors.index.json", JSON, our_logits, their_logits, in_shards),
    "4-bit config": Kind("config.json", JSON, our_logits, their_logits, quantized),
    "4-bit weights": Kind("model.safetensors", TENSORS, our_logits, their_four_bits, quantized),
    "adapter config": Kind(
        "adapter/adapter_config.json", JSON, our_adapted, their_adapted, adapter
    ),
    "adapter weights": Kind(
        "adapter/adapter_model.safetensors", TENSORS, our_adapted, their_adapted, adapter
    ),
    "tokenizer": Kind("tokenizer.json", JSON, our_ids, their_ids),
    "tokenizer config": Kind("tokenizer_config.json", JSON, our_ids, their_ids),
    "template": Kind("chat_template.jinja", template, our_ids, their_ids, as_jinja),
    "data": Kind("data.jsonl", mutate.lines_damaged, our_rows, source=with_data),
    "run": Kind("run/run.json", JSON, resumed, source=with_run),
    "metrics": Kind("run/metrics.jsonl", mutate.lines_damaged, resumed, source=with_run),
}


def sound(kind: Kind, tiny: Path, folder: Path) -> bytes:
    """A folder of sound files; returns the content of the one that will be damaged."""
    shutil.copytree(tiny, folder)
    if kind.file == "generation_config.json":
        (folder / kind.file).write_text(json.dumps({"eos_token_id": [2, 3], "bos_token_id": 1}))
    if kind.source is not None:
        kind.source(folder)
    return (folder / kind.file).read_bytes()


def differs(ours: Any, theirs: Any) -> str | None:
    """How what we read differs from what the library read; None where it does not."""
    if theirs is None:
        return None
    if isinstance(ours, torch.Tensor):
        if ours.shape != theirs.shape:
            return f"logits of shape {tuple(ours.shape)}, {tuple(theirs.shape)} by the library"
        if not torch.isfinite(theirs).all():
            return None
        gap = (ours - theirs).abs().max().item()
        allowed = TOLERANCE * max(1.0, theirs.abs().max().item())
        return None if gap <= allowed else f"logits off by {gap:.3g}"
    return None if ours == theirs else f"{str(ours)[:150]} and not {str(theirs)[:150]}"
