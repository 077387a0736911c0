"""Roles of a recorded step whose kernels have ops of their own, and no modules: torch.compile
leaves out the hooks that name modules, and the eager pass recorded with it has them.

In: the rows of the recorded step and of the eager pass, both with kinds, calls and works. Out:
columns `layer` and `role`. Products of one shape run in the same order in both; a compiler moves
those that need not wait for each other (q behind k and v, a router before the MLP), so that shapes
change places. Other ops that were not fused are matched by their order, step by step. A gather that
was fused has the role of the product behind it, which reads it; any other row that has no match
stays without, as where roles come from the order of kernels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import polars as pl

from prunescope.analysis.kernels.graph_match import align
from prunescope.analysis.kernels.role import GEMM_KINDS
from prunescope.analysis.ops.call import OpCall
from prunescope.analysis.ops.work import Work
from prunescope.analysis.trace.collect import NONE, Ints, unique_ids

# Of the products' time: where less of it is matched, the pass is of another step.
_LEAST = 0.5
_PRODUCTS = (*GEMM_KINDS, "attention")
_GATHER = "gather_scatter"


def roles_of_pass(
    frame: pl.DataFrame,
    of: tuple[Sequence[OpCall], Sequence[Work | None]],
    eager: pl.DataFrame,
    of_eager: tuple[Sequence[OpCall], Sequence[Work | None]],
) -> pl.DataFrame | None:
    """The frame with the layers and roles of an eager pass; None where the pass is of another step.
    `of`, `of_eager`: calls and works."""
    here, there = frame.sort("launched", maintain_order=True), _first_step(eager)
    here = here.with_row_index("at_here")
    wanted, known = _keys(here, *of), _keys(there, *of_eager)
    product = here["kind"].is_in(_PRODUCTS).to_numpy()
    products = {wanted[i] for i in np.flatnonzero(product)}
    at = np.full(len(here), NONE)
    steps = here["step"].to_numpy()
    found: dict[tuple[str, ...], Ints] = {}
    for step in unique_ids(steps):
        rows = np.flatnonzero(steps == step)
        names = tuple(wanted[i] for i in rows)
        if names not in found:
            found[names] = _matched(names, known, products)
        at[rows] = found[names]
    busy = here["busy"].to_numpy()
    if busy[product & (at >= 0)].sum() < _LEAST * busy[product].sum():
        return None
    kinds = here["kind"].to_list()
    behind = _products_behind(kinds, at, steps)
    fused = (at < 0) & np.array([kind == _GATHER for kind in kinds], bool)
    at[fused] = behind[fused]
    role, layer = there["role"].to_list(), there["layer"].to_list()
    named = here.with_columns(
        layer=pl.Series([layer[i] if i >= 0 else None for i in at], dtype=pl.Int64),
        role=pl.Series([role[i] if i >= 0 else "unknown" for i in at], dtype=pl.String),
    )
    order = np.argsort(frame["launched"].to_numpy(), kind="stable")
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    return named.drop("at_here")[back]


def _matched(names: Sequence[str], known: list[str], products: Collection[str]) -> Ints:
    """The row of the pass that each row of a step repeats: of products whose shape both have
    equally often, in the order of that shape; of all others by the order of the step."""
    at = align(list(names), known)
    here, there = _places(names), _places(known)
    for key in here.keys() & products:
        if len(here[key]) == len(there.get(key, ())):
            at[here[key]] = there[key]
    return at


def _places(names: Iterable[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for place, name in enumerate(names):
        found[name].append(place)
    return found


def _first_step(eager: pl.DataFrame) -> pl.DataFrame:
    return eager.filter(pl.col("step") == pl.col("step").min()).sort(
        "launched", maintain_order=True
    )


def _keys(frame: pl.DataFrame, calls: Sequence[OpCall], works: Sequence[Work | None]) -> list[str]:
    """The key of a row in matching: the shapes of its products, else its op and what it was called
    with; its name where it has no op."""
    key_of: dict[tuple[str, int | None, str | None], str] = {}
    keys = []
    for kind, call, name in frame.select("kind", "call", "name").iter_rows():
        at = kind, call, name
        if at not in key_of:
            work = None if call is None else works[call]
            key_of[at] = str(name)
            if kind in _PRODUCTS and work is not None and work.gemms:
                key_of[at] = str([(g.batch, g.m, g.n, g.k) for g in work.gemms])
            elif call is not None:
                key_of[at] = f"{calls[call].name} {calls[call].shapes}"
        keys.append(key_of[at])
    return keys


def _products_behind(kinds: Sequence[str], at: Ints, steps: Ints) -> Ints:
    """By row the match of the next product of its step; NONE where none follows."""
    found, last, step = np.full(len(at), NONE), NONE, NONE
    for i in range(len(at) - 1, -1, -1):
        if steps[i] != step:
            last, step = NONE, steps[i]
        found[i] = last
        if kinds[i] in _PRODUCTS:
            last = at[i]
    return found
