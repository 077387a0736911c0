"""Which ranks the others wait for, and why.

In: phases and kernels frames of several ranks. Out: Found, or None. Times are ns a step.

A collective ends on all ranks at once, so the rank that reaches it last spends the least time in
it: what the others spend in communication beyond that is waiting. Where the ranks run the same
collectives, these are replayed (collective_replay.py); else the rank with the most time outside of
communication is the late one. Where host threads carry collectives out (gloo), the ops of a trace
only start them, and a rank waits while it idles: idle time of that cause is communication here.
"""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping

import msgspec
import numpy as np
import polars as pl
from msgspec import Struct
from msgspec.structs import replace

from prunescope.analysis.findings.checks import as_finding
from prunescope.analysis.findings.collective_replay import COLUMNS, CollectiveReplay, replay
from prunescope.analysis.findings.communication import EXPOSED
from prunescope.analysis.findings.context import enumerate_words, largest_sums
from prunescope.analysis.findings.host import HOST_COLLECTIVES, name_late_ranks
from prunescope.analysis.findings.registry import FINDINGS, Found, finding
from prunescope.analysis.ledger.noise import median_interval, speedup_interval
from prunescope.analysis.schema.notice import Notice, warning
from prunescope.analysis.schema.report import LATE_RANK, SLOWER_KERNELS, Finding, Phase
from prunescope.analysis.timeline.intervals import cover
from prunescope.taxonomy.words import ms, percent, shortened, when

LARGER_RANK = "rank-does-more"
_OF_HOST = "idle in collectives of host threads"
_PARTS = 5  # of a difference between two ranks that are listed
_WORTH = 0.02  # of the wall of the late rank: a delay worth a finding
_SAME = 0.5  # of the kernels of a step: pipeline stages have more in common
_LARGER = 0.05  # of the FLOPs of the other ranks: more of them are no rounding of shards
_EQUAL = 0.02  # of the FLOPs of another rank: no more work than that


class RankTime(Struct, frozen=True):
    """A step of a rank, ns.

    `wall`; `comm`: the part in which only communication runs, on the device or by host threads;
    `kernel`: the name of the communication kernel with the most time; `idle`: the part in which
    nothing runs at all, and `causes` the same by cause; `flop`: the FLOPs that are known;
    `idle_finding`: the rank's own finding on what its host does meanwhile; and of each step the
    part without communication (`own_by_step`) and that of communication (`comm_by_step`).
    """

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
        """The median of `own` over the steps.

        One step in which the rank was interrupted does not make it a late one.
        """
        return statistics.median(self.own_by_step) if self.own_by_step else self.own

    @property
    def work(self) -> float:
        """ns a step in which kernels run that are no communication."""
        return self.own - self.idle


class Late(Struct, frozen=True):
    """A late rank among `ranks`.

    `replay`: of their collectives, None where they are not the same; `steps`: how many it is over;
    `turns`: the ranks that hold the others up at other collectives, or in other groups, about as
    much.
    """

    rank: RankTime
    ranks: list[RankTime]
    replay: CollectiveReplay | None = None
    steps: int = 1
    turns: tuple[RankTime, ...] = ()

    @property
    def each(self) -> list[Late]:
        """The late rank, and those in turns with it, each alone."""
        return [replace(self, rank=rank, turns=()) for rank in (self.rank, *self.turns)]

    @property
    def others(self) -> list[RankTime]:
        """The ranks that may wait for it."""
        return [rank for rank in self.ranks if rank is not self.rank]

    @property
    def usual_flop(self) -> float:
        """The median FLOPs of the others."""
        return statistics.median(rank.flop for rank in self.others)

    @property
    def more_work(self) -> float:
        """How much longer it works than the median of the others, ns.

        That is before the collectives that it reaches last, or in all.
        """
        works = self.replay.works if self.replay is not None else None
        return self._exceeds_others(works, lambda rank: rank.work)

    @property
    def more_idle(self) -> float:
        """How much longer it idles than the median of the others, ns.

        That is before the collectives that it reaches last, or in all.
        """
        idles = self.replay.idles if self.replay is not None else None
        return self._exceeds_others(idles, lambda rank: rank.idle)

    def _exceeds_others(
        self, replayed: Mapping[str, float] | None, ns: Callable[[RankTime], float]
    ) -> float:
        if replayed is not None:
            return replayed[self.rank.name] / self.steps
        return ns(self.rank) - statistics.median(map(ns, self.others))

    @property
    def does_no_more(self) -> bool:
        """Whether it computes no more FLOPs than the others, by what is known."""
        return bool(self.usual_flop) and self.rank.flop <= (1 + _EQUAL) * self.usual_flop

    @property
    def is_slow(self) -> bool:
        """Whether its kernels take longer than those of the others for as many FLOPs."""
        return self.does_no_more and self.more_work > max(self.more_idle, 0.0)


