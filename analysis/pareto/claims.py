"""What a sweep shows, in plain sentences that go no further than its intervals.

In: a Pareto without its summary. Out: lines, unescaped: what was compared, the frontier of each
cell, where pruning pays, the paper's two claims, and what does not generalise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from statistics import median

from prunescope.analysis.pareto.frontier import removed_nothing
from prunescope.analysis.report.numbers import percent, ratio
from prunescope.analysis.schema.pareto import Cell, Pareto, ParetoPhase, Point, Winner

# What the paper claims of which families.
_PAPER = json.loads(resources.files(__package__).joinpath("paper.json").read_text(encoding="utf-8"))
PAPER_ORDER = tuple(_PAPER["order_by_loss_in_prefill"])
DEPTH = str(_PAPER["closest_to_its_bound_where_memory_bound"])
_MOSTLY = 0.5


def summary(found: Pareto) -> list[str]:
    """The sentences of a sweep, in reading order."""
    lines = [*_compared(found)]
    for name, phase in found.phases.items():
        lines += [_frontier_line(name, phase, cell) for cell in phase.cells]
        lines.append(_pays_line(name, phase))
        lines += _depth_claim(name, phase)
    if "prefill" in found.phases:
        lines += _order_claim(found.phases["prefill"])
    lines += _limits(found)
    return lines


def _compared(found: Pareto) -> Iterator[str]:
    points = [p for phase in found.phases.values() for p in phase.points]
    families = dict.fromkeys(p.family for p in points)
    subject = found.subject
    yield (
        f"{len(points)} points of {len(families)} families of {subject.get('model')}"
        f" ({subject.get('dtype')}) on {subject.get('device')}; {len(found.failed)} failed,"
        f" {found.pending} not run yet."
    )
    text = subject.get("text") or {}
    yield (
        "Measured: speedup = dense ÷ pruned medians of unprofiled samples, both models taking"
        " turns; loss = perplexity of the very model that was timed ÷ that of dense − 1, on"
        f" {text.get('tokens', 'an unknown number of')} tokens of"
        f" {text.get('source', 'an unknown text')}."
    )
    yield from _named_losses(points)


def _named_losses(points: list[Point]) -> Iterator[str]:
    """Which losses there are; no one of them is called the quality."""
    if any((p.loss or {}).get("tasks_signed") is not None for p in points):
        yield (
            "Three losses: relative perplexity, by which the frontier is drawn; the mean signed and"
            " the mean absolute relative change over tasks (signed: below zero is worse)."
        )


def _frontier_line(name: str, phase: ParetoPhase, cell: Cell) -> str:
    where = f"{name}, batch {cell.batch}, {cell.prompt_len} tokens"
    best = [p for p in _of(phase, cell) if p.on_frontier]
    best.sort(key=lambda p: (p.loss or {})["perplexity_rel"])
    if not best:
        return f"{where}: no point is faster than dense beyond noise."
    steps = " → ".join(
        f"{_named(p)} {ratio(p.realised)}{_interval(p)} at {_loss_text(p)}" for p in best
    )
    return f"{where}: the frontier, by loss: {steps}."


def _pays_line(name: str, phase: ParetoPhase) -> str:
    pays = {f: s for f, s in phase.break_even.items() if s is not None}
    never = [f for f, s in phase.break_even.items() if s is None]
    where = "at every batch and length" if len(phase.cells) > 1 else "here"
    parts = []
    if pays:
        words = ", ".join(f"{f} from s = {s:g}" for f, s in sorted(pays.items()))
        parts.append(f"faster than dense beyond noise {where}: {words}")
    if never:
        up_to = f"not faster beyond noise {where}, up to the largest s measured"
        parts.append(f"{up_to}: {', '.join(never)}")
    return f"{name}: {'; '.join(parts)}."


def _depth_claim(name: str, phase: ParetoPhase) -> Iterator[str]:
    """Whether static depth stays closest to its bound, where the dense model is memory-bound."""
    for cell in phase.cells:
        points = _of(phase, cell)
        bound = [p.memory_bound for p in points if p.memory_bound is not None]
        if not bound or median(bound) < _MOSTLY:
            continue
        reached = _shares(points)
        if DEPTH not in reached or len(reached) < 2:
            continue
        ranked = sorted(reached, key=lambda family: abs(1 - reached[family][1]))
        verdict = _verdict(reached, ranked)
        words = ", ".join(f"{f} {percent(reached[f][1], decimals=0)}" for f in ranked)
        yield (
            f"Claim “static depth stays closest to its bound where memory-bound”: {name}, batch"
            f" {cell.batch}, {cell.prompt_len} tokens is memory-bound in"
            f" {percent(median(bound), decimals=0)} of dense busy time; {verdict}. Median share of"
            f" the roofline bound reached, closest to 100 % first: {words}."
        )


def _shares(points: list[Point]) -> dict[str, tuple[float, float, float]]:
    """By family, (low, middle, high) of realised / roofline bound: medians over its points."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for point in points:
        bound = point.bounds.get("roofline")
        if bound and point.realised_ci95 is not None:
            low, high = point.realised_ci95
            found.setdefault(point.family, []).append(
                (low / bound, point.realised / bound, high / bound)
            )
    return {
        family: (median(s[0] for s in own), median(s[1] for s in own), median(s[2] for s in own))
        for family, own in found.items()
    }


