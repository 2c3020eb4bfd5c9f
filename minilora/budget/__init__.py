"""The budget: what a run will need in memory, computation, time and money, before anything is
rented.

What it replaces: accelerate's `estimate-memory`, calculators on the web, and a trial run on a
rented card.
How it works: `setup` is what is asked; `catalog` knows models and cards. Of the closed forms
(`forms/`), `memory` counts what stays, `activations` what backward needs, `step_peak` the worst
moment, `compute` operations and time. `estimate` puts them together; `advice` says what to change
to make a run fit; `table` and `picture` show it. In `measure/`, `ledger` sees the same peak on
tensors that have no memory, `allocator` what CUDA's allocator makes of it. `published/` sets the
figures and rules of others beside both.
What it leaves out: several cards (the lesson on distributed training has its own forms).
"""

from . import advice, catalog
from .estimate import Budget, estimate
from .forms import compute
from .setup import Setup

__all__ = ["Budget", "Setup", "advice", "catalog", "compute", "estimate"]
