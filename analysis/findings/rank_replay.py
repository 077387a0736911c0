"""Replay of the collectives of several ranks: which rank the others wait for, and for how long.

In: kernels frames of ranks that run the same program. Out: Replay, or None where their
communication kernels are not the same collectives. Times are ns of all steps.

A collective begins on a rank when the rank reaches it and ends on all of them at once, so the last
to arrive starts it. Between two collectives a rank takes the time that it took in its trace; what
its other kernels do during a collective hides that much of it. Replayed without one rank among
those that the others wait for, the ranks end earlier: by so much it holds them up.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prunescope.analysis.timeline.intervals import Spans

Times = NDArray[np.int64]  # [ranks, collectives], ns
COLUMNS = ("kind", "name", "launched", "start", "duration", "gap")  # of the frames, that are read

_TOGETHER = 100_000  # ns: ends of one collective on several ranks lie closer, by one clock
_MOSTLY = 0.9  # of the collectives
_REPLAYED = 16  # ranks that are left out one by one: those that come last most


@dataclass(frozen=True)
class Replay:
    """How often each rank is the last of all to reach a collective (`last`), how much longer it
    works and idles before those than the median of the others (`works`, `idles`), how much sooner
    all others end where they never wait for it (`saved`), or for none of the `late` ones
    (`together`, 0 where these are all), and how many collectives there are."""

    collectives: int
    last: dict[str, int]
    works: dict[str, float]
    idles: dict[str, float]
    saved: dict[str, float]
    together: float
    late: list[str]


def replay(frames: Mapping[str, pl.DataFrame], least: float) -> Replay | None:
    """The replay of ranks. A rank is late where at least `least` ns, and half as much as for the
    latest of them, are saved without it."""
    comm = {
        name: frame.filter(pl.col("kind") == "comm").sort("launched", "start")
        for name, frame in frames.items()
    }
    first = next(iter(comm.values()))
    if not len(first) or any(not one["name"].equals(first["name"]) for one in comm.values()):
        return None
    names = list(frames)
    start = np.stack([one["start"].to_numpy() for one in comm.values()])
    length = np.stack([one["duration"].to_numpy() for one in comm.values()])
    if not _end_together(start + length):
        return None
    ranks = _Ranks.of(list(frames.values()), start, length)
    last = np.argmin(length, axis=0)  # by one clock: who waits least came last
    counts = np.bincount(last, minlength=len(names))
    tried = np.argsort(-counts, kind="stable")[:_REPLAYED].tolist()
    whole = ranks.end(without=())
    saved = {names[i]: max(0.0, float(whole - ranks.end(without=(i,)))) for i in tried}
    most = max(saved.values())
    late = [name for name, ns in saved.items() if ns >= max(least, most / 2, 1.0)]
    late = sorted(late, key=lambda name: -saved[name])
    together = 0.0
    if 0 < len(late) < len(names):
        together = float(whole - ranks.end(without=[names.index(name) for name in late]))
    return Replay(
        collectives=len(first),
        last=dict(zip(names, counts.tolist(), strict=True)),
        works=dict(zip(names, _beyond(ranks.work[:, :-1], last), strict=True)),
        idles=dict(zip(names, _beyond((ranks.own - ranks.work)[:, :-1], last), strict=True)),
        saved=saved,
        together=together,
        late=late,
    )


def _beyond(before: Times, last: NDArray[np.int64]) -> list[float]:
    """Of each rank, the time before the collectives that it is the `last` to reach, beyond the
    median of the other ranks'."""
    found = []
    for rank in range(len(before)):
        at = np.flatnonzero(last == rank)
        others = np.delete(before, rank, axis=0)[:, at]
        found.append(float((before[rank, at] - np.median(others, axis=0)).sum()))
    return found


def _end_together(end: Times) -> bool:
    """Whether the collectives end on all ranks at once, but for how far apart the clocks of the
    ranks are."""
    apart = end - end[0]
    apart = apart - np.median(apart, axis=1, keepdims=True)
    together = (np.abs(apart) <= _TOGETHER).all(axis=0)
    return bool(together.mean() >= _MOSTLY)


@dataclass(frozen=True)
class _Ranks:
    """`own`: time of each rank before its first collective, between each two, and behind the last
    one, without what it only waits [ranks, collectives + 1]; `work`: the part of it in which other
    kernels run; `hidden`: how much of each collective other kernels of the rank hide; `transfer`:
    how long each takes from the last arrival on."""

    own: Times
    work: Times
    hidden: Times
    transfer: NDArray[np.int64]

    @classmethod
    def of(cls, frames: Sequence[pl.DataFrame], start: Times, length: Times) -> _Ranks:
        """The times of ranks, from their frames and their collectives."""
        own, work, hidden = [], [], []
        for frame, at, ns in zip(frames, start, length, strict=True):
            others = frame.filter(pl.col("kind") != "comm")
            begin = others["start"].to_numpy()
            busy = Spans.of(begin, begin + others["duration"].to_numpy())
            covered = busy.spent(at + ns) - busy.spent(at)
            bounds = frame.select(
                begin=(pl.col("start") - pl.col("gap")).min(),
                end=(pl.col("start") + pl.col("duration")).max(),
            ).row(0)
            marks = np.concatenate(([bounds[0]], at, [bounds[1]]))
            exposed = np.concatenate(([0], ns - covered))
            own.append(np.maximum(np.diff(marks) - exposed, 0))
            work.append(np.minimum(np.diff(busy.spent(marks)), own[-1]))
            hidden.append(covered)
        return cls(np.stack(own), np.stack(work), np.stack(hidden), length.min(axis=0))

    def end(self, without: Collection[int]) -> int:
        """When the last rank ends, ns from the begin, where none waits for the ranks `without`."""
        kept = np.setdiff1d(np.arange(len(self.own)), list(without))
        own, hidden = self.own[kept], self.hidden[kept]
        at = own[:, 0]
        for i, transfer in enumerate(self.transfer.tolist()):
            done = at.max() + transfer
            at = at + own[:, i + 1] + np.maximum(done - at - hidden[:, i], 0)
        return int(at.max())
