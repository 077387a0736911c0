"""What a sweep shows, in plain sentences that go no further than its intervals.

In: a Pareto without its summary. Out: lines, unescaped: what was compared, the frontier of each
cell, where pruning pays, the paper's claims, and what does not generalise.
"""

from __future__ import annotations

from collections.abc import Iterator

from prunescope.analysis.pareto.claims import sentence
from prunescope.analysis.pareto.frontier import (
    loss_ci95,
    loss_of,
    not_judged,
    removed_nothing,
)
from prunescope.analysis.report import numbers
from prunescope.analysis.report.numbers import percent, ratio
from prunescope.analysis.schema.pareto import (
    Pareto,
    ParetoPhase,
    SweepCell,
    SweepPoint,
    SweepSubject,
)
from prunescope.taxonomy.run_quality import RANDOM_IDS


def summary(found: Pareto) -> list[str]:
    """The sentences of a sweep, in reading order."""
    lines = [*_compared(found)]
    for name, phase in found.phases.items():
        lines += [_frontier_line(name, phase, cell) for cell in phase.cells]
        lines.append(_pays_line(name, phase))
    lines += [sentence(one) for one in found.hypotheses]
    lines += _limits(found)
    return lines


def _compared(found: Pareto) -> Iterator[str]:
    points = [p for phase in found.phases.values() for p in phase.points]
    families = dict.fromkeys(p.family for p in points)
    subject = found.subject
    missing = {"failed": len(found.failed), "not run yet": found.pending}
    not_done = ", ".join(f"{count} {why}" for why, count in missing.items() if count)
    yield (
        f"{len(points)} points of {len(families)} families of {subject.model}"
        f" ({subject.dtype}) on {subject.device}{f'; {not_done}' if not_done else ''}."
    )
    text = subject.text or {}
    windows = sorted({p.loss.context for p in points if p.loss and p.loss.context})
    yield (
        "Measured: speedup = dense ÷ pruned, geometric means over placements of the medians of"
        " unprofiled samples, both models taking turns; loss = perplexity of the model that was"
        " timed ÷ that of dense − 1, on"
        f" {text.get('tokens', 'an unknown number of')} tokens of"
        f" {text.get('source', 'an unknown text')}"
        f"{f', in windows of {_listed(windows)} tokens' if windows else ''}."
    )
    yield from _recovered(found)
    yield from _named_losses(points)


def _recovered(found: Pareto) -> Iterator[str]:
    """What was trained, and against which dense model losses are then given."""
    wanted = found.subject.config.get("recover")
    if wanted:
        yield (
            f"Recovered: {wanted.get('steps')} steps of LoRA, rank {wanted.get('rank')}, on"
            f" {wanted.get('batch')} × {wanted.get('length')} tokens each; the dense model got the"
            " same, and the losses of frontier, winners and claims are against it."
        )


def _named_losses(points: list[SweepPoint]) -> Iterator[str]:
    """Which losses were measured; none of them is called the quality."""
    if any(p.loss and p.loss.has_tasks for p in points):
        yield (
            "Three losses: relative perplexity, by which the frontier is drawn; the mean signed and"
            " the mean absolute relative change over tasks (signed: below zero is worse)."
        )


def _frontier_line(name: str, phase: ParetoPhase, cell: SweepCell) -> str:
    where = f"{name}, batch {cell.batch}, {cell.prompt_len} tokens"
    best = [p for p in phase.points_in(cell) if p.on_frontier]
    best.sort(key=lambda p: loss_of(p) or 0.0)
    not_valid = sum(not p.timing_valid for p in phase.points_in(cell))
    left = f" ({not_valid} left out: their times are not valid)" if not_valid else ""
    if not best:
        return f"{where}: no point is faster than dense beyond noise{left}."
    steps = " → ".join(
        f"{p.name} {ratio(p.realised)}{_interval(p)} at {_loss_text(p)}" for p in best
    )
    return f"{where}: the frontier, by loss{left}: {steps}."


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
    unknown = not_judged(phase.points)
    if unknown:
        parts.append(f"not judged, as their times are not valid: {', '.join(unknown)}")
    return f"{name}: {'; '.join(parts)}."


def control(points: list[SweepPoint]) -> Iterator[str]:
    """How often the interval of a point that does the dense work holds 1, which is its speedup."""
    idle = [p for p in points if removed_nothing(p) and p.timing_valid]
    same = [p.realised_ci95 for p in idle if p.realised_ci95]
    if same:
        held = sum(low <= 1 <= high for low, high in same)
        yield (
            f"Control: {held} of the {len(same)} points that do the dense work have an interval"
            " that holds 1.00×; 95 % would if intervals covered all of the noise."
        )


def _limits(found: Pareto) -> Iterator[str]:
    points = [p for phase in found.phases.values() for p in phase.points]
    simulated: dict[str, str] = {p.family: p.simulated for p in points if p.simulated}
    for family, what in simulated.items():
        yield f"Simulated: {family}: {what}."
    stopped = {p.name: p.training_stopped for p in points if p.training_stopped}
    for name, why in stopped.items():
        yield f"Not recovered: {name}: {why}; its loss is no evidence of what it costs."
    yield from _unjudged(found.subject, points)
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
    if found.subject.config.get("recover"):
        why = "losses are those after a short training, and a longer one can change their order"
    else:
        why = (
            "no recovery training was done, so the losses are those before any fine-tuning and the"
            " order by loss can change after it"
        )
    yield f"Does not generalise: {why}; times hold for this device, software and these shapes."


def _unjudged(subject: SweepSubject, points: list[SweepPoint]) -> Iterator[str]:
    """What the losses do not cover: prompts longer than the windows of the text, a text of random
    ids, another text that needs a tokenizer."""
    longer = [
        (p.prompt_len, p.loss.context)
        for p in points
        if p.loss and p.loss.context and p.prompt_len > p.loss.context
    ]
    if longer:
        lengths, windows = (sorted(set(each)) for each in zip(*longer, strict=True))
        yield (
            f"Not measured: what is lost behind prompts of {_listed(lengths)} tokens; their losses"
            f" are those in windows of {_listed(windows)}."
        )
    if (subject.text or {}).get("source") == RANDOM_IDS:
        yield f"No loss here means anything: the text that judges is {RANDOM_IDS}."
    other = subject.config.get("other_text")
    if other and not any(p.loss and p.loss.other_text for p in points):
        yield f"Not measured: losses on {other}; it takes a model with a tokenizer to read it."


def _listed(counts: list[int]) -> str:
    return ", ".join(f"{n:,}" for n in counts)


def _interval(point: SweepPoint) -> str:
    if point.realised_ci95 is None:
        return ""
    low, high = point.realised_ci95
    return f" [{low:.2f}, {high:.2f}]"


def _loss_text(point: SweepPoint) -> str:
    text, spread = numbers.loss(loss_of(point)), loss_ci95(point)
    if spread:
        low, high = (numbers.loss(value) for value in spread)
        text += f" [{low}, {high}]"
    return f"{text} perplexity"
