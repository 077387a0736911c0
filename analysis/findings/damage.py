"""Kernels that a trace lacks: what seems pruned may be lost.

In: a Context. Out: a Finding, or None.
"""

from __future__ import annotations

from prunescope.analysis.findings.context import Context
from prunescope.analysis.schema.report import Finding
from prunescope.analysis.verdict.caveats import caveat_text


def kernels_missing(c: Context) -> Finding | None:
    """Launches without their kernel, no GEMM at all, layers that are gone in part, lost roles."""
    found = [caveat_text(doubt) for doubt in c.caveats if doubt.lost]
    if not found:
        return None
    return Finding(
        id="kernels-missing",
        severity="warning",
        text="the trace does not hold all of its kernels: "
        + ("what seems pruned may be lost" if c.dense else "times and counts are of the others"),
        evidence=found,
        change="copy the file again: it ends within an event"
        if any(doubt.kind == "cut-off" for doubt in c.caveats)
        else "capture again, fewer steps after a warm-up step; kernels that were recorded into a "
        "graph are seen when the graph is replayed",
        predicted_ns=None,
    )
