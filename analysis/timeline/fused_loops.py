"""Loops that torch.compile fused on a CPU, which no op records.

In: a trace of the host and its linked rows. Out: a note with the time between ops within compiled
code, in which these loops run. There is none where Inductor records them, nor on a device, where
they are kernels.
"""

from __future__ import annotations

import numpy as np

from prunescope.analysis.schema.notice import Notice, note
from prunescope.analysis.timeline.intervals import Spans
from prunescope.analysis.timeline.link import Linked
from prunescope.analysis.timeline.markers import COMPILED_CODE
from prunescope.analysis.trace.trace_columns import Trace
from prunescope.taxonomy.lazy_pattern import lazy_pattern

# As Inductor names its C++ kernels where cpp.enable_kernel_profile is on.
_RECORDED = lazy_pattern(r"(?:^|_)(?:cpp_fused|kernel_cpp)_")


def fused_loop_notes(trace: Trace, linked: Linked) -> list[Notice]:
    """Note how long a step idles within compiled code on a CPU; empty if it does not."""
    if trace.on_device or any(_RECORDED.search(name) for name in trace.names):
        return []
    names = [i for i, name in enumerate(trace.names) if name.startswith(COMPILED_CODE)]
    idle = 0
    for table in (trace.ops, trace.annotations):
        rows = np.isin(table["name"], names)
        spans = Spans.union(table["ts"][rows], (table["ts"] + table["dur"])[rows])
        within = spans.spent(linked.start) - spans.spent(linked.start - linked.gap)
        idle = max(idle, int(within.sum()))
    ns = idle / max(1, len(linked.wall))
    return [note("fused-loops-without-ops", ns=ns)] if idle else []
