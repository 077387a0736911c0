"""Output of `allocate`: in, a plan; out, a Sheet.

The target and the expected speedup, what each layer keeps and saves, the frontier of targets and
losses, and how well losses add up.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.sheet import Line, Sheet
from prunescope.analysis.report.view import Table, numeric, text_table
from prunescope.taxonomy import numbers
from prunescope.taxonomy.allocations.allocation_plan import (
    Additivity,
    KeptLayer,
    PlanOfLayers,
    Target,
)

_FRONTIER = 8  # points shown


def plan_sheet(plan: PlanOfLayers, where: str, *, model: str) -> Sheet:
    """Return the tables of a plan.

    Args:
        plan: The plan.
        where: The file that it was written to.
        model: The model as the user named it.
    """
    command = shlex.join(["prunescope", "trace", "--model", model, "--method", where])
    written = Line(f"Written to {where}; {command} measures it")
    return Sheet([*_answer(plan), _layers(plan), *_frontier(plan), *_checks(plan), written])


def dry_run_sheet(estimate: dict[str, Any]) -> Sheet:
    """Return the output of `allocate --dry-run`: what would be evaluated, and how often.

    Args:
        estimate: The plain values of `allocate --dry-run --json`.
    """
    losses, measured = estimate["losses"], estimate["measured"]
    known = f", {measured:,} of them in {losses}" if measured else ""
    if estimate["losses_of"] is not None:
        known = f"; {losses} has those of {estimate['losses_of']}, and none counts here"
    few, all_of_them = estimate["screened_sequences"], estimate["sequences"]
    return Sheet(
        [
            Line(f"target {estimate['target']}, within reach by {estimate['costs']}"),
            Line(
                f"{estimate['removals']:,} removals are screened on {few} of {all_of_them} "
                f"sequences of at most 512 tokens{known}; the least certain of those that the plan "
                "rests on are measured on all"
            ),
        ]
    )


def targets_text(plan: PlanOfLayers) -> str:
    """Return all targets of a plan in words."""
    return " and ".join(map(target_text, (plan.target, *plan.further_targets)))


def target_text(target: Target) -> str:
    """Return a target in words."""
    if target.memory_gb is not None:
        return f"{target.memory_gb:g} GB"
    if target.latency_ms is not None:
        return f"{target.latency_ms:g} ms in {clean(target.phase)}"
    return f"{target.speedup:g}× in {clean(target.phase)}"


def _answer(plan: PlanOfLayers) -> Iterator[Line]:
    """Yield target and expected speedup, the time of each phase, memory, and loss."""
    expected = plan.expected
    low, high = expected.range
    speedup = f"{expected.speedup:.2f}× expected ({low:.2f} to {high:.2f})"
    yield Line(f"target {targets_text(plan)}: {speedup}", "bold")
    for name, phase in expected.phases.items():
        low, high = phase.range
        times = f"{numbers.time(phase.dense_ns)} dense, {numbers.time(phase.ns)} as planned"
        yield Line(f"{name}: {times}, {phase.speedup:.2f}× ({low:.2f} to {high:.2f})")
    yield Line(
        f"memory: {numbers.size(expected.dense_memory_bytes)} dense, "
        f"{numbers.size(expected.memory_bytes)} as planned"
    )
    measured = ""
    if expected.loss_measured is not None:
        rel = numbers.percent(expected.perplexity_rel, signed=True)
        loss = _nats(expected.loss_measured)
        measured = f"; all together {loss} measured, perplexity {rel}"
    yield Line(f"loss: {_nats(expected.loss)} nats a token as the sum of its parts{measured}")
    yield from _screening(plan)
    if (best := plan.uniform) is None:
        yield Line("no uniform cut of all layers reaches this target")
    else:
        cut = f"{best.family} with {best.kept}, {_reached(best)}, {_nats(best.loss)} nats"
        yield Line(f"the best uniform cut of all layers: {cut}")


def _screening(plan: PlanOfLayers) -> Iterator[Line]:
    """Yield how many removals were measured on all of the text, where some were not."""
    keys = ("removals", "confirmed", "screened_sequences", "sequences")
    counts = [value for key in keys if type(value := plan.text.get(key)) is int]
    if len(counts) == len(keys) and counts[1] < counts[0]:  # an older plan lacks some
        removals, confirmed, few, sequences = counts
        yield Line(
            f"it rests on {removals:,} removals: {confirmed:,} measured on all of the text, the "
            f"others on {few} of {sequences} sequences"
        )


def _nats(value: float) -> str:
    return f"{value:+.3f}".replace("-", numbers.MINUS)


def _reached(point: Any) -> str:
    """Return the speedup of a point of the frontier, or its memory if that is the target."""
    return numbers.size(point.memory_bytes) if point.speedup is None else f"{point.speedup:.2f}×"


def _layers(plan: PlanOfLayers) -> Table:
    phases = list(plan.expected.phases)
    unit = numbers.scale([layer.saves_ns.get(name) for layer in plan.layers for name in phases])
    heads = ("layer", "KV heads", "heads", "channels", "loss (nats)")
    columns = numeric(*heads, *(f"{name} saves ({unit.unit})" for name in phases))
    rows = []
    for layer in plan.layers:
        saved = (unit.text(layer.saves_ns.get(name)) for name in phases)
        rows.append([str(layer.layer), *_sizes(layer), f"{layer.loss:.4f}", *saved])
    return text_table("layers", "what stays of each layer", columns, rows)


def _sizes(layer: KeptLayer) -> list[str]:
    """Return how many KV heads, heads and channels a layer keeps, and the rank of its matrices."""
    if layer.dropped:
        return ["dropped", "", ""]
    heads = [numbers.count(size) for size in (layer.kv_heads, layer.heads)]
    if layer.attention_lowrank is not None:
        heads[1] += f", low rank {layer.attention_lowrank} %"
    width = numbers.count(layer.channels)
    if layer.mlp_lowrank is not None:
        width += f", low rank {layer.mlp_lowrank} %"
    return [*heads, width]


def _frontier(plan: PlanOfLayers) -> Iterator[Table]:
    """Yield a table of the least loss at some targets, if there are several."""
    points = plan.frontier
    if len(points) < 2:
        return
    count = min(_FRONTIER, len(points))
    shown = [points[round(i * (len(points) - 1) / (count - 1))] for i in range(count)]
    rows = [[_reached(point), f"{point.loss:.3f}"] for point in shown]
    columns = numeric("target", "loss (nats)")
    yield text_table("frontier", "least loss at other targets", columns, rows)


def _checks(plan: PlanOfLayers) -> Iterator[Line]:
    if plan.has_ranks:
        yield Line(
            "low rank P %: each matrix is stored as two, which together have P % of its "
            "parameters; serving engines load no such layers"
        )
    if plan.additivity is not None and plan.additivity.pairs:
        yield Line(_additivity(plan.additivity))
    for note in plan.notes:
        yield Line(note, "dim")


def _additivity(check: Additivity) -> str:
    """Return how well the losses of removals add up, as far as that was measured."""
    text = f"additivity of losses: {check.pairs} pairs of removals measured together, against sums"
    if check.correlation is not None:
        text += f", correlation {check.correlation:.2f}"
    if check.worst_error is not None:
        text += f", largest error {_nats(check.worst_error)} nats"
    return text
