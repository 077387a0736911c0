"""Launches that a stream captured into a graph: they did not run when they were traced.

In: a Context. Out: a Finding, or None.
"""

from __future__ import annotations

from prunescope.analysis.findings.context import Context
from prunescope.analysis.schema.report import Finding
from prunescope.analysis.verdict.caveats import caveat_text

_CHANGE = (
    "trace a replay of the graph (the trace of the capture names its ops, as --eager-trace), or "
    "trace before the capture"
)


def captured_step(c: Context) -> Finding | None:
    """Most launches of a side were captured: what ran beside the capture is not the step."""
    found = _said(c, "captured-step")
    if not found:
        return None
    return Finding(
        id="captured-step",
        severity="warning" if c.dense is None else "critical",
        text="most kernel launches were captured into a graph and did not run: what was timed is "
        "not the step",
        evidence=found,
        change=_CHANGE,
        predicted_ns=None,
    )


def captured_launches(c: Context) -> Finding | None:
    """Some launches of a side were captured, beside others that ran."""
    found = _said(c, "captured-launches")
    if not found:
        return None
    return Finding(
        id="captured-launches",
        severity="warning",
        text="kernel launches were captured into a graph and did not run: times and counts are of "
        "the others, and the host's time holds the capture",
        evidence=found,
        change=_CHANGE,
        predicted_ns=None,
    )


def _said(c: Context, kind: str) -> list[str]:
    return [caveat_text(doubt) for doubt in c.caveats if doubt.kind == kind]
