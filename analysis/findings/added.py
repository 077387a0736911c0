"""What pruning adds, named apart: routing, gather and scatter, masks, estimator, copies, maps.

In: a Context. Out: a Finding, or None. New work is what the dense side has no op for in the same
role, in an added unit or inside a matched one. Times are ns a step, as recorded.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from prunescope.analysis.findings.context import Context, ms, shortened
from prunescope.analysis.findings.left_on import is_left_on
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.ledger.purpose import (
    ESTIMATOR,
    GATHER,
    INDEX,
    LAYOUT,
    MASK,
    ROUTER,
    SCATTER,
    NewWork,
    is_fused,
    purpose,
)
from prunescope.analysis.schema.report import Finding
from prunescope.taxonomy.families import known
from prunescope.taxonomy.words import percent

_SHARE = 0.01  # of the recorded wall: work worth a sentence


@dataclass(frozen=True)
class _Entry:
    """New work of one role, kind and op (the kernel's name where no op is known)."""

    role: str
    kind: str
    work: str
    ns: float


@dataclass(frozen=True)
class _Words:
    """The words of a finding on new work of one or several purposes."""

    id: str
    what: str
    change: str


_ROUTING = _Words(
    "added-routing",
    "routing (routers, top-k, sorts, index building)",
    "route once for several layers, or fuse router, top-k and index building into one kernel",
)
_GATHER = _Words(
    "added-gather-scatter",
    "gathering active rows or blocks and scattering results back",
    "fold the gather into the GEMM's or attention's own loads, or keep rows packed over layers",
)
_MASKS = _Words(
    "added-mask",
    "building and applying masks",
    "build masks once before the run, or remove what they hide instead of masking it",
)
_ESTIMATOR = _Words(
    "added-estimator",
    "estimating which keys or blocks of attention matter",
    "larger blocks, a cheaper pooling, or an estimate that several layers share",
)
_COPIES = _Words(
    "added-layout",
    "layout copies (casts, transposes, concatenations)",
    "store weights and activations in the layout that the kernels take",
)


def routing(c: Context) -> Finding | None:
    """Routers, top-k, sorts and index building."""
    return _finding(c, _ROUTING)


def gather_scatter(c: Context) -> Finding | None:
    """Gathers and scatters around the kernels that work on a part."""
    return _finding(c, _GATHER)


def masks(c: Context) -> Finding | None:
    """Comparisons, masks and fills; where weights are masked anew, that is said instead."""
    return None if is_left_on(c) else _finding(c, _MASKS)


def estimator(c: Context) -> Finding | None:
    """Pooled scores beside a fused attention: the choice of blocks."""
    return _finding(c, _ESTIMATOR)


def layout_copies(c: Context) -> Finding | None:
    """Copies that the dense model does not make."""
    return _finding(c, _COPIES)


def residual_map(c: Context) -> Finding | None:
    """GEMMs on the residual stream cost a good part of what the narrower ones save."""
    pairs = c.pairs or []
    maps = [p for p in pairs if p.axis == "added" and p.pruned and p.key[1] == "residual"]
    cost = sum(p.pruned.busy for p in maps if p.pruned is not None)
    saved = sum(
        p.dense.busy - (p.pruned.busy if p.pruned is not None else 0.0)
        for p in pairs
        if p.dense is not None
    )
    if not maps or cost < _SHARE * c.phase.wall_ns or cost < 0.25 * saved:
        return None
    share = f"{percent(cost / saved)} of the {ms(saved)} that" if saved > 0 else "more than"
    first = maps[0].pruned
    shape = f" {first.gemm.m}×{first.gemm.n}×{first.gemm.k}" if first and first.gemm else ""
    return Finding(
        id="residual-map",
        severity="warning",
        text=f"maps on the residual stream take {ms(cost)}: {share} the narrower GEMMs save",
        evidence=[f"{len(maps)} GEMMs{shape} that the dense model does not have"],
        change="keep the same dimensions at every junction (--set junctions=same): then no map is "
        "needed",
        predicted_ns=cost,
    )


def _finding(c: Context, words: _Words) -> Finding | None:
    entries = sorted(_new_work(c).get(words.id, []), key=lambda e: -e.ns)
    total = sum(e.ns for e in entries)
    if not entries or total < _SHARE * c.phase.wall_ns:
        return None
    return Finding(
        id=words.id,
        severity="warning",
        text=f"{words.what} takes {ms(total)} of a recorded step "
        f"({percent(total / c.phase.wall_ns, 1)}); the dense model has none of it",
        evidence=[f"{shortened(e.work)} in {e.role}: {ms(e.ns)}" for e in entries[:4]],
        change=words.change,
        predicted_ns=total / _recorded(c),
    )


def _recorded(c: Context) -> float:
    """How much longer recorded work takes than without the profiler: on a device as long."""
    ratio = c.phase.observer_ratio
    return 1.0 if ratio is None or c.pruned.on_device else max(1.0, ratio)


def _new_work(c: Context) -> dict[str, list[_Entry]]:
    """New work by the id of its purpose."""
    if c.dense is None:
        return {}
    by_name = c.pruned.is_replay != c.dense.is_replay  # replays have no ops
    new = _sums(c.pruned, by_name=by_name).join(
        _sums(c.dense, by_name=by_name),
        on=["role", "kind", "work"],
        how="anti",
        nulls_equal=True,
    )
    fused = is_fused(c.dense, c.pruned)
    seen = known(c.phase.family.ids) if c.phase.family is not None else []
    scorers = {one.scorer for one in seen} - {""}
    found: dict[str, list[_Entry]] = {}
    for row in new.iter_rows(named=True):
        entry = _Entry(row["role"], row["kind"], row["work"], row["busy"] / c.pruned.num_steps)
        work = NewWork(entry.role, entry.kind, entry.work)
        words = _WORDS.get(purpose(work, scorers, fused=fused))
        if words is _ROUTING and (scorers == {ESTIMATOR} or (fused and entry.role == "attention")):
            words = _ESTIMATOR  # what sorts scores of attention belongs to its estimator
        if words is not None:
            found.setdefault(words.id, []).append(entry)
    return found


def _sums(kernels: Kernels, *, by_name: bool) -> pl.DataFrame:
    work = (pl.col("name") if by_name else pl.coalesce("op", "name")).fill_null("?")
    # A number that is cast for a product is no data in another layout.
    numbers = [i for i, call in enumerate(kernels.calls) if call.shapes[:1] == ((),)]
    number = (pl.col("kind") == "layout") & pl.col("call").is_in(numbers)
    return (
        kernels.frame.filter(number.fill_null(value=False).not_())
        .with_columns(work=work)
        .group_by("role", "kind", "work", maintain_order=True)
        .agg(pl.col("busy").sum())
    )


_WORDS = {
    ROUTER: _ROUTING,
    INDEX: _ROUTING,
    MASK: _MASKS,
    GATHER: _GATHER,
    SCATTER: _GATHER,
    ESTIMATOR: _ESTIMATOR,
    LAYOUT: _COPIES,
}
