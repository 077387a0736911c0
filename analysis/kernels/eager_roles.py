"""Roles of a compiled step, whose kernels have ops and no modules, from an eager pass with both.

torch.compile leaves out the hooks that name modules, and the eager pass recorded with it has them.
In: the rows of the recorded step and of the eager pass, both with kinds, calls and works. Out:
columns `layer` and `role`. Products of one shape run in the same order in both; a compiler moves
those that need not wait for each other (q behind k and v, a router before the MLP), so that shapes
change places. Other ops that were not fused are matched by their order, step by step. A gather that
was fused has the role of the product after it, which reads it. Any other row without a match stays
without a role, as where roles come from the order of kernels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import polars as pl

from prunescope.analysis.kernels.assignment import RoleEvidence, describe
from prunescope.analysis.kernels.graph_match import align
from prunescope.analysis.kernels.role import PRODUCT_KINDS
from prunescope.analysis.kernels.sequence import Product
from prunescope.analysis.ops.call import OpCall
from prunescope.analysis.ops.work import Work
from prunescope.analysis.trace.collector import NONE, Ints, unique_ids

_GATHER = "gather_scatter"


def roles_of_pass(
    frame: pl.DataFrame,
    of: tuple[Sequence[OpCall], Sequence[Work | None]],
    eager: pl.DataFrame,
    of_eager: tuple[Sequence[OpCall], Sequence[Work | None]],
) -> RoleEvidence:
    """Return what an eager pass says of the layers and roles of all rows.

    Its confidence is the share of the products' time that is matched: a pass of another step
    explains little.

    Args:
        frame: The rows of the recorded step, with kinds.
        of: Its calls and their works.
        eager: The rows of the eager pass, with kinds, layers and roles.
        of_eager: Its calls and their works.
    """
    here = frame.with_row_index("row").sort("launched", maintain_order=True)
    first_step = eager.filter(pl.col("step") == pl.col("step").min())
    there = first_step.sort("launched", maintain_order=True)
    wanted, known = _keys(here, *of), _keys(there, *of_eager)
    product = here["kind"].is_in(PRODUCT_KINDS).to_numpy()
    products = {wanted[i] for i in np.flatnonzero(product)}
    at = np.full(len(here), NONE)
    steps = here["step"].to_numpy()
    matched: dict[tuple[Product, ...], Ints] = {}
    for step in unique_ids(steps):
        rows = np.flatnonzero(steps == step)
        names = tuple(wanted[i] for i in rows)
        if names not in matched:
            matched[names] = _matched(names, known, products)
        at[rows] = matched[names]
    busy = here["busy"].to_numpy()
    whole, matched_ns = (int(busy[rows].sum()) for rows in (product, product & (at >= 0)))
    kinds = here["kind"].to_list()
    behind = _products_behind(kinds, at, steps)
    fused = (at < 0) & np.array([kind == _GATHER for kind in kinds], bool)
    at[fused] = behind[fused]
    of_row = np.empty(len(at), np.int64)
    of_row[here["row"].to_numpy()] = at
    layer = np.append(there["layer"].fill_null(NONE).to_numpy(), NONE)
    role = np.append(there["role"].to_numpy(), "unknown")
    every = np.ones(len(at), bool)
    share = matched_ns / whole if whole else 1.0
    return RoleEvidence("eager pass", layer[of_row], role[of_row], every, share)


def _matched(names: Sequence[Product], known: list[Product], products: Collection[Product]) -> Ints:
    """Return the row of the pass that each row of a step repeats.

    Products whose shape both have equally often are matched in the order of that shape, all other
    rows in the order of the step.
    """
    at = align(list(names), known)
    here, there = _places(names), _places(known)
    for key in here.keys() & products:
        if len(here[key]) == len(there.get(key, ())):
            at[here[key]] = there[key]
    return at


def _places(names: Iterable[Product]) -> dict[Product, list[int]]:
    places: dict[Product, list[int]] = defaultdict(list)
    for place, name in enumerate(names):
        places[name].append(place)
    return places


def _keys(
    frame: pl.DataFrame, calls: Sequence[OpCall], works: Sequence[Work | None]
) -> list[Product]:
    """Return what each row is matched by.

    It is its product, else its op and the shapes of the call; the name of the kernel where the row
    has no op.
    """
    key_of: dict[tuple[str, int | None, str | None], Product] = {}
    rows = frame.select("kind", "call", "name").rows()
    for at in {*rows}:
        kind, call, name = at
        if call is None:
            key_of[at] = Product(str(name))
            continue
        op = f"{calls[call].name} {calls[call].shapes}"
        work = works[call] if kind in PRODUCT_KINDS else None
        key_of[at] = Product(op) if work is None else describe(kind, op, calls[call], work)
    return [key_of[at] for at in rows]


def _products_behind(kinds: Sequence[str], at: Ints, steps: Ints) -> Ints:
    """Return, by row, the match of the next product of its step; NONE where none follows."""
    behind, last, step = np.full(len(at), NONE), NONE, NONE
    for i in range(len(at) - 1, -1, -1):
        if steps[i] != step:
            last, step = NONE, steps[i]
        behind[i] = last
        if kinds[i] in PRODUCT_KINDS:
            last = at[i]
    return behind
