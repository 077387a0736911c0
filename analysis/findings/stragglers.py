"""Which ranks the others wait for, and why. In: phases and kernels frames of several ranks. Out:
Found, or None.

A collective ends on all ranks at once, so the rank that reaches it last spends the least time in
it: what the others spend in communication beyond that is waiting. Where the ranks run the same
collectives, these are replayed (collective_replay.py); else the rank with the most time outside of
communication is the late one. Where host threads carry collectives out (gloo), the ops of a trace
only start them, and a rank waits while it idles: idle time of that cause is communication here.
Times are ns a step.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import polars as pl

from prunescope.analysis.findings.checks import as_finding
from prunescope.analysis.findings.collective_replay import COLUMNS, CollectiveReplay, replay
from prunescope.analysis.findings.host import HOST_COLLECTIVES, that_waits
from prunescope.analysis.findings.registry import FINDINGS, Found, finding
from prunescope.analysis.ledger.noise import median_interval, speedup_interval
from prunescope.analysis.schema.notice import Notice, warning
from prunescope.analysis.schema.report import LATE_RANK, SLOWER_KERNELS, Finding, Phase
from prunescope.analysis.timeline.intervals import cover
from prunescope.taxonomy.words import ms, percent, shortened

LARGER_RANK = "rank-does-more"
_OF_HOST = "idle in collectives of host threads"
_PARTS = 5  # of a difference between two ranks that are listed
_WORTH = 0.02  # of the wall of the late rank: a delay worth a finding
_SAME = 0.5  # of the kernels of a step: pipeline stages have more in common
_LARGER = 0.05  # of the FLOPs of the other ranks: more of them are no rounding of shards
_EQUAL = 0.02  # of the FLOPs of another rank: no more work than that


@dataclass(frozen=True)
class RankTime:
    """A step of a rank, ns: its wall, the part in which only communication runs, on the device or
    by host threads, the name of the communication kernel with the most time, the part in which
    nothing runs at all, by cause, the FLOPs that are known, and the finding of its own on what its
    host does meanwhile; and of each step the part without
    communication (`own_by_step`) and the rest (`comm_by_step`)."""

    name: str
    wall: float
    comm: float
    kernel: str | None
    idle: float = 0.0
    causes: Mapping[str, float] | None = None
    flop: float = 0.0
    on_device: bool = True
    idle_finding: str | None = None
    own_by_step: tuple[float, ...] = ()
    comm_by_step: tuple[float, ...] = ()

    @property
    def own(self) -> float:
        """ns a step in which the rank does not only communicate: it works or idles."""
        return self.wall - self.comm

    @property
    def usual_own(self) -> float:
        """The median of `own` over the steps: one step in which the rank was interrupted does not
        make it a late one."""
        return statistics.median(self.own_by_step) if self.own_by_step else self.own

    @property
    def work(self) -> float:
        """ns a step in which kernels run that are no communication."""
        return self.own - self.idle


@dataclass(frozen=True)
class Late:
    """A late rank among `ranks`; `replay`: of their collectives, None where they are not the same;
    `steps`: how many it is over; `turns`: the ranks that hold the others up at other collectives,
    or in other groups, about as much."""

    rank: RankTime
    ranks: list[RankTime]
    replay: CollectiveReplay | None = None
    steps: int = 1
    turns: tuple[RankTime, ...] = ()

    @property
    def each(self) -> list[Late]:
        """Itself, and those of the ranks in turns with it."""
        return [replace(self, rank=one, turns=()) for one in (self.rank, *self.turns)]

    @property
    def others(self) -> list[RankTime]:
        """The ranks that may wait for it."""
        return [one for one in self.ranks if one is not self.rank]

    @property
    def more_work(self) -> float:
        """How much longer it works than the median of the others, ns: before the collectives that
        it reaches last, or in all."""
        if self.replay is not None:
            return self.replay.works[self.rank.name] / self.steps
        return self.rank.work - statistics.median(one.work for one in self.others)

    @property
    def more_idle(self) -> float:
        """How much longer it idles than the median of the others, ns: before the collectives that
        it reaches last, or in all."""
        if self.replay is not None:
            return self.replay.idles[self.rank.name] / self.steps
        return self.rank.idle - statistics.median(one.idle for one in self.others)

    @property
    def is_slow(self) -> bool:
        """Whether its kernels take longer than those of the others for as many FLOPs."""
        usual = statistics.median(one.flop for one in self.others)
        equal = bool(usual) and self.rank.flop <= (1 + _EQUAL) * usual
        return equal and self.more_work > max(self.more_idle, 0.0)


def with_straggler(
    phases: Mapping[str, Phase], frames: Mapping[str, pl.DataFrame]
) -> tuple[dict[str, Phase], list[Notice]]:
    """The phases of several ranks, that of the late rank with the finding `straggler`; and warnings
    about ranks that are not compared: those that run another program, and those with host ops only
    where others have kernels."""
    with_kernels = {name: phase for name, phase in phases.items() if _on_device(frames[name])}
    compared = with_kernels or phases
    warnings = [warning("rank-on-host", rank=name) for name in phases if name not in compared]
    if len(compared) < 2:
        return dict(phases), warnings
    if other := _other_program(compared, frames):
        return dict(phases), [*warnings, other]
    ranks = [rank_time(name, phase, frames[name]) for name, phase in compared.items()]
    marked = dict(phases)
    behind: list[RankTime] = []
    late = late_rank(ranks, compared, frames)
    if late is not None and (found := straggler(late)) is not None:
        result = as_finding(FINDINGS[LATE_RANK], found)
        result.evidence.insert(
            1, _difference_from_usual(late.rank.name, _usual(late), compared, frames)
        )
        for one in late.each:
            name = one.rank.name
            behind.append(one.rank)
            first = [f for f in phases[name].findings if f.severity == "critical"]
            own = [result] if one.rank is late.rank else []
            rest = [
                _finding_of_late_rank(f, one)
                for f in phases[name].findings
                if f.severity != "critical"
            ]
            marked[name] = msgspec.structs.replace(phases[name], findings=[*first, *own, *rest])
    for rank in ranks:
        if behind and rank not in behind:
            marked[rank.name] = _waiting(marked[rank.name], rank, behind)
        if rank not in behind and (more := rank_does_more(Late(rank, ranks))) is not None:
            result = as_finding(FINDINGS[LARGER_RANK], more)
            result.evidence.insert(0, _most_of_more(rank, ranks, frames))
            marked[rank.name] = _behind_critical(marked[rank.name], result)
    return marked, warnings


def _behind_critical(phase: Phase, item: Finding) -> Phase:
    """The phase with one more finding, in front of all that are not critical."""
    critical = [one for one in phase.findings if one.severity == "critical"]
    rest = [one for one in phase.findings if one.severity != "critical"]
    return msgspec.structs.replace(phase, findings=[*critical, item, *rest])


def _finding_of_late_rank(item: Finding, late: Late) -> Finding:
    """A finding of a late rank. One on slower kernels only says to fix the rank first, without a
    gain, if it explains no more time than the rank works longer than the others for as many FLOPs:
    that time is gained once."""
    if item.id != SLOWER_KERNELS or not late.is_slow:
        return item
    if (item.predicted_ns or 0.0) > late.more_work:
        return item
    change = f"fix {late.rank.name} first: its kernels take longer than those of the other ranks"
    return msgspec.structs.replace(item, change=change, predicted_ns=None)


def _most_of_more(rank: RankTime, ranks: list[RankTime], frames: Mapping[str, pl.DataFrame]) -> str:
    """The op that makes most of a rank's FLOPs beyond those of the median of the others."""
    others = sorted((one for one in ranks if one is not rank), key=lambda one: one.flop)
    usual = others[(len(others) - 1) // 2]
    sums = [
        dict(frames[one.name].group_by("op").agg(pl.col("flop").sum()).iter_rows())
        for one in (rank, usual)
    ]
    more = {op: flop - (sums[1].get(op) or 0.0) for op, flop in sums[0].items() if flop}
    op = max(sorted(more, key=str), key=lambda op: more[op])
    return f"most of it is {op}: {more[op] / 1e9:,.3f} GFLOP more than in {usual.name}, all steps"


def _waiting(phase: Phase, rank: RankTime, late: list[RankTime]) -> Phase:
    """The phase of a rank that waits for others. Its time in collectives beyond that of the late
    rank (of several: the longest) is waiting, and its finding `host-collectives` says so."""
    waits = rank.comm - max(one.comm for one in late)
    if waits < _WORTH * rank.wall:
        return phase
    waits = min(waits, _in_host_collectives(phase))
    names = [one.name for one in late]
    findings = [
        that_waits(one, names, waits) if one.id == HOST_COLLECTIVES else one
        for one in phase.findings
    ]
    return msgspec.structs.replace(phase, findings=findings)


def late_rank(
    ranks: list[RankTime], phases: Mapping[str, Phase], frames: Mapping[str, pl.DataFrame]
) -> Late | None:
    """The rank that the others may wait for, with those in turns with it: by the replay of their
    collectives, else the one with the most time outside of communication. One rank alone is the
    last to reach a collective."""
    steps = {phase.steps for phase in phases.values()}
    wall = max(rank.wall for rank in ranks)
    # Ops of a host only start the collectives of its other threads: their ends mean nothing.
    if len(steps) == 1 and all(rank.on_device for rank in ranks):
        (count,) = steps
        columns = {name: frames[name].select(COLUMNS) for name in phases}
        found = replay(columns, _WORTH * wall * count)
        if found is not None:
            return _replayed(found, ranks, count)
    return Late(max(ranks, key=lambda one: one.usual_own), ranks)


def _replayed(found: CollectiveReplay, ranks: list[RankTime], steps: int) -> Late | None:
    by_name = {one.name: one for one in ranks}
    late = [by_name[name] for name in found.late]
    if not late:
        return None
    if not found.last[late[0].name]:
        # A rank that ends last without being the last at a collective is slow behind them all.
        return Late(late[0], ranks, None, steps)
    turns = tuple(one for one in late[1:] if found.last[one.name])
    return Late(late[0], ranks, found, steps, turns)


def _on_device(frame: pl.DataFrame) -> bool:
    """Whether rows are kernels: host ops, which stand for them in CPU traces, have no stream."""
    return frame["stream"].count() > 0


def _other_program(
    phases: Mapping[str, Phase], frames: Mapping[str, pl.DataFrame]
) -> Notice | None:
    """A warning where two ranks have less than half of the kernels of a step in common, by name."""
    steps = {name: _kernels_a_step(phase, frames[name]) for name, phase in phases.items()}
    first, *others = steps
    for name in others:
        a, b = steps[first], steps[name]
        both = sum(min(a[key], b[key]) for key in a.keys() & b.keys())
        most = sum(max(a.get(key, 0), b.get(key, 0)) for key in a.keys() | b.keys())
        if both < _SAME * most:
            return warning(
                "ranks-of-two-programs",
                rank=first,
                other_rank=name,
                kernels=sum(a.values()),
                other_kernels=sum(b.values()),
                same=both / most,
            )
    return None


def _kernels_a_step(phase: Phase, frame: pl.DataFrame) -> dict[str | None, float]:
    counts = frame.group_by("name").len()
    return {name: count / phase.steps for name, count in counts.iter_rows()}


def rank_time(name: str, phase: Phase, frame: pl.DataFrame) -> RankTime:
    """The RankTime of a phase; kernels that run at the same time count once."""
    comm = pl.col("kind") == "comm"
    hidden = _union(frame) - _union(frame.filter(~comm))
    sums = frame.filter(comm).group_by("name").agg(pl.col("duration").sum())
    top = sums.sort(["duration", "name"], descending=[True, False])["name"].to_list()
    in_host = pl.col("idle_collective").sum()
    own = pl.col("busy").filter(~comm).sum() + pl.col("gap").sum() - in_host
    return RankTime(
        name,
        phase.wall_ns,
        hidden / phase.steps + _in_host_collectives(phase),
        top[0] if top else None,
        idle=_own_idle(phase),
        causes=phase.anatomy.gaps if phase.anatomy is not None else None,
        flop=float(frame["flop"].sum() or 0.0) / phase.steps,
        on_device=_on_device(frame),
        idle_finding=next((f.id for f in phase.findings if f.id in _OF_HOSTS), None),
        own_by_step=_sums_by_step(frame, own),
        comm_by_step=_sums_by_step(frame, pl.col("busy").filter(comm).sum() + in_host),
    )


def _sums_by_step(frame: pl.DataFrame, ns: pl.Expr) -> tuple[float, ...]:
    """A sum over the rows of each step, ns."""
    sums = frame.group_by("step").agg(ns=ns).sort("step")
    return tuple(sums["ns"].cast(pl.Float64).to_list())


def _own_idle(phase: Phase) -> float:
    """Idle time outside of collectives that host threads carry out, ns a step."""
    return phase.gap_ns + phase.tail_ns - _in_host_collectives(phase)


def _in_host_collectives(phase: Phase) -> float:
    """Idle time while host threads carry out collectives, ns a step."""
    return phase.anatomy.gaps.get("collective", 0.0) if phase.anatomy is not None else 0.0


@finding(LATE_RANK, "warning", reads="ranks")
def straggler(late: Late) -> Found | None:
    """One rank holds the others up: they wait for it in communication."""
    rank, others, found = late.rank, late.others, late.replay
    behind = rank.usual_own - statistics.median(one.usual_own for one in others)
    if found is None and not _is_beyond_spread(late):
        return None
    saved = found.saved[rank.name] / late.steps if found is not None else behind
    if not rank.wall or saved < _WORTH * rank.wall:
        return None
    kernel = next((one.kernel for one in others if one.kernel), None)
    lines = [_cause(late)] if found is None else _causes(late)
    lines += [
        f"{one.name}: wall {ms(one.wall)}, work {ms(one.work)}, idle {ms(one.idle)}, "
        f"communication {ms(one.comm)}{_times_last(one, found)}"
        for one in sorted(late.ranks, key=lambda one: -one.own)[:8]
    ]
    if kernel is not None:
        lines.append(f"communication kernel with the most time: {kernel[:100]}")
    if found is None:
        text = (
            f"{rank.name} is the slowest of {len(late.ranks)} ranks: without communication a step "
            f"takes it {ms(rank.usual_own)}{_over_steps(rank)}, {ms(behind)} more than the median "
            "of the others"
        )
    elif late.turns:
        text = _cost_of_several(late, found)
        saved = max(saved, found.together / late.steps)
    else:
        text = (
            f"{rank.name} holds the other ranks up: it is the last to reach "
            f"{found.last[rank.name]:,} of {found.collectives:,} collectives, and if no rank "
            f"waited for it, a step would take {ms(saved)} less ({percent(saved / rank.wall)})"
        )
    wait = statistics.fmean(max(0.0, one.comm - rank.comm) for one in others)
    if found is None and wait > 0:
        text += f"; they wait {ms(wait)} for it in communication"
        text += f" ({shortened(kernel)})" if kernel is not None else ""
    return Found(text=text, evidence=lines, change=_changes(late), predicted_ns=saved)


def _cost_of_several(late: Late, found: CollectiveReplay) -> str:
    """The cost of several late ranks, each with the share of the collectives that it reaches
    last."""
    names = [one.rank.name for one in late.each]
    lasts = [found.last[name] for name in names]
    whom = "each other" if len(names) == len(late.ranks) else "the other ranks"
    # A collective has one last rank in each group: more of them are of several groups.
    where = "in turns" if sum(lasts) <= found.collectives else "each in its group"
    shares = _and([f"{last:,} ({percent(last / found.collectives)})" for last in lasts])
    saved = {name: found.saved[name] for name in names}
    if found.together:
        saved["either" if len(names) == 2 else "any of them"] = found.together
    wall = late.rank.wall * late.steps
    (first, less), *rest = (
        (whose, f"{ms(ns / late.steps)} ({percent(ns / wall)})") for whose, ns in saved.items()
    )
    return "".join(
        (
            f"{_and(names)} hold {whom} up {where}, as the last to reach {shares} of "
            f"{found.collectives:,} collectives: if no rank waited for {first}, a step would take "
            f"{less} less",
            *(f", for {whose} {ns}" for whose, ns in rest),
        )
    )


def _and(words: list[str]) -> str:
    return " and ".join((", ".join(words[:-1]), words[-1])) if len(words) > 1 else words[0]


def _changes(late: Late) -> str:
    """The change for each late rank; once where all are the same."""
    causes: dict[str, list[str]] = {}
    for one in late.each:
        causes.setdefault(_change_by_cause(one), []).append(one.rank.name)
    return "; ".join(
        f"{_and(names)}: {change if len(names) == 1 else _reworded_for_several(change)}"
        for change, names in causes.items()
    )


# The words of a change that are of one rank, and of several.
_OF_SEVERAL = (
    ("its device waits", "their devices wait"),
    ("its device idles", "their devices idle"),
    ("its process", "their processes"),
    ("its host does", "their hosts do"),
    ("its CPU", "their CPUs"),
    ("its kernels take", "their kernels take"),
    ("its ops take", "their ops take"),
    ("its streams", "their streams"),
    ("its finding", "their findings"),
    ("its ", "their "),
    ("this rank makes", "these ranks make"),
    ("on this rank", "on these ranks"),
    ("it waits", "they wait"),
    ("it reaches", "they reach"),
    ("it neither works nor idles", "they neither work nor idle"),
    ("it allocates or frees", "they allocate or free"),
)


def _reworded_for_several(change: str) -> str:
    """The change of one rank, reworded for several."""
    for one, several in _OF_SEVERAL:
        change = re.sub(rf"\b{one}", several, change)
    return change


def _causes(late: Late) -> list[str]:
    """Why each late rank is late."""
    if late.turns:
        return [f"{one.rank.name}: {_cause(one)}" for one in late.each]
    return [f"{_cause(late)}; no other rank holds them up as much"]


@finding(LARGER_RANK, "warning", reads="ranks")
def rank_does_more(late: Late) -> Found | None:
    """One rank does more work than the others, however long its steps take."""
    rank = late.rank
    usual = statistics.median(one.flop for one in late.others)
    if not usual or rank.flop <= (1 + _LARGER) * usual:
        return None
    return Found(
        text=f"{rank.name} does {rank.flop / usual:.2f} × the FLOPs of the other ranks a step "
        f"({rank.flop / 1e9:,.3f} and {usual / 1e9:,.3f} GFLOP, their median)",
        evidence=[
            f"{one.name}: {one.flop / 1e9:,.3f} GFLOP; without communication a step takes it "
            f"{ms(one.usual_own)}{_over_steps(one)}"
            for one in sorted(late.ranks, key=lambda one: -one.flop)[:8]
        ],
        change="balance the work of the ranks (shards, kept heads and layers), or find out what "
        "this one does that the others do not",
    )


def _over_steps(rank: RankTime) -> str:
    """The note that a time is a median over steps; empty where all steps took equally long."""
    steps = len(rank.own_by_step)
    return f" (median of {steps} steps)" if len(set(rank.own_by_step)) > 1 else ""


def _is_beyond_spread(late: Late) -> bool:
    """Whether the late rank is slower than the median one by more than their steps differ: the 95 %
    interval of the ratio of the medians lies above 1, or that of what the others wait for it, step
    by step, above 0. True where steps are not known apart."""
    others = sorted(late.others, key=lambda one: (one.usual_own, one.name))
    pair = late.rank.own_by_step, others[(len(others) - 1) // 2].own_by_step
    if min(map(len, pair)) < 2:
        return True
    ratio = speedup_interval(*([round(ns) for ns in steps] for steps in pair))
    return ratio is None or ratio[0] > 1 or _is_waited_for(late)


def _is_waited_for(late: Late) -> bool:
    """Whether the median of the others is in communication longer than the late rank, in one step
    as in the next. An interruption of another rank makes that one's own time differ between steps,
    and not what it waits for: collectives keep the steps of all ranks together."""
    steps = [rank.comm_by_step for rank in (late.rank, *late.others)]
    if len({len(each) for each in steps}) > 1 or not steps[0]:
        return False
    own, *others = (np.array(each) for each in steps)
    waits = median_interval(np.median(others, axis=0) - own)
    return waits is not None and waits[0] > 0


def _cause(late: Late) -> str:
    """How a late rank's own work and idle time differ from the median of the others."""
    more = [
        f"{what} {ms(abs(ns))} {'longer' if ns >= 0 else 'less'}"
        for what, ns in (("works", late.more_work), ("idles", late.more_idle))
    ]
    where = "" if late.replay is None else "before these "
    return f"{where}it {' and '.join(more)} than the median of the others"


def _times_last(rank: RankTime, found: CollectiveReplay | None) -> str:
    return "" if found is None else f", last at {found.last[rank.name]:,} collectives"


# Findings that say what a host does while its rank idles, the most exact first.
_OF_HOSTS = ("repeated-gap", "long-gap", "host-work")
_HOST = "find out what its host does in that time, and give its process cores of its own"
# What makes a rank idle, by the cause that differs most from other ranks: what to do about it.
_IDLE = {
    "host": f"{_HOST}: its device waits for launches that come late",
    "first_call": "warm up before the profiler starts: this rank makes first calls or compiles",
    "allocator": "keep its memory in the caching allocator: it allocates or frees within a step",
    "memcpy": "copy less between host and device on this rank",
    "sync": "wait for the device less often on this rank",
    "held": "find out what its streams wait for",
    "device": "find out why its device idles before kernels that were launched in time: its "
    "clocks, or what else runs on it",
    "unknown": "find out what it waits for: the trace does not say why its device idles",
}


def _change_by_cause(late: Late) -> str:
    """The change, by the work or idle time that a late rank has more of than the others."""
    if late.more_idle > max(late.more_work, 0.0):
        cause = _idle_cause(late)
        change = _HOST if cause == "host" and not late.rank.on_device else _IDLE.get(cause, _HOST)
        of_host = cause == "host" or cause not in _IDLE
        if of_host and late.rank.idle_finding is not None:
            explained = f"in that time (its finding {late.rank.idle_finding} says)"
            change = change.replace("in that time", explained, 1)
        return change
    if late.more_work <= 0:
        return (
            "look at the collectives that it reaches last: it neither works nor idles longer than "
            "the others"
        )
    usual = statistics.median(one.flop for one in late.others)
    if usual and late.rank.flop <= (1 + _EQUAL) * usual:
        if not late.rank.on_device:
            return (
                "give its process cores of its own, or check the clocks of its CPU: its ops take "
                "longer for no more FLOPs"
            )
        return "check its clocks, power and heat: its kernels take longer for as many FLOPs"
    return "balance the work of the ranks (shards, kept heads and layers), or check its clocks"


def _idle_cause(late: Late) -> str:
    """The cause by which a late rank idles longest beyond the median of those that are not late;
    collectives of host threads count as communication."""
    own = late.rank.causes or {}
    late_too = late.replay.late if late.replay is not None else []
    usual = [one.causes or {} for one in late.others if one.name not in late_too] or [{}]
    more = {
        cause: ns - statistics.median(one.get(cause, 0.0) for one in usual)
        for cause, ns in own.items()
        if cause != "collective"
    }
    return max(
        more, key=lambda cause: more[cause], default="unknown" if late.rank.on_device else "host"
    )


def _usual(late: Late) -> str:
    """The name of the median of the other ranks, by time outside of communication."""
    others = sorted(late.others, key=lambda one: (one.own, one.name))
    return others[(len(others) - 1) // 2].name


def _difference_from_usual(
    slow: str, usual: str, phases: Mapping[str, Phase], frames: Mapping[str, pl.DataFrame]
) -> str:
    """The difference of the walls of the slow and the median rank, by kind of kernel and idle time;
    the parts sum to it."""
    parts: dict[str, float] = {}
    for name, sign in ((slow, 1), (usual, -1)):
        phase = phases[name]
        busy = frames[name].group_by("kind").agg(pl.col("busy").sum())
        for kind, ns in busy.iter_rows():
            parts[kind] = parts.get(kind, 0.0) + sign * ns / phase.steps
        parts["idle"] = parts.get("idle", 0.0) + sign * _own_idle(phase)
        if of_host := _in_host_collectives(phase):
            parts[_OF_HOST] = parts.get(_OF_HOST, 0.0) + sign * of_host
    order = sorted(parts, key=lambda part: (-abs(parts[part]), part))
    shown = {part: parts[part] for part in order[:_PARTS]}
    if rest := [parts[part] for part in order[_PARTS:]]:
        shown["the rest"] = sum(rest)
    split = ", ".join(f"{part} {_signed(ns)}" for part, ns in shown.items())
    whole = phases[slow].wall_ns - phases[usual].wall_ns
    return f"wall {_signed(whole)} against {usual}, the median of the others: {split}"


def _signed(ns: float) -> str:
    return f"{'−' if ns < 0 else '+'}{ms(abs(ns))}"


def _union(frame: pl.DataFrame) -> int:
    """ns in which at least one of the kernels runs."""
    start = frame["start"].to_numpy()
    if not len(start):
        return 0
    order = np.argsort(start, kind="stable")
    end = start + frame["duration"].to_numpy()
    return int(cover(start[order], end[order], int(start.min()))[0].sum())
