"""The Comparison: a row for each run and phase, plain values. Times in ns a step, memory in bytes.

Null (None) means "not known"; it is never 0. Additive changes only.
"""

from __future__ import annotations

import msgspec

from prunescope.analysis.schema.encode import json_bytes
from prunescope.analysis.schema.report import Ladder, Report
from prunescope.analysis.schema.sides import SubjectFacts

NOT_VALID = "timing-not-valid"  # the finding that makes times of a row no evidence


class ComparisonRow(msgspec.Struct, kw_only=True):
    """One phase of one run: what papers print of it, its ladder and the rows of its ledger."""

    run: str
    model: str | None
    method: str | None
    family: str | None  # the verdict
    phase: str
    batch: int | None
    prompt_len: int | None
    context: int | None
    sparsity: dict[str, float | None]  # nominal, parameters, flop, bytes
    timed: str  # "unprofiled" (median of samples) | "profiled" (mean wall)
    wall_ns: float  # TTFT of a prefill, TPOT of a decode step
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
    ledger: dict[str, float] | None  # row of the ledger to ns; dense and pruned are walls
    critical: list[str] = []  # ids of critical findings
    comparable: bool = True  # whether dense and pruned ran with equal settings
    no_evidence: list[str] = []  # rows of the ledger that cannot be told from 0

    @property
    def is_evidence(self) -> bool:
        """Whether its speedup is one of the pruning: valid times, and sides that compare."""
        return self.comparable and NOT_VALID not in self.critical


class FailedSubject(msgspec.Struct, kw_only=True):
    """A subject that could not be analysed: it has no row."""

    run: str
    why: str


class Comparison(msgspec.Struct, kw_only=True):
    """Several runs side by side, and the reports that the rows are taken from."""

    schema: int = 1
    tool: str
    baseline: SubjectFacts | None  # the one baseline of all; null: each has its own baseline
    rows: list[ComparisonRow]
    failed: list[FailedSubject] = []
    warnings: list[str] = []
    reports: dict[str, Report] = {}


def to_json(comparison: Comparison) -> bytes:
    """The comparison as UTF-8 JSON, two-space indented."""
    return json_bytes(comparison)
