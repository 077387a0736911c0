"""JSON files that prunescope itself writes, identified by their keys.

In: a file or its content that a command could not use. Out: what it is, and which command takes it.
A person who gives the wrong file of a sweep learns so, instead of that it is not a trace.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunescope.taxonomy.errors import PrunescopeError

_MOST_BYTES = 8 << 20  # of a file that is looked at; quality and lists of sweeps are far smaller
_OF_QUALITY = (
    "is the quality of a model: losses, and no times",
    "give the sweep's folder to `prunescope pareto`, or to `prunescope predict --rank --losses`",
)
_OF_SWEEP = ("lists the results of a sweep", "give the sweep's folder to `prunescope pareto`")
# A row: keys that the file has, what it is, and which command takes it. The first that fits counts.
_KNOWN: tuple[tuple[frozenset[str], tuple[str, str]], ...] = (
    (frozenset({"weights", "dense", "pruned"}), _OF_QUALITY),
    (frozenset({"perplexity", "scored_tokens"}), _OF_QUALITY),
    (frozenset({"config", "results"}), _OF_SWEEP),
    (
        frozenset({"subject", "baseline", "device", "phases", "tool"}),
        ("is a report", "`prunescope check` takes it; analyze its run or trace for another report"),
    ),
    (
        frozenset({"model", "phases", "versions"}),
        ("is the manifest of a run", "give the run's folder"),
    ),
    (
        frozenset({"subject", "phases"}),
        (
            "is a result that prunescope wrote",
            "give what it was made of: a run, a trace, or a sweep's folder",
        ),
    ),
)


def own_document(content: Any) -> tuple[str, str] | None:
    """Return what a file of ours is, and the command that takes it; None for other files.

    Limitations: a file counts as ours by its keys alone.
    """
    if not isinstance(content, Mapping):
        return None
    return next((text for keys, text in _KNOWN if keys <= content.keys()), None)


def refuse_own_file(path: Path) -> None:
    """Raise PrunescopeError that names a file of ours and the command that takes it.

    Nothing happens for another file.
    """
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    if (recognised := own_document(content)) is not None:
        raise PrunescopeError(f"{path.name} {recognised[0]}", hint=recognised[1])
