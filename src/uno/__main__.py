"""``python -m uno``: the same as ``uno``."""

import sys

from uno.cli import main

sys.exit(main())