def _verdict(reached: dict[str, tuple[float, float, float]], ranked: list[str]) -> str:
    """Where static depth stands, and which families its interval cannot be told apart from."""
    place = ranked.index(DEPTH) + 1
    low, _, high = reached[DEPTH]
    tied = [f for f in ranked if f != DEPTH and reached[f][0] <= high and reached[f][2] >= low]
    within = f", within noise of {', '.join(tied)}" if tied else ""
    if place == 1:
        return f"{'holds here by the medians' if tied else 'holds here'}{within}"
    if set(ranked[: place - 1]) <= set(tied):
        return f"undecided here ({DEPTH} is number {place} by the medians{within})"
    return f"does not hold here ({DEPTH} is number {place}{within})"


def _order_claim(phase: ParetoPhase) -> Iterator[str]:
    """Whether the families of the frontier follow each other as in the paper."""
    there = {p.family for p in phase.points}
    claim = f"Claim “prefill frontier {' → '.join(PAPER_ORDER)} by loss”"
    missing = [family for family in PAPER_ORDER if family not in there]
    if missing:
        if len(missing) < len(PAPER_ORDER):
            yield f"{claim}: cannot be judged here, {', '.join(missing)} was not measured."
        return
    orders = []
    for cell in phase.cells:
        steps = [_step(w) for w in cell.winners if w.family != "dense"]
        orders.append(f"batch {cell.batch}, {cell.prompt_len}: {' → '.join(steps) or 'none'}")
    seen = [[w.family for w in c.winners if w.family in PAPER_ORDER] for c in phase.cells]
    holds = all(tuple(families) == PAPER_ORDER for families in seen)
    yield (
        f"{claim}: {'holds' if holds else 'does not hold'} here ({'; '.join(orders)}). The paper's"
        " losses are mean changes over tasks after recovery training, these are perplexities before"
        " any."
    )


def _step(winner: Winner) -> str:
    """A family and the range of losses in which it is the fastest."""
    low, high = winner.loss
    end = "on" if high is None else f"to {percent(high, signed=True)}"
    return f"{winner.family} from {percent(low, signed=True)} {end}"


def control(points: list[Point]) -> Iterator[str]:
    """How often the interval of a point that does the dense work holds 1, which is its speedup."""
    same = [p.realised_ci95 for p in points if removed_nothing(p) and p.realised_ci95]
    if same:
        held = sum(low <= 1 <= high for low, high in same)
        yield (
            f"Control: {held} of the {len(same)} points that do the dense work have an interval"
            " that holds 1.00×; 95 % would if intervals told all of the noise."
        )


def _limits(found: Pareto) -> Iterator[str]:
    points = [p for phase in found.phases.values() for p in phase.points]
    simulated: dict[str, str] = {p.family: p.simulated for p in points if p.simulated}
    for family, what in simulated.items():
        yield f"Simulated: {family}: {what}."
    yield from control(points)
    spreads = [
        cell.dense_ns["spread"]
        for phase in found.phases.values()
        for cell in phase.cells
        if cell.dense_ns
    ]
    if spreads:
        yield (
            "Drift: the median of the dense model, measured anew with every result, spread by up to"
            f" {percent(max(spreads), decimals=1)} within a cell; intervals describe one capture."
        )
    yield (
        "Does not generalise: no recovery training was done, so the losses are those before any"
        " fine-tuning and the order by loss can change after it; times hold for this device,"
        " software and these shapes."
    )


def _of(phase: ParetoPhase, cell: Cell) -> list[Point]:
    where = (cell.batch, cell.prompt_len)
    return [p for p in phase.points if (p.batch, p.prompt_len) == where]


def _named(point: Point) -> str:
    return point.family if point.sparsity is None else f"{point.family} {point.sparsity:g}"


def _interval(point: Point) -> str:
    if point.realised_ci95 is None:
        return ""
    low, high = point.realised_ci95
    return f" [{low:.2f}, {high:.2f}]"


def _loss_text(point: Point) -> str:
    loss = point.loss or {}
    text = f"{percent(loss.get('perplexity_rel'), signed=True)}"
    if loss.get("ci95"):
        low, high = (percent(value, signed=True) for value in loss["ci95"])
        text += f" [{low}, {high}]"
    return f"{text} perplexity"
