"""A replay of the collectives of several ranks: which rank the others wait for, and for how long.

In: kernels frames of ranks that run the same program. Out: CollectiveReplay, or None where their
communication kernels are not the same collectives. Times are ns of all steps.

A collective begins on a rank when the rank reaches it and ends on all of its group at once, so the
last to arrive starts it. Where not all ranks end together, those that do are a group (tensor and
data parallelism). Between two collectives a rank takes the time that it took in its trace; what
its other kernels do during a collective hides that much of it. Replayed without one rank among
those that the others wait for, the ranks end earlier: by so much it holds them up.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import polars as pl
from msgspec import Struct
from numpy.typing import NDArray

from prunescope.analysis.timeline.intervals import Spans

Times = NDArray[np.int64]  # [ranks, collectives], ns
COLUMNS = ("kind", "name", "launched", "start", "duration", "gap")  # of the frames, that are read

_TOGETHER = 100_000  # ns: ends of one collective on several ranks lie closer, by one clock
_MOSTLY = 0.9  # of the collectives
_REPLAYED = 16  # ranks that are left out one by one: those that come last most


class CollectiveReplay(Struct, frozen=True):
    """Which ranks the others wait for, by a replay of their collectives.

    `collectives`: how many there are; `last`: how often each rank is the last of all to reach one;
    `works` and `idles`: how much longer it works and idles before those than the median of the
    others; `saved`: how much sooner all others end where they never wait for it; `together`: the
    same for all `late` ranks at once, 0 where these are all ranks.
    """

    collectives: int
    last: dict[str, int]
    works: dict[str, float]
    idles: dict[str, float]
    saved: dict[str, float]
    together: float
    late: list[str]


def replay(frames: Mapping[str, pl.DataFrame], least: float) -> CollectiveReplay | None:
    """Replay the collectives of ranks.

    Args:
        frames: The kernels frame of each rank, with COLUMNS.
        least: How many ns a rank must cost to be late; it costs half as much as the latest of them
            too.

    Returns:
        The replay, or None where the communication kernels are not the same collectives.

    Limitations: only the 16 ranks that come last most often are left out one by one. A rank takes
    the time between two collectives that it took in its trace, whatever the others do.
    """
    comm = {
        name: frame.filter(pl.col("kind") == "comm").sort("launched", "start")
        for name, frame in frames.items()
    }
    first = next(iter(comm.values()))
    if not len(first) or any(not rows["name"].equals(first["name"]) for rows in comm.values()):
        return None
    names = list(frames)
    start, length = (
        np.stack([rows[column].to_numpy() for rows in comm.values()])
        for column in ("start", "duration")
    )
    group = _groups(start + length)
    if group is None:
        return None
    ranks = _Ranks.from_frames(list(frames.values()), start, length, group)
    last = ranks.last(length)
    counts = last.sum(axis=1)
    tried = np.argsort(-counts, kind="stable")[:_REPLAYED].tolist()
    whole = ranks.end(without=())
    saved = {names[i]: max(0.0, float(whole - ranks.end(without=(i,)))) for i in tried}
    most = max(saved.values())
    late = [name for name, ns in saved.items() if ns >= max(least, most / 2, 1.0)]
    late = sorted(late, key=lambda name: -saved[name])
    together = 0.0
    if 0 < len(late) < len(names):
        together = float(whole - ranks.end(without=[names.index(name) for name in late]))
    return CollectiveReplay(
        collectives=len(first),
        last=dict(zip(names, counts.tolist(), strict=True)),
        works=dict(zip(names, _longer_before_last(ranks.work[:, :-1], last), strict=True)),
        idles=dict(
            zip(names, _longer_before_last((ranks.own - ranks.work)[:, :-1], last), strict=True)
        ),
        saved=saved,
        together=together,
        late=late,
    )


def _longer_before_last(before: Times, last: NDArray[np.bool_]) -> list[float]:
    """Return by rank how much longer it takes before the collectives that it is the last to reach.

    It is compared with the median of the other ranks.
    """
    longer = []
    for rank in range(len(before)):
        others = np.delete(before, rank, axis=0)[:, last[rank]]
        longer.append(float((before[rank, last[rank]] - np.median(others, axis=0)).sum()))
    return longer


def _groups(end: Times) -> Times | None:
    """Return the group of each rank in each collective: the ranks that end together.

    These are all ranks, but for how far apart their clocks are, else those that do by one clock.
    Returns None where most collectives end on one rank alone: they are not the same, or no
    collectives.
    """
    apart = end - end[0]
    apart = apart - np.median(apart, axis=1, keepdims=True).astype(np.int64)
    if (np.abs(apart) <= _TOGETHER).all(axis=0).mean() >= _MOSTLY:
        return np.zeros_like(end)
    order = np.argsort(end, axis=0, kind="stable")
    ordered = np.take_along_axis(end, order, axis=0)
    begins = np.diff(ordered, axis=0, prepend=ordered[:1]) > _TOGETHER
    group = np.empty_like(end)
    np.put_along_axis(group, order, np.cumsum(begins, axis=0), axis=0)
    key = _keys(group)
    size = np.bincount(key.ravel())[key]
    return group if (size > 1).mean() >= _MOSTLY else None


def _keys(group: Times) -> Times:
    """Return a number for each group of each collective."""
    return np.asarray(group + np.arange(group.shape[1]) * (int(group.max()) + 1))


def _least(values: Times, key: Times) -> Times:
    """Return for each rank the least value of its group in each collective."""
    least = np.full(int(key.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(least, key.ravel(), values.ravel())
    return np.asarray(least[key])


class _Ranks(Struct, frozen=True):
    """The times of ranks between and in their collectives, ns.

    `own`: time of each rank before its first collective, between each two, and behind the last one,
    without what it only waits [ranks, collectives + 1]; `work`: the part of it in which other
    kernels run; `hidden`: how much of each collective other kernels of the rank hide; `transfer`:
    how long each takes from the last arrival on; `group`: the group of the rank in each.
    """

    own: Times
    work: Times
    hidden: Times
    transfer: Times
    group: Times

    @classmethod
    def from_frames(
        cls, frames: Sequence[pl.DataFrame], start: Times, length: Times, group: Times
    ) -> _Ranks:
        """Return the times of ranks, from their frames and their collectives."""
        own, work, hidden = [], [], []
        for frame, at, ns in zip(frames, start, length, strict=True):
            others = frame.filter(pl.col("kind") != "comm")
            begin = others["start"].to_numpy()
            busy = Spans.union(begin, begin + others["duration"].to_numpy())
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
        transfer = _least(length, _keys(group))
        return cls(np.stack(own), np.stack(work), np.stack(hidden), transfer, group)

    def last(self, length: Times) -> NDArray[np.bool_]:
        """Return which rank of its group is the last to reach each collective.

        It is the first of those that wait least, whatever the clocks say.
        """
        rank = np.broadcast_to(np.arange(len(length))[:, None], length.shape)
        rank = np.where(length == self.transfer, rank, len(length))
        return np.asarray((rank < len(length)) & (rank == _least(rank, _keys(self.group))))

    def end(self, without: Collection[int]) -> int:
        """Return when the last rank ends, ns from the begin, if none waits for ranks `without`."""
        kept = np.setdiff1d(np.arange(len(self.own)), list(without))
        own, hidden, transfer, group = (
            table[kept] for table in (self.own, self.hidden, self.transfer, self.group)
        )
        at = own[:, 0]
        arrived = np.zeros(int(self.group.max()) + 1, np.int64)
        for i in range(transfer.shape[1]):
            arrived[:] = 0
            np.maximum.at(arrived, group[:, i], at)
            done = arrived[group[:, i]] + transfer[:, i]
            at = at + own[:, i + 1] + np.maximum(done - at - hidden[:, i], 0)
        return int(at.max())
