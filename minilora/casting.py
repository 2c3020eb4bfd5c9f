"""What autocast wants, for operations that are not on its list.

What it replaces: `torch.amp.custom_fwd`, which casts every argument, the large frozen ones too.
How it works: inside a `torch.autocast` region torch casts the inputs of its own products. A
hand-written autograd function is called with its inputs as they are, so it asks for the region's
type by itself.
What it leaves out: nothing more.
Where numerics differ: nowhere. Devices without autocast, such as "meta", where asking is an error
in torch, answer None.
"""

from __future__ import annotations

import torch


def autocast_dtype(device: str) -> torch.dtype | None:
    """The type of the autocast region that we are in, for a device type such as "cpu"; None outside
    one.
    """
    known = torch.amp.is_autocast_available(device)
    return torch.get_autocast_dtype(device) if known and torch.is_autocast_enabled(device) else None
