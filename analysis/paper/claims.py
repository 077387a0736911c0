"""The paper's claims (arXiv 2606.09080) as hypotheses, tested on the points of a sweep.

In: a Pareto with its points. Out: Hypotheses. Each has an effect with its 95 % interval over
samples, and a verdict: "holds" if the interval lies on the claim's side, "does not hold" if it lies
on the other side, else "undecided". An end that other random samples could put on the other side
decides nothing. With fewer than three points it is "undecided" too, as two points are only a
comparison. Claims about losses are also tested on the text that no training saw.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from importlib import resources
from statistics import median

import numpy as np
from msgspec.structs import asdict, replace

from prunescope.analysis.frontier.frontier import frontier, loss_of, winners
from prunescope.analysis.frontier.sampled_points import (
    NUM_SAMPLES,
    Array,
    SampledPoints,
    has_intervals,
    interval,
    random_of,
    sample_points,
    sampled,
)
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
from prunescope.taxonomy.numbers import MINUS, loss, percent
from prunescope.taxonomy.words import plural, when

_PAPER = json.loads(
    resources.files(__package__).joinpath("claims.json").read_text(encoding="utf-8")
)
PAPER_ORDER = tuple(_PAPER["order_by_loss_in_prefill"])
DEPTH = str(_PAPER["closest_to_its_bound_where_memory_bound"])
_MOSTLY = 0.5
# Twice the standard error of a share of 97.5 % among the samples, and of an end of a 95 % interval
# as a share of its width: √(p(1 − p) / n), for the end over the normal density at 1.96 (0.0584) and
# over 2 · 1.96.
_CHANCE = 2 * math.sqrt(0.025 * 0.975 / NUM_SAMPLES)
_SURE = 0.975 + _CHANCE
_EDGE = _CHANCE / 0.0584 / 3.92
# "At low loss": at most a fifth more perplexity, or five points of task score where no perplexity
# is known. Larger models of the same series differ by about as much.
LOW_PERPLEXITY, LOW_TASK_POINTS = 0.20, 0.05
LEAST_POINTS = 3
LOW_LOSS = "static depth wins at low loss"
CLOSEST = "static depth stays closest to its bound where memory-bound"
HOLDS, FAILS, UNDECIDED, UNTESTED = "holds", "does not hold", "undecided", "cannot be judged"


def hypotheses(pareto: Pareto) -> list[Hypothesis]:
    """Test the three claims in every cell in which they can be tested.

    Claims about losses are also tested with the losses on the other text, if there is one and they
    can be judged.

    Args:
        pareto: The comparison with its points.
    """
    pareto = _keep_whole_models(pareto)
    tested = _test_claims(pareto)
    on_other = on_other_text(pareto)
    for hypothesis in [] if on_other is None else _test_claims(on_other):
        if hypothesis.claim != CLOSEST and hypothesis.verdict != UNTESTED:
            hypothesis.loss_on = str(pareto.subject.config.get("other_text") or "the other text")
            tested.append(hypothesis)
    return tested


def _keep_whole_models(pareto: Pareto) -> Pareto:
    """Drop the points of layers that ran alone, as the claims are about whole models."""
    phases = {
        name: replace(
            phase,
            points=[point for point in phase.points if point.only == "model"],
            cells=[cell for cell in phase.cells if cell.only == "model"],
        )
        for name, phase in pareto.phases.items()
    }
    return replace(pareto, phases={name: phase for name, phase in phases.items() if phase.cells})


def _test_claims(pareto: Pareto) -> list[Hypothesis]:
    tested: list[Hypothesis] = []
    for name, phase in pareto.phases.items():
        for cell in phase.cells:
            tested += _test_low_loss(name, phase, cell)
            tested += _test_closest(name, phase, cell)
    if "prefill" in pareto.phases:
        tested += _test_order(pareto.phases["prefill"])
    return tested


def _test_low_loss(name: str, phase: ParetoPhase, cell: SweepCell) -> Iterator[Hypothesis]:
    """Test whether static depth is the fastest at low loss.

    The effect is the ratio of its best speedup to the best of the other families.
    """
    points = [p for p in phase.points_in(cell) if not p.removed_nothing]
    of_depth = [p for p in points if p.family == DEPTH and _is_low(p) is not None]
    rivals = [p for p in points if p.family != DEPTH and _is_low(p) is not None]
    if not of_depth or not rivals:
        return
    judged = _claim_about(LOW_LOSS, name, cell)
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
        f"of {_count_points(len(low))} that lose at most {_low_words(low)}, {best.name} is"
        f" {effect:.2f}× [{ci95[0]:.2f}, {ci95[1]:.2f}] as fast as the fastest of another"
        f" family, {than}"
    )
    tested = judged(verdict=_judge_interval(ci95, 1.0), text=text, points=len(low))
    yield _with_effect(tested, effect, ci95, share=float((gain > 0).mean()))


def _is_low(point: SweepPoint) -> bool | None:
    """Return whether a point is at low loss; None if no loss is known."""
    rise, scored = loss_of(point), point.loss.tasks_points if point.loss else None
    if rise is not None:
        return rise <= LOW_PERPLEXITY
    return None if scored is None else scored >= -LOW_TASK_POINTS


def _low_words(points: Iterable[SweepPoint]) -> str:
    by_tasks = any(loss_of(p) is None for p in points)
    tasks = when(by_tasks, f" or {100 * LOW_TASK_POINTS:g} points of task score")
    return f"{loss(LOW_PERPLEXITY)} perplexity{tasks}"


def _too_few_low(
    low: Sequence[SweepPoint], of_depth: Sequence[SweepPoint], rivals: Sequence[SweepPoint]
) -> str | None:
    """Return why the points of low loss decide nothing; None if they may decide."""
    for name, points in ((DEPTH, of_depth), ("another family", rivals)):
        if not any(p in low for p in points):
            known = [rise for rise in map(loss_of, points) if rise is not None]
            least = f"; the least is {loss(min(known))}" if known else ""
            return f"no point of {name} loses at most {_low_words(points)}{least}"
    if len(low) < LEAST_POINTS:
        return f"{_count_points(len(low))} at most {_low_words(low)}; a claim takes {LEAST_POINTS}"
    if not all(p.timing_valid for p in low):
        return _not_valid(low)
    return _no_intervals(low)


def _no_intervals(points: Iterable[SweepPoint]) -> str | None:
    """Name the points that lack an interval of speedup or loss; None if all have them."""
    named = dict.fromkeys(
        p.name
        for p in points
        if not p.realised_ci95 or (loss_of(p) is not None and not has_intervals(p))
    )
    shown = [*list(named)[:3], f"{len(named) - 3} more"] if len(named) > 4 else list(named)
    return f"no interval is known of {', '.join(shown)}" if named else None


def _count_points(count: int) -> str:
    return f"{count} point{plural(count)}"


def _test_closest(name: str, phase: ParetoPhase, cell: SweepCell) -> Iterator[Hypothesis]:
    """Test whether static depth stays closest to its roofline bound.

    It is tested if the dense model is memory-bound. The effect is by how much less of the bound it
    misses than the next family that removes work.
    """
    points = [p for p in phase.points_in(cell) if not p.removed_nothing]
    bound = [p.memory_bound for p in points if p.memory_bound is not None]
    if not bound or median(bound) < _MOSTLY:
        return
    missed = _sample_distances(points)
    if DEPTH not in missed or len(missed) < 2:
        return
    judged = _claim_about(CLOSEST, name, cell)
    unknown = [p for p in points if p.family in missed and p.label in _invalid_families(points)]
    if unknown:
        yield judged(verdict=UNDECIDED, text=_not_valid(unknown))
        return
    missed = _sample_distances([p for p in points if p.timing_valid])
    rivals = np.min([v for family, v in missed.items() if family != DEPTH], axis=0)
    used = [p for p in points if p.timing_valid and _has_known_distance(p)]
    if len(used) < LEAST_POINTS:
        why = f"it rests on {_count_points(len(used))}, and a claim takes {LEAST_POINTS}"
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
        f" {_count_points(len(used))} from their roofline bounds, above or below: {words};"
        f" {DEPTH} is closer"
        f" than the next by {points_closer.replace('-', MINUS)}"
    )
    tested = judged(verdict=_judge_interval(ci95, 0.0), text=text, points=len(used))
    yield _with_effect(tested, effect, ci95, share=float((gain > 0).mean()))


def _sample_distances(points: list[SweepPoint]) -> dict[str, Array]:
    """Return samples of |realised / bound − 1| by family, as the mean over its points.

    Distances are absolute, so that a point above its bound does not make up for one below.
    """
    by_family: dict[str, list[Array]] = {}
    for point in filter(_has_known_distance, points):
        low, high = np.log(point.realised_ci95 or ())
        # A normal sample as wide as the 95 % interval: 2 × 1.96 standard errors (samples.py).
        noise = (high - low) / 3.92 * random_of(point).standard_normal(NUM_SAMPLES)
        share = np.exp(np.log(point.realised) + noise) / (point.bounds["roofline"] or 1.0)
        by_family.setdefault(point.family, []).append(np.abs(share - 1))
    return {family: np.mean(shares, axis=0) for family, shares in by_family.items()}


def _has_known_distance(point: SweepPoint) -> bool:
    """Return whether it is known by how much a point misses its roofline bound."""
    return bool(point.bounds.get("roofline") and point.realised_ci95)


def _test_order(phase: ParetoPhase) -> Iterator[Hypothesis]:
    """Test whether the families of the frontier follow each other by loss as in the paper."""
    claim = f"prefill frontier {' → '.join(PAPER_ORDER)} by loss"
    never = _missing_families(phase.points)
    if never:
        if len(never) < len(PAPER_ORDER):
            yield _claim_about(claim, "prefill", None)(verdict=UNTESTED, text=_not_measured(never))
        return
    for cell in phase.cells:
        judged = _claim_about(claim, "prefill", cell)
        points = phase.points_in(cell)
        missing = _missing_families(points)
        if missing:
            if len(missing) < len(PAPER_ORDER):
                yield judged(verdict=UNTESTED, text=_not_measured(missing))
            continue
        invalid = _invalid_families(points)
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
            f"observed: {steps or 'nothing faster than dense'}; of {_count_points(len(used))} of"
            f" the three families, the weaker of the two steps makes the fastest {effect:.2f}×"
            f" [{ci95[0]:.2f}, {ci95[1]:.2f}] as fast"
        )
        tested = judged(verdict=verdict, text=text, points=len(used))
        yield _with_effect(tested, effect, ci95, share=share)


def _share_in_order(samples: SampledPoints) -> float:
    """Return the share of samples whose frontier has the three families in that order."""
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
    """Return the weaker of the two steps of each sample, [samples].

    A step is the log ratio by which a family beats the one before it, at the loss at which it does
    so most.
    """
    steps = []
    for before, after in zip(PAPER_ORDER, PAPER_ORDER[1:], strict=False):
        gains = [
            samples.speeds[:, i] - samples.best(samples.losses[:, i], samples.of(before))
            for i in np.flatnonzero(samples.of(after))
        ]
        steps.append(np.max(gains, axis=0) if gains else np.full(len(samples.speeds), -np.inf))
    weaker: Array = np.min(steps, axis=0)
    return weaker


def _invalid_families(points: Iterable[SweepPoint]) -> list[str]:
    """Return the families that have points in a cell, but none with valid times."""
    return [family for family, why in not_judged(points).items() if why == NOT_VALID]


def _not_valid(points: Iterable[SweepPoint]) -> str:
    """Return the sentence that the times of these points are not valid."""
    named = dict.fromkeys(p.name for p in points if not p.timing_valid)
    return f"the times of {', '.join(named)} are not valid"


def _missing_families(points: Iterable[SweepPoint]) -> list[str]:
    """Return the families of the paper's order that none of the points belongs to."""
    there = {p.family for p in points}
    return [family for family in PAPER_ORDER if family not in there]


