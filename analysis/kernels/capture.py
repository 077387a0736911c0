"""What of a step no CUDA graph holds: calls that wait for the device, and copies that block.

In: a trace, its linked rows and the windows of its steps. Out: `Stops`, calls a step.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from prunescope.analysis.kernels.waits import SYNC, blocking_copies, named, runtime_calls
from prunescope.analysis.timeline.link import Linked, taken
from prunescope.analysis.timeline.steps import Windows
from prunescope.analysis.trace.events import Trace
from prunescope.analysis.trace.load import NONE, Ints

_SHOWN = 60  # characters of a call's name
_FETCH = re.compile(r"DtoH|DeviceToHost|^Memcpy D2[HM]")


@dataclass(frozen=True)
class Stops:
    """Calls before the last launch of a step that is no copy to the host, medians over steps: what
    follows it may fetch the result of a graph."""

    waits: float = 0.0
    copies: float = 0.0
    by: str = ""  # the calls that wait, the one that most waits are first

    def __bool__(self) -> bool:
        """Whether there are more of a kind than the one in which the host fetches a result."""
        return max(self.waits, self.copies) > 1

    def __str__(self) -> str:
        """`10 waits (cudaStreamSynchronize) and 1 copy`."""
        by = f" ({self.by})" if self.by else ""
        kinds = ((self.waits, "wait", "waits", by), (self.copies, "copy", "copies", ""))
        return " and ".join(
            f"{n:g} {one if n == 1 else more}{which}" for n, one, more, which in kinds if n
        )


def stops_within(trace: Trace, windows: Windows, linked: Linked) -> Stops:
    """Of the threads that launch kernels; a copy blocks where its memory is pageable or its call is
    none of those that return at once."""
    if not (trace.on_device and len(windows)):
        return Stops()
    name = taken(trace.device["name"], linked.event, absent=0)
    work = ~named(trace, name, _FETCH)
    last = np.full(len(windows), np.iinfo(np.int64).min)
    np.maximum.at(last, linked.step[work], linked.launched[work])
    threads = np.unique(linked.thread[work])
    calls = runtime_calls(trace)
    sync = named(trace, calls["name"], SYNC)
    step = windows.step_of(calls["ts"])
    step = np.where(np.isin(calls["thread"], threads), step, NONE)
    step = np.where((step >= 0) & (calls["ts"] < last[np.maximum(step, 0)]), step, NONE)
    waited = calls["name"][sync & (step >= 0)]
    often = np.bincount(waited)
    order = [int(i) for i in np.argsort(-often, kind="stable") if often[i]]
    return Stops(
        by=", ".join(trace.names[i][:_SHOWN] for i in order),
        waits=_median(step[sync], len(windows)),
        copies=_median(step[blocking_copies(trace, calls)], len(windows)),
    )


def _median(step: Ints, steps: int) -> float:
    return float(np.median(np.bincount(step[step >= 0], minlength=steps)))
