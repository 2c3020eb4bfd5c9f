"""Does an adapter's file belong to this base? A few numbers of the base tell."""

from __future__ import annotations

import math
from reprlib import repr as short
from typing import Any

import torch
from torch import nn

from ..errors import MiniloraError
from ..system.json_files import parse_json
from .adapters import adapters, low_rank_layers
from .config import AdapterConfig
from .copies import brought
from .starts import LOFTQ_BASE, SPLITS, packed_form
from .targets import is_linear, original_modules

SAMPLE_KEY = "minilora_base"
LOFTQ_KEY = "minilora_loftq_base"
SCALE_KEY = "minilora_scale"

SCALE_FIELDS = ("lora_alpha", "use_rslora", "alpha_pattern")

# what stands in the file's metadata under the three
NUMBERS = {"type": "array", "items": {"type": "number"}, "maxItems": 64}
SAMPLE = {
    "type": "object",
    "additionalProperties": {
        "type": "array",
        "prefixItems": [{"type": "array", "items": {"type": "integer"}}, NUMBERS],
        "minItems": 2,
        "maxItems": 2,
    },
}
FORM = {"type": "object", "required": ["code"], "properties": {"code": {"type": "string"}}}
SCALES = {"type": "object", "required": list(SCALE_FIELDS)}


def stored_json(text: str | None, schema: dict, source: str) -> Any:
    """What save_adapter wrote into the file's metadata; None where there is nothing."""
    if text is None:
        return None
    return parse_json(text, f"{source}: its metadata", schema, "save the adapter again")


def loftq_form(model: nn.Module, name: str, config: AdapterConfig) -> dict | None:
    """How the base under an adapter from LoftQ's start is quantized; None for other starts and for
    a base that LoftQ decoded in place.
    """
    layers = low_rank_layers(model, name).values() if config.init.startswith("loftq") else ()
    return next((packed_form(layer.original) for layer in layers), None)


def over_quantized(
    config: AdapterConfig, targets: list[nn.Module], metadata: dict, source: str
) -> bool:
    """Whether the targets hold LoftQ's Q already. Raises MiniloraError if they hold something else
    than what the adapter repairs.
    """
    stored = stored_json(metadata.get(LOFTQ_KEY), FORM, source)
    wanted: dict | None = stored or (LOFTQ_BASE if config.init == "loftq" else None)
    forms = [packed_form(module) for module in targets if not isinstance(module, nn.Embedding)]
    if wanted is None or (
        not stored and not any(forms)
    ):  # a base in floating point is split anew, by the same steps
        return False
    for form in forms:
        if form != wanted:
            have = f"in {describe(form)}" if form else "not quantized"
            raise MiniloraError(
                f"{source} repairs (LoftQ) a base in {describe(wanted)}, and this one is {have}; "
                + (
                    "quantize it so before load_adapter"
                    if stored
                    else "load it unquantized, LoftQ does the rest (--code none)"
                )
            )
    return True


def describe(form: dict) -> str:
    block = f" blocks of {form['block']}, double={form.get('double')}" if "block" in form else ""
    return form["code"] + block


def check_same_start(
    model: nn.Module, config: AdapterConfig, name: str, metadata: dict, source: str
) -> None:
    """Raise MiniloraError if the file's numbers belong to another split of the base than the one
    adapter `name` has made.
    """
    there = adapters(model)[name]
    stored = stored_json(metadata.get(LOFTQ_KEY), FORM, source)
    split = [
        init if init.startswith(SPLITS) else "plain"
        for init in (there.init, "loftq" if stored else config.init)
    ]
    if split[0] != split[1] or stored != loftq_form(model, name, there):
        raise MiniloraError(
            f"{source} began as {split[1]}, adapter {name!r} as {split[0]} over its own base; "
            "load it under another name on a fresh base"
        )


def check_same_scale(model: nn.Module, config: AdapterConfig, name: str, source: str) -> None:
    """Raise MiniloraError if these weights would be multiplied by another α/r than the one they
    were trained with.
    """
    for path, layer in low_rank_layers(model, name).items():
        if layer.scale[name] != config.scale_of(path):
            raise MiniloraError(
                f"{source} was trained with alpha {config.alpha_of(path):g} and rank "
                f"{config.rank_of(path)} at {path}, which scale by "
                f"{config.scale_of(path):g}; adapter {name!r} scales by "
                f"{layer.scale[name]:g}, so load it under another name"
            )


def changed_scale(config: AdapterConfig, metadata: dict, source: str) -> str | None:
    """A line that says so if adapter_config.json was edited since it was saved and the adapter
    speaks louder or softer for it. The edited value is what counts, as in PEFT.
    """
    saved = stored_json(metadata.get(SCALE_KEY), SCALES, source)
    now = (config.alpha, config.rslora, dict(config.alpha_pattern))
    changed = [
        f"{field} {short(saved[field])}"
        for field, value in zip(SCALE_FIELDS, now)
        if saved and saved[field] != value
    ]
    if not changed:
        return None
    return (
        f"{source} was edited: the adapter was saved with {', '.join(changed)}; what stands there "
        "now is what counts, as in PEFT"
    )


def base_sample(model: nn.Module) -> dict[str, list]:
    """A few numbers of the base that neither adapters nor quantization change: name -> [shape,
    values], from embeddings and norms.
    """
    plain = plain_weights(model)
    chosen = sorted(plain, key=lambda key: -plain[key].numel())[:4]
    return {key: sample_of(plain[key]) for key in sorted(chosen)}


def plain_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Name -> weight of embeddings and norms, but for those that came with an adapter."""
    modules = original_modules(model)
    came = {id(modules[path].get_parameter(name)) for path, name in brought(model)}
    return {
        f"{path}.{key}": value
        for path, module in modules.items()
        if not is_linear(module)
        for key, value in module.named_parameters(recurse=False)
        if value.is_floating_point() and value.device.type != "meta" and id(value) not in came
    }


def sample_of(weight: torch.Tensor) -> list:
    """[shape, sixteen of its numbers]."""
    flat = weight.detach().flatten()
    places = torch.linspace(0, flat.numel() - 1, 16, dtype=torch.float64).long()
    return [list(weight.shape), [round(v, 8) for v in flat[places.to(flat.device)].tolist()]]


def compare_base(model: nn.Module, stored: str | None, source: str) -> None:
    """Raise MiniloraError if the sample stored with an adapter is of another base. Files without a
    sample (PEFT's) pass.
    """
    plain = plain_weights(model)
    for key, (shape, values) in (stored_json(stored, SAMPLE, source) or {}).items():
        ours = sample_of(plain[key]) if key in plain else [None, []]
        if ours[0] != shape or not all(
            math.isclose(a, b, rel_tol=0.01, abs_tol=1e-6) for a, b in zip(ours[1], values)
        ):
            raise MiniloraError(
                f"{source} was trained on another base: {key} differs from the model's; load "
                "it on the base it was made for"
            )
