"""Mixtures of experts: what fewer experts save, how tokens fall, what choosing experts costs.

In: a Context. Out: Found, or None. Times are ns a step, as recorded.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import polars as pl
from msgspec import Struct

from prunescope.analysis.findings.context import LITTLE, Context
from prunescope.analysis.findings.registry import Found, finding
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.ledger.call import Call
from prunescope.analysis.ledger.experts import EXPERTS, ROUTER, mean_of_known
from prunescope.analysis.schema.report import GemmRow
from prunescope.taxonomy.dtypes import itemsize
from prunescope.taxonomy.expert_routing import expert_load, fullest_expert
from prunescope.taxonomy.roles import BACKWARD
from prunescope.taxonomy.words import percent, shortened, when

# Shares of experts no longer read, over the share that was removed: below the first about as many
# are read as before; from the second on reads fell with the experts, up to chance.
_ALIKE = 0.5
_FOLLOWS = 0.9
_WORTH = 0.1  # of the experts that a step reads: fewer of them are no gain to plan with
_MOST_TOKENS = 1 << 16  # up to which a gain is looked for
_UNEVEN = 2.0  # times the fullest expert of an even router, which by chance exceeds the mean
_LARGE = 0.1  # of the step: moving rows worth a finding
_STACKED = 3  # dimensions of the matrices of all experts in one tensor
# Work of a layer of experts other than products and activation: it chooses, sorts and moves rows.
_MOVES = ("routing", "sampling", "gather_scatter", "layout", "scan", "reduction", "memset")


class _Side(Struct, frozen=True, kw_only=True):
    """A layer's experts of one side, means over layers and steps.

    How many there are (`experts`), how many get tokens (`read`), tokens per step, and experts per
    token.
    """

    experts: float
    read: float
    tokens: float
    per_token: int

    @property
    def can_choose(self) -> bool:
        """Whether a token uses only some of the experts."""
        return 0 < self.per_token < self.experts

    def expected_read(self, tokens: int) -> float:
        """Return how many experts a router that chooses evenly reads for as many tokens."""
        load = expert_load(
            None, "", experts=round(self.experts), per_token=self.per_token, tokens=tokens
        )
        return load.distinct


@finding("experts-read-alike", "warning", compares=True)
def experts_read_alike(c: Context) -> Found | None:
    """Report that a step reads about as many experts as before, though fewer are left.

    They save only memory. Which of them a step reads is the router's choice: with few tokens most
    experts were not read before either.
    """
    dense, pruned = _sides(c)
    if dense is None or pruned is None:
        return _copies_alike(c)
    if not pruned.experts < dense.experts:
        return None
    removed, saved = 1 - pruned.experts / dense.experts, 1 - pruned.read / dense.read
    if saved >= _FOLLOWS * removed:
        return None
    is_alike = saved < _ALIKE * removed
    shares = f": {percent(saved)} fewer, where {percent(removed)} of them were removed"
    lines = [f"each token goes to {pruned.per_token} experts of a layer"]
    pairs = [pair for pair in c.pairs if pair.key[1] == EXPERTS]
    before, now = _bytes(pair.dense for pair in pairs), _bytes(pair.pruned for pair in pairs)
    if before:
        lines.append(f"GEMMs of experts move {now / before:.2f} × the dense bytes")
    return Found(
        text=f"fewer experts save {'little time' if is_alike else 'less than their share'} at "
        f"{_tokens(pruned.tokens)} a step: it reads {_count(pruned.read)} of "
        f"{_count(pruned.experts)} experts a layer, and read {_count(dense.read)} of "
        f"{_count(dense.experts)} before{when(not is_alike, shares)}",
        severity=None if is_alike else "info",
        evidence=[*lines, *_freed_memory(c)],
        change=_use_memory(dense, pruned),
        explains_roles=frozenset([EXPERTS]),
    )


def _copies_alike(c: Context) -> Found | None:
    """Find that products of both sides read copies of the experts, as many as tokens take."""
    fewer = any(
        row.role == ROUTER and (row.dense_n or 0) > (row.n or 0) > 1 for row in c.phase.gemms
    )
    now = _copies(c.kernels) if fewer else None
    before = _copies(c.baseline_kernels) if now and c.baseline_kernels is not None else None
    if now is None or before is None or now.each != before.each:
        return None
    return Found(
        text="fewer experts save little time: every token multiplies by copies of its experts, "
        f"{now.each} in a layer, as many as before",
        evidence=[f"{now.op}: {now.kernels:.0f} kernels a step", *_freed_memory(c)],
        change="run the experts with grouped kernels, which read an expert once for all its tokens",
        explains_roles=frozenset([EXPERTS]),
    )


def _use_memory(dense: _Side, pruned: _Side) -> str:
    """Say what the freed memory is good for, and with how many tokens fewer experts are read.

    That is from the least number of tokens on with which an even router reads a tenth fewer.
    """
    memory = "use the memory that is free for a larger batch or a longer context"
    if not pruned.can_choose or not dense.can_choose:
        return memory

    def is_worth(tokens: int) -> bool:
        return 1 - pruned.expected_read(tokens) / dense.expected_read(tokens) >= _WORTH

    tokens = 1
    while tokens < _MOST_TOKENS and not is_worth(tokens):
        tokens *= 2
    if not is_worth(tokens):
        return memory
    tokens = bisect_left(range(tokens), 1, lo=tokens // 2 + 1, key=is_worth)
    return (
        f"{memory}: from {_tokens(tokens)} a step on, a router that chooses evenly reads "
        f"{percent(_WORTH)} fewer experts"
    )


def _freed_memory(c: Context) -> Iterable[str]:
    share = c.phase.sparsity.get("parameters")
    if share:
        yield f"{percent(share)} of the parameters are removed from memory"


def _bytes(calls: Iterable[Call | None]) -> float:
    """Sum the bytes of calls in a step; 0 where they are unknown."""
    return sum(call.bytes * call.count for call in calls if call and call.bytes is not None)


@finding("experts-on-all-tokens", "info")
def experts_on_all_tokens(c: Context) -> Found | None:
    """Report that every token goes through all experts of a layer, not the chosen ones alone.

    They are one batched GEMM, whose FLOPs fall with the number of experts; those of routed experts
    do not.
    """
    routers = [row for row in c.phase.gemms if row.role == ROUTER and row.n and row.n > 1 and row.m]
    choices = {(row.n, row.m) for row in routers}
    rows = [row for row in c.phase.gemms if row.role == EXPERTS and (row.batch, row.m) in choices]
    # Copies for the experts of a single token may be as many as there are experts.
    if not rows or _copies(c.kernels) is not None:
        return None
    first = rows[0]
    fewer = first.axis == "G" and first.dense_batch is not None
    return Found(
        text=f"this implementation multiplies every token by all {first.batch} experts of a "
        f"layer{when(fewer, f', {first.dense_batch} before')}: the FLOPs of experts follow their "
        "number, so that fewer experts can save time; if only the chosen ones ran, the FLOPs would "
        "not change",
        evidence=[
            f"batched products of {first.batch} experts with {first.m} rows each: "
            f"{c.ms(sum(row.busy_ns for row in rows))} a step"
        ],
        change="run the experts with grouped kernels, which multiply a token by its own alone; "
        "there the FLOPs do not fall with the number of experts",
        explains_roles=frozenset([EXPERTS]),
    )


@finding("expert-imbalance", "info")
def expert_imbalance(c: Context) -> Found | None:
    """Report that one expert of a layer sees far more rows than the mean, beyond chance."""
    side = _sides(c)[1]
    rows = [row for row in _expert_rows(c) if row.kind != "grouped_gemm" and row.m_max is not None]
    if side is None or not rows or not side.can_choose:
        return None
    most = max(row.m_max or 0 for row in rows)
    mean = side.tokens * side.per_token / side.experts
    even = fullest_expert(
        None, "", experts=round(side.experts), per_token=side.per_token, tokens=side.tokens
    )
    if most < _UNEVEN * even:
        return None
    return Found(
        text=f"the fullest expert sees {most} rows in a step, {most / mean:.1f} times the mean of "
        f"{mean:.1f}",
        evidence=[
            f"a router that chooses evenly sends {even:.0f} rows to the fullest of "
            f"{_count(side.experts)} experts",
            f"{_count(side.read)} of {_count(side.experts)} experts of a layer get tokens a step",
        ],
        change="balance the router (its bias, or its loss in training); under expert parallelism "
        "hold the fullest experts on several ranks",
    )


@finding("routing-cost", "warning")
def routing_cost(c: Context) -> Found | None:
    """Report that choosing experts and moving rows to them takes much of the step."""
    if not _has_experts(c.kernels):
        return None
    frame, steps = c.kernels.frame, c.kernels.num_steps
    role = pl.col("role").str.strip_suffix(BACKWARD)
    rows = frame.filter((role == ROUTER) | ((role == EXPERTS) & pl.col("kind").is_in(_MOVES)))
    if (copies := _copies(c.kernels)) is not None:  # the finding experts-copied names these
        rows = rows.filter(~pl.col("call").is_in(copies.calls).fill_null(value=False))
    busy = c.per_step(rows)
    if rows.is_empty() or busy < _LARGE * c.phase.wall_ns:
        return None
    names = rows.with_columns(shown=pl.coalesce("name", "op")).group_by("shown")
    sums = names.agg(pl.col("busy").sum(), pl.len()).sort("busy", "shown", descending=[True, False])
    products = frame.filter((role == EXPERTS) & (pl.col("class") == "matmul"))
    return Found(
        text=f"choosing experts and moving rows to them takes {percent(c.share(busy))} of "
        f"the step ({c.ms(busy)}); their GEMMs take {c.ms(c.per_step(products))}",
        evidence=[
            f"{shortened(str(name))}: {c.ms(ns / steps)} in {count / steps:.0f} kernels a step"
            for name, ns, count in sums.head(4).iter_rows()
        ],
        change="run the experts with fused or grouped kernels, which gather rows by themselves",
        explains_roles=frozenset([ROUTER]),
    )


class _Copies(Struct, frozen=True, kw_only=True):
    """Copies of the matrices of experts, a step.

    The op calls that make them, how many there are in a layer and product, their busy ns and the
    bytes that they read and write; None where a format is unknown.
    """

    calls: list[int]
    op: str
    each: int
    busy: float
    kernels: float
    bytes: float | None


@finding("experts-copied", "warning")
def experts_copied(c: Context) -> Found | None:
    """Report that every token copies the matrices of its experts, and its GEMMs read the copies."""
    copies = _copies(c.kernels)
    if copies is None or copies.busy < LITTLE * c.phase.wall_ns:
        return None
    size = "" if copies.bytes is None else f"{copies.bytes / 1e6:,.1f} MB read and written, "
    lines = [
        f"{copies.op}: {c.ms(copies.busy)} in {copies.kernels:.0f} kernels a step",
        "its GEMMs read every copy, where grouped kernels read an expert once for all of its "
        "tokens",
    ]
    dense = None if c.baseline_kernels is None else _copies(c.baseline_kernels)
    if dense is not None and dense.each == copies.each:
        lines.append("the dense model makes as many copies: fewer experts save none")
    return Found(
        text="every token copies the matrices of its experts, and multiplies by the copies: "
        f"{copies.each} copies in a layer, {size}{c.ms(copies.busy)} a step, "
        f"{percent(c.share(copies.busy))} of it",
        evidence=lines,
        change="run the experts with grouped kernels: "
        'model.set_experts_implementation("grouped_mm") in transformers, or the fused kernel of a '
        "serving engine",
        predicted_ns=c.scale_to_step(copies.busy),
        explains_roles=frozenset([EXPERTS]),
    )


def _has_experts(kernels: Kernels) -> bool:
    return any(role.removesuffix(BACKWARD) == EXPERTS for role in kernels.values("role"))


def _copies(kernels: Kernels) -> _Copies | None:
    """Find gathers of [S, N, K] from a stack [E, N, K] of experts, for batched GEMMs."""
    if not _has_experts(kernels):
        return None
    of_experts = pl.col("role").str.strip_suffix(BACKWARD) == EXPERTS
    frame = kernels.frame.select("call", "role", "kind", "primary", "busy", "instance")
    frame = frame.filter(pl.col("call").is_not_null())
    products = frame.filter(of_experts & (pl.col("kind") == "batched_gemm") & pl.col("primary"))
    sizes: dict[tuple[object, ...], int] = {}  # copies of a product, by N and K
    numbers: dict[tuple[object, ...], float | None] = {}  # bytes of them
    for call in products["call"].unique().to_list():
        work = kernels.shapes.works[call]
        for shape in _stacks(kernels.shapes.calls[call].shapes):
            sizes[shape[1:]] = max(shape[0], sizes.get(shape[1:], 0))
            item = None if work is None else itemsize(work.dtype)
            numbers[shape[1:]] = None if item is None else math.prod(shape) * item
    gathers = frame.filter(pl.col("kind") == "gather_scatter")
    copied = {
        call: stacks[0][1:]
        for call in gathers["call"].unique().to_list()
        if (stacks := _stacks(kernels.shapes.calls[call].shapes)[:1]) and stacks[0][1:] in sizes
    }
    rows = gathers.filter(pl.col("call").is_in(list(copied)))
    if rows.is_empty():
        return None
    steps = kernels.num_steps
    times = rows.group_by("call").agg(pl.col("instance").n_unique())
    moved = [(numbers[copied[call]], count) for call, count in times.iter_rows()]
    known = all(size is not None for size, _ in moved)
    return _Copies(
        calls=list(copied),
        op=kernels.shapes.calls[next(iter(copied))].name,
        each=max(sizes[shape] for shape in copied.values()),
        busy=float(rows["busy"].sum()) / steps,
        kernels=rows.height / steps,
        bytes=sum(2 * (size or 0.0) * count for size, count in moved) / steps if known else None,
    )


def _stacks(shapes: Iterable[Any]) -> list[tuple[int, ...]]:
    """Return the operands of a call that are stacks of matrices, each wider than a vector."""
    whole = (s for s in shapes if isinstance(s, tuple) and all(isinstance(n, int) for n in s))
    return [shape for shape in whole if len(shape) == _STACKED and min(shape[1:]) > 1]


def _expert_rows(c: Context) -> list[GemmRow]:
    return [row for row in c.phase.gemms if row.role == EXPERTS and row.groups is not None]


def _sides(c: Context) -> tuple[_Side | None, _Side | None]:
    """Return the dense and the pruned side, each None where its router or experts are unknown."""
    routers = [row for row in c.phase.gemms if row.role == ROUTER and row.n and row.n > 1]
    rows = _expert_rows(c)
    if not routers or not rows:
        return None, None
    tokens = sum((row.m or 0) * row.count for row in routers) / sum(row.count for row in routers)
    # Rows of all experts of a layer: those of the GEMM that runs once for each expert.
    known = [
        row.flop * row.count / (2 * row.n * row.k * len(row.layers))
        for row in rows
        if row.flop is not None and row.n and row.k and row.layers
    ]
    routed = min(known, default=None)
    pruned = _side([row.n for row in routers], [row.groups for row in rows], tokens, routed)
    before = [row.dense_groups for row in rows]
    dense = _side([row.dense_n for row in routers], before, tokens, _routed_before(c))
    return dense, pruned


def _routed_before(c: Context) -> float | None:
    """Return the rows of a layer's experts on the dense side, all together."""
    pairs = [(pair.key, pair.dense) for pair in c.pairs if pair.key[1] == EXPERTS and pair.dense]
    layers = {key[0] for key, _ in pairs}
    rows: dict[int, float] = defaultdict(float)  # by product of a layer
    for key, call in pairs:
        rows[key[3]] += call.all_rows / len(layers)
    return min((count for count in rows.values() if count), default=None)


def _side(
    experts: Sequence[float | None],
    read: Sequence[float | None],
    tokens: float,
    routed: float | None,
) -> _Side | None:
    """Return one side of a layer; `routed`: rows of all experts of a layer together."""
    there, seen = mean_of_known(experts), mean_of_known(read)
    if not there or not seen or not tokens or not routed:
        return None
    per_token = max(1, round(routed / tokens))
    return _Side(experts=there, read=seen, tokens=tokens, per_token=per_token)


def _tokens(value: float) -> str:
    return "1 token" if value == 1 else f"{_count(value)} tokens"


def _count(value: float) -> str:
    return f"{value:.0f}" if abs(value - round(value)) < 0.05 else f"{value:.1f}"
