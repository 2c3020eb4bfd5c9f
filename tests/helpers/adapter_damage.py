"""Adapter folders that PEFT wrote, and ways in which they come to harm; for test_damaged.py."""

import dataclasses
import json
import random
import struct
from pathlib import Path

import peft
import torch
from safetensors.torch import load_file, save

ENDLESS = r"(\w|[a-z]|\.|\d)*[0-9]{3}[a-z]"
FIELDS = [field.name for field in dataclasses.fields(peft.LoraConfig)]
UNKNOWN = ["enable_lora", "use_mora", "lora_parameters", "fine_tune_type", "größe"]
VALUES = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    4,
    64,
    1.5,
    0.1,
    -0.0,
    1e308,
    10**30,
    10**400,
    "",
    "x",
    "true",
    "false",
    "none",
    "all",
    "all-linear",
    "LORA",
    "CAUSAL_LM",
    "SEQ_CLS",
    "gaussian",
    "pissa",
    "loftq",
    "eva",
    "mica",
    "orthogonal",
    "olora",
    "pissa_niter_4",
    ".*proj",
    ".*",
    "(",
    "lm_head",
    ENDLESS,
    "(.*)*x",
    "a" * 50_000,
    "\x00",
    "\u202e",
    [],
    [""],
    [None],
    [1],
    [0],
    ["q_proj"],
    ["lm_head"],
    ["embed_tokens", "lm_head"],
    ["norm"],
    ["layers"],
    ["mlp", "up_proj"],
    ["q_proj", ["v_proj"]],
    {},
    {"q_proj": 2},
    {"q_proj": 4},
    {"q_proj": "4"},
    {"q_proj": 8.5},
    {"q_proj": None},
    {"(": 4},
    {ENDLESS: 4},
    {"layers.1.*": 16},
    {"loftq_bits": 4, "loftq_iter": 1},
]


def damaged_settings(settings: dict, rng: random.Random) -> bytes:
    """adapter_config.json with one to three fields changed, or its text cut and stirred."""
    settings = json.loads(json.dumps(settings))
    for _ in range(rng.choice([1, 1, 1, 2])):
        field = rng.choice([*FIELDS, *FIELDS, *UNKNOWN, *settings, *settings])
        if rng.random() < 0.1:
            settings.pop(field, None)
        else:
            settings[field] = rng.choice(VALUES)
    text = json.dumps(settings, ensure_ascii=rng.random() < 0.5)
    kind = rng.random()
    if kind < 0.75:
        return text.encode("utf-8", "surrogatepass")
    if kind < 0.80:
        return text.encode()[: rng.randrange(len(text))]
    if kind < 0.85:
        at = rng.randrange(len(text))
        return text.encode()[:at] + rng.randbytes(rng.randint(1, 4)) + text.encode()[at:]
    return rng.choice(
        [
            b"",
            b"null",
            b"[]",
            b"3",
            b'"lora"',
            b"[" * 200_000,
            b'{"a":' * 5_000,
            text.replace("{", '{"r": NaN, ', 1).encode(),
            text.replace("{", '{"r": ' + "9" * 5_000 + ", ", 1).encode(),
            text.replace("{", '{"lora_alpha": 1e999, ', 1).encode(),
            text.replace("{", '{"base_model_name_or_path": "\\ud800", ', 1).encode(),
            text.encode("utf-16"),
            b"\xef\xbb\xbf" + text.encode(),
            text.encode() + b"}",
            text.replace(":", "=", 1).encode(),
        ]
    )


def damaged_tensors(whole: bytes, rng: random.Random, folder: Path) -> bytes:
    """adapter_model.safetensors with a tensor, its header or its bytes changed."""
    kind = rng.random()
    if kind < 0.55:
        return _changed_tensors(folder, rng)
    if kind < 0.75:
        return _changed_header(whole, rng)
    if kind < 0.80:
        return whole[: rng.randrange(len(whole))]
    if kind < 0.85:
        return rng.choice(
            [
                b"",
                b"\x00" * 8,
                b"\xff" * 64,
                b"version https://git-lfs.github.com/spec/v1\n",
                whole * 2,
            ]
        )
    data = bytearray(whole)
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data) if rng.random() < 0.5 else 600)] = rng.randrange(256)
    return bytes(data)


