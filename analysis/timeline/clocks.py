"""Whether the clocks of host and device agree: no kernel starts before its own launch call.

In: a Trace and its linked rows. Out: ClockSkew, or None where the clocks agree as far as can be
seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prunescope.analysis.schema.notice import Notice, note
from prunescope.analysis.timeline.correlate import launch_of, taken
from prunescope.analysis.timeline.link import Linked
from prunescope.analysis.trace.events import Trace

_RESOLUTION = 1_000  # ns: older profilers write whole microseconds
_FEW, _SHARE = 3, 0.05  # kernels, and share of those with a launch: more are no stray events


@dataclass(frozen=True)
class ClockSkew:
    """How many of the `launched` kernels start before their own launch (`early`), and by how much
    at most (ns): the clocks differ by at least that."""

    early: int
    launched: int
    most_ns: int

    @property
    def seen(self) -> Notice:
        """The evidence of the skew."""
        return note("early-kernels", early=self.early, launched=self.launched, ns=self.most_ns)


def clock_skew(trace: Trace, linked: Linked) -> ClockSkew | None:
    """The skew of the kernels of all steps; None for a host trace, and for a few kernels or less
    than the resolution of a clock."""
    if not trace.on_device:
        return None
    launch = launch_of(trace, linked.event)
    has_launch = launch >= 0
    ahead = (taken(trace.launches["ts"], launch) - linked.start)[has_launch]
    early = ahead[ahead > _RESOLUTION]
    if len(early) <= max(_FEW, _SHARE * np.count_nonzero(has_launch)):
        return None
    return ClockSkew(len(early), len(ahead), int(early.max()))
