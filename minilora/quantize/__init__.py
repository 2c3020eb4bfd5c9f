"""Blocks of numbers in few bits: code books, scales, packing, and the kernels that do it fast.

Read codebooks.py (where the sixteen values come from), then kernels/plain.py and blockwise.py;
kernels/ holds the same operations, encode and decode, once for each kind of machine.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
