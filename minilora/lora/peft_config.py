"""An adapter's settings as PEFT's adapter_config.json, and back.

Every field of PEFT's LoraConfig is here: checked for its type (FIELDS), without effect on what a
loaded adapter answers (NO_EFFECT), or refused by its name where it is switched on (UNSUPPORTED).
"""

from __future__ import annotations

import warnings

from torch import nn

from ..errors import MiniloraError, MiniloraWarning
from ..system.json_files import require, shown
from .adapters import low_rank_layers
from .config import AdapterConfig
from .same_base import loftq_form
from .targets import shortest_names

INIT_TO_PEFT = {"kaiming": True, "random": False}

NAME = {"type": "string", "minLength": 1}
OBJECT = {"type": ["object", "null"]}
FLAG = {"type": ["boolean", "null"]}
POSITIVE = {"type": "integer", "minimum": 1, "maximum": 1_000_000}

FIELDS: dict[str, dict] = {
    "peft_type": {"type": "string"},
    "task_type": {"type": ["string", "null"]},
    "base_model_name_or_path": {"type": ["string", "null"]},
    "r": POSITIVE,
    "lora_alpha": {"type": "number"},
    "lora_dropout": {"type": ["number", "null"]},
    "target_modules": {"type": ["array", "string", "null"], "items": NAME},
    "modules_to_save": {"type": ["array", "null"], "items": NAME},
    "rank_pattern": {"type": ["object", "null"], "additionalProperties": POSITIVE},
    "alpha_pattern": {"type": ["object", "null"], "additionalProperties": {"type": "number"}},
    "init_lora_weights": {"type": ["boolean", "string", "null"]},
    "loftq_config": OBJECT,
    "eva_config": OBJECT,
    "corda_config": OBJECT,
    "lora_ga_config": OBJECT,
    "use_rslora": FLAG,
    "use_dora": FLAG,
    "bias": {"type": "string"},
    "ensure_weight_tying": FLAG,
}
SCHEMA = {"type": "object", "properties": FIELDS}

NO_EFFECT = (
    "auto_mapping",
    "peft_version",
    "revision",
    "inference_mode",
    "megatron_core",  # a module's name, for megatron_config
    "qalora_group_size",  # for use_qalora
    "runtime_config",
)

# off where they are null or false
UNSUPPORTED = (
    "alora_invocation_tokens",
    "arrow_config",
    "exclude_modules",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "layers_pattern",
    "layers_to_transform",
    "lora_bias",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)

# off where they are empty, too: PEFT asks whether there is anything in them
OFF_WHEN_EMPTY = (
    "alora_invocation_tokens",
    "exclude_modules",
    "layer_replication",
    "layers_pattern",
    "layers_to_transform",
    "megatron_config",
    "target_parameters",
)

TASKS = (None, "CAUSAL_LM", "FEATURE_EXTRACTION")

# these choose A and B only, and the file brings its own
STARTS_OF_THEIR_OWN = ("eva", "orthogonal", "mica")


def to_peft(
    model: nn.Module, name: str, config: AdapterConfig, base_model: str | None = None
) -> dict:
    """The content of adapter_config.json."""
    targets = config.targets
    if targets == "all":
        targets = shortest_names(model, list(low_rank_layers(model, name)))
    known = getattr(getattr(model, "config", None), "_name_or_path", None)
    init: dict = {"init_lora_weights": INIT_TO_PEFT.get(config.init, config.init)}
    if loftq_form(model, name, config):
        # the base is quantized before the adapter goes on: nothing is left to repeat
        init = {"init_lora_weights": True}
    elif config.init == "loftq":
        # more rounds stay loftq_niter_N, which PEFT refuses: its own forget the scale
        init["loftq_config"] = {"loftq_bits": 4, "loftq_iter": 1}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if hasattr(model, "generate") else None,
        "base_model_name_or_path": base_model or config.base_model or known or None,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": targets,
        "modules_to_save": list(config.full_modules) or None,
        "rank_pattern": dict(config.rank_pattern),
        "alpha_pattern": dict(config.alpha_pattern),
        **init,
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "bias": "none",
        "fan_in_fan_out": False,
    }


