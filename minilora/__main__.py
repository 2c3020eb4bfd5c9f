"""`python -m minilora`: the command line, where the `minilora` script is not on the path.

What it replaces: nothing. How it works: see cli.py. What it leaves out: nothing. Where numerics
differ: nowhere.
"""

import sys

from .cli.main import main

sys.exit(main())
