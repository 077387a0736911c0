"""Time at the very beginning of a trace in which, most likely, work ran that was launched before.

In: the kernels of a side. Out: ns a step, of its recorded time.
"""

from __future__ import annotations

import numpy as np

from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.trace.collect import NONE

_HARDLY = 0.01  # of the idle time: what ran before it


def earlier_work_ns(kernels: Kernels) -> float:
    """ns a step in which a kernel of the first step was blocked before the first event of its
    stream and hardly anything ran before."""
    frame = kernels.frame
    if not kernels.on_device or frame.is_empty():
        return 0.0
    step, blocked = frame["step"].to_numpy(), frame["idle_blocked"].to_numpy()
    row = int(np.where(step == step.min(), blocked, NONE).argmax())
    held = int(blocked[row])
    if not held or kernels.linked.carry_over["events"]:
        return 0.0
    before = frame["start"] < frame["start"][row]
    if frame["stream"][row] in frame["stream"].filter(before):
        return 0.0
    if frame["busy"].filter(before).sum() > _HARDLY * held:
        return 0.0
    return held / kernels.num_steps
