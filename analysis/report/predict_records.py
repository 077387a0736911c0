"""A prediction as rows and as Markdown: in, the plain values of --json (a point, a grid, a ranking,
or the families from a run); out, Records with a row a speedup, and one text.

Speedups are dense over pruned; ns a forward, or of the whole workload in a ranking; bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from prunescope.analysis.report.markdown import sheet_text
from prunescope.analysis.report.predict_tables import prediction
from prunescope.analysis.report.records import Records, Row
from prunescope.analysis.schema.prediction import FromRun, Prediction, Ranking

_COLUMNS: dict[str, Any] = {
    "phase": str,
    "method": str,
    "sparsity": float,
    "batch": int,
    "prompt_len": int,
    "context": int,
    "flop": float,
    "coverage": float,
    "roofline": float,
    "expected": float,
    "low": float,
    "high": float,
    "dense_ns": float,
    "pruned_ns": float,
    "weight_bytes": int,
    "kv_bytes": int,
}


def prediction_records(values: dict[str, Any]) -> Records:
    """A row a method, sparsity and phase (of a ranking: "equal flop" and the like); what a kind of
    prediction does not have is null."""
    rows: Iterator[Row]
    if "from-run" in values["tool"]:
        rows = _of_run(msgspec.convert(values, FromRun))
    elif "by" in values:
        rows = _of_ranking(msgspec.convert(values, Ranking))
    else:
        rows = _of_points(msgspec.convert(values, Prediction))
    return Records("prediction", _COLUMNS, tuple(dict.fromkeys(_COLUMNS) | row for row in rows))


def _of_points(result: Prediction) -> Iterator[Row]:
    for point in result.points:
        for name, phase in point.phases.items():
            row: Row = {
                "phase": name,
                "method": point.label,
                "sparsity": point.sparsity,
                **{key: getattr(phase, key) for key in ("batch", "prompt_len", "context")},
                **{key: getattr(phase, key) for key in ("weight_bytes", "kv_bytes")},
            }
            if phase.ladder is not None:
                row |= {key: getattr(phase.ladder, key) for key in ("flop", "coverage", "roofline")}
            if phase.predicted is not None:
                found = phase.predicted.execution
                row |= _expected(found.speedup, found.range, found.dense_ns, found.pruned_ns)
            yield row


def _of_ranking(result: Ranking) -> Iterator[Row]:
    for share, families in result.by.items():
        for one in families:
            yield {
                "phase": f"equal {share}",
                "method": one.family,
                "sparsity": one.sparsity,
                "batch": one.answer.batch,
                "prompt_len": one.answer.prompt_len,
                **_expected(one.speedup, one.range, result.dense.total_ns, one.answer.total_ns),
                "weight_bytes": one.weight_bytes,
                "kv_bytes": one.kv_bytes,
            }


def _of_run(result: FromRun) -> Iterator[Row]:
    for name, phase in result.phases.items():
        for one in phase.families:
            yield {
                "phase": name,
                "method": one.label,
                "sparsity": one.sparsity,
                **{key: getattr(phase, key) for key in ("batch", "prompt_len", "context")},
                "roofline": one.bound,
                **_expected(one.expected, one.range, phase.wall_ns, one.wall_ns),
                "weight_bytes": one.weight_bytes,
                "kv_bytes": one.kv_bytes,
            }


def _expected(speedup: float, ends: list[float], dense_ns: float, pruned_ns: float) -> Row:
    low, high = ends
    times = {"dense_ns": dense_ns, "pruned_ns": pruned_ns}
    return {"expected": speedup, "low": low, "high": high, **times}


def render_prediction(values: dict[str, Any]) -> str:
    """The output of `predict` as Markdown."""
    return sheet_text("Prediction", prediction(values))
