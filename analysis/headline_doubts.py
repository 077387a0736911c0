"""Why the headline of a phase may not be that of a step.

In: a Phase of the report (ns). Out: sentences for the warnings of the report.
"""

from __future__ import annotations

from analysis.findings.context import ms
from analysis.report.model import Phase

_MOST_LATE = 0.05  # of device time


def phase_warnings(name: str, phase: Phase) -> list[str]:
    """Why the headline of a phase may not be that of a step."""
    said = []
    doubt = (phase.phase_kind or {}).get("doubt")
    if doubt:
        said.append(f"{name}: {doubt}")
    late, kept = phase.late, phase.busy_ns * phase.steps
    if late["events"] and late["ns"] > _MOST_LATE * (late["ns"] + kept):
        of = late["events"] + sum(phase.kernels_per_step)
        said.append(
            f"{name}: {late['events']:,.0f} of {of:,.0f} device events have no launch in the trace "
            f"and are left out, {ms(late['ns'])} of {ms(late['ns'] + kept)}: the step below is not "
            "the whole one"
        )
    return said
