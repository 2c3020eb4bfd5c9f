"""`python -m minilora`: the command line, where the `minilora` script is not on the path."""

import sys

from .cli.main import main

sys.exit(main())
