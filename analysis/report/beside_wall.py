"""What a trace holds beside the wall of its steps: in, a Phase; out, lines of a report."""

from __future__ import annotations

from prunescope.analysis.report import numbers
from prunescope.analysis.schema.report import Phase


def left_out(phase: Phase) -> list[str]:
    """Events beside the wall: spill, late, outside every step, and the lead."""
    says = (
        ("spill", phase.spill, "launched before the trace began: they belong to the step before"),
        ("late", phase.late, "after the last linked event, with no launch in the trace"),
        ("left out", phase.left_out, "launched outside of every step, or nobody knows in which"),
    )
    lines = [
        f"{name}: {numbers.count(part.get('events'))} events, {numbers.time(part.get('ns'))}, {why}"
        for name, part, why in says
        if part.get("events")
    ]
    return [*lines, _lead(phase)] if phase.lead_ns else lines


def _lead(phase: Phase) -> str:
    """What lies between the begin of the first step on the host and that of its wall."""
    own, own_ns = phase.lead_own.get("events") or 0, phase.lead_own.get("ns") or 0.0
    text = f"lead: {numbers.time(phase.lead_ns)} from the begin of the first step on the host to "
    text += "the end of work launched before it" if own else "its first device event"
    text += ", not in the wall"
    if phase.lead_busy_ns is None or phase.lead_ns is None:
        return text
    if not phase.lead_busy_ns:
        return f"{text}: the trace holds nothing on the device then"
    text += f": the device ran earlier work for {numbers.time(phase.lead_busy_ns - own_ns)}"
    if own:
        text += f", {numbers.count(own)} event{'s' * (own != 1)} of the step itself, which its "
        text += f"wall leaves out, for {numbers.time(phase.lead_own.get('ran_ns'))} "
        text += f"({numbers.time(own_ns)} of it beside nothing earlier),"
    return f"{text} and idled for {numbers.time(phase.lead_ns - phase.lead_busy_ns)}"
