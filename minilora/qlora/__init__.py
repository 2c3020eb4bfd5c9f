"""Adapters over a frozen base in 4 or 8 bits: read four_bit.py, then int8.py."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
