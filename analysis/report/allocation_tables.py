"""Output of `allocate`: in, a plan; out, a Sheet.

The target and the expected speedup, what each layer keeps and saves, the frontier of targets and
losses, and how well losses add up.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from prunescope.analysis.report.sheet import Line, Sheet
from prunescope.analysis.report.view import Column, Table, numeric, text_table
from prunescope.taxonomy import numbers
from prunescope.taxonomy.allocations.allocation_plan import (
    Additivity,
    KeptLayer,
    PlanOfLayers,
    Target,
)

_FRONTIER = 8  # points shown


def plan_sheet(plan: PlanOfLayers, where: str, *, model: str) -> Sheet:
    """The tables of a plan, written to `where`; `model`: as the user named it."""
    command = shlex.join(["prunescope", "trace", "--model", model, "--method", where])
    written = Line(f"Written to {where}; {command} measures it")
    return Sheet([*_answer(plan), _layers(plan), *_frontier(plan), *_checks(plan), written])


def dry_run_sheet(found: dict[str, Any]) -> Sheet:
    """Output of `allocate --dry-run`."""
    known = f", {found['measured']:,} of them in {found['losses']}" if found["measured"] else ""
    if found["losses_of"] is not None:
        known = f"; {found['losses']} has those of {found['losses_of']}, and none counts here"
    return Sheet(
        [
            Line(f"target {found['target']}, within reach by {found['costs']}"),
            Line(
                f"{found['evaluations']:,} evaluations of the model on {found['sequences']} "
                f"sequences of at most 512 tokens{known}"
            ),
        ]
    )


def target_text(target: Target) -> str:
    """A target in words."""
    if target.memory_gb is not None:
        return f"{target.memory_gb:g} GB"
    if target.latency_ms is not None:
        return f"{target.latency_ms:g} ms in {target.phase}"
    return f"{target.speedup:g}× in {target.phase}"


def _answer(plan: PlanOfLayers) -> Iterator[Line]:
    expected = plan.expected
    low, high = expected.range
    yield Line(
        f"target {target_text(plan.target)}: {expected.speedup:.2f}× expected "
        f"({low:.2f} to {high:.2f})",
        "bold",
    )
    for name, one in plan.expected.phases.items():
        yield Line(
            f"{name}: {numbers.time(one.dense_ns)} dense, {numbers.time(one.ns)} as planned, "
            f"{one.speedup:.2f}× ({one.range[0]:.2f} to {one.range[1]:.2f})"
        )
    yield Line(
        f"memory: {numbers.size(expected.dense_memory_bytes)} dense, "
        f"{numbers.size(expected.memory_bytes)} as planned"
    )
    measured = ""
    if expected.loss_measured is not None:
        measured = (
            f"; all together {_nats(expected.loss_measured)} measured, perplexity "
            f"{numbers.percent(expected.perplexity_rel, signed=True)}"
        )
    yield Line(f"loss: {_nats(expected.loss)} nats a token as the sum of its parts{measured}")
    if plan.uniform is None:
        yield Line("no uniform cut of all layers reaches this target")
    else:
        best = plan.uniform
        yield Line(
            f"the best uniform cut of all layers: {best.family} with {best.kept}, "
            f"{_reached(best)}, {_nats(best.loss)} nats"
        )


def _nats(value: float) -> str:
    return f"{value:+.3f}".replace("-", numbers.MINUS)


def _reached(one: Any) -> str:
    return numbers.size(one.memory_bytes) if one.speedup is None else f"{one.speedup:.2f}×"


def _layers(plan: PlanOfLayers) -> Table:
    phases = list(plan.expected.phases)
    unit = numbers.scale([one.saves_ns.get(name) for one in plan.layers for name in phases])
    columns = [
        *numeric("layer", "KV heads", "heads", "channels", "loss (nats)"),
        *numeric(*(f"{name} saves ({unit.unit})" for name in phases)),
    ]
    rows = [
        [
            str(one.layer),
            *_sizes(one),
            f"{one.loss:.4f}",
            *(unit.text(one.saves_ns.get(name)) for name in phases),
        ]
        for one in plan.layers
    ]
    return text_table("layers", "what stays of each layer", columns, rows)


def _sizes(one: KeptLayer) -> list[str]:
    if one.dropped:
        return ["dropped", "", ""]
    heads = [numbers.count(size) for size in (one.kv_heads, one.heads)]
    if one.attention_lowrank is not None:
        heads[1] += f", low rank {one.attention_lowrank} %"
    width = numbers.count(one.channels)
    return [*heads, width if one.mlp_lowrank is None else f"{width}, low rank {one.mlp_lowrank} %"]


def _frontier(plan: PlanOfLayers) -> Iterator[Table]:
    points = plan.frontier
    if len(points) < 2:
        return
    step = (len(points) - 1) / max(1, min(_FRONTIER, len(points)) - 1)
    shown = [points[round(i * step)] for i in range(min(_FRONTIER, len(points)))]
    columns: Sequence[Column] = numeric("target", "loss (nats)")
    rows = [[_reached(one), f"{one.loss:.3f}"] for one in shown]
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


def _additivity(found: Additivity) -> str:
    text = f"additivity of losses: {found.pairs} pairs of removals measured together, against sums"
    if found.correlation is not None:
        text += f", correlation {found.correlation:.2f}"
    if found.worst_error is not None:
        text += f", largest error {_nats(found.worst_error)} nats"
    return text
