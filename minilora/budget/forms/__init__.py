"""The budget's closed forms: bytes and operations from shapes alone."""
