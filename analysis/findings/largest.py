"""The largest costs of a step: none that is far from its bound, or untouched, goes unnamed.

In: a Context and the findings so far. Out: a Finding, or None. Times are ns a step, as recorded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import polars as pl

from prunescope.analysis.findings.context import Context, ms, shortened
from prunescope.analysis.kernels.frame import ATTENTION
from prunescope.analysis.schema.report import Finding, clock
from prunescope.taxonomy.roles import UNPLACED
from prunescope.taxonomy.words import percent

_LARGE = 0.2  # of the step
_SLOW = 0.25  # of the bound
_GENERAL = ("nominal-differs",)  # names what every pruning leaves alone, not what takes time here
_LEAST = 0.01
_MOST = 0.9  # of the time of a role whose bound is known, for the role to have one


@dataclass(frozen=True)
class _Cost:
    """A role, or a kernel of no role. `of_bound`: ideal ÷ its time, None where it is not known."""

    name: str
    busy: float
    of_bound: float | None
    untouched: bool
    kernel: str

    @property
    def slow(self) -> bool:
        """Whether it is far from its bound."""
        return self.of_bound is not None and self.of_bound < _SLOW


def unnamed_cost(c: Context, found: list[Finding]) -> Finding | None:
    """A role or kernel that takes much of the step far from its bound, or untouched, and that no
    finding has named yet."""
    said = " ".join(" ".join([f.text, *f.evidence]) for f in found if f.id not in _GENERAL)
    costs = [
        cost
        for cost in sorted(_costs(c), key=lambda one: -one.busy)
        if not re.search(rf"(?<!\w){re.escape(cost.name)}(?!\w)", said)
    ]
    if not costs:
        return None
    first = costs[0]
    return Finding(
        id="largest-cost",
        severity="warning" if first.slow else "info",
        text="; ".join(_said(one, c.phase.wall_ns) for one in costs[:3]),
        evidence=[
            *(
                f"{shortened(one.name, 40)}: its largest kernel is {shortened(one.kernel)}"
                for one in costs[:3]
            ),
            *_larger(c, first),
        ],
        change=_change(first),
        predicted_ns=None,
    )


def _said(one: _Cost, wall: float) -> str:
    text = f"{shortened(one.name)} takes {percent(one.busy / wall)} of the step ({ms(one.busy)})"
    facts = []
    if one.slow and one.of_bound is not None:
        reached = (
            f"{percent(one.of_bound)}" if one.of_bound >= _LEAST else f"less than {percent(_LEAST)}"
        )
        facts.append(f"at {reached} of its bound")
    facts += ["which this pruning does not shrink"] if one.untouched else []
    return f"{text}, {' and '.join(facts)}"


def _larger(c: Context, first: _Cost) -> Iterator[str]:
    """That a kind takes more time than the first cost, nearer to its bound."""
    kind, ns = max(c.phase.kinds.items(), key=lambda one: one[1], default=("", 0.0))
    rows = [row for _, rows in _groups(c) for row in rows if row["kind"] == kind]
    share = _of_bound(rows)
    if ns > first.busy and share is not None and share > (first.of_bound or 0.0):
        yield f"kernels of kind {kind} take more ({ms(ns)}), at {percent(share)} of their bound"


def _change(one: _Cost) -> str:
    if not one.slow:
        return f"combine with a family that touches {one.name}, or promise less"
    closer = "another kernel, larger batches or fused ops come closer"
    if one.name == ATTENTION:
        closer = "compare the backends of scaled_dot_product_attention, and their tiles"
    return (
        f"look at the kernel named: the peaks allow {ms(one.busy * (one.of_bound or 0.0))}; "
        f"{closer}"
    )


def _costs(c: Context) -> Iterator[_Cost]:
    """The large ones that are far from their bound, or untouched."""
    least = _LARGE * c.phase.wall_ns
    moved = bool(c.untouched) and not _whole(c) and c.phase.shows_pruning
    for name, rows in _groups(c):
        busy = sum(row["busy"] for row in rows)
        if busy < least:
            continue
        largest = max(rows, key=lambda row: row["busy"])
        at = {(row["role"], row["class"]) for row in rows if row["busy"] >= (1 - _MOST) * busy}
        cost = _Cost(
            name=name,
            busy=busy,
            of_bound=_of_bound(rows),
            untouched=moved and at <= c.untouched,
            kernel=largest["name"] or "?",
        )
        if cost.slow or cost.untouched:
            yield cost


def _whole(c: Context) -> bool:
    """Whether nothing was shrunk at all."""
    ladder, family = c.phase.ladder, c.phase.family
    same = ladder is None or ladder.flop is None or abs(ladder.flop - 1) < 1e-6  # noqa: PLR2004
    return same or (family is not None and family.id == "dense")


def _groups(c: Context) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Rows of time a step by role; by kernel where no role is known."""
    steps = c.pruned.num_steps
    sums = (
        c.pruned.frame.with_columns(ran=pl.col("duration" if c.pruned.on_device else "busy"))
        .group_by("role", "class", "kind", "name", maintain_order=True)
        .agg(
            pl.col("busy").sum() / steps,
            pl.col("ran").sum() / steps,
            pl.col("ideal").sum() / steps,
            pl.col("busy").filter(pl.col("ideal").is_not_null()).sum().alias("bounded") / steps,
            pl.col("busy").filter(pl.col("bound") == "latency").sum().alias("short") / steps,
        )
    )
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in sums.iter_rows(named=True):
        name = row["role"] if row["role"] not in UNPLACED else row["name"] or "?"
        groups.setdefault(name, []).append(row)
    yield from groups.items()


def _of_bound(rows: list[dict[str, Any]]) -> float | None:
    """Ideal ÷ time; None where most of the time is latency-bound, or has no bound that is known."""
    busy, bounded, short = (sum(row[key] for row in rows) for key in ("busy", "bounded", "short"))
    ideal, ran = (sum(row[key] for row in rows) for key in ("ideal", "ran"))
    if bounded < _MOST * busy or 2 * short > busy:
        return None
    return float(ideal / clock(busy, ran)) if busy else None
