"""`python -m prunescope`: the same as the command."""

from __future__ import annotations

import sys

import prunescope

if __name__ == "__main__":
    sys.exit(prunescope.main())
