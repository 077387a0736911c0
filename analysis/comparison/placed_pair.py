"""The layers and roles of both sides of a pair, each with what only the other side knows.

In: the kernels of both sides. Out: both, placed by `resolve` (kernels/assignment.py), with notes of
what a side took and of where sources disagree.
"""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace

from prunescope.analysis.kernels.assignment import (
    SOURCES,
    Assignment,
    RoleEvidence,
    SideRows,
    Steps,
    describe,
    resolve,
)
from prunescope.analysis.kernels.columns import instance_numbers, is_one_of
from prunescope.analysis.kernels.frame import ATTENTION, Kernels
from prunescope.analysis.kernels.role import PRODUCT_KINDS
from prunescope.analysis.kernels.sequence import Product
from prunescope.analysis.schema.notice import Notice, note
from prunescope.taxonomy.roles import UNPLACED

_REPEATS = SOURCES.index("repeats")  # it and "partner" are of both sides together
_NONE = -1  # no layer


def place_pair(dense: Kernels, pruned: Kernels) -> tuple[Kernels, Kernels]:
    """Give the products of each side the layers and roles that only the other side knows."""
    rows = _list_rows(dense), _list_rows(pruned)
    old, new = resolve(rows)
    by_repeats = any((assigned.source == _REPEATS).any() for assigned in (old, new))
    before = dense.modules.source, pruned.modules.source
    dense = _with_places(dense, rows[0], old, None if by_repeats else before[1])
    pruned = _with_places(pruned, rows[1], new, None if by_repeats else before[0])
    return dense, _noted(pruned, *new.notices())


def _with_places(
    kernels: Kernels, rows: SideRows, assigned: Assignment, source: str | None
) -> Kernels:
    """Put the assignment of a side into its frame, with a note of what was taken.

    `source` is where the other side has its layers from; None where they are parts that repeat.
    """
    products = np.array([row for step in rows.steps.values() for row, _ in step], np.int64)
    taken = products[assigned.source[products] >= _REPEATS]
    if not len(taken):
        return kernels
    before = kernels.frame["layer"]
    kernels = replace(kernels, frame=assigned.put_into(kernels.frame))
    if kernels.frame["layer"].ne_missing(before).any():
        modules = replace(kernels.modules, source=source or "order", were_aligned=True)
        kernels = replace(kernels, modules=modules)
    if source is None:
        layers = {*assigned.layer[taken].tolist()} - {_NONE}
        return _noted(kernels, note("layers-by-repeats", count=len(layers)))
    roles = [role for role in dict.fromkeys(assigned.role[taken]) if role not in UNPLACED]
    return _noted(kernels, note("roles-of-other-side", roles=roles)) if roles else kernels


def _list_rows(kernels: Kernels) -> SideRows:
    """Return the rows of a side, with what its own sources said and what multiplies."""
    frame = kernels.frame
    layer = frame["layer"].fill_null(_NONE).to_numpy()
    role, placed_by = (frame[name].to_numpy() for name in ("role", "placed_by"))
    confidence = frame["confidence"].to_numpy()
    evidence = [
        RoleEvidence(source, layer, role, placed_by == source, confidence)
        for source in frame["placed_by"].unique()
    ]
    return SideRows(evidence, _list_products(kernels), instance_numbers(frame))


def _list_products(kernels: Kernels) -> Steps:
    """List the products of each step in the order of their launch."""
    frame = kernels.frame.with_row_index("row")
    is_product = is_one_of(frame["kind"], PRODUCT_KINDS) | is_one_of(
        frame["class"], (ATTENTION, "conv")
    )
    rows = frame.filter(is_product & frame["primary"]).sort("step", "launched", "start")
    rows = rows.unique(["step", "instance"], keep="first", maintain_order=True)
    known: dict[tuple[str, int], Product] = {}
    steps: Steps = {}
    columns = ("row", "step", "kind", "op", "name", "call")
    for row, step, kind, op, name, call in rows.select(columns).iter_rows():
        if call is not None and (kind, call) not in known:
            own = kernels.shapes.calls[call], kernels.shapes.works[call]
            known[kind, call] = describe(kind, op or name, *own)
        product = Product(op or name) if call is None else known[kind, call]
        steps.setdefault(step, []).append((row, product))
    return steps


def _noted(kernels: Kernels, *notices: Notice) -> Kernels:
    return replace(kernels, notes=[*kernels.notes, *notices])
