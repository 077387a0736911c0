"""Short names for paths: in, paths; out, names that tell them apart and are never absolute."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def ends_apart(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell all of them apart; equal paths are numbered."""
    parts = [[part for part in path.parts if part != path.anchor] for path in paths]
    longest = max((len(p) for p in parts), default=1)
    for count in range(1, longest + 1):
        names = ["/".join(p[-count:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    if len({tuple(p) for p in parts}) == 1:
        return [p[-1] for p in parts]
    return [f"{p[-1]} ({i})" for i, p in enumerate(parts, 1)]
