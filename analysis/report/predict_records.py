"""A prediction as rows and as Markdown.

In: the plain values of --json (a point, a grid, a ranking, or the families from a run). Out:
Records with a row for each speedup, and one text.

Speedups are dense over pruned; ns are of a forward, or of the whole workload in a ranking; sizes
are bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from prunescope.analysis.report.markdown import sheet_text
from prunescope.analysis.report.predict_tables import prediction
from prunescope.analysis.report.records import Records, Row
from prunescope.analysis.schema.prediction import (
    Drafting,
    FromRun,
    PredictedPoint,
    Prediction,
    Ranking,
    ServingChoice,
)

_COLUMNS: dict[str, Any] = {
    "phase": str, "method": str, "sparsity": float, "batch": int, "prompt_len": int,
    "context": int, "flop": float, "coverage": float, "roofline": float, "expected": float,
    "low": float, "high": float, "dense_ns": float, "pruned_ns": float, "weight_bytes": int,
    "kv_bytes": int,
}  # fmt: skip
_BYTES = ("weight_bytes", "kv_bytes")
_WORKLOAD = ("batch", "prompt_len", "context")


def prediction_records(values: dict[str, Any]) -> Records:
    """Return a row for each method, sparsity and phase of a prediction.

    In a ranking the phase is "equal flop" and the like. What a kind of prediction does not have is
    null.

    Args:
        values: The plain values of `predict --json`.
    """
    rows: Iterator[Row]
    if "from-run" in values["tool"]:
        rows = _run_rows(msgspec.convert(values, FromRun))
    elif "rank" in values:
        rows = _choice_rows(msgspec.convert(values, ServingChoice))
    elif "by" in values:
        rows = _ranking_rows(msgspec.convert(values, Ranking))
    else:
        rows = _point_rows(msgspec.convert(values, Prediction))
    return Records("prediction", _COLUMNS, tuple(dict.fromkeys(_COLUMNS) | row for row in rows))


def _point_rows(result: Prediction) -> Iterator[Row]:
    for point in result.points:
        for name, phase in point.phases.items():
            row: Row = {"phase": name, "method": point.label, "sparsity": point.sparsity}
            row |= _fields(phase, *_WORKLOAD, *_BYTES)
            if phase.ladder is not None:
                row |= _fields(phase.ladder, "flop", "coverage", "roofline")
            if phase.predicted is not None:
                execution = phase.predicted.execution
                row |= _speedup(execution.speedup, execution.range)
                row |= _fields(execution, "dense_ns", "pruned_ns")
            elif phase.expected_ns is not None:
                row["dense_ns"] = phase.expected_ns
            yield row
        if point.drafting is not None:
            yield from _drafting_rows(point, point.drafting)


def _drafting_rows(point: PredictedPoint, drafting: Drafting) -> Iterator[Row]:
    for gain in drafting.at:
        yield {
            "phase": f"decode, {gain.acceptance:g} of the drafted tokens accepted",
            "method": point.label,
            "sparsity": point.sparsity,
            **_fields(drafting, "batch", "context", "memory_bytes"),
            **_speedup(gain.speedup, gain.range),
            "dense_ns": drafting.dense_ns,
            "pruned_ns": gain.token_ns,
        }


def _ranking_rows(result: Ranking) -> Iterator[Row]:
    for share, families in result.by.items():
        for family in families:
            yield {
                "phase": f"equal {share}",
                "method": family.family,
                "sparsity": family.sparsity,
                **_fields(family.answer, "batch", "prompt_len"),
                **_speedup(family.speedup, family.range),
                "dense_ns": result.dense.total_ns,
                "pruned_ns": family.answer.total_ns,
                **_fields(family, *_BYTES),
            }


def _choice_rows(result: ServingChoice) -> Iterator[Row]:
    for row in result.rank:
        low, high = row.range or (None, None)
        yield {
            "phase": "objectives",
            "method": row.method,
            "sparsity": row.sparsity,
            "batch": row.batch,
            "prompt_len": result.workload["prompt_len"],
            "expected": row.speedup,
            "low": low,
            "high": high,
            "pruned_ns": row.latency_ms * 1e6,
            **_fields(row, *_BYTES),
        }


def _run_rows(result: FromRun) -> Iterator[Row]:
    for name, phase in result.phases.items():
        for family in phase.families:
            yield {
                "phase": name,
                "method": family.label,
                "sparsity": family.sparsity,
                **_fields(phase, *_WORKLOAD),
                "roofline": family.bound,
                **_speedup(family.expected, family.range),
                "dense_ns": phase.wall_ns,
                "pruned_ns": family.wall_ns,
                **_fields(family, *_BYTES),
            }


def _fields(struct: msgspec.Struct, *names: str) -> Row:
    """Return some fields of a struct under their own names."""
    return {name: getattr(struct, name) for name in names}


def _speedup(expected: float, ends: list[float]) -> Row:
    """Return an expected speedup with its range."""
    low, high = ends
    return {"expected": expected, "low": low, "high": high}


def render_prediction(values: dict[str, Any]) -> str:
    """Return the output of `predict` as Markdown.

    Args:
        values: The plain values of `predict --json`.
    """
    return sheet_text("Prediction", prediction(values))