def from_peft(settings: dict, source: str) -> AdapterConfig:
    """An AdapterConfig from the content of adapter_config.json. Raises MiniloraError for a field of
    the wrong type and for what minilora does not have.
    """
    require(settings, SCHEMA, source, "load the adapter with peft, or have it saved again")
    refuse_unsupported(settings, source)
    targets = settings.get("target_modules")
    if not targets:
        raise MiniloraError(
            f"{source}: target_modules is {targets!r}; it must name the modules, such as "
            '["q_proj", "v_proj"]'
        )
    dora, rslora = bool(settings.get("use_dora")), bool(settings.get("use_rslora"))
    everything = isinstance(targets, str) and targets.lower() == "all-linear"
    return AdapterConfig(
        rank=settings.get("r", 8),
        alpha=settings.get("lora_alpha", 8),
        targets="all" if everything else targets,
        dropout=settings.get("lora_dropout") or 0.0,
        init=init_of(settings, source),
        variant={(0, 0): "lora", (0, 1): "rslora", (1, 0): "dora", (1, 1): "rsdora"}[dora, rslora],
        rank_pattern=settings.get("rank_pattern") or {},
        alpha_pattern=settings.get("alpha_pattern") or {},
        full_modules=settings.get("modules_to_save") or (),
        base_model=settings.get("base_model_name_or_path"),
    )


def refuse_unsupported(settings: dict, source: str) -> None:
    """Raise MiniloraError for what would change the answers and is not done here; warn of fields
    that PEFT does not know either.
    """
    if settings.get("peft_type", "LORA") != "LORA":
        raise MiniloraError(
            f"{source}: peft_type is {shown(settings['peft_type'])}; minilora reads LORA adapters "
            "only"
        )
    if settings.get("task_type") not in TASKS:
        raise MiniloraError(
            f"{source}: task_type is {shown(settings['task_type'])}; minilora's models answer with "
            "text (CAUSAL_LM), load this adapter with peft"
        )
    for field in UNSUPPORTED:
        value = settings.get(field)
        off = value is None or value is False or (field in OFF_WHEN_EMPTY and value in ([], {}, ""))
        if not off:
            raise MiniloraError(
                f"{source}: {field} is {shown(value)}, which minilora does not support; "
                "load this adapter with peft"
            )
    if settings.get("bias", "none") != "none":
        raise MiniloraError(
            f'{source}: bias is {settings["bias"]!r}; minilora reads adapters with bias "none" only'
        )
    unknown = settings.keys() - FIELDS.keys() - {*NO_EFFECT, *UNSUPPORTED}
    unknown = {field for field in unknown if settings[field]}
    if unknown:
        warnings.warn(
            f"{source}: {', '.join(sorted(unknown))[:200]}: no fields of PEFT's LoRA; they are "
            "left out, as PEFT leaves them out",
            MiniloraWarning,
            stacklevel=4,
        )


def init_of(settings: dict, source: str) -> str:
    """What our AdapterConfig calls the start that the file names, where it can be repeated."""
    init = settings.get("init_lora_weights", True)
    if not init or init is True:
        return "kaiming" if init else "random"
    if init in STARTS_OF_THEIR_OWN:
        return "kaiming"
    if str(init).startswith("pissa_niter"):
        raise MiniloraError(
            f"{source}: init_lora_weights is {shown(init)}, a random split that cannot be "
            "repeated; convert the adapter to plain LoRA"
        )
    if init in ("olora", "corda", "lora_ga"):
        raise MiniloraError(
            f"{source}: init_lora_weights is {init!r}, which changes the base in a way that "
            "minilora does not repeat; convert the adapter to plain LoRA"
        )
    loftq = settings.get("loftq_config") or {}
    if init == "loftq" and (loftq.get("loftq_bits", 4), loftq.get("loftq_iter", 1)) != (4, 1):
        raise MiniloraError(
            f"{source}: loftq_config is {shown(loftq)}; minilora repeats LoftQ in 4 bits with one "
            "iteration only, convert the adapter to plain LoRA"
        )
    return init
