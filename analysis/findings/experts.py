"""Mixtures of experts: why fewer experts are no faster here, how unevenly tokens fall, and what the
choice of experts costs.

In: a Context. Out: Found, or None. Times are ns a step, as recorded.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from prunescope.analysis.findings.context import LITTLE, Context
from prunescope.analysis.findings.registry import Found, finding
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.ledger.experts import EXPERTS, ROUTER, mean_of_known
from prunescope.analysis.schema.report import GemmRow, Phase
from prunescope.taxonomy.dtypes import itemsize
from prunescope.taxonomy.expert_routing import expert_load, fullest_expert
from prunescope.taxonomy.roles import BACKWARD
from prunescope.taxonomy.words import percent, shortened

# Shares of experts no longer read, over the share that was removed: below the first about as many
# are read as before; from the second on reads fell with the experts, up to chance.
_ALIKE = 0.5
_FOLLOWS = 0.9
_WORTH = 0.1  # of the experts that a step reads: fewer of them are no gain to plan with
_MOST_TOKENS = 1 << 16  # up to which a gain is looked for
_UNEVEN = 2.0  # times the fullest expert of an even router, which by chance exceeds the mean
_LARGE = 0.1  # of the step
_STACKED = 3  # dimensions of the matrices of all experts in one tensor
# Work of a layer of experts other than products and activation: it chooses, sorts and moves rows.
_MOVES = ("routing", "sampling", "gather_scatter", "layout", "scan", "reduction", "memset")


@dataclass(frozen=True, kw_only=True)
class _Side:
    """A layer's experts of one side, means over layers and steps: how many there are, how many get
    tokens, tokens per step, and experts per token."""

    experts: float
    read: float
    tokens: float
    per_token: int

    @property
    def can_choose(self) -> bool:
        """Whether a token uses only some of the experts."""
        return 0 < self.per_token < self.experts


@finding("experts-read-alike", "warning", compares=True)
def experts_read_alike(c: Context) -> Found | None:
    """A step reads about as many experts as before, though fewer are left: they save only memory.

    Which of them a step reads is the router's choice: with few tokens most experts were not read
    before either.
    """
    dense, pruned = _sides(c)
    if dense is None or pruned is None:
        return _copies_alike(c)
    if not pruned.experts < dense.experts:
        return None
    removed, saved = 1 - pruned.experts / dense.experts, 1 - pruned.read / dense.read
    if saved >= _FOLLOWS * removed:
        return None
    alike = saved < _ALIKE * removed
    now, before = _bytes(c, of_dense=False), _bytes(c, of_dense=True)
    little = "little time" if alike else "less than their share"
    return Found(
        text=f"fewer experts save {little} at {_tokens(pruned.tokens)} a step: it reads "
        f"{_count(pruned.read)} of {_count(pruned.experts)} experts a layer, and read "
        f"{_count(dense.read)} of {_count(dense.experts)} before"
        + (
            ""
            if alike
            else f": {percent(saved)} fewer, where {percent(removed)} of them were removed"
        ),
        severity=None if alike else "info",
        evidence=[
            f"each token goes to {pruned.per_token} experts of a layer",
            *([f"GEMMs of experts move {now / before:.2f} × the dense bytes"] if before else []),
            *_memory(c),
        ],
        change=_from_where(dense, pruned),
        explains_roles=frozenset([EXPERTS]),
    )


def _copies_alike(c: Context) -> Found | None:
    """The finding where products of both sides read copies of the experts, as many as tokens
    take."""
    fewer = any(g.role == ROUTER and (g.dense_n or 0) > (g.n or 0) > 1 for g in c.phase.gemms)
    now = _copies(c.kernels) if fewer else None
    before = _copies(c.baseline_kernels) if now and c.baseline_kernels is not None else None
    if now is None or before is None or now.each != before.each:
        return None
    return Found(
        text="fewer experts save little time: every token multiplies by copies of its experts, "
        f"{now.each} in a layer, as many as before",
        evidence=[f"{now.op}: {now.kernels:.0f} kernels a step", *_memory(c)],
        change="run the experts with grouped kernels, which read an expert once for all its tokens",
        explains_roles=frozenset([EXPERTS]),
    )


def _from_where(dense: _Side, pruned: _Side) -> str:
    """What to change, and from how many tokens on an even router reads a tenth fewer experts."""
    memory = "use the memory that is free for a larger batch or a longer context"
    if not pruned.can_choose or not dense.can_choose:
        return memory
    tokens = 1
    while tokens < _MOST_TOKENS and _saved(dense, pruned, tokens) < _WORTH:
        tokens *= 2
    if _saved(dense, pruned, tokens) < _WORTH:
        return memory
    low = tokens // 2
    while tokens - low > 1:
        middle = (low + tokens) // 2
        low, tokens = (low, middle) if _saved(dense, pruned, middle) >= _WORTH else (middle, tokens)
    return (
        f"{memory}: from {_tokens(tokens)} a step on, a router that chooses evenly reads "
        f"{percent(_WORTH)} fewer experts"
    )


def _saved(dense: _Side, pruned: _Side, tokens: int) -> float:
    """The share of the experts read that is saved, expected of a router that chooses evenly."""
    before, after = (
        expert_load(
            None, "", experts=round(one.experts), per_token=one.per_token, tokens=tokens
        ).distinct
        for one in (dense, pruned)
    )
    return 1 - after / before


def _memory(c: Context) -> Iterable[str]:
    share = c.phase.sparsity.get("parameters")
    if share:
        yield f"{percent(share)} of the parameters are removed from memory"


def _bytes(c: Context, *, of_dense: bool) -> float:
    """Bytes of the GEMMs of experts in a step; 0 where they are not known."""
    calls = [p.dense if of_dense else p.pruned for p in c.pairs or [] if p.key[1] == EXPERTS]
    known = [
        call.bytes * call.count for call in calls if call is not None and call.bytes is not None
    ]
    return sum(known)


@finding("experts-on-all-tokens", "info")
def experts_on_all_tokens(c: Context) -> Found | None:
    """Every token goes through all experts of a layer, in one batched GEMM, not the chosen ones.

    Its FLOPs then fall with the number of experts, which those of routed experts do not.
    """
    routers = [g for g in c.phase.gemms if g.role == ROUTER and g.n and g.n > 1 and g.m]
    choices = {(g.n, g.m) for g in routers}
    rows = [g for g in c.phase.gemms if g.role == EXPERTS and (g.batch, g.m) in choices]
    # Copies for the experts of a single token may be as many as there are experts.
    if not rows or _copies(c.kernels) is not None:
        return None
    first = rows[0]
    fewer = first.axis == "G" and first.dense_batch is not None
    moved = f", {first.dense_batch} before" if fewer else ""
    busy = sum(g.busy_ns for g in rows)
    return Found(
        text=f"this implementation multiplies every token by all {first.batch} experts of a "
        f"layer{moved}: the FLOPs of experts follow their number, so that fewer experts can save "
        "time; if only the chosen ones ran, the FLOPs would not change",
        evidence=[
            f"batched products of {first.batch} experts with {first.m} rows each: {c.ms(busy)} a "
            "step"
        ],
        change="run the experts with grouped kernels, which multiply a token by its own alone; "
        "there the FLOPs do not fall with the number of experts",
        explains_roles=frozenset([EXPERTS]),
    )


@finding("expert-imbalance", "info")
def expert_imbalance(c: Context) -> Found | None:
    """One expert of a layer sees far more rows than the mean, and than chance alone would send."""
    side = _sides(c)[1]
    rows = [g for g in _expert_rows(c.phase) if g.kind != "grouped_gemm" and g.m_max is not None]
    if side is None or not rows or not side.can_choose:
        return None
    most = max(g.m_max or 0 for g in rows)
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
    """Choosing experts, sorting tokens by them and moving their rows takes much of the step."""
    if not _has_experts(c.kernels):
        return None
    frame = c.kernels.frame
    role = pl.col("role").str.strip_suffix(BACKWARD)
    moves = (role == EXPERTS) & pl.col("kind").is_in(_MOVES)
    rows = frame.filter((role == ROUTER) | moves)
    if (copies := _copies(c.kernels)) is not None:  # the finding experts-copied names these
        rows = rows.filter(~pl.col("call").is_in(copies.calls).fill_null(value=False))
    if rows.is_empty():
        return None
    steps = c.kernels.num_steps
    busy = int(rows["busy"].sum()) / steps
    if busy < _LARGE * c.phase.wall_ns:
        return None
    names = rows.with_columns(shown=pl.coalesce("name", "op")).group_by(
        "shown", maintain_order=True
    )
    sums = names.agg(pl.col("busy").sum(), pl.len()).sort("busy", "shown", descending=[True, False])
    products = frame.filter((role == EXPERTS) & (pl.col("class") == "matmul"))
    return Found(
        text=f"choosing experts and moving rows to them takes {percent(c.share(busy))} of "
        f"the step ({c.ms(busy)}); their GEMMs take {c.ms(int(products['busy'].sum()) / steps)}",
        evidence=[
            f"{shortened(str(row['shown']))}: {c.ms(row['busy'] / steps)} in "
            f"{row['len'] / steps:.0f} kernels a step"
            for row in sums.head(4).iter_rows(named=True)
        ],
        change="run the experts with fused or grouped kernels, which gather rows by themselves",
        explains_roles=frozenset([ROUTER]),
    )


@dataclass(frozen=True, kw_only=True)
class _Copies:
    """Copies of the matrices of experts: the op calls that make them, how many a layer and product,
    their busy ns and the bytes that they read and write a step; None where a format is unknown."""

    calls: list[int]
    op: str
    each: int
    busy: float
    kernels: float
    bytes: float | None


@finding("experts-copied", "warning")
def experts_copied(c: Context) -> Found | None:
    """Every token copies the matrices of its experts, and its GEMMs read the copies."""
    found = _copies(c.kernels)
    if found is None or found.busy < LITTLE * c.phase.wall_ns:
        return None
    size = "" if found.bytes is None else f"{found.bytes / 1e6:,.1f} MB read and written, "
    dense = None if c.baseline_kernels is None else _copies(c.baseline_kernels)
    alike = dense is not None and dense.each == found.each
    return Found(
        text="every token copies the matrices of its experts, and multiplies by the copies: "
        f"{found.each} copies in a layer, {size}{c.ms(found.busy)} a step, "
        f"{percent(c.share(found.busy))} of it",
        evidence=[
            f"{found.op}: {c.ms(found.busy)} in {found.kernels:.0f} kernels a step",
            "its GEMMs read every copy, where grouped kernels read an expert once for all of "
            "its tokens",
            *(["the dense model makes as many copies: fewer experts save none"] if alike else []),
        ],
        change="run the experts with grouped kernels: "
        'model.set_experts_implementation("grouped_mm") in transformers, or the fused kernel of a '
        "serving engine",
        predicted_ns=c.in_step(found.busy),
        explains_roles=frozenset([EXPERTS]),
    )


def _has_experts(kernels: Kernels) -> bool:
    return any(role.removesuffix(BACKWARD) == EXPERTS for role in kernels.values("role"))


def _copies(kernels: Kernels) -> _Copies | None:
    """Gathers of [S, N, K] from a stack [E, N, K] of experts, by which batched GEMMs multiply."""
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
    """Operands of a call that are stacks of matrices, each wider than a vector."""
    whole = (s for s in shapes if isinstance(s, tuple) and all(isinstance(n, int) for n in s))
    return [shape for shape in whole if len(shape) == _STACKED and min(shape[1:]) > 1]


def _expert_rows(phase: Phase) -> list[GemmRow]:
    return [g for g in phase.gemms if g.role == EXPERTS and g.groups is not None]


def _sides(c: Context) -> tuple[_Side | None, _Side | None]:
    """The dense and the pruned side, each None where its router or its experts are not known."""
    routers = [g for g in c.phase.gemms if g.role == ROUTER and g.n is not None and g.n > 1]
    rows = _expert_rows(c.phase)
    if not routers or not rows:
        return None, None
    tokens = sum((g.m or 0) * g.count for g in routers) / sum(g.count for g in routers)
    pruned = _side([g.n for g in routers], [g.groups for g in rows], tokens, _routed(rows))
    before = [g.dense_groups for g in rows]
    dense = _side([g.dense_n for g in routers], before, tokens, _routed_before(c))
    return dense, pruned


def _routed(rows: list[GemmRow]) -> float | None:
    """Rows of all experts of a layer, from the GEMM that runs once for each expert."""
    known = [
        g.flop * g.count / (2 * g.n * g.k * len(g.layers))
        for g in rows
        if g.flop is not None and g.n and g.k and g.layers
    ]
    return min(known, default=None)


def _routed_before(c: Context) -> float | None:
    """Rows of a layer's experts on the dense side, all together."""
    layers = {p.key[0] for p in c.pairs or [] if p.key[1] == EXPERTS and p.dense is not None}
    rows: dict[int, float] = defaultdict(float)  # by product of a layer
    for pair in c.pairs or []:
        if pair.key[1] == EXPERTS and pair.dense is not None:
            rows[pair.key[3]] += pair.dense.all_rows / len(layers)
    return min((value for value in rows.values() if value), default=None)


def _side(
    experts: Sequence[float | None],
    read: Sequence[float | None],
    tokens: float,
    routed: float | None,
) -> _Side | None:
    """`routed`: rows of all experts of a layer together."""
    there, seen = mean_of_known(experts), mean_of_known(read)
    if not there or not seen or not tokens or not routed:
        return None
    per_token = max(1, round(routed / tokens))
    return _Side(experts=there, read=seen, tokens=tokens, per_token=per_token)


def _tokens(value: float) -> str:
    return "1 token" if value == 1 else f"{_count(value)} tokens"


def _count(value: float) -> str:
    return f"{value:.0f}" if abs(value - round(value)) < 0.05 else f"{value:.1f}"
