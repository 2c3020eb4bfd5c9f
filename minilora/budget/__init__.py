"""The budget: what a run will need in memory, computation, time and money, before anything is
rented.

What it replaces: accelerate's `estimate-memory`, calculators on the web, and a trial run on a
rented card.
How it works: `catalog` knows models and cards, `memory` what stays, `activations` what backward
needs, `moments` the peak, `compute` the operations and the time; `estimate` puts them together, and
`advice` says what to change to make a run fit. `ledger` measures the same peak with tensors that
have no memory, `allocator` what CUDA's allocator makes of it.
What it leaves out: several cards (the lesson on distributed training has its own forms).
Where numerics differ: nowhere; every file says how exact it is.
"""

from . import advice, catalog
from .estimate import Budget, estimate
from .forms import compute
from .setup import Setup

__all__ = ["Budget", "Setup", "advice", "catalog", "compute", "estimate"]
