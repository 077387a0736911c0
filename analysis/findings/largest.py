"""The largest costs of a step that no other finding explains.

A cost is a role or kernel that is far from its roofline bound, or not pruned.

In: a Context with what the other findings explain. Out: Found, or None. Times are ns a step, as
recorded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl
from msgspec import Struct

from prunescope.analysis.findings.context import Context, role_or_kernel
from prunescope.analysis.findings.registry import Found, finding
from prunescope.analysis.kernels.frame import ATTENTION
from prunescope.analysis.kernels.role import GEMM_KINDS
from prunescope.analysis.schema.report import clock
from prunescope.taxonomy.numbers import brief_time
from prunescope.taxonomy.roles import RESIDUAL
from prunescope.taxonomy.words import percent, shortened

_LARGE = 0.2  # of the step: a large cost
_SLOW = 0.25  # roofline efficiency below which a cost is slow
_LEAST = 0.01  # efficiency below which no number is printed
_KNOWN = 0.9  # of the time of a role must have a known roofline time, or the role has no efficiency
# A role is untouched by pruning where all its classes of kernels but those below this share of its
# time are.
_NEGLIGIBLE = 0.1


class _Cost(Struct, frozen=True):
    """A role, or a kernel without a role. `efficiency`: ideal ÷ its time, None where unknown."""

    name: str
    busy: float
    efficiency: float | None
    ideal: float
    is_untouched: bool
    kernel: str
    kind: str | None

    @property
    def is_slow(self) -> bool:
        """Whether it is far from its roofline bound."""
        return self.efficiency is not None and self.efficiency < _SLOW


@finding("largest-cost", "warning", reads="findings")
def largest_cost(c: Context) -> Found | None:
    """Report that a large cost is far from its bound or unpruned, and no finding explains it."""
    costs = [cost for cost in _costs(c) if cost.name not in c.explained]
    if not costs:
        return None
    costs.sort(key=lambda cost: -cost.busy)
    first = costs[0]
    return Found(
        severity="warning" if first.is_slow else "info",
        text="; ".join(_describe(c, cost) for cost in costs[:3]),
        evidence=[
            *(
                f"{shortened(cost.name, 40)}: its largest kernel is {shortened(cost.kernel)}"
                for cost in costs[:3]
            ),
            *_larger_kind(c, first),
        ],
        change=_reduce(first),
    )


def _describe(c: Context, cost: _Cost) -> str:
    """Say how much of the step a cost takes, and why it is named."""
    facts = []
    if cost.is_slow and cost.efficiency is not None:
        value = f"of {percent(cost.efficiency)}"
        if cost.efficiency < _LEAST:
            value = f"below {percent(_LEAST)}"
        facts.append(f"with a roofline efficiency {value}")
    if cost.is_untouched:
        facts.append("which this pruning does not shrink")
    return (
        f"{shortened(cost.name)} takes {percent(c.share(cost.busy))} of the step "
        f"({c.ms(cost.busy)}), {' and '.join(facts)}"
    )


def _larger_kind(c: Context, first: _Cost) -> Iterator[str]:
    """Name the kind of kernel that takes more time than the first cost, at a higher efficiency."""
    kind, ns = max(c.phase.kinds.items(), key=lambda item: item[1], default=("", 0.0))
    rows = [row for rows in _groups(c).values() for row in rows if row["kind"] == kind]
    efficiency = _efficiency(c, rows)
    if ns > first.busy and efficiency is not None and efficiency > (first.efficiency or 0.0):
        yield (
            f"kernels of kind {kind} take more ({c.ms(ns)}), with a roofline efficiency of "
            f"{percent(efficiency)}"
        )


def _reduce(cost: _Cost) -> str:
    """Say how to reduce a cost."""
    if cost.is_slow:
        closer = "try another kernel, larger batches or fused ops"
        if cost.name == ATTENTION:
            closer = "compare the backends of scaled_dot_product_attention, and their tiles"
        return f"look at the kernel named: the peaks allow {brief_time(cost.ideal)}; {closer}"
    if cost.kind == "conv":
        return "prune channels of convolutions, which are of no family here, or promise less"
    if cost.name == RESIDUAL and cost.kind not in GEMM_KINDS:
        return "fuse that work (torch.compile), or promise less: no pruning removes it alone"
    return f"combine with a family that touches {cost.name}, or promise less"


def _costs(c: Context) -> Iterator[_Cost]:
    """Yield the large costs that are far from their bound or not pruned."""
    least = _LARGE * c.phase.wall_ns
    ladder, family = c.phase.ladder, c.phase.family
    flop = ladder.flop if ladder is not None else None
    has_changed = flop is not None and abs(flop - 1) >= 1e-6
    is_dense = family is not None and family.id == "dense"
    is_pruned = bool(c.untouched) and has_changed and not is_dense and c.phase.shows_pruning
    for name, rows in _groups(c).items():
        busy = sum(row["busy"] for row in rows)
        if busy < least:
            continue
        largest = max(rows, key=lambda row: row["busy"])
        work = {(row["role"], row["class"]) for row in rows if row["busy"] >= _NEGLIGIBLE * busy}
        cost = _Cost(
            name=name,
            busy=busy,
            efficiency=_efficiency(c, rows),
            ideal=sum(row["ideal"] for row in rows),
            is_untouched=is_pruned and work <= c.untouched,
            kernel=largest["name"] or "?",
            kind=largest["kind"],
        )
        if cost.is_slow or cost.is_untouched:
            yield cost


def _groups(c: Context) -> dict[str, list[dict[str, Any]]]:
    """Return sums of kernels, ns a step, by role, or by kernel where no role is known."""
    steps = c.kernels.num_steps
    ran = "duration" if c.kernels.on_device else "busy"
    sums = c.kernels.frame.group_by("role", "class", "kind", "name", maintain_order=True).agg(
        pl.col("busy").sum() / steps,
        (pl.col(ran).sum() / steps).alias("ran"),
        pl.col("ideal").sum() / steps,
        pl.col("busy").filter(pl.col("ideal").is_not_null()).sum().alias("bounded") / steps,
        pl.col("busy").filter(pl.col("bound") == "latency").sum().alias("latency_bound") / steps,
    )
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in sums.iter_rows(named=True):
        groups.setdefault(role_or_kernel(row["role"], row["name"]), []).append(row)
    return groups


def _efficiency(c: Context, rows: list[dict[str, Any]]) -> float | None:
    """Return the roofline time of kernels ÷ their time in the step.

    Returns None where most of the time is latency-bound or has no known bound.
    """
    busy, bounded, latency_bound, ideal, ran = (
        sum(row[key] for row in rows)
        for key in ("busy", "bounded", "latency_bound", "ideal", "ran")
    )
    if bounded < _KNOWN * busy or 2 * latency_bound > busy:
        return None
    return float(ideal / c.scale_to_step(clock(busy, ran))) if busy else None
