"""What is kept between runs: in, the environment; out, the folder."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Of models and measured peaks: $XDG_CACHE_HOME/prunescope, else ~/.cache/prunescope."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "prunescope"
