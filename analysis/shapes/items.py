"""The kernels that matter for shapes, in launch order, and what is known of them.

In: the kernels frame with kinds and roles. Out: an `Item` for each GEMM and each attention of a
step (auxiliary kernels of an op are not items), `Placed` with its slot. Times in ns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl

from prunescope.analysis.device.tiles import grid_in_blocks
from prunescope.analysis.ops.kernel_kinds import MATMUL_KINDS, op_kind
from prunescope.analysis.schema.notice import Notice, warning
from prunescope.analysis.shapes.slots import GEMM, GROUPED, Slot
from prunescope.analysis.timeline.grid_units import ITEMS, UNKNOWN_UNIT, grid_units
from prunescope.analysis.trace.trace_columns import Trace
from prunescope.taxonomy.lazy_pattern import lazy_pattern
from prunescope.taxonomy.shape import ModelShape

ATTENTION, BATCHED, MIXER = "attention", "batched", "mixer"
_PRODUCTS = (*MATMUL_KINDS, "attention")
_WHAT = {
    "gemm": GEMM, "gemv": GEMM, "sparse_gemm": GEMM, "grouped_gemm": GROUPED,
    "batched_gemm": BATCHED, "attention": ATTENTION, "conv": MIXER, "scan": MIXER,
}  # fmt: skip
_READ = ("row", "step", "launched", "start", "kind", "name", "grid", "block", "duration",
         "instance", "role", "layer", "call", "op", "event")  # fmt: skip
# Scans and convolutions of mixers; others count tokens of experts, or sample.
_MIXES = lazy_pattern(
    r"mamba|selective_scan|state_update|chunk_(?:scan|state|fwd|gated|scaled|local)|ssd_|_ssm_"
    r"|delta_rule|fused_recurrent|causal_conv|conv_depthwise|conv1d|ShortConv"
)
_NAME_LIMIT = 400
Token = tuple[str, tuple[int, ...] | None]


@dataclass(frozen=True, slots=True)
class Item:
    """One kernel.

    `form` is GEMM, GROUPED, BATCHED, ATTENTION or MIXER; `grid` counts blocks; `nk` is N and K of a
    GEMM whose shapes the trace has, and `rows` its M.
    """

    row: int
    step: int
    form: str
    name: str
    grid: tuple[int, ...] | None
    ns: int
    role: str
    layer: int | None
    instance: int
    kind: str
    nk: tuple[int, int] | None = None
    rows: int | None = None
    has_work: bool = False
    alone: bool = False  # its op is no GEMM (a compiled region), so no kernel of it is auxiliary

    @property
    def token(self) -> Token:
        """The key that equal kernels of other layers share."""
        return self.name, self.grid


@dataclass(frozen=True)
class Placed:
    """A GEMM of a pass with the slot that the config gives it; `layer` is None for the head."""

    item: Item
    slot: Slot
    layer: int | None


@dataclass
class AssignedPass:
    """The kernels of one forward pass.

    `gemms` and `attentions` (item, layer) are certain; `unsure` are items that more than one place
    would fit. `problems` are contradictions of the config. `explained` is the share of a layer's
    GEMM time that has slots.
    """

    gemms: list[Placed] = field(default_factory=list)
    attentions: list[tuple[Item, int]] = field(default_factory=list)
    problems: list[Notice] = field(default_factory=list)
    unsure: list[Item] = field(default_factory=list)
    explained: float = 1.0
    by_order: bool = False

    def rows(self) -> Iterator[int]:
        """Yield the rows of the frame that its items are."""
        yield from (gemm.item.row for gemm in self.gemms)
        yield from (item.row for item, _ in self.attentions)
        yield from (item.row for item in self.unsure)


def wrong_layers(layers: int, shape: ModelShape) -> Notice:
    """State the problem of a trace with another number of layers."""
    return warning("another-number-of-layers", layers=layers, config=shape.layers)


def can_run(item: Item, slot: Slot) -> bool:
    """Return whether a kernel is of the form that a slot needs."""
    return item.form == slot.form and item.form in (GEMM, GROUPED)


def anchors_of(items: Sequence[Item]) -> list[int]:
    """Return the indices of attentions and of mixers, which cut a pass."""
    return [i for i, item in enumerate(items) if item.form in (ATTENTION, MIXER)]


def items_of(
    frame: pl.DataFrame, trace: Trace, works: Sequence[Any], *, mixers: bool = False
) -> dict[int, list[Item]]:
    """Return the items of each step, those of mixers only on request.

    GEMMs of an eager attention become one item, and so do the kernels of one attention that no op
    holds together.
    """
    kinds = (*_PRODUCTS, "conv", "scan") if mixers else _PRODUCTS
    rows = frame.with_row_index("row").filter(
        pl.col("kind").is_in(kinds) & (pl.col("category") == 0)
    )
    rows = rows.sort("step", "launched", "start").select(_READ)
    units = grid_units(trace, rows["event"].to_numpy())
    steps: dict[int, list[Item]] = {}
    for record, unit in zip(rows.iter_rows(named=True), units, strict=True):
        if record["kind"] == "scan" and not _MIXES.search((record["name"] or "")[:_NAME_LIMIT]):
            continue
        steps.setdefault(record["step"], []).append(_read_item(record, trace, works, int(unit)))
    return {step: _merge_items(items) for step, items in steps.items()}


def _read_item(record: dict[str, Any], trace: Trace, works: Sequence[Any], unit: int) -> Item:
    """Make the item of one row of the frame."""
    grid = None if record["grid"] is None else trace.grids[record["grid"]]
    block = None if record["block"] is None else trace.grids[record["block"]]
    if unit == ITEMS and grid is not None:
        grid = None if block is None else grid_in_blocks(grid, block)
    elif unit == UNKNOWN_UNIT:
        grid = None
    work = None if record["call"] is None else works[record["call"]]
    gemm = None if work is None else work.single_gemm
    return Item(
        row=record["row"],
        step=record["step"],
        form=_WHAT[record["kind"]],
        name=record["name"] or "",
        grid=grid,
        ns=record["duration"],
        role=record["role"],
        layer=record["layer"],
        instance=record["instance"],
        kind=record["kind"],
        nk=None if gemm is None else (gemm.n, gemm.k),
        rows=None if gemm is None else gemm.m,
        has_work=work is not None and bool(work.gemms),
        alone=record["op"] is not None and op_kind(record["op"], None) not in _PRODUCTS,
    )


def _merge_items(items: list[Item]) -> list[Item]:
    """Keep one item for each op instance, the longest of its kernels.

    Of a run of attention kernels one item is kept too.
    """
    longest: dict[int, Item] = {}
    for item in items:
        if item.alone or item.form == MIXER:
            continue
        known = longest.get(item.instance)
        if known is None or item.ns > known.ns:
            longest[item.instance] = item
    kept = [
        item for item in items if item.alone or item.form == MIXER or longest[item.instance] is item
    ]
    if not any(item.form == ATTENTION for item in kept):
        kept = list(_merge_eager_attention(kept))
    else:
        kept = [
            item for item in kept if item.form != BATCHED or item.role not in ("unknown", "rope")
        ]
    merged: list[Item] = []
    for item in kept:
        last = merged[-1] if merged else None
        both = last is not None and item.form == last.form == ATTENTION
        if last is not None and both and item.layer == last.layer:
            merged[-1] = max(last, item, key=lambda candidate: candidate.ns)
        else:
            merged.append(item)
    return merged


def _merge_eager_attention(items: list[Item]) -> Iterator[Item]:
    """Turn two batched GEMMs in a row into an attention, and leave out a batched GEMM alone."""
    at = 0
    while at < len(items):
        item = items[at]
        after = items[at + 1] if at + 1 < len(items) else None
        if item.form != BATCHED:
            yield item
        elif after is not None and after.form == BATCHED:
            yield replace(item, form=ATTENTION, kind="eager attention")
            at += 1
        at += 1
