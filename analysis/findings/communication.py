"""Communication on a device that nothing overlaps: the step waits for it.

In: a Context. Out: Found, or None. Times are ns a step.
"""

from __future__ import annotations

from prunescope.analysis.findings.context import Context
from prunescope.analysis.findings.host import MUCH, SOME
from prunescope.analysis.findings.registry import Found, finding
from prunescope.analysis.kernels.phase_kind import has_backward
from prunescope.taxonomy.words import ms, percent

EXPOSED = "exposed-communication"


@finding(EXPOSED, "warning")
def exposed_communication(c: Context) -> Found | None:
    """Report that communication between devices runs alone for a good part of the step."""
    communication = c.phase.communication
    if communication is None or not c.kernels.on_device or c.phase.wall_ns <= 0:
        return None
    exposed = c.scale_to_step(communication.exposed_ns)
    overlapped = c.scale_to_step(communication.overlapped_ns)
    share = exposed / c.step_ns
    if share < SOME:
        return None
    # Gradients can be sent during the rest of the backward pass; the sums of tensor parallelism are
    # needed before the next layer.
    change = (
        "overlap it with the rest of the backward pass (larger or earlier buckets, prefetched "
        "shards)"
        if has_backward(c.kernels)
        else "use fewer ranks or a faster link, or overlap it with the work of another batch"
    )
    return Found(
        severity="warning" if share >= MUCH else "info",
        text=f"communication that nothing overlaps takes {ms(exposed)} ({percent(share)} of the "
        "step), waits for other ranks included",
        evidence=[
            f"{ms(exposed)} of {ms(exposed + overlapped)} of communication run while nothing else "
            "does"
        ],
        change=change,
        predicted_ns=exposed,
    )
