"""The Comparison: a row for each run and phase. Times are in ns per step, memory in bytes.

Null (None) means "not known"; it is never 0. Only additive changes are made.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from prunescope.analysis.schema.encode import json_bytes
from prunescope.analysis.schema.fields import meaning
from prunescope.analysis.schema.report import INVALID_TIMES, Ladder, Report
from prunescope.analysis.schema.sides import SideFacts


class ComparisonRow(msgspec.Struct, kw_only=True):
    """One phase of one run: what papers print of it, its ladder and the rows of its ledger."""

    run: str
    model: str | None
    method: str | None
    family: Annotated[str | None, meaning("the verdict")]
    display_name: Annotated[str | None, meaning("how the method is called; null: as it is")] = None
    phase: str
    batch: int | None
    prompt_len: int | None
    context: int | None
    sparsity: Annotated[dict[str, float | None], meaning("nominal, parameters, flop, bytes")]
    timed: Annotated[str, meaning('"unprofiled" (median of samples) | "profiled" (mean wall)')]
    wall_ns: Annotated[float, meaning("of a step: TTFT of a prefill, TPOT of a decode step")]
    wall_ci95: list[float] | None
    dense_wall_ns: float | None
    tokens_per_s: float | None
    dense_tokens_per_s: float | None
    weight_bytes: int | None
    dense_weight_bytes: int | None
    kv_bytes: int | None
    dense_kv_bytes: int | None
    peak_memory_bytes: int | None
    dense_peak_memory_bytes: int | None
    ladder: Ladder | None
    ledger: Annotated[
        dict[str, float] | None, meaning("row of the ledger to ns; dense and pruned are walls")
    ]
    critical: Annotated[list[str], meaning("ids of critical findings")] = []
    comparable: Annotated[bool, meaning("whether dense and pruned ran with equal settings")] = True
    no_evidence: Annotated[
        list[str], meaning("rows of the ledger that are not distinguishable from 0")
    ] = []
    token_ids: Annotated[
        str | msgspec.UnsetType,
        meaning("where they came from, of a step whose work depends on them: routers decide"),
    ] = msgspec.UNSET

    items_per_s: Annotated[
        float | None, meaning("images and the like, of a model without a cache")
    ] = None
    dense_items_per_s: float | None = None
    pass_kind: Annotated[
        str | msgspec.UnsetType,
        meaning("forward or training, where a step is one and decodes nothing: it has no prompt"),
    ] = msgspec.UNSET

    @property
    def called(self) -> str | None:
        """The display name of the method, else the method as it was given."""
        return self.display_name or self.method

    @property
    def is_evidence(self) -> bool:
        """Whether the speedup is one of the pruning: times are valid, and the sides compare."""
        return self.comparable and INVALID_TIMES.isdisjoint(self.critical)


class FailedCandidate(msgspec.Struct, kw_only=True):
    """A run or trace that could not be analysed and has no row."""

    run: str
    why: str


class Comparison(msgspec.Struct, kw_only=True):
    """Several runs side by side, and the reports that the rows are taken from."""

    schema: int = 1
    tool: str
    baseline: Annotated[
        SideFacts | None, meaning("the one baseline of all; null: each has its own baseline")
    ]
    rows: list[ComparisonRow]
    failed: list[FailedCandidate] = []
    warnings: list[str] = []
    reports: dict[str, Report] = {}


def to_json(comparison: Comparison) -> bytes:
    """Return the comparison as UTF-8 JSON, indented by two spaces."""
    return json_bytes(comparison)
