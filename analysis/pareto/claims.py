"""The paper's claims (arXiv 2606.09080) as hypotheses, tested on the points of a sweep.

In: a Pareto with its points. Out: Hypotheses: an effect with its 95 % interval over samples, and
"holds" where it lies on the claim's side, "does not hold" where on the other, else "undecided".
A verdict rests on three points or more, else it is "undecided" too: two points are a comparison,
and no more. Claims about losses are tested on the text that no training saw too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from importlib import resources
from statistics import median

import numpy as np
from msgspec.structs import asdict, replace

from prunescope.analysis.pareto.frontier import (
    frontier,
    loss_of,
    winners,
)
from prunescope.analysis.pareto.samples import (
    NUM_SAMPLES,
    Array,
    SampledPoints,
    has_intervals,
    interval,
    random_of,
    sample_points,
    sampled,
)
from prunescope.analysis.report.numbers import MINUS, loss, percent
from prunescope.analysis.schema.pareto import (
    NOT_VALID,
    Hypothesis,
    Loss,
    Pareto,
    ParetoPhase,
    SweepCell,
    SweepPoint,
    not_judged,
)

_PAPER = json.loads(resources.files(__package__).joinpath("paper.json").read_text(encoding="utf-8"))
PAPER_ORDER = tuple(_PAPER["order_by_loss_in_prefill"])
DEPTH = str(_PAPER["closest_to_its_bound_where_memory_bound"])
_MOSTLY = 0.5
_SURE = 0.975
# "At low loss": at most a fifth more perplexity, or five points of task score where no perplexity
# is known. Larger models of the same series differ by about as much.
LOW_PERPLEXITY, LOW_TASK_POINTS = 0.20, 0.05
LEAST_POINTS = 3
LOW_LOSS = "static depth wins at low loss"
CLOSEST = "static depth stays closest to its bound where memory-bound"
HOLDS, FAILS, UNDECIDED, UNTESTED = "holds", "does not hold", "undecided", "cannot be judged"


def hypotheses(found: Pareto) -> list[Hypothesis]:
    """The three claims, in every cell in which they can be tested; those about losses by the loss
    on the other text too, where there is one and they can be judged."""
    found = _of_models(found)
    tested = _tested(found)
    other = on_other_text(found)
    for one in [] if other is None else _tested(other):
        if one.claim != CLOSEST and one.verdict != UNTESTED:
            one.loss_on = str(found.subject.config.get("other_text") or "the other text")
            tested.append(one)
    return tested


def _of_models(found: Pareto) -> Pareto:
    """The points of whole models, without layers that ran alone: the claims are about whole
    models."""
    phases = {
        name: replace(
            phase,
            points=[point for point in phase.points if point.only == "model"],
            cells=[cell for cell in phase.cells if cell.only == "model"],
        )
        for name, phase in found.phases.items()
    }
    return replace(found, phases={name: phase for name, phase in phases.items() if phase.cells})


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
    """Test whether static depth is the fastest at low loss: the ratio of its best speedup to the
    best of the other families."""
    points = [p for p in phase.points_in(cell) if not p.removed_nothing]
    of_depth = [p for p in points if p.family == DEPTH and _is_low(p) is not None]
    rivals = [p for p in points if p.family != DEPTH and _is_low(p) is not None]
    if not of_depth or not rivals:
        return
    judged = _in_cell(LOW_LOSS, name, cell)
    low = [p for p in points if _is_low(p)]
    why = _too_few_low(low, of_depth, rivals)
    if why is not None:
        yield judged(verdict=UNDECIDED, text=why, points=len(low))
        return
    samples = sampled([p for p in points if p.timing_valid and (p in low or has_intervals(p))])
    within = samples.losses <= np.log1p(LOW_PERPLEXITY)
    own = np.where(within & samples.of(DEPTH), samples.speeds, -np.inf).max(axis=1)
    gain = np.where(np.isfinite(own), own, 0.0) - samples.best(
        np.log1p(LOW_PERPLEXITY), ~samples.of(DEPTH)
    )
    effect, ci95 = interval(np.exp(gain))
    best, rival = (
        max((p for p in low if (p.family == DEPTH) is wanted), key=lambda p: p.realised)
        for wanted in (True, False)
    )
    than = rival.name if rival.realised > 1 else "the dense model"
    text = (
        f"of {_points(len(low))} that lose at most {_low_words(low)}, {best.name} is {effect:.2f}×"
        f" [{ci95[0]:.2f}, {ci95[1]:.2f}] as fast as the fastest of another family, {than}"
    )
    yield judged(
        verdict=_by_interval(ci95, 1.0),
        text=text,
        effect=effect,
        effect_ci95=ci95,
        share_of_draws=float((gain > 0).mean()),
        points=len(low),
    )


def _is_low(point: SweepPoint) -> bool | None:
    """Whether a point is at low loss; None where no loss is known."""
    rise, scored = loss_of(point), point.loss.tasks_points if point.loss else None
    if rise is not None:
        return rise <= LOW_PERPLEXITY
    return None if scored is None else scored >= -LOW_TASK_POINTS


def _low_words(points: Iterable[SweepPoint]) -> str:
    by_tasks = any(loss_of(p) is None for p in points)
    text = f"{loss(LOW_PERPLEXITY)} perplexity"
    return f"{text} or {100 * LOW_TASK_POINTS:g} points of task score" if by_tasks else text


def _too_few_low(
    low: Sequence[SweepPoint], of_depth: Sequence[SweepPoint], rivals: Sequence[SweepPoint]
) -> str | None:
    """Why the points of low loss decide nothing; None where they may."""
    for whose, own in ((DEPTH, of_depth), ("another family", rivals)):
        if not any(p in low for p in own):
            known = [rise for rise in map(loss_of, own) if rise is not None]
            least = f"; the least is {loss(min(known))}" if known else ""
            return f"no point of {whose} loses at most {_low_words(own)}{least}"
    if len(low) < LEAST_POINTS:
        return f"{_points(len(low))} at most {_low_words(low)}; a claim takes {LEAST_POINTS}"
    if not all(p.timing_valid for p in low):
        return _not_valid(low)
    return _no_intervals(low)


def _no_intervals(points: Iterable[SweepPoint]) -> str | None:
    """The points that lack an interval of their speedup or of the compared loss."""
    named = dict.fromkeys(
        p.name
        for p in points
        if not p.realised_ci95 or (loss_of(p) is not None and not has_intervals(p))
    )
    shown = [*list(named)[:3], f"{len(named) - 3} more"] if len(named) > 4 else list(named)
    return f"no interval is known of {', '.join(shown)}" if named else None


def _points(count: int) -> str:
    return f"{count} point{'' if count == 1 else 's'}"


def _closest(name: str, phase: ParetoPhase, cell: SweepCell) -> Iterator[Hypothesis]:
    """Static depth stays closest to its roofline bound, where the dense model is memory-bound: by
    how much less of the bound it misses than the next family that removes work."""
    points = [p for p in phase.points_in(cell) if not p.removed_nothing]
    bound = [p.memory_bound for p in points if p.memory_bound is not None]
    if not bound or median(bound) < _MOSTLY:
        return
    missed = _missed(points)
    if DEPTH not in missed or len(missed) < 2:
        return
    judged = _in_cell(CLOSEST, name, cell)
    unknown = [p for p in points if p.family in missed and p.label in _invalid(points)]
    if unknown:
        yield judged(verdict=UNDECIDED, text=_not_valid(unknown))
        return
    missed = _missed([p for p in points if p.timing_valid])
    rivals = np.min([v for family, v in missed.items() if family != DEPTH], axis=0)
    used = [p for p in points if p.timing_valid and _misses(p)]
    if len(used) < LEAST_POINTS:
        why = f"it rests on {_points(len(used))}, and a claim takes {LEAST_POINTS}"
        yield judged(verdict=UNDECIDED, text=why, points=len(used))
        return
    gain = rivals - missed[DEPTH]
    effect, ci95 = interval(gain)
    ranked = sorted(missed, key=lambda family: float(np.median(missed[family])))
    words = ", ".join(
        f"{family} {100 * float(np.median(missed[family])):.1f} points" for family in ranked
    )
    points_closer = f"{100 * effect:.1f} points [{100 * ci95[0]:.1f}, {100 * ci95[1]:.1f}]"
    text = (
        f"memory-bound in {percent(median(bound), decimals=0)} of dense busy time; mean distance of"
        f" {_points(len(used))} from their roofline bounds, above or below: {words};"
        f" {DEPTH} is closer"
        f" than the next by {points_closer.replace('-', MINUS)}"
    )
    yield judged(
        verdict=_by_interval(ci95, 0.0),
        text=text,
        effect=effect,
        effect_ci95=ci95,
        share_of_draws=float((gain > 0).mean()),
        points=len(used),
    )


def _missed(points: list[SweepPoint]) -> dict[str, Array]:
    """Samples of |realised / bound − 1| by family: the mean over its points: a point above its
    bound does not make up for one below."""
    found: dict[str, list[Array]] = {}
    for point in filter(_misses, points):
        low, high = np.log(point.realised_ci95 or ())
        # A normal sample as wide as the 95 % interval: 2 × 1.96 standard errors (samples.py).
        noise = (high - low) / 3.92 * random_of(point).standard_normal(NUM_SAMPLES)
        share = np.exp(np.log(point.realised) + noise) / (point.bounds["roofline"] or 1.0)
        found.setdefault(point.family, []).append(np.abs(share - 1))
    return {family: np.mean(shares, axis=0) for family, shares in found.items()}


def _misses(point: SweepPoint) -> bool:
    """Whether it is known by how much a point misses its roofline bound."""
    return bool(point.bounds.get("roofline") and point.realised_ci95)


def _order(phase: ParetoPhase) -> Iterator[Hypothesis]:
    """Whether the families of the frontier follow each other as in the paper, as loss grows."""
    claim = f"prefill frontier {' → '.join(PAPER_ORDER)} by loss"
    never = _missing(phase.points)
    if never:
        if len(never) < len(PAPER_ORDER):
            yield _in_cell(claim, "prefill", None)(verdict=UNTESTED, text=_not_measured(never))
        return
    for cell in phase.cells:
        judged = _in_cell(claim, "prefill", cell)
        points = phase.points_in(cell)
        missing = _missing(points)
        if missing:
            if len(missing) < len(PAPER_ORDER):
                yield judged(verdict=UNTESTED, text=_not_measured(missing))
            continue
        invalid = _invalid(points)
        unknown = [p for p in points if p.family in PAPER_ORDER and p.label in invalid]
        if unknown:
            yield judged(verdict=UNDECIDED, text=_not_valid(unknown))
            continue
        used = [p for p in points if p.family in PAPER_ORDER and loss_of(p) is not None]
        why = _no_intervals(used)
        if why is not None:
            yield judged(verdict=UNDECIDED, text=why, points=len(used))
            continue
        samples = sample_points(points)
        if samples is None:
            continue
        share = _share_in_order(samples)
        effect, ci95 = interval(np.exp(_weaker_step(samples)))
        steps = " → ".join(
            f"{w.family} from {loss(w.loss[0])}" for w in cell.winners if w.family != "dense"
        )
        verdict = HOLDS if share >= _SURE else FAILS if share <= 1 - _SURE else UNDECIDED
        text = (
            f"observed: {steps or 'nothing faster than dense'}; of {_points(len(used))} of the"
            f" three families, the weaker of the two steps makes the fastest {effect:.2f}×"
            f" [{ci95[0]:.2f}, {ci95[1]:.2f}] as fast"
        )
        yield judged(
            verdict=verdict,
            text=text,
            effect=effect,
            effect_ci95=ci95,
            share_of_draws=share,
            points=len(used),
        )


def _share_in_order(samples: SampledPoints) -> float:
    """The share of samples whose frontier has the three families, in that order."""
    hits = 0
    for speeds, losses in zip(samples.speeds, samples.losses, strict=True):
        top = 0.0
        order: list[str] = []
        for i in np.argsort(losses):
            if speeds[i] > top:
                top = speeds[i]
                family = samples.families[i]
                if family in PAPER_ORDER and order[-1:] != [family]:
                    order.append(family)
        hits += tuple(order) == PAPER_ORDER
    return hits / len(samples.speeds)


def _weaker_step(samples: SampledPoints) -> Array:
    """[samples]: of both steps the smaller log ratio by which a family beats the one before it, at
    the loss at which it does so most."""
    steps = []
    for before, after in zip(PAPER_ORDER, PAPER_ORDER[1:], strict=False):
        gains = [
            samples.speeds[:, i] - samples.best(samples.losses[:, i], samples.of(before))
            for i in np.flatnonzero(samples.of(after))
        ]
        steps.append(np.max(gains, axis=0) if gains else np.full(len(samples.speeds), -np.inf))
    weaker: Array = np.min(steps, axis=0)
    return weaker


def _invalid(points: Iterable[SweepPoint]) -> list[str]:
    """The families none of whose points in a cell have valid times."""
    return [family for family, why in not_judged(points).items() if why == NOT_VALID]


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


def _in_cell(claim: str, phase: str, cell: SweepCell | None) -> partial[Hypothesis]:
    """A claim about a cell, or about a phase alone, that lacks its verdict."""
    batch, prompt_len = (cell.batch, cell.prompt_len) if cell else (None, None)
    return partial(Hypothesis, claim=claim, phase=phase, batch=batch, prompt_len=prompt_len)


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
            yield replace(point, loss=Loss(**asdict(other)), on_frontier=False, equal_to=[])


def _judged_cell(cell: SweepCell, points: list[SweepPoint]) -> SweepCell:
    best = frontier(p for p in points if p.setting == cell.setting)
    return replace(cell, winners=winners(best, batch=cell.batch, prompt_len=cell.prompt_len))
