"""The same runs by transformers, PEFT and bitsandbytes; a reader who deletes this folder still has
everything from scratch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
