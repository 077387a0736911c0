"""A check of the clocks of host and device: no kernel may start before its own launch call.

In: a Trace and its linked rows. Out: ClockSkew, or None where no disagreement shows.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from prunescope.analysis.schema.notice import Notice, note
from prunescope.analysis.timeline.correlate import launch_of, taken
from prunescope.analysis.timeline.link import Linked
from prunescope.analysis.trace.trace_columns import Trace

_RESOLUTION = 1_000  # ns: older profilers write whole microseconds
_FEW, _SHARE = 3, 0.05  # kernels, and share of those with a launch: more are no stray events


class ClockSkew(Struct, frozen=True):
    """The kernels that start before their own launch, so that the clocks must differ.

    `early` of the `launched` kernels do, by `most_ns` at most: the clocks differ by at least that.
    """

    early: int
    launched: int
    most_ns: int

    @property
    def seen(self) -> Notice:
        """The evidence of the skew."""
        return note("early-kernels", early=self.early, launched=self.launched, ns=self.most_ns)


def clock_skew(trace: Trace, linked: Linked) -> ClockSkew | None:
    """Measure the skew of the clocks by the kernels of all steps.

    It is None for a trace of the host alone, for a few kernels, and for less than the resolution of
    a clock.
    """
    if not trace.on_device:
        return None
    launch = launch_of(trace, linked.event)
    has_launch = launch >= 0
    ahead = (taken(trace.launches["ts"], launch) - linked.start)[has_launch]
    early = ahead[ahead > _RESOLUTION]
    if len(early) <= max(_FEW, _SHARE * np.count_nonzero(has_launch)):
        return None
    return ClockSkew(len(early), len(ahead), int(early.max()))
