"""Replayed GEMMs as tables for data frames and CSV: in, Replays and the report of their run; out,
Records. Times in ns a call; null is unknown, never 0.
"""

from __future__ import annotations

from typing import Any

from prunescope.analysis.report.records import Records, structs
from prunescope.analysis.schema.replay import ReplayLine
from prunescope.analysis.schema.report import Report
from prunescope.taxonomy.replays import Replays, ReplayTimes

_SHAPE = {"phase": str, "role": str, "batch": int, "m": int, "n": int, "k": int, "dtype": str}
_GEMM = {
    **_SHAPE,
    "align": int,
    "ideal_ns": float,
    "bound": str,
    "share_of_bound": float,
    "kernel": str,
    "tile": str,
}
_TIMES = ("warm_ns", "warm_low", "warm_high", "cold_ns", "cold_low", "cold_high")
_CURVE = {
    "phase": str,
    "role": str,
    "axis": str,
    "m": int,
    "n": int,
    "k": int,
    "dtype": str,
    "width": int,
    "step_ns": float,
    "base_ns": float,
}


def shape_records(replays: Replays) -> Records:
    """A row a shape: why it was replayed, its times with their intervals, its bound."""
    columns: dict[str, Any] = {"reasons": str, **_GEMM, **dict.fromkeys(_TIMES, float)}
    rows = []
    for one in replays.gemms:
        times = [*_ends(one.warm), *_ends(one.cold)]
        rows.append(
            {
                "reasons": " ".join(one.reasons),
                **{name: getattr(one, name) for name in _GEMM},
                **dict(zip(_TIMES, times, strict=True)),
                "timing_valid": replays.timing_valid,
            }
        )
    return Records("shapes", {**columns, "timing_valid": bool}, tuple(rows))


def curve_records(replays: Replays) -> Records:
    """A row a size of a curve over N or K."""
    columns: dict[str, Any] = {**_CURVE, "size": int, "ns": float, "timing_valid": bool}
    rows = (
        {
            **{name: getattr(one, name) for name in _CURVE},
            "size": size,
            "ns": ns,
            "timing_valid": replays.timing_valid,
        }
        for one in replays.curves
        for size, ns in zip(one.sizes, one.ns, strict=True)
    )
    return Records("curves", columns, tuple(rows))


def verdict_records(report: Report | None) -> Records:
    """One row per role and phase of the run: in the model and alone, and the verdict."""
    found = {
        name: phase.replay
        for name, phase in (report.phases.items() if report is not None else ())
        if phase.replay is not None
    }
    columns = {"phase": str, **structs("verdicts", ReplayLine, ()).columns}
    rows = (
        {"phase": name, **row}
        for name, replay in found.items()
        for row in structs("verdicts", ReplayLine, replay.lines)
    )
    return Records("verdicts", columns, tuple(rows))


def _ends(times: ReplayTimes | None) -> tuple[float | None, float | None, float | None]:
    """A time and the ends of its interval."""
    if times is None:
        return None, None, None
    low, high = times.ci95 or (None, None)
    return times.ns, low, high
