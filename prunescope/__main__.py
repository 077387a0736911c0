"""`python -m prunescope`: the same as the command."""

from __future__ import annotations

import sys

from prunescope.cli import main

sys.exit(main())
