"""The paper's claims (arXiv 2606.09080) as hypotheses, tested on the points of a sweep.

In: a Pareto with its points. Out: Hypotheses: an effect with its 95 % interval over samples, and
"holds" where it lies on the claim's side, "does not hold" where on the other, else "undecided".
Claims about losses are tested on the text that no training saw too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from importlib import resources
from statistics import median

import numpy as np
from msgspec.structs import asdict, replace

from prunescope.analysis.pareto.frontier import (
    frontier,
    loss_of,
    not_judged,
    removed_nothing,
    winners,
)
from prunescope.analysis.pareto.samples import (
    NUM_SAMPLES,
    Array,
    SampledPoints,
    interval,
    sample_points,
)
from prunescope.analysis.report.numbers import MINUS, loss, percent
from prunescope.analysis.schema.pareto import (
    MOST_RATIO,
    Hypothesis,
    Loss,
    Pareto,
    ParetoPhase,
    SweepCell,
    SweepPoint,
)

_PAPER = json.loads(resources.files(__package__).joinpath("paper.json").read_text(encoding="utf-8"))
PAPER_ORDER = tuple(_PAPER["order_by_loss_in_prefill"])
DEPTH = str(_PAPER["closest_to_its_bound_where_memory_bound"])
_MOSTLY = 0.5
_SURE = 0.975
LOW_LOSS = "static depth wins at low loss"
CLOSEST = "static depth stays closest to its bound where memory-bound"
HOLDS, FAILS, UNDECIDED, UNTESTED = "holds", "does not hold", "undecided", "cannot be judged"


def hypotheses(found: Pareto) -> list[Hypothesis]:
    """The three claims, in every cell in which they can be tested; those about losses by the loss
    on the other text too, where there is one and they can be judged."""
    tested = _tested(found)
    other = on_other_text(found)
    for one in [] if other is None else _tested(other):
        if one.claim != CLOSEST and one.verdict != UNTESTED:
            one.loss_on = str(found.subject.config.get("other_text") or "the other text")
            tested.append(one)
    return tested


def _tested(found: Pareto) -> list[Hypothesis]:
    tested: list[Hypothesis] = []
    for name, phase in found.phases.items():
        for cell in phase.cells:
            tested += _low_loss(name, phase, cell)
            tested += _closest(name, phase, cell)
    if "prefill" in found.phases:
        tested += _order(found.phases["prefill"])
    return tested


def _low_loss(name: str, phase: ParetoPhase, cell: SweepCell) -> Iterator[Hypothesis]:
    """Static depth at its lowest loss, against all that lose as little: the ratio of speedups."""
    points = [p for p in phase.points_in(cell) if not removed_nothing(p)]
    sampled = sample_points(points)
    of_depth = [p for p in points if p.family == DEPTH and loss_of(p) is not None]
    rivals = [p for p in points if p.family != DEPTH and loss_of(p) is not None]
    if not of_depth or not rivals:
        return
    least = min(of_depth, key=lambda p: loss_of(p) or 0.0)
    lost = loss_of(least) or 0.0
    if 1 + lost > MOST_RATIO:
        why = f"at its lowest loss, {loss(lost)}, nobody would use it: {MOST_RATIO:g}× is the most"
        yield _hypothesis(LOW_LOSS, name, cell, UNDECIDED, f"{least.name}: {why}")
        return
    not_valid = [p for p in rivals if not p.timing_valid and (loss_of(p) or 0.0) <= lost]
    if not least.timing_valid or not_valid:
        yield _hypothesis(LOW_LOSS, name, cell, UNDECIDED, _not_valid([least, *not_valid]))
        return
    if sampled is None or not (~sampled.of(DEPTH)).any():
        return
    at = [i for i in np.flatnonzero(sampled.of(DEPTH)) if sampled.labels[i] == least.label]
    if not at:
        return
    i = min(at, key=lambda k: float(sampled.losses[:, k].mean()))
    gain = sampled.speeds[:, i] - sampled.best(sampled.losses[:, i], ~sampled.of(DEPTH))
    effect, ci95 = interval(np.exp(gain))
    verdict = _by_interval(ci95, 1.0)
    text = (
        f"{least.name}, its point of the lowest loss ({loss(lost)}), is {effect:.2f}×"
        f" [{ci95[0]:.2f}, {ci95[1]:.2f}] as fast as the fastest that loses no more"
    )
    yield _hypothesis(
        LOW_LOSS,
        name,
        cell,
        verdict,
        text,
        effect=effect,
        ci95=ci95,
        share=float((gain > 0).mean()),
    )


def _closest(name: str, phase: ParetoPhase, cell: SweepCell) -> Iterator[Hypothesis]:
    """Static depth stays closest to its roofline bound, where the dense model is memory-bound: by
    how much less of the bound it misses than the next family that removes work."""
    points = [p for p in phase.points_in(cell) if not removed_nothing(p)]
    bound = [p.memory_bound for p in points if p.memory_bound is not None]
    if not bound or median(bound) < _MOSTLY:
        return
    missed = _missed(points)
    if DEPTH not in missed or len(missed) < 2:
        return
    unknown = [p for p in points if p.family in missed and p.label in not_judged(points)]
    if unknown:
        yield _hypothesis(CLOSEST, name, cell, UNDECIDED, _not_valid(unknown))
        return
    missed = _missed([p for p in points if p.timing_valid])
    rivals = np.min([np.abs(v) for family, v in missed.items() if family != DEPTH], axis=0)
    gain = rivals - np.abs(missed[DEPTH])
    effect, ci95 = interval(gain)
    ranked = sorted(missed, key=lambda family: float(np.median(np.abs(missed[family]))))
    words = ", ".join(
        f"{family} {percent(1 + float(np.median(missed[family])), decimals=0)}" for family in ranked
    )
    points_closer = f"{100 * effect:.1f} points [{100 * ci95[0]:.1f}, {100 * ci95[1]:.1f}]"
    text = (
        f"memory-bound in {percent(median(bound), decimals=0)} of dense busy time; share of the"
        f" roofline bound reached, closest to 100 % first: {words}; {DEPTH} is closer"
        f" than the next by {points_closer.replace('-', MINUS)}"
    )
    yield _hypothesis(
        CLOSEST,
        name,
        cell,
        _by_interval(ci95, 0.0),
        text,
        effect=effect,
        ci95=ci95,
        share=float((gain > 0).mean()),
    )


def _missed(points: list[SweepPoint]) -> dict[str, Array]:
    """By family, samples of (realised / bound − 1), the median over its points."""
    random = np.random.default_rng(0)
    found: dict[str, list[Array]] = {}
    for point in points:
        bound = point.bounds.get("roofline")
        if bound and point.realised_ci95 is not None:
            low, high = np.log(point.realised_ci95)
            noise = (high - low) / 3.92 * random.standard_normal(NUM_SAMPLES)
            share = np.exp(np.log(point.realised) + noise) / bound
            found.setdefault(point.family, []).append(share - 1)
    return {family: np.median(shares, axis=0) for family, shares in found.items()}


def _order(phase: ParetoPhase) -> Iterator[Hypothesis]:
    """Whether the families of the frontier follow each other as in the paper, as loss grows."""
    claim = f"prefill frontier {' → '.join(PAPER_ORDER)} by loss"
    never = _missing(phase.points)
    if never:
        if len(never) < len(PAPER_ORDER):
            yield _hypothesis(claim, "prefill", None, UNTESTED, _not_measured(never))
        return
    for cell in phase.cells:
        points = phase.points_in(cell)
        missing = _missing(points)
        if missing:
            if len(missing) < len(PAPER_ORDER):
                yield _hypothesis(claim, "prefill", cell, UNTESTED, _not_measured(missing))
            continue
        gone = not_judged(points)
        unknown = [p for p in points if p.family in PAPER_ORDER and p.label in gone]
        if unknown:
            yield _hypothesis(claim, "prefill", cell, UNDECIDED, _not_valid(unknown))
            continue
        sampled = sample_points(points)
        if sampled is None:
            continue
        share = _share_in_order(sampled)
        effect, ci95 = interval(np.exp(_weaker_step(sampled)))
        steps = " → ".join(
            f"{w.family} from {loss(w.loss[0])}" for w in cell.winners if w.family != "dense"
        )
        verdict = HOLDS if share >= _SURE else FAILS if share <= 1 - _SURE else UNDECIDED
        text = (
            f"observed: {steps or 'nothing faster than dense'}; the weaker of its two steps makes"
            f" the fastest {effect:.2f}× [{ci95[0]:.2f}, {ci95[1]:.2f}] as fast"
        )
        yield _hypothesis(
            claim, "prefill", cell, verdict, text, effect=effect, ci95=ci95, share=share
        )


def _share_in_order(sampled: SampledPoints) -> float:
    """The share of samples whose frontier has the three families, in that order."""
    hits = 0
    for speeds, losses in zip(sampled.speeds, sampled.losses, strict=True):
        top = 0.0
        order: list[str] = []
        for i in np.argsort(losses):
            if speeds[i] > top:
                top = speeds[i]
                family = sampled.families[i]
                if family in PAPER_ORDER and order[-1:] != [family]:
                    order.append(family)
        hits += tuple(order) == PAPER_ORDER
    return hits / len(sampled.speeds)


def _weaker_step(sampled: SampledPoints) -> Array:
    """[samples]: of both steps the smaller log ratio by which a family beats the one before it, at
    the loss at which it does so most."""
    steps = []
    for before, after in zip(PAPER_ORDER, PAPER_ORDER[1:], strict=False):
        gains = [
            sampled.speeds[:, i] - sampled.best(sampled.losses[:, i], sampled.of(before))
            for i in np.flatnonzero(sampled.of(after))
        ]
        steps.append(np.max(gains, axis=0) if gains else np.full(len(sampled.speeds), -np.inf))
    weaker: Array = np.min(steps, axis=0)
    return weaker


def _not_valid(points: Iterable[SweepPoint]) -> str:
    """Why points that would decide do not."""
    named = dict.fromkeys(p.name for p in points if not p.timing_valid)
    return f"the times of {', '.join(named)} are not valid"


def _missing(points: Iterable[SweepPoint]) -> list[str]:
    """The families of the paper's order that none of these is of."""
    there = {p.family for p in points}
    return [family for family in PAPER_ORDER if family not in there]


