"""Whether a serving engine runs what a pruning leaves, by a dated table with sources.

In: the name of an engine, a family and its knobs. Out: `EngineRuns`. The table is
engine_formats.json, the one that docs/serving.md prints; what it does not hold is unknown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from prunescope.taxonomy.family import Family

_TABLE = Path(__file__).with_name("engine_formats.json")
_UNKNOWN = "not looked up"


@dataclass(frozen=True, slots=True)
class EngineRuns:
    """Whether an engine runs a format: None where it is not known, with the reason and a source."""

    runs: bool | None
    why: str
    source: str | None = None


@cache
def _table() -> dict[str, Any]:
    """Return the table."""
    table: dict[str, Any] = json.loads(_TABLE.read_text(encoding="utf-8"))
    return table


def table_date() -> str:
    """Return the day on which the pages of the table were read."""
    return str(_table()["as_of"])


def engine_runs(engine: str | None, family: Family | None, knobs: Mapping[str, Any]) -> EngineRuns:
    """Return whether an engine runs what a family leaves.

    Args:
        engine: The name that `--runtime` takes; None: no engine is named.
        family: The family; None: the dense model.
        knobs: Its options.
    """
    if engine is None:
        return EngineRuns(None, "no engine is named: --runtime")
    change = _change_of(family, knobs)
    for row in (*_table()["rows"], *_table()["all"]):
        if row["change"] == change and row.get("engine", engine) == engine:
            return EngineRuns(row["runs"], row["why"], row.get("source"))
    return EngineRuns(None, _UNKNOWN)


def _change_of(family: Family | None, knobs: Mapping[str, Any]) -> str | None:
    """Return what a family does to a checkpoint, in the words of the table."""
    if family is None:
        return "nothing"
    if family.is_dynamic:
        return "layers skipped by input" if family.skips_layers else None
    if family.without_sparse_units:
        return "2:4"
    if family.zeroes_weights:
        return "zeros in place"
    if family.skips_layers:
        return "fewer layers" if knobs.get("unit", "layer") == "layer" else None
    if {*family.cuts} <= {"heads", "channels"}:
        return "narrower layers"
    return "fewer experts" if family.cuts_experts else None
