"""Time at the very beginning of a trace in which, most likely, work ran that was launched before.

In: the kernels of a side. Out: ns a step, of its recorded time.
"""

from __future__ import annotations

import polars as pl

from prunescope.analysis.kernels.frame import Kernels

_HARDLY = 0.01  # of the idle time: what ran before it


def earlier_work_ns(kernels: Kernels) -> float:
    """ns a step in which a kernel of the first step was blocked before the first event of its
    stream and hardly anything ran before."""
    frame = kernels.frame
    if not kernels.on_device or frame.is_empty():
        return 0.0
    first = frame.filter(pl.col("step") == pl.col("step").min())
    longest = first.sort("idle_blocked").tail(1).row(0, named=True)
    before = frame.filter(pl.col("start") < longest["start"])
    held: int = longest["idle_blocked"]
    follows = longest["stream"] in before["stream"] or kernels.linked.carry_over["events"]
    if follows or before["busy"].sum() > _HARDLY * held:
        return 0.0
    return held / kernels.num_steps