def _not_measured(families: list[str]) -> str:
    return f"{' and '.join(families)} {'were' if len(families) > 1 else 'was'} not measured"


def _by_interval(ci95: list[float], none: float) -> str:
    return HOLDS if ci95[0] > none else FAILS if ci95[1] < none else UNDECIDED


def _hypothesis(  # noqa: PLR0913
    claim: str,
    phase: str,
    cell: SweepCell | None,
    verdict: str,
    text: str,
    *,
    effect: float | None = None,
    ci95: list[float] | None = None,
    share: float | None = None,
) -> Hypothesis:
    return Hypothesis(
        claim=claim,
        phase=phase,
        batch=cell.batch if cell else None,
        prompt_len=cell.prompt_len if cell else None,
        verdict=verdict,
        effect=effect,
        effect_ci95=ci95,
        share_of_draws=share,
        text=text,
    )


def sentence(one: Hypothesis) -> str:
    """A hypothesis in one sentence."""
    where = f" in {one.phase}"
    if one.batch is not None:
        where += f", batch {one.batch}, {one.prompt_len} tokens"
    if one.loss_on is not None:
        where += f", by the loss on {one.loss_on}"
    share = ""
    if one.share_of_draws is not None:
        times = f"{percent(one.share_of_draws, decimals=0)} of {NUM_SAMPLES:,}"
        share = f"; true in {times} samples within the intervals"
    return f"Claim “{one.claim}”: {one.verdict}{where} ({one.text}{share})."


def on_other_text(found: Pareto) -> Pareto | None:
    """A copy in which the losses are those on the other text; None where there is none. Points
    that were not judged on it are left out."""
    phases = {name: _judged_phase(phase) for name, phase in found.phases.items()}
    judged = {name: phase for name, phase in phases.items() if phase.points}
    return replace(found, phases=judged) if judged else None


def _judged_phase(phase: ParetoPhase) -> ParetoPhase:
    points = list(_judged_points(phase))
    return replace(phase, points=points, cells=[_judged_cell(cell, points) for cell in phase.cells])


def _judged_points(phase: ParetoPhase) -> Iterator[SweepPoint]:
    for point in phase.points:
        other = point.loss.other_text if point.loss else None
        if other is not None:
            yield replace(point, loss=Loss(**asdict(other)), on_frontier=False)


def _judged_cell(cell: SweepCell, points: list[SweepPoint]) -> SweepCell:
    where = (cell.batch, cell.prompt_len)
    best = frontier(p for p in points if (p.batch, p.prompt_len) == where)
    return replace(cell, winners=winners(best, batch=cell.batch, prompt_len=cell.prompt_len))
