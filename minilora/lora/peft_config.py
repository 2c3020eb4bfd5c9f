"""An adapter's settings as PEFT's adapter_config.json, and back."""

from __future__ import annotations

from torch import nn

from ..errors import MiniloraError
from .adapters import low_rank_layers
from .config import AdapterConfig
from .same_base import loftq_form
from .targets import shortest_names

INIT_TO_PEFT = {"kaiming": True, "random": False}

UNSUPPORTED = (
    "layers_to_transform",
    "exclude_modules",
    "fan_in_fan_out",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "velora_config",
    "monteclora_config",
    "kasa_config",
)


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
    """An AdapterConfig from the content of adapter_config.json. Raises MiniloraError for what
    minilora does not have.
    """
    if not isinstance(settings, dict) or settings.get("peft_type", "LORA") != "LORA":
        kind = settings.get("peft_type") if isinstance(settings, dict) else type(settings).__name__
        raise MiniloraError(f"{source}: peft_type is {kind!r}; minilora reads LORA adapters only")
    for field in UNSUPPORTED:
        if settings.get(field):
            raise MiniloraError(
                f"{source}: {field} is {settings[field]!r}, which minilora does not support; "
                "load this adapter with peft"
            )
    if settings.get("bias", "none") != "none":
        raise MiniloraError(
            f'{source}: bias is {settings["bias"]!r}; minilora reads adapters with bias "none" only'
        )
    init = settings.get("init_lora_weights", True)
    init = {True: "kaiming", False: "random"}.get(init, init) if isinstance(init, bool) else init
    if init in ("eva", "orthogonal"):  # these choose A and B only, and the file brings its own
        init = "kaiming"
    if str(init).startswith("pissa_niter"):
        raise MiniloraError(
            f"{source}: init_lora_weights is {init!r}, a random split that cannot be "
            "repeated; convert the adapter to plain LoRA"
        )
    loftq = settings.get("loftq_config") or {}
    if init == "loftq" and (loftq.get("loftq_bits", 4), loftq.get("loftq_iter", 1)) != (4, 1):
        raise MiniloraError(
            f"{source}: loftq_config is {loftq}; minilora repeats LoftQ in 4 bits with one "
            "iteration only, convert the adapter to plain LoRA"
        )
    targets = settings.get("target_modules")
    if not targets:
        raise MiniloraError(
            f"{source}: target_modules is {targets!r}; it must name the modules, such as "
            '["q_proj", "v_proj"]'
        )
    dora, rslora = bool(settings.get("use_dora")), bool(settings.get("use_rslora"))
    return AdapterConfig(
        rank=settings.get("r", 8),
        alpha=settings.get("lora_alpha", 8),
        targets="all" if isinstance(targets, str) and targets.lower() == "all-linear" else targets,
        dropout=settings.get("lora_dropout") or 0.0,
        init=init,
        variant={(0, 0): "lora", (0, 1): "rslora", (1, 0): "dora", (1, 1): "rsdora"}[dora, rslora],
        rank_pattern=settings.get("rank_pattern") or {},
        alpha_pattern=settings.get("alpha_pattern") or {},
        full_modules=settings.get("modules_to_save") or (),
        base_model=settings.get("base_model_name_or_path"),
    )
