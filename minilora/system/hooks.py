"""Whether anybody watches a module by a hook: a step that goes around the module's call would leave
them waiting.
"""

from __future__ import annotations

from torch import nn


def is_watched(module: nn.Module) -> bool:
    """True if calling `module` would call a hook of its own: before or after it, going forward or
    back.
    """
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