def _middle(ranks: list[RankTime], key: Callable[[RankTime], float]) -> RankTime:
    """Return the median rank by a number; the lower one of two, the first by name of equal ones."""
    return sorted(ranks, key=lambda rank: (key(rank), rank.name))[(len(ranks) - 1) // 2]


def with_straggler(
    phases: Mapping[str, Phase], frames: Mapping[str, pl.DataFrame]
) -> tuple[dict[str, Phase], list[Notice]]:
    """Add findings on late and larger ranks to the phases of several ranks.

    Args:
        phases: The phase of each rank, by the name of the rank.
        frames: The kernels frame of each rank.

    Returns:
        The phases, that of the late rank with the finding `straggler`; and warnings about ranks
        that are not compared: those that run another program, and those with host ops only where
        others have kernels.
    """
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
    if late is not None and (result := straggler(late)) is not None:
        # The waits for it are in the communication of all ranks, and their cause is that rank.
        for rank in ranks:
            marked[rank.name] = _without_gain_of_waits(marked[rank.name])
        item = as_finding(FINDINGS[LATE_RANK], result)
        item.evidence.insert(1, _difference_from_usual(late, compared, frames))
        for each in late.each:
            behind.append(each.rank)
            findings = [_finding_of_late_rank(old, each) for old in marked[each.rank.name].findings]
            marked[each.rank.name] = _with_findings(marked[each.rank.name], findings)
        marked[late.rank.name] = _waits_for_critical(marked[late.rank.name], item)
    for rank in ranks:
        if rank in behind:
            continue
        if behind:
            marked[rank.name] = _waiting(marked[rank.name], rank, behind)
        if (result := rank_does_more(Late(rank, ranks))) is not None:
            item = as_finding(FINDINGS[LARGER_RANK], result)
            item.evidence.insert(0, _most_of_more(rank, ranks, frames))
            marked[rank.name] = _waits_for_critical(marked[rank.name], item)
    return marked, warnings


def _with_findings(phase: Phase, findings: list[Finding]) -> Phase:
    return msgspec.structs.replace(phase, findings=findings)


def _waits_for_critical(phase: Phase, item: Finding) -> Phase:
    """Add a finding to a phase, in front of all that neither leave no evidence nor are critical."""
    first = [old for old in phase.findings if old.order[0] == 0 or old.severity == "critical"]
    others = [old for old in phase.findings if old not in first]
    return _with_findings(phase, [*first, item, *others])


def _without_gain_of_waits(phase: Phase) -> Phase:
    """Take the gain from communication that nothing overlaps: it waits for a late rank."""
    findings = [
        msgspec.structs.replace(old, predicted_ns=None) if old.id == EXPOSED else old
        for old in phase.findings
    ]
    return _with_findings(phase, sorted(findings, key=lambda finding: finding.order))


def _finding_of_late_rank(item: Finding, late: Late) -> Finding:
    """Return a finding of a late rank; one on slower kernels then only says to fix the rank first.

    It has no gain then: the time that the rank works longer than the others for as many FLOPs is
    gained once. A finding that explains more time than that stays as it is.
    """
    if item.id != SLOWER_KERNELS or not late.is_slow:
        return item
    if (item.predicted_ns or 0.0) > late.more_work:
        return item
    change = f"fix {late.rank.name} first: its kernels take longer than those of the other ranks"
    return msgspec.structs.replace(item, change=change, also=msgspec.UNSET, predicted_ns=None)


def _most_of_more(rank: RankTime, ranks: list[RankTime], frames: Mapping[str, pl.DataFrame]) -> str:
    """Name the op that makes most of a rank's FLOPs beyond those of the median of the others."""
    others = sorted(Late(rank, ranks).others, key=lambda peer: peer.flop)
    usual = others[(len(others) - 1) // 2]
    own, before = (
        dict(frames[each.name].group_by("op").agg(pl.col("flop").sum()).iter_rows())
        for each in (rank, usual)
    )
    more = {op: flop - (before.get(op) or 0.0) for op, flop in own.items() if flop}
    op = max(sorted(more, key=str), key=lambda op: more[op])
    return f"most of it is {op}: {more[op] / 1e9:,.3f} GFLOP more than in {usual.name}, all steps"


def _waiting(phase: Phase, rank: RankTime, late: list[RankTime]) -> Phase:
    """Say in the phase of a rank that it waits for others, in its finding `host-collectives`.

    Its time in collectives beyond that of the late rank (of several: the longest) is waiting.
    """
    waits = rank.comm - max(peer.comm for peer in late)
    if waits < _WORTH * rank.wall:
        return phase
    waits = min(waits, _host_collective_time(phase))
    names = [peer.name for peer in late]
    findings = [
        name_late_ranks(item, names, waits) if item.id == HOST_COLLECTIVES else item
        for item in phase.findings
    ]
    return _with_findings(phase, findings)


def late_rank(
    ranks: list[RankTime], phases: Mapping[str, Phase], frames: Mapping[str, pl.DataFrame]
) -> Late | None:
    """Return the rank that the others may wait for, with those in turns with it.

    It is found by the replay of their collectives; else it is the rank with the most time outside
    of communication.

    Limitations: without a replay one rank alone is taken to be the last to reach a collective.
    """
    steps = {phase.steps for phase in phases.values()}
    # Ops of a host only start the collectives of its other threads: their ends mean nothing.
    if len(steps) == 1 and all(rank.on_device for rank in ranks):
        (count,) = steps
        columns = {name: frames[name].select(COLUMNS) for name in phases}
        replayed = replay(columns, _WORTH * max(rank.wall for rank in ranks) * count)
        if replayed is not None:
            return _late_in_replay(replayed, ranks, count)
    return Late(max(ranks, key=lambda rank: rank.usual_own), ranks)


def _late_in_replay(replayed: CollectiveReplay, ranks: list[RankTime], steps: int) -> Late | None:
    by_name = {rank.name: rank for rank in ranks}
    late = [by_name[name] for name in replayed.late]
    if not late:
        return None
    if not replayed.last[late[0].name]:
        # A rank that ends last without being the last at a collective is slow behind them all.
        return Late(late[0], ranks, None, steps)
    turns = tuple(rank for rank in late[1:] if replayed.last[rank.name])
    return Late(late[0], ranks, replayed, steps, turns)


def _on_device(frame: pl.DataFrame) -> bool:
    """Return whether rows are kernels; host ops, as in CPU traces, have no stream."""
    return frame["stream"].count() > 0


def _other_program(
    phases: Mapping[str, Phase], frames: Mapping[str, pl.DataFrame]
) -> Notice | None:
    """Warn where two ranks have less than half of the kernels of a step in common, by name."""
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
    """Return the RankTime of a phase; kernels that run at the same time count once."""
    comm = pl.col("kind") == "comm"
    in_comm = frame.filter(comm)
    alone = _union(frame) - _union(frame.filter(~comm))
    sums = largest_sums(in_comm, "name", column="duration")
    in_host = pl.col("idle_collective").sum()
    own = pl.col("busy").filter(~comm).sum() + pl.col("gap").sum() - in_host
    by_step = frame.group_by("step").agg(
        own=own.cast(pl.Float64),
        comm=(pl.col("busy").filter(comm).sum() + in_host).cast(pl.Float64),
    )
    by_step = by_step.sort("step")
    return RankTime(
        name,
        phase.wall_ns,
        alone / phase.steps + _host_collective_time(phase),
        next(iter(sums["name"]), None),
        idle=_own_idle(phase),
        causes=phase.anatomy.gaps if phase.anatomy is not None else None,
        flop=float(frame["flop"].sum() or 0.0) / phase.steps,
        on_device=_on_device(frame),
        idle_finding=next((item.id for item in phase.findings if item.id in _OF_HOSTS), None),
        own_by_step=tuple(by_step["own"].to_list()),
        comm_by_step=tuple(by_step["comm"].to_list()),
    )


def _own_idle(phase: Phase) -> float:
    """Return the idle time outside of collectives that host threads carry out, ns a step."""
    return phase.gap_ns + phase.tail_ns - _host_collective_time(phase)


def _host_collective_time(phase: Phase) -> float:
    """Return the idle time while host threads carry out collectives, ns a step."""
    return phase.anatomy.gaps.get("collective", 0.0) if phase.anatomy is not None else 0.0


@finding(LATE_RANK, "warning", reads="ranks")
def straggler(late: Late) -> Found | None:
    """Report that one rank holds the others up: they wait for it in communication."""
    rank, others, replayed = late.rank, late.others, late.replay
    behind = rank.usual_own - statistics.median(peer.usual_own for peer in others)
    if replayed is None and not _is_beyond_spread(late):
        return None
    saved = replayed.saved[rank.name] / late.steps if replayed is not None else behind
    if not rank.wall or saved < _WORTH * rank.wall:
        return None
    kernel = next((peer.kernel for peer in others if peer.kernel), None)
    if replayed is None:
        cause = [_cause(late)]
        text = (
            f"{rank.name} is the slowest of {len(late.ranks)} ranks: without communication a step "
            f"takes it {ms(rank.usual_own)}{_step_spread(rank)}, {ms(behind)} more than the median "
            "of the others"
        )
        wait = statistics.fmean(max(0.0, peer.comm - rank.comm) for peer in others)
        if wait > 0:
            text += f"; they wait {ms(wait)} for it in communication"
            text += f" ({shortened(kernel)})" if kernel is not None else ""
    elif late.turns:
        cause = [f"{each.rank.name}: {_cause(each)}" for each in late.each]
        text = _cost_of_several(late, replayed)
        saved = max(saved, replayed.together / late.steps)
    else:
        cause = [f"{_cause(late)}; no other rank holds them up as much"]
        text = (
            f"{rank.name} holds the other ranks up: it is the last to reach "
            f"{replayed.last[rank.name]:,} of {replayed.collectives:,} collectives, and if no rank "
            f"waited for it, a step would take {ms(saved)} less ({percent(saved / rank.wall)})"
        )
    lines = [*cause, *_times(late)]
    if kernel is not None:
        lines.append(f"communication kernel with the most time: {kernel[:100]}")
    first, *further = _changes(late)
    return Found(text=text, evidence=lines, change=first, also=further, predicted_ns=saved)


def _times(late: Late) -> list[str]:
    """Describe the times of the ranks, those with the most time outside of communication first."""
    lines = []
    for rank in sorted(late.ranks, key=lambda rank: -rank.own)[:8]:
        last = f", last at {late.replay.last[rank.name]:,} collectives" if late.replay else ""
        lines.append(
            f"{rank.name}: wall {ms(rank.wall)}, work {ms(rank.work)}, idle {ms(rank.idle)}, "
            f"communication {ms(rank.comm)}{last}"
        )
    return lines


def _cost_of_several(late: Late, replayed: CollectiveReplay) -> str:
    """Describe the cost of several late ranks, with the collectives that each reaches last."""
    names = [each.rank.name for each in late.each]
    lasts = [replayed.last[name] for name in names]
    whom = "each other" if len(names) == len(late.ranks) else "the other ranks"
    # A collective has one last rank in each group: more of them are of several groups.
    where = "in turns" if sum(lasts) <= replayed.collectives else "each in its group"
    shares = [f"{last:,} ({percent(last / replayed.collectives)})" for last in lasts]
    saved = {name: replayed.saved[name] for name in names}
    if replayed.together:
        saved["either" if len(names) == 2 else "any of them"] = replayed.together
    wall = late.rank.wall * late.steps
    (first, less), *more = (
        (whose, f"{ms(ns / late.steps)} ({percent(ns / wall)})") for whose, ns in saved.items()
    )
    return (
        f"{enumerate_words(names)} hold {whom} up {where}, as the last to reach "
        f"{enumerate_words(shares)} of {replayed.collectives:,} collectives: if no rank waited for "
        f"{first}, a step would take {less} less"
    ) + "".join(f", for {whose} {ns}" for whose, ns in more)


def _changes(late: Late) -> list[str]:
    """Say what to change for each late rank; once where all are the same."""
    causes: dict[str, list[str]] = {}
    for each in late.each:
        causes.setdefault(_change_by_cause(each), []).append(each.rank.name)
    texts = []
    for change, names in causes.items():
        if len(names) > 1:
            for words, of_several in _OF_SEVERAL:
                change = re.sub(rf"\b{words}", of_several, change)
        texts.append(f"{enumerate_words(names)}: {change}")
    return texts


# The words of a change that are of one rank, and of several.
_OF_SEVERAL = (
    (r"its device (wait|idle)s", r"their devices \1"),
    ("its process", "their processes"),
    ("its host does", "their hosts do"),
    (r"its (CPU|finding)", r"their \1s"),
    ("its ", "their "),
    ("this rank makes", "these ranks make"),
    ("on this rank", "on these ranks"),
    ("it waits", "they wait"),
    ("it reaches", "they reach"),
    ("it neither works nor idles", "they neither work nor idle"),
    ("it allocates or frees", "they allocate or free"),
)


@finding(LARGER_RANK, "warning", reads="ranks")
def rank_does_more(late: Late) -> Found | None:
    """Report that one rank does more work than the others, however long its steps take."""
    rank, usual = late.rank, late.usual_flop
    if not usual or rank.flop <= (1 + _LARGER) * usual:
        return None
    return Found(
        text=f"{rank.name} does {rank.flop / usual:.2f} × the FLOPs of the other ranks a step "
        f"({rank.flop / 1e9:,.3f} and {usual / 1e9:,.3f} GFLOP, their median)",
        evidence=[
            f"{each.name}: {each.flop / 1e9:,.3f} GFLOP; without communication a step takes it "
            f"{ms(each.usual_own)}{_step_spread(each)}"
            for each in sorted(late.ranks, key=lambda each: -each.flop)[:8]
        ],
        change="balance the work of the ranks (shards, kept heads and layers), or find out what "
        "this one does that the others do not",
    )


def _step_spread(rank: RankTime) -> str:
    """Note that a time is a median over steps; nothing where all steps took equally long."""
    steps = len(rank.own_by_step)
    return f" (median of {steps} steps)" if len(set(rank.own_by_step)) > 1 else ""


def _is_beyond_spread(late: Late) -> bool:
    """Return whether the late rank is slower than the median one by more than their steps differ.

    The 95 % interval of the ratio of the medians then lies above 1, or that of what the others wait
    for it, step by step, above 0. True where steps are not known apart.
    """
    usual = _middle(late.others, lambda rank: rank.usual_own)
    pair = late.rank.own_by_step, usual.own_by_step
    if min(map(len, pair)) < 2:
        return True
    ratio = speedup_interval(*([round(ns) for ns in steps] for steps in pair))
    return ratio is None or ratio[0] > 1 or _is_waited_for(late)


def _is_waited_for(late: Late) -> bool:
    """Return whether the median of the others communicates longer than the late rank in each step.

    An interruption of another rank makes that one's own time differ between steps, and not what it
    waits for: collectives keep the steps of all ranks together.
    """
    steps = [rank.comm_by_step for rank in (late.rank, *late.others)]
    if len({len(each) for each in steps}) > 1 or not steps[0]:
        return False
    own, *others = (np.array(each) for each in steps)
    waits = median_interval(np.median(others, axis=0) - own)
    return waits is not None and waits[0] > 0


def _cause(late: Late) -> str:
    """Say how a late rank's own work and idle time differ from the median of the others."""
    more = [
        f"{verb} {ms(abs(ns))} {'longer' if ns >= 0 else 'less'}"
        for verb, ns in (("works", late.more_work), ("idles", late.more_idle))
    ]
    where = when(late.replay is not None, "before these ")
    return f"{where}it {' and '.join(more)} than the median of the others"


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
    """Say what to change, by the work or idle time that a late rank has more of than the others."""
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
    if not late.does_no_more:
        return "balance the work of the ranks (shards, kept heads and layers), or check its clocks"
    if late.rank.on_device:
        return "check its clocks, power and heat: its kernels take longer for as many FLOPs"
    return (
        "give its process cores of its own, or check the clocks of its CPU: its ops take "
        "longer for no more FLOPs"
    )


def _idle_cause(late: Late) -> str:
    """Return the cause by which a late rank idles longest beyond the ranks that are not late.

    It is compared with their median; collectives of host threads count as communication.
    """
    late_too = late.replay.late if late.replay is not None else []
    usual = [rank.causes or {} for rank in late.others if rank.name not in late_too] or [{}]
    more = {
        cause: ns - statistics.median(causes.get(cause, 0.0) for causes in usual)
        for cause, ns in (late.rank.causes or {}).items()
        if cause != "collective"
    }
    unknown = "unknown" if late.rank.on_device else "host"
    return max(more, key=lambda cause: more[cause], default=unknown)


def _difference_from_usual(
    late: Late, phases: Mapping[str, Phase], frames: Mapping[str, pl.DataFrame]
) -> str:
    """Split the difference of the walls of the late and the median rank.

    Its parts are kinds of kernels and idle time, and sum to it.
    """
    slow, usual = late.rank.name, _middle(late.others, lambda rank: rank.own).name
    parts: dict[str, float] = defaultdict(float)
    for name, sign in ((slow, 1), (usual, -1)):
        phase = phases[name]
        busy = frames[name].group_by("kind").agg(pl.col("busy").sum())
        for kind, ns in busy.iter_rows():
            parts[kind] += sign * ns / phase.steps
        parts["idle"] += sign * _own_idle(phase)
        if in_host := _host_collective_time(phase):
            parts[_OF_HOST] += sign * in_host
    order = sorted(parts, key=lambda part: (-abs(parts[part]), part))
    shown = {part: parts[part] for part in order[:_PARTS]}
    if len(order) > _PARTS:
        shown["the rest"] = sum(parts[part] for part in order[_PARTS:])
    split = ", ".join(f"{part} {_signed(ns)}" for part, ns in shown.items())
    whole = phases[slow].wall_ns - phases[usual].wall_ns
    return f"wall {_signed(whole)} against {usual}, the median of the others: {split}"


def _signed(ns: float) -> str:
    return f"{'−' if ns < 0 else '+'}{ms(abs(ns))}"


def _union(frame: pl.DataFrame) -> int:
    """Return the ns in which at least one of the kernels runs."""
    start = frame["start"].to_numpy()
    if not len(start):
        return 0
    order = np.argsort(start, kind="stable")
    end = start + frame["duration"].to_numpy()
    return int(cover(start[order], end[order], int(start.min()))[0].sum())
