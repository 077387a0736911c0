"""The results of a sweep in plain sentences, none stronger than its intervals.

In: a Pareto without its summary. Out: unescaped lines: what was compared, the frontier of each
cell, the sparsities from which pruning pays, the paper's claims, and what does not generalise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prunescope.analysis.frontier.frontier import comparable, loss_ci95, loss_of
from prunescope.analysis.paper.claims import sentence
from prunescope.analysis.schema.pareto import (
    NO_INTERVAL,
    NOT_VALID,
    Pareto,
    ParetoPhase,
    SweepCell,
    SweepPoint,
    SweepSubject,
    not_judged,
    without_sparsity,
)
from prunescope.taxonomy import numbers
from prunescope.taxonomy.numbers import percent, ratio
from prunescope.taxonomy.runs.run_quality import RANDOM_IDS
from prunescope.taxonomy.scoring import may_decide, scoring_of
from prunescope.taxonomy.words import when


def summary(pareto: Pareto) -> list[str]:
    """Return the sentences of a sweep, in reading order."""
    lines = [*_comparison_lines(pareto)]
    for name, phase in pareto.phases.items():
        for cell in phase.cells:
            lines += _frontier_lines(name, phase, cell)
        lines.append(_pays_line(name, phase))
    lines += [sentence(hypothesis) for hypothesis in pareto.hypotheses]
    lines += _limit_lines(pareto)
    return lines


def _comparison_lines(pareto: Pareto) -> Iterator[str]:
    points = [p for phase in pareto.phases.values() for p in phase.points]
    families = dict.fromkeys(p.family for p in points)
    subject = pareto.subject
    missing = {"failed": len(pareto.failed), "not run yet": pareto.pending}
    not_done = ", ".join(f"{count} {why}" for why, count in missing.items() if count)
    results = sum(len(p.draws) or 1 for p in points)
    merged = when(results > len(points), f" (of {results} results: random samples are one point)")
    yield (
        f"{len(points)} points{merged} of {len(families)} families of {subject.model}"
        f" ({subject.dtype}) on {subject.device}{when(bool(not_done), f'; {not_done}')}."
    )
    text = subject.text or {}
    windows = sorted({p.loss.context for p in points if p.loss and p.loss.context})
    yield (
        "Measured: speedup = dense ÷ pruned, geometric means over placements of the medians of"
        " unprofiled samples, both models taking turns; loss = perplexity of the model that was"
        " timed ÷ that of dense − 1, on"
        f" {text.get('tokens', 'an unknown number of')} tokens of"
        f" {text.get('source', 'an unknown text')}{_fewer_tokens(points)}"
        f"{when(bool(windows), f', in windows of {_listed(windows)} tokens')}."
    )
    if pareto.samples is not None:
        yield (
            f"Shares of samples: each point is sampled {pareto.samples.count:,} times from its"
            " intervals, independent of the others. A point is on the frontier if it is faster than"
            " dense and no other is as fast and loses as little."
        )
    yield from scoring_notes({name: phase.points for name, phase in pareto.phases.items()})
    yield from _recovery_lines(pareto)
    yield from _loss_lines(points)


def _fewer_tokens(points: list[SweepPoint]) -> str:
    """Return a note that losses scored token by token rest on fewer tokens than the others."""
    by_token = [p for p in points if p.loss and p.loss.scoring == "decode"]
    if not by_token:
        return ""
    counts = sorted({p.loss.scored_tokens for p in by_token if p.loss and p.loss.scored_tokens})
    few = f"{_listed(counts)} of them" if counts else "fewer"
    return (
        f" ({few} for {', '.join(dict.fromkeys(p.label for p in by_token))}, one after another: "
        "differences from the others hold the difference of the tokens too)"
    )


def _recovery_lines(pareto: Pareto) -> Iterator[str]:
    """Yield which models were trained, and against which dense model losses are given."""
    recover = pareto.subject.config.get("recover")
    if recover:
        yield (
            f"Recovered: {recover.get('steps')} steps of LoRA, rank {recover.get('rank')}, on"
            f" {recover.get('batch')} × {recover.get('length')} tokens each; the dense model got"
            " the same, and the losses of frontier, winners and claims are against it."
        )


def _loss_lines(points: list[SweepPoint]) -> Iterator[str]:
    """Yield a sentence on the measured losses. None of them is called the quality."""
    if any(p.loss and p.loss.has_tasks for p in points):
        yield (
            "Three losses: relative perplexity, by which the frontier is computed; the mean signed"
            " and the mean absolute relative change over tasks (signed: below zero is worse)."
        )


def _frontier_lines(name: str, phase: ParetoPhase, cell: SweepCell) -> Iterator[str]:
    where = f"{name}, {cell.where}"
    points = phase.points_in(cell)
    best = sorted((p for p in points if p.on_frontier), key=lambda p: loss_of(p) or 0.0)
    not_valid = sum(not p.timing_valid for p in points)
    left = when(bool(not_valid), f" ({not_valid} left out: their times are not valid)")
    if not best:
        able = comparable(points)
        if any(p.is_judged for p in able) or all(p.removed_nothing for p in points):
            yield f"{where}: no point is faster than dense{left}."
        else:
            yield f"{where}: no point could be judged: {_why_none(points)}."
        return
    steps = " → ".join(
        f"{p.name} {ratio(p.realised)}{_format_interval(p.realised_ci95, '{:.2f}'.format)} at "
        f"{numbers.loss(loss_of(p))}{_format_interval(loss_ci95(p), numbers.loss)} perplexity, "
        f"{_share_text(p)}"
        for p in best
    )
    yield f"{where}: the frontier, by loss{left}: {steps}."
    pairs = _equal_pairs(points)
    if pairs:
        yield f"{where}: indistinguishable in speed and in loss: {'; '.join(pairs)}."


def _why_none(points: list[SweepPoint]) -> str:
    """Return why none of the points of a cell could be judged, with counts."""
    valid = [p for p in points if p.timing_valid]
    counts = {
        "with times that are not valid": len(points) - len(valid),
        "without an interval": sum(not p.is_judged for p in valid),
        "without a known loss": sum(p.is_judged and loss_of(p) is None for p in valid),
        "that removed nothing": sum(
            p.is_judged and loss_of(p) is not None and p.removed_nothing for p in valid
        ),
    }
    return ", ".join(f"{count} {why}" for why, count in counts.items() if count)


def _equal_pairs(points: list[SweepPoint]) -> list[str]:
    """Return each pair with a point of the frontier that differs in nothing beyond noise, once."""
    names = {p.id: p.name for p in points}
    order = [p.id for p in sorted(points, key=lambda p: not p.on_frontier)]
    return [
        f"{names[point.id]} and {names[equal]}"
        for point in sorted(points, key=lambda p: order.index(p.id))
        for equal in point.equal_to
        if order.index(point.id) < order.index(equal)
    ]


def _share_text(point: SweepPoint) -> str:
    """Return in how many samples a point is on the frontier."""
    if point.frontier_share is None:
        return "without an interval"
    return f"on it in {percent(point.frontier_share, decimals=0)} of samples"


def _pays_line(name: str, phase: ParetoPhase) -> str:
    where = "at every batch and length" if len(phase.cells) > 1 else "here"
    alone = without_sparsity(phase.points)
    pays = [f"{f} from s = {s:g}" for f, s in sorted(phase.break_even.items()) if s is not None]
    pays += [family for family, faster in alone.items() if faster]
    never = [family for family, s in phase.break_even.items() if s is None]
    slower = [family for family, faster in alone.items() if not faster]
    parts = []
    if pays:
        parts.append(f"faster than dense beyond noise {where}: {', '.join(pays)}")
    if never:
        up_to = f"not faster beyond noise {where}, up to the largest s measured"
        parts.append(f"{up_to}: {', '.join(never)}")
    if slower:
        parts.append(f"not faster beyond noise {where}: {', '.join(slower)}")
    unjudged = not_judged(phase.points)
    for reason, words in (
        (NOT_VALID, "their times are not valid"),
        (NO_INTERVAL, "they have no interval"),
    ):
        families = [family for family, why in unjudged.items() if why == reason]
        if families:
            parts.append(f"not judged, as {words}: {', '.join(families)}")
    return f"{name}: {'; '.join(parts)}."


def control(points: list[SweepPoint]) -> Iterator[str]:
    """Yield how often the interval of a point that removed nothing holds 1, its true speedup."""
    idle = [p for p in points if p.removed_nothing and p.timing_valid]
    same = [p.realised_ci95 for p in idle if p.realised_ci95]
    if same:
        held = sum(low <= 1 <= high for low, high in same)
        yield (
            f"Control: {held} of the {len(same)} points that do the dense work have an interval"
            " that holds 1.00×; 95 % would if intervals covered all of the noise."
        )


def _unscored(points: list[SweepPoint]) -> dict[str, list[str]]:
    """Return the names of points without a loss, by the reason."""
    by_reason: dict[str, list[str]] = {}
    for point in points:
        if point.unscored and point.name not in by_reason.setdefault(point.unscored, []):
            by_reason[point.unscored].append(point.name)
    return by_reason


def _limit_lines(pareto: Pareto) -> Iterator[str]:
    points = [p for phase in pareto.phases.values() for p in phase.points]
    simulated = {p.label: p.simulated for p in points if p.simulated}
    for label, how in simulated.items():
        yield f"Simulated: {label}: {how}."
    whole = list(dict.fromkeys(f"{p.name} ({p.where})" for p in points if p.runs_every_row))
    if whole:
        yield (
            f"Every row ran: {'; '.join(whole)}. No rows were saved there, so that a speedup is "
            "not one of the pruning."
        )
    for why, names in _unscored(points).items():
        yield f"No loss: {', '.join(names)}: {why}."
    stopped = {p.name: p.training_stopped for p in points if p.training_stopped}
    for name, why in stopped.items():
        yield f"Not recovered: {name}: {why}; its loss is no evidence of what it costs."
    yield from _loss_limits(pareto.subject, points)
    yield from control(points)
    spreads = [
        cell.dense_ns["spread"]
        for phase in pareto.phases.values()
        for cell in phase.cells
        if cell.dense_ns
    ]
    if spreads:
        yield (
            "Drift: the median of the dense model, measured again with every result, spread by up "
            f"to {percent(max(spreads), decimals=1)} within a cell; intervals describe one capture."
        )
    if pareto.subject.config.get("recover"):
        why = "losses are those after a short training, and a longer one can change their order"
    else:
        why = (
            "no recovery training was done, so the losses are those before any fine-tuning and the"
            " order by loss can change after it"
        )
    yield f"Does not generalise: {why}; times hold for this device, software and these shapes."


def _loss_limits(subject: SweepSubject, points: list[SweepPoint]) -> Iterator[str]:
    """Yield the limits of the losses.

    These are prompts of other lengths than the windows of the text, a text of random ids, and
    another text that needs a tokenizer.
    """
    pairs = [(p.prompt_len, p.loss.context) for p in points if p.loss and p.loss.context]
    longer = [(length, window) for length, window in pairs if length > window]
    if longer:
        lengths, windows = (sorted(set(each)) for each in zip(*longer, strict=True))
        yield (
            f"Not measured: the loss after prompts of {_listed(lengths)} tokens; their losses"
            f" are those in windows of {_listed(windows)}."
        )
    shorter = [(length, window) for length, window in pairs if length < window // 2]
    if shorter:
        lengths, windows = (sorted(set(each)) for each in zip(*shorter, strict=True))
        yield (
            f"Not measured: the loss after prompts as short as {_listed(lengths)} tokens;"
            f" losses are those in windows of {_listed(windows)}, in which a share of the keys or"
            " tokens is more of them."
        )
    contexts = sorted({window for _, window in pairs})
    if len(contexts) > 1:
        yield (
            f"Confounded: losses in windows of {_listed(contexts)} tokens were read on"
            " different stretches of the text, so they do not separate length from text."
        )
    if subject.on_random_ids:
        yield f"No loss here means anything: the text that judges is {RANDOM_IDS}."
    other_text = subject.config.get("other_text")
    if other_text and not any(p.loss and p.loss.other_text for p in points):
        yield f"Not measured: losses on {other_text}; it takes a model with a tokenizer to read it."


def _listed(counts: list[int]) -> str:
    return ", ".join(f"{n:,}" for n in counts)


def _format_interval(ci95: list[float] | None, form: Callable[[float], str]) -> str:
    return f" {numbers.interval(ci95, form)}" if ci95 else ""


_BY_TOKEN = "one token after another"
_CAUSAL = "in one forward, in which no prediction depends on later tokens"
_AHEAD = (
    "in one forward, in which later tokens changed earlier predictions, as they do in the prefill "
    "of a prompt"
)
_AHEAD_IN_DECODE = (
    "in one forward, in which later tokens changed earlier predictions, so that decode itself may "
    "lose more"
)
_UNKNOWN = "in one forward, without a measurement of whether later tokens change predictions"
_OLDER = "in one forward, by an older rule: they are now scored one token after another"
_ORDER = (_BY_TOKEN, _CAUSAL, _AHEAD, _AHEAD_IN_DECODE, _UNKNOWN, _OLDER)


def scoring_notes(phases: Mapping[str, Iterable[SweepPoint]]) -> list[str]:
    """Return a sentence for each phase with losses: the families by how they were scored.

    Args:
        phases: The points by phase.
    """
    notes = []
    for phase, points in phases.items():
        ways: dict[str, dict[str, None]] = {}
        for point in points:
            if (way := _scoring_way(point, phase)) is not None:
                ways.setdefault(way, {})[point.label] = None
        parts = [f"{', '.join(ways[way])} {way}" for way in _ORDER if way in ways]
        if parts:
            notes.append(f"Losses in {phase} were scored so: {'; '.join(parts)}.")
    return notes


def _scoring_way(point: SweepPoint, phase: str) -> str | None:
    """Return how the loss of a point was scored; None if it is unknown."""
    loss = point.loss
    if loss is None or loss.scoring is None:
        return None
    if loss.scoring == "decode":
        return _BY_TOKEN
    if loss.looks_ahead is None:
        if scoring_of(point.family, phase) == "decode":
            return _OLDER
        return _UNKNOWN if may_decide(point.family) else _CAUSAL
    if not loss.looks_ahead:
        return _CAUSAL
    return _AHEAD_IN_DECODE if phase == "decode" else _AHEAD
