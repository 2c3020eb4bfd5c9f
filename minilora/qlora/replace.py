"""The one walk that puts other layers where a model's linear layers stand: all of them, or none.

What it replaces: `replace_with_bnb_linear` of transformers.
How it works: every replacement is made first and put in its place only when the last one is made,
so that an error leaves the model as it was. A layer that stands in several places (a tied one)
stands there again as one layer. Embeddings stay, and so does the output head, which is known by one
rule (lora/targets.py) for 4 bits, 8 bits and adapters.
What it leaves out: subclasses of nn.Linear, such as the projection inside nn.MultiheadAttention,
whose owner reads its weight by name and never calls it; hooks on the layers that go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from ..errors import MiniloraError
from ..lora.layer import Adapted
from ..lora.targets import is_head, put


def replace_linears(
    model: nn.Module, make: Callable[[nn.Linear, str], nn.Module], skip: Sequence[str] = ()
) -> nn.Module:
    """Put make(linear, path) where each nn.Linear of `model` stands, but for the head and for names
    or whole paths in `skip`, in place. Returns the model.

    Raises MiniloraError if adapters are on the model or nothing is there to replace, and whatever
    `make` raises; the model is then as it was.
    """
    modules = dict(model.named_modules(remove_duplicate=False))  # a tied layer under each name
    adapted = next((path for path, module in modules.items() if _adapted(module)), None)
    if adapted is not None:
        raise MiniloraError(
            f"{adapted} has an adapter already; quantize the model first, then add the adapter"
        )
    left_alone = {
        module
        for path, module in modules.items()
        if {path, path.rpartition(".")[2]} & set(skip) or is_head(model, path, module)
    }
    linears = {
        path: module
        for path, module in modules.items()
        # the model itself has no parent in which something could take its place
        if path and type(module) is nn.Linear and module not in left_alone
    }
    if not linears:
        raise MiniloraError(
            f"{type(model).__name__} has no linear layer to quantize: there is no nn.Linear beside "
            "embeddings and output head; is it quantized already?"
        )
    made: dict[nn.Linear, nn.Module] = {}
    for path, linear in linears.items():
        if linear not in made:
            made[linear] = make(linear, path)
    for path, linear in linears.items():
        put(model, path, made[linear])
    return model


def _adapted(module: nn.Module) -> bool:
    """Whether an adapter stands here, ours of any kind or PEFT's."""
    return isinstance(module, Adapted) or hasattr(module, "lora_A")
