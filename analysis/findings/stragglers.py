"""Which rank the others wait for: in, phases and kernels frames of several ranks; out, a finding.

A collective ends on all ranks at once, so the rank that reaches it last spends the least time in
it: the others' time in communication beyond that is waiting. Beside it the imbalance (own work over
the mean of all), and what its step has more of than that of the rank in the middle, in parts that
sum. Times are ns a step.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
import polars as pl

from prunescope.analysis.findings.context import ms, shortened
from prunescope.analysis.schema.report import Finding, Phase
from prunescope.analysis.timeline.intervals import cover
from prunescope.taxonomy.words import percent

_PARTS = 5  # of a difference between two ranks
_WORTH = 0.02  # of the wall of the slow rank
_SAME = 0.5  # of the kernels of a step: pipeline stages differ by less


@dataclass(frozen=True)
class RankTime:
    """A step of a rank: its wall, the part of it in communication alone (no other kernel runs), and
    the rest, its own work; the communication kernel with the most time."""

    name: str
    wall: float
    comm: float
    kernel: str | None

    @property
    def own(self) -> float:
        """Wall outside of communication."""
        return self.wall - self.comm


def with_straggler(
    phases: Mapping[str, Phase], frames: Mapping[str, pl.DataFrame]
) -> tuple[dict[str, Phase], list[str]]:
    """The phases of several ranks, that of the slowest with the finding `straggler` where it stands
    out; and what speaks against a comparison: ranks that do not run the same program. A rank of
    host ops alone is left out where others have kernels."""
    seen = {name: phase for name, phase in phases.items() if _on_device(frames[name])}
    compared = seen or phases
    said = [
        f"{name} has host ops only: it is not compared with the other ranks"
        for name in phases
        if name not in compared
    ]
    if len(compared) < 2:
        return dict(phases), said
    if apart := _other_program(compared, frames):
        return dict(phases), [*said, apart]
    times = [rank_time(name, phase, frames[name]) for name, phase in compared.items()]
    found = straggler(times)
    if found is None:
        return dict(phases), said
    slow, finding = found
    finding.evidence.insert(0, _against(slow, _usual(slow, times), compared, frames))
    first = [f for f in phases[slow].findings if f.severity == "critical"]
    rest = [f for f in phases[slow].findings if f.severity != "critical"]
    marked = msgspec.structs.replace(phases[slow], findings=[*first, finding, *rest])
    return {**phases, slow: marked}, said


def _on_device(frame: pl.DataFrame) -> bool:
    """Host ops, which stand for the work where a trace holds no kernels, have no stream."""
    return frame["stream"].count() > 0


def _other_program(phases: Mapping[str, Phase], frames: Mapping[str, pl.DataFrame]) -> str | None:
    """Two ranks of which less than half of the kernels of a step have the same names."""
    steps = {name: _kernels_a_step(phase, frames[name]) for name, phase in phases.items()}
    first, *others = steps
    for name in others:
        one, other = steps[first], steps[name]
        both = sum(min(one[key], other[key]) for key in one.keys() & other.keys())
        most = sum(max(one.get(key, 0), other.get(key, 0)) for key in one.keys() | other.keys())
        if both < _SAME * most:
            counts = f"{sum(one.values()):,.0f} and {sum(other.values()):,.0f} kernels a step"
            return (
                f"{first} and {name} do not run the same program ({counts}, {percent(both / most)} "
                "of them the same): ranks are not compared"
            )
    return None


def _kernels_a_step(phase: Phase, frame: pl.DataFrame) -> dict[str | None, float]:
    counts = frame.group_by("name").len()
    return {name: count / phase.steps for name, count in counts.iter_rows()}


def rank_time(name: str, phase: Phase, frame: pl.DataFrame) -> RankTime:
    """Communication that no other kernel hides, in the union of all steps."""
    comm = pl.col("kind") == "comm"
    hidden = _union(frame) - _union(frame.filter(~comm))
    sums = frame.filter(comm).group_by("name").agg(pl.col("duration").sum())
    top = sums.sort(["duration", "name"], descending=[True, False])["name"].to_list()
    return RankTime(name, phase.wall_ns, hidden / phase.steps, top[0] if top else None)


def straggler(times: list[RankTime]) -> tuple[str, Finding] | None:
    """The slow rank and what to say of it; None where no rank stands out."""
    slow = max(times, key=lambda t: t.own)
    usual = statistics.median(t.own for t in times if t is not slow)
    behind = slow.own - usual
    if not slow.wall or behind < _WORTH * slow.wall:
        return None
    waits = {t.name: max(0.0, t.comm - slow.comm) for t in times if t is not slow}
    mean = statistics.fmean(waits.values())
    kernel = next((t.kernel for t in times if t is not slow and t.kernel), None)
    text = (
        f"{slow.name} is the slowest of {len(times)} ranks: {ms(slow.own)} of its own a step, "
        f"{ms(behind)} ({percent(behind / usual)}) more than the median of the others"
        if usual
        else f"{slow.name} does the work of {len(times)} ranks: {ms(slow.own)} a step"
    )
    if mean > 0:
        text += f", which wait {ms(mean)} for it in communication"
        text += f" ({shortened(kernel)})" if kernel is not None else ""
    mean_own = statistics.fmean(t.own for t in times)
    lines = [f"imbalance: its own work is {slow.own / mean_own:.2f} × the mean of all ranks"]
    lines += [
        f"{t.name}: wall {ms(t.wall)}, own {ms(t.own)}, communication {ms(t.comm)}"
        for t in sorted(times, key=lambda t: -t.own)[:8]
    ]
    if kernel is not None:
        lines.append(f"most time in communication: {kernel[:100]}")
    finding = Finding(
        id="straggler",
        severity="warning",
        text=text,
        evidence=lines,
        change="give all ranks the same work (shards, kept heads and layers), or check its clocks",
        predicted_ns=behind,
    )
    return slow.name, finding


def _usual(slow: str, times: list[RankTime]) -> str:
    """The rank in the middle of the others, by own work."""
    others = sorted((t for t in times if t.name != slow), key=lambda t: (t.own, t.name))
    return others[(len(others) - 1) // 2].name


def _against(
    slow: str, usual: str, phases: Mapping[str, Phase], frames: Mapping[str, pl.DataFrame]
) -> str:
    """By how much a step of the slow rank is longer than that of the usual one, by kind of kernel
    and idle time: the parts sum to the difference of the walls."""
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
