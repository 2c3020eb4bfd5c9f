"""One loop that fine-tunes anything here: read config.py, batches.py, loop.py; checks.py runs
before the first step.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
