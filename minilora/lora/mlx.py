"""Adapters of mlx-lm, Apple's trainer, as PEFT's.

What it replaces: `mlx_lm.tuner.utils.load_adapters`.
How it works: mlx-lm writes adapters.safetensors beside an adapter_config.json of its own. A layer
has lora_a (in, r) and lora_b (r, out), PEFT's two transposed, and

    y = x Wᵀ + scale · (x lora_a) lora_b

where `scale` stands as it is in lora_parameters, so α = scale · r. DoRA's `m` is the magnitude. An
adapted embedding has lora_a (tokens, r) and lora_b (r, dim); a tied head reads it adapted, too.
What it leaves out: whole fine-tunes (fine_tune_type "full"), DoRA on embeddings, which mlx-lm
defines otherwise, and adapters.npz of the first versions.
Where numerics differ: nowhere; the base that mlx-lm trained on is often in its own 4 bits, though.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ..errors import MiniloraError
from ..system.json_files import require, shown
from .config import PREFIX, AdapterConfig

WEIGHTS = "adapters.safetensors"

SCHEMA = {
    "type": "object",
    "required": ["lora_parameters"],
    "properties": {
        "fine_tune_type": {"type": "string"},
        "model": {"type": ["string", "null"]},
        "lora_parameters": {
            "type": "object",
            "required": ["rank", "scale"],
            "properties": {
                "rank": {"type": "integer", "minimum": 1, "maximum": 1_000_000},
                "scale": {"type": "number", "exclusiveMinimum": 0, "maximum": 1_000_000},
                "dropout": {"type": "number"},
            },
        },
    },
}


def is_mlx(settings: object) -> bool:
    """Whether adapter_config.json is mlx-lm's, which has no peft_type."""
    return (
        isinstance(settings, dict)
        and "peft_type" not in settings
        and ("lora_parameters" in settings or "fine_tune_type" in settings)
    )


def from_mlx(
    settings: dict,
    state: Mapping[str, Tensor],
    modules: Mapping[str, nn.Module],
    tied: tuple[str, str] | None,
    source: str,
) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """mlx-lm's settings and tensors as ours, for a model with `modules` whose embedding and head
    are at `tied` if they are one. Raises MiniloraError for what is no LoRA or DoRA.
    """
    kind = settings.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise MiniloraError(
            f"{source}: fine_tune_type is {shown(kind)}: mlx-lm's file holds no adapter but whole "
            "weights; write the model with mlx_lm.fuse and give that folder as the model"
        )
    require(settings, SCHEMA, source, "copy the folder again from where mlx-lm wrote it")
    given = settings["lora_parameters"]
    rank, scale = int(given["rank"]), given["scale"]
    spelled: dict[str, Tensor] = {}
    for key, tensor in state.items():
        path, _, name = key.rpartition(".")
        embedding = isinstance(modules.get(path), nn.Embedding)
        if embedding and kind == "dora":
            raise MiniloraError(
                f"{source}: {path} is an embedding under mlx-lm's DoRA, which is another one than "
                "PEFT's; write the model with mlx_lm.fuse"
            )
        if name not in ("lora_a", "lora_b", "m") or tensor.dim() != (1 if name == "m" else 2):
            raise MiniloraError(
                f"{source}: {shown(key)} is no lora_a, lora_b or m as mlx-lm writes them for "
                "linear layers; write the model with mlx_lm.fuse"
            )
        spelled |= _spell(path, name, tensor, embedding)
        if embedding and tied and path == tied[0]:
            # mlx-lm's tied head reads the adapted table: (x lora_bᵀ) lora_aᵀ
            other = {"lora_a": "lora_b", "lora_b": "lora_a"}[name]
            spelled |= _spell(tied[1], other, tensor.T, False)
    config = AdapterConfig(
        rank=rank,
        alpha=scale * rank,
        targets=sorted({_path(key) for key in spelled}) or ["none"],
        dropout=given.get("dropout", 0.0),
        variant=kind,
        base_model=settings.get("model"),
    )
    return config, spelled


def _spell(path: str, name: str, tensor: Tensor, embedding: bool) -> dict[str, Tensor]:
    """One of mlx-lm's tensors under PEFT's name and in its form."""
    if name == "m":
        return {f"{PREFIX}{path}.lora_magnitude_vector": tensor}
    letter = name[-1].upper()
    end = f"lora_embedding_{letter}" if embedding else f"lora_{letter}.weight"
    return {f"{PREFIX}{path}.{end}": tensor.T.contiguous()}


def _path(key: str) -> str:
    return key.removeprefix(PREFIX).partition(".lora_")[0]