def _not_measured(families: list[str]) -> str:
    return f"{' and '.join(families)} {'were' if len(families) > 1 else 'was'} not measured"


def _judge_interval(ci95: list[float], none: float) -> str:
    edge = _EDGE * (ci95[1] - ci95[0])
    return HOLDS if ci95[0] - edge > none else FAILS if ci95[1] + edge < none else UNDECIDED


def _with_effect(
    hypothesis: Hypothesis, effect: float, ci95: list[float], *, share: float
) -> Hypothesis:
    return replace(hypothesis, effect=effect, effect_ci95=ci95, share_of_draws=share)


def _claim_about(claim: str, phase: str, cell: SweepCell | None) -> partial[Hypothesis]:
    """Return a claim about a cell, or about a phase alone, that lacks its verdict."""
    batch, prompt_len = (cell.batch, cell.prompt_len) if cell else (None, None)
    return partial(Hypothesis, claim=claim, phase=phase, batch=batch, prompt_len=prompt_len)


def sentence(hypothesis: Hypothesis) -> str:
    """Return a hypothesis in one sentence."""
    where = f" in {hypothesis.phase}"
    if hypothesis.batch is not None:
        where += f", batch {hypothesis.batch}, {hypothesis.prompt_len} tokens"
    if hypothesis.loss_on is not None:
        where += f", by the loss on {hypothesis.loss_on}"
    share = ""
    if hypothesis.share_of_draws is not None:
        times = f"{percent(hypothesis.share_of_draws, decimals=0)} of {NUM_SAMPLES:,}"
        share = f"; true in {times} samples within the intervals"
    return f"Claim “{hypothesis.claim}”: {hypothesis.verdict}{where} ({hypothesis.text}{share})."


def on_other_text(pareto: Pareto) -> Pareto | None:
    """Return a copy in which the losses are those on the other text.

    Points that were not judged on it are left out.

    Args:
        pareto: The comparison with its points.

    Returns:
        The copy; None if no point was judged on another text.
    """
    phases = {}
    for name, phase in pareto.phases.items():
        points = [
            replace(point, loss=Loss(**asdict(loss.other_text)), on_frontier=False, equal_to=[])
            for point in phase.points
            if (loss := point.loss) is not None and loss.other_text is not None
        ]
        if points:
            cells = [_with_winners(cell, points) for cell in phase.cells]
            phases[name] = replace(phase, points=points, cells=cells)
    return replace(pareto, phases=phases) if phases else None


def _with_winners(cell: SweepCell, points: list[SweepPoint]) -> SweepCell:
    best = frontier(p for p in points if p.setting == cell.setting)
    return replace(cell, winners=winners(best, batch=cell.batch, prompt_len=cell.prompt_len))