def _changed_tensors(folder: Path, rng: random.Random) -> bytes:
    state = load_file(folder / "adapter_model.safetensors")
    for _ in range(rng.randint(1, 2)):
        key = rng.choice(sorted(state))
        tensor = state[key]
        other = state[rng.choice(sorted(state))]
        changes = [
            lambda: tensor * 2,
            lambda: torch.full_like(tensor, float("nan")),
            lambda: torch.full_like(tensor, float("inf")),
            lambda: tensor[:-1].contiguous(),
            lambda: tensor.T.contiguous(),
            lambda: tensor.flatten(),
            lambda: tensor[None],
            lambda: torch.zeros(0),
            lambda: torch.zeros(()),
            lambda: torch.zeros(0, 24),
            lambda: tensor.half(),
            lambda: tensor.bfloat16(),
            lambda: tensor.double(),
            lambda: tensor.double() * 1e300,
            lambda: tensor.int(),
            lambda: tensor.bool(),
            lambda: tensor.to(torch.float8_e4m3fn),
            lambda: tensor.to(torch.complex64),
            lambda: other.clone(),
        ]
        name = rng.choice(
            [
                key,
                key,
                key,
                key,
                key.replace("base_model.model.", ""),
                key.replace("base_model.model.", "base_model.model.base_model.model."),
                key.replace(".self_attn", "._orig_mod.self_attn"),
                key.replace("layers.1", "layers.9"),
                key.replace(".weight", ".default.weight"),
                key.replace(".weight", ".a.b.weight"),
                key.replace(".weight", ".bias"),
                "module." + key,
                "lora_A.weight",
                "lora_A",
                "",
                ".",
                "..",
                "base_model.model.model.norm.weight",
                "base_model.model.model.embed_tokens.weight",
                "base_model.model.lm_head.weight",
                "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight",
                "base_model.model.model.layers.0.self_attn.q_proj.weight",
            ]
        )
        if rng.random() < 0.5:
            del state[key]
        if rng.random() < 0.9:
            state[name] = rng.choice(changes)()
    return save({key: value.contiguous().clone() for key, value in state.items()}, _metadata(rng))


def _metadata(rng: random.Random) -> dict:
    texts = ["", "{", "null", "[]", "3", "{}", '{"a": 1}', '{"a": [[1], ["x"]]}', '{"a": [1, 2]}']
    texts += [
        '["a", [0], [1], [2]]',
        '["model.norm", [9999999], [1], [2]]',
        '{"code": 3}',
        "[" * 9999,
    ]
    texts += [
        '{"code": "nf4", "block": 64}',
        '{"lora_alpha": 3, "use_rslora": 0, "alpha_pattern": 5}',
    ]
    names = ["minilora_base", "minilora_merged", "minilora_loftq_base", "minilora_scale"]
    chosen = {name: rng.choice(texts) for name in names if rng.random() < 0.15}
    return {"format": "pt"} | chosen


def _changed_header(whole: bytes, rng: random.Random) -> bytes:
    (length,) = struct.unpack("<Q", whole[:8])
    header, body = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    key = rng.choice([name for name in sorted(header) if name != "__metadata__"])
    header[key][rng.choice(["dtype", "shape", "data_offsets", "more"])] = rng.choice(
        [
            "F16",
            "BF16",
            "I64",
            "U8",
            "F8_E5M2",
            "F4",
            "Q",
            5,
            None,
            [],
            [0],
            [-1],
            [1, 2, 3],
            [0, 0],
        ]
        + [[2**63, 2], [10**9, 10**9, 0], [3, 24], [24, 3], [0, 10**12], "x", {}, [0, 288]]
    )
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body
