"""A Llama from scratch whose logits equal transformers': read decoder.py, then model.py."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
