"""The budget measured: a step on fake tensors, its ledger, and the allocator replayed."""
