"""LoRA: small matrices beside a frozen model.

What it replaces: the parts of PEFT that fine-tuning with LoRA, rsLoRA and DoRA needs, in PEFT's
file format.
How it works: read layer.py first (the idea), then adapters.py (the model's switchboard), files.py
(PEFT's folder) and folder.py (anybody's), starts.py (PiSSA, LoftQ). This file only gathers their
names: `from minilora import lora; lora.add_lora(model)`.
What it leaves out: PEFT's other methods.
Where numerics differ: each file says so for itself.
"""

from .adapters import (
    active_adapters,
    adapted_layers,
    adapters,
    add_adapter,
    add_lora,
    count_parameters,
    disabled,
    merge,
    mixed_batch,
    remove_adapter,
    trainable_parameters,
    unload,
    unmerge,
    use_adapter,
)
from .config import AdapterConfig
from .embedding import FullModule, LoRAEmbedding
from .files import load_adapter, save_adapter, save_adapters
from .layer import LoRALinear
from .mixing import mix_adapters
from .rates import loraplus_groups
from .starts import linear_weights, loftq, pissa
from .state import adapter_state, set_adapter_state

__all__ = [
    "AdapterConfig",
    "FullModule",
    "LoRAEmbedding",
    "LoRALinear",
    "active_adapters",
    "adapted_layers",
    "adapter_state",
    "adapters",
    "add_adapter",
    "add_lora",
    "count_parameters",
    "disabled",
    "linear_weights",
    "load_adapter",
    "loftq",
    "loraplus_groups",
    "merge",
    "mix_adapters",
    "mixed_batch",
    "pissa",
    "remove_adapter",
    "save_adapter",
    "save_adapters",
    "set_adapter_state",
    "trainable_parameters",
    "unload",
    "unmerge",
    "use_adapter",
]
