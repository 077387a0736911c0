"""Which rank the others wait for. In: phases and kernels frames of several ranks. Out: Found, or
None.

A collective ends on all ranks at once, so the rank that reaches it last spends the least time in
it: what the others spend in communication beyond that is waiting. Times are ns a step.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
import polars as pl

from prunescope.analysis.findings.checks import as_finding
from prunescope.analysis.findings.registry import FINDINGS, Found, finding
from prunescope.analysis.schema.report import Phase
from prunescope.analysis.timeline.intervals import cover
from prunescope.taxonomy.words import ms, percent, shortened

_PARTS = 5  # of a difference between two ranks that are listed
_WORTH = 0.02  # of the wall of the slow rank: a delay worth a finding
_SAME = 0.5  # of the kernels of a step: pipeline stages have more in common


@dataclass(frozen=True)
class RankTime:
    """A step of a rank, ns: its wall, the part in which only communication runs, and the name of
    the communication kernel with the most time."""

    name: str
    wall: float
    comm: float
    kernel: str | None

    @property
    def work(self) -> float:
        """ns a step in which the rank does not only communicate."""
        return self.wall - self.comm


def with_straggler(
    phases: Mapping[str, Phase], frames: Mapping[str, pl.DataFrame]
) -> tuple[dict[str, Phase], list[str]]:
    """The phases of several ranks, that of the slowest rank with the finding `straggler` where it
    stands out; and warnings about ranks that are not compared: those that run another program, and
    those with host ops only where others have kernels."""
    with_kernels = {name: phase for name, phase in phases.items() if _on_device(frames[name])}
    compared = with_kernels or phases
    warnings = [
        f"{name} has host ops only: it is not compared with the other ranks"
        for name in phases
        if name not in compared
    ]
    if len(compared) < 2:
        return dict(phases), warnings
    if other := _other_program(compared, frames):
        return dict(phases), [*warnings, other]
    times = [rank_time(name, phase, frames[name]) for name, phase in compared.items()]
    found = straggler(times)
    if found is None:
        return dict(phases), warnings
    slow = _slowest(times).name
    result = as_finding(FINDINGS["straggler"], found)
    result.evidence.insert(0, _against(slow, _usual(slow, times), compared, frames))
    first = [f for f in phases[slow].findings if f.severity == "critical"]
    rest = [f for f in phases[slow].findings if f.severity != "critical"]
    marked = msgspec.structs.replace(phases[slow], findings=[*first, result, *rest])
    return {**phases, slow: marked}, warnings


def _on_device(frame: pl.DataFrame) -> bool:
    """Whether rows are kernels: host ops, which stand for them in CPU traces, have no stream."""
    return frame["stream"].count() > 0


def _other_program(phases: Mapping[str, Phase], frames: Mapping[str, pl.DataFrame]) -> str | None:
    """A warning where two ranks have less than half of the kernels of a step in common, by name."""
    steps = {name: _kernels_a_step(phase, frames[name]) for name, phase in phases.items()}
    first, *others = steps
    for name in others:
        a, b = steps[first], steps[name]
        both = sum(min(a[key], b[key]) for key in a.keys() & b.keys())
        most = sum(max(a.get(key, 0), b.get(key, 0)) for key in a.keys() | b.keys())
        if both < _SAME * most:
            counts = f"{sum(a.values()):,.0f} and {sum(b.values()):,.0f} kernels a step"
            return (
                f"{first} and {name} do not run the same program ({counts}, {percent(both / most)} "
                "of them the same): ranks are not compared"
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
    return RankTime(name, phase.wall_ns, hidden / phase.steps, top[0] if top else None)


def _slowest(times: list[RankTime]) -> RankTime:
    return max(times, key=lambda t: t.work)


@finding("straggler", "warning", reads="ranks")
def straggler(times: list[RankTime]) -> Found | None:
    """One rank is slower than the others, which wait for it in communication."""
    slow = _slowest(times)
    usual = statistics.median(t.work for t in times if t is not slow)
    behind = slow.work - usual
    if not slow.wall or behind < _WORTH * slow.wall:
        return None
    waits = {t.name: max(0.0, t.comm - slow.comm) for t in times if t is not slow}
    mean = statistics.fmean(waits.values())
    kernel = next((t.kernel for t in times if t is not slow and t.kernel), None)
    text = (
        f"{slow.name} is the slowest of {len(times)} ranks: it works {ms(slow.work)} a step, "
        f"{ms(behind)} ({percent(behind / usual)}) more than the median of the others"
        if usual
        else f"{slow.name} does the work of {len(times)} ranks: {ms(slow.work)} a step"
    )
    if mean > 0:
        text += f", which wait {ms(mean)} for it in communication"
        text += f" ({shortened(kernel)})" if kernel is not None else ""
    mean_work = statistics.fmean(t.work for t in times)
    lines = [f"imbalance: it works {slow.work / mean_work:.2f} × the mean of all ranks"]
    lines += [
        f"{t.name}: wall {ms(t.wall)}, work {ms(t.work)}, communication {ms(t.comm)}"
        for t in sorted(times, key=lambda t: -t.work)[:8]
    ]
    if kernel is not None:
        lines.append(f"communication kernel with the most time: {kernel[:100]}")
    return Found(
        text=text,
        evidence=lines,
        change="balance the work of the ranks (shards, kept heads and layers), or check its clocks",
        predicted_ns=behind,
    )


def _usual(slow: str, times: list[RankTime]) -> str:
    """The name of the median of the other ranks, by work."""
    others = sorted((t for t in times if t.name != slow), key=lambda t: (t.work, t.name))
    return others[(len(others) - 1) // 2].name


def _against(
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
        parts["idle"] = parts.get("idle", 0.0) + sign * (phase.gap_ns + phase.tail_ns)
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
