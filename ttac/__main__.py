"""`python -m ttac`: the command line where the script `ttac` is not on the path."""

from __future__ import annotations

import sys

from ttac.cli import main

if __name__ == "__main__":
    sys.exit(main())
