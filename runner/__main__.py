"""``python -m runner``: the same program as the ``.pyz``."""

import sys

from runner.cli import main

if __name__ == "__main__":
    sys.exit(main())
