"""Replayed GEMMs as tables for data frames and CSV.

In: Replays and the report of their run. Out: Records. Times are ns of a call; null is unknown,
never 0.
"""

from __future__ import annotations

from typing import Any

from prunescope.analysis.report.records import Records, structs
from prunescope.analysis.schema.replay import ReplayLine
from prunescope.analysis.schema.report import Report
from prunescope.taxonomy.replays import Replays, ReplayTimes

_GEMM = {
    "phase": str, "role": str, "batch": int, "m": int, "n": int, "k": int, "dtype": str,
    "align": int, "ideal_ns": float, "bound": str, "share_of_bound": float, "kernel": str,
    "tile": str,
}  # fmt: skip
_TIMES = ("warm_ns", "warm_low", "warm_high", "cold_ns", "cold_low", "cold_high")
_CURVE = {
    "phase": str, "role": str, "axis": str, "m": int, "n": int, "k": int, "dtype": str,
    "width": int, "step_ns": float, "base_ns": float,
}  # fmt: skip


def shape_records(replays: Replays) -> Records:
    """Return a row for each shape: why it was replayed, its times with their intervals, its bound.

    Args:
        replays: The replayed GEMMs.
    """
    columns: dict[str, Any] = {"reasons": str, **_GEMM, **dict.fromkeys(_TIMES, float)}
    rows = (
        {
            "reasons": " ".join(gemm.reasons),
            **{name: getattr(gemm, name) for name in _GEMM},
            **dict(zip(_TIMES, [*_ends(gemm.warm), *_ends(gemm.cold)], strict=True)),
            "timing_valid": replays.timing_valid,
        }
        for gemm in replays.gemms
    )
    return Records("shapes", {**columns, "timing_valid": bool}, tuple(rows))


def curve_records(replays: Replays) -> Records:
    """Return a row for each size of a curve over N or K.

    Args:
        replays: The replayed GEMMs.
    """
    columns: dict[str, Any] = {**_CURVE, "size": int, "ns": float, "timing_valid": bool}
    rows = (
        {
            **{name: getattr(curve, name) for name in _CURVE},
            "size": size,
            "ns": ns,
            "timing_valid": replays.timing_valid,
        }
        for curve in replays.curves
        for size, ns in zip(curve.sizes, curve.ns, strict=True)
    )
    return Records("curves", columns, tuple(rows))


def verdict_records(report: Report | None) -> Records:
    """Return a row for each role and phase: its time in the model and alone, and the verdict.

    Args:
        report: The report of the run whose GEMMs were replayed; without one there are no rows.
    """
    phases = report.phases if report is not None else {}
    rows = (
        {"phase": name, **row}
        for name, phase in phases.items()
        if phase.replay is not None
        for row in structs("verdicts", ReplayLine, phase.replay.lines)
    )
    columns = {"phase": str, **structs("verdicts", ReplayLine, ()).columns}
    return Records("verdicts", columns, tuple(rows))


def _ends(times: ReplayTimes | None) -> tuple[float | None, float | None, float | None]:
    """Return a time and the ends of its interval; None for what is unknown."""
    if times is None:
        return None, None, None
    low, high = times.ci95 or (None, None)
    return times.ns, low, high
