"""The blocks of a run.json: what each key is, with its unit. `taxonomy.run` has the whole.

Null and absent: not known. `taxonomy.run_schema` checks what a file from a stranger has there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prunescope.taxonomy.json_fields import as_read, left_out


@dataclass(kw_only=True)
class Matrix:
    """One weight [..., N, K], K being the axis that a GEMM sums over: shares are 0 … 1."""

    name: str | None = None
    layer: int | None = None
    role: str | None = None
    shape: list[int] | None = None
    zeros: float | None = None  # of all entries
    groups_2_of_4: float | None = None  # of the groups of four along K, with two zeros or more
    zero_rows: float | None = None  # of the N rows
    zero_columns: float | None = None  # of the K columns
    applied: str | None = left_out()  # what makes the weight anew at every call
    as_read: Mapping[str, Any] | None = as_read()


@dataclass(kw_only=True)
class ModuleCounts:
    """What a module of a dynamic family counted: an entry of both lists a forward."""

    unit: str | None = None  # "rows" | "blocks" | "layers" | "channels" | "keys"
    active: list[int] = field(default_factory=list)
    total: list[int] = field(default_factory=list)
    as_read: Mapping[str, Any] | None = as_read()


@dataclass(kw_only=True)
class Census:
    """What the weights and the run are, whoever made them so."""

    matrices: list[Matrix] = field(default_factory=list)
    # By phase and module name.
    dynamic: dict[str, dict[str, ModuleCounts]] = left_out(dict)
    as_read: Mapping[str, Any] | None = as_read()
