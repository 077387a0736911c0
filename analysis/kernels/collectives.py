"""The bytes that the collectives of a phase send, and their rates, from the kernels' arguments.

In: a `Trace` and its linked rows. Out: a sentence about the largest ones. The bandwidth is that of
the bus, as NCCL's own tests count it: what a link must carry, whatever the algorithm. It is a lower
bound, because the time of a kernel includes its wait for the last rank.
"""

from __future__ import annotations

import numpy as np

from prunescope.analysis.timeline.link import Linked, taken
from prunescope.analysis.trace.trace_columns import Collective, Trace
from prunescope.taxonomy.dtypes import dtype, itemsize
from prunescope.taxonomy.words import ms

_SHOWN = 3
_PLAIN = str.maketrans("", "", "_")
_BYTE = "byte"  # c10's, and of a size in bytes


def collective_notes(trace: Trace, linked: Linked) -> list[str]:
    """Describe the collectives of all steps that take the most time; empty without any."""
    if not trace.on_device or not trace.collectives:
        return []
    which = taken(trace.device["collective"], linked.event)
    rows = np.flatnonzero(which >= 0)
    if not len(rows):
        return []
    ns = np.bincount(which[rows], weights=linked.duration[rows], minlength=len(trace.collectives))
    counts = np.bincount(which[rows], minlength=len(trace.collectives))
    steps = max(1, len(linked.wall))
    order = [int(i) for i in np.argsort(-ns, kind="stable") if counts[i]]
    parts = [
        _sentence(trace.collectives[i], counts[i] / steps, ns[i] / counts[i])
        for i in order[:_SHOWN]
    ]
    more = len(order) - len(parts)
    left_out = f"; {more} more kinds or sizes are not shown" if more else ""
    return [f"collectives, a step: {'; '.join(parts)}{left_out}"]


def _sentence(collective: Collective, count: float, ns: float) -> str:
    """Describe one collective: its calls per step, its size, and the rate of a call of `ns`."""
    spelled = _spelled(collective.dtype)
    size = 1 if spelled == _BYTE else itemsize(dtype(spelled))
    elements = max(collective.sent or 0, collective.received or 0)
    unit = "bytes" if spelled == _BYTE else dtype(spelled) or "elements"
    of = f" of {elements:,} {unit}" if elements else ""
    ranks = f" over {collective.ranks} ranks" if collective.ranks else ""
    text = f"{count:,.4g} {collective.name[:40]}{of}{ranks}, {ms(ns)} each"
    share = _share(collective)
    if size is None or not elements or share is None or ns <= 0:
        return text
    return f"{text}, at least {elements * size * share / ns:,.3g} GB/s on the bus"


def _spelled(spelling: str | None) -> str | None:
    """Spell c10's names of number formats (BFloat16, Float, Long) as kineto does elsewhere."""
    return None if spelling is None else spelling.lower()


def _share(collective: Collective) -> float | None:
    """Return how many times its larger buffer a collective sends over a link; None if unknown.

    Source: the bus bandwidth of NCCL's tests (doc/PERFORMANCE.md of nccl-tests).
    """
    if collective.ranks is None or collective.ranks < 2:
        return None
    name = collective.name.lower().translate(_PLAIN)
    part = (collective.ranks - 1) / collective.ranks
    if "allreduce" in name:
        return 2 * part
    if any(kind in name for kind in ("allgather", "reducescatter", "alltoall")):
        return part
    return 1.0 if name in ("broadcast", "reduce", "send", "recv") else None
