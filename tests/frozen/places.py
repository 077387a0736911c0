"""The folders from which the frozen results are made."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DIGESTS = Path(__file__).parent / "digests"
# A worktree of another commit lies elsewhere, and is told where the data is.
DATA = Path(os.environ.get("FROZEN_DATA", ROOT.parent / "shared" / "data"))
