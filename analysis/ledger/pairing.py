"""Units: dense and pruned work paired by (layer, role, class).

In: the kernels frames of both sides. Out: `Units`: per unit and step busy and gap ns, FLOP, bytes,
ideal and predicted ns of both sides, as arrays; NaN where a model is unknown. No unit is dropped.
Within a unit, `UnitParts` are what can be distinguished: GEMMs of known and of unknown shape, other
work by its op.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import polars as pl
from msgspec import Struct
from numpy.typing import NDArray

from prunescope.analysis.kernels.columns import Floats as Floats
from prunescope.analysis.kernels.columns import Mask
from prunescope.analysis.kernels.frame import PRODUCTS, Kernels
from prunescope.analysis.ledger.alignment import Alignment, align, with_dense_layer

UnitKey = tuple[int | None, str, str]  # layer (of the dense model), role, class
_UNIT = {"unit_layer": pl.Int64, "role": pl.String, "class": pl.String}


class RecordWeight(Struct, frozen=True):
    """The weight of the recorded events per step (timeline/overhead.py).

    Attributes:
        busy: In busy time, [units].
        gap: In gaps, [units].
        trailing_idle: In trailing idle time.
    """

    busy: Floats
    gap: Floats
    trailing_idle: float

    @property
    def total(self) -> float:
        """The weight of all events of a step."""
        return float(self.busy.sum() + self.gap.sum()) + self.trailing_idle


class UnitSums(Struct, frozen=True):
    """The sums of one side by unit and step, [units, steps].

    Attributes:
        busy: Busy ns; 0 where absent.
        gap: Gap ns; 0 where absent.
        flop: FLOP; NaN where unknown.
        bytes: Bytes; NaN where unknown.
        ideal: Roofline ns; NaN where unknown.
        predicted: Roofline ns with tiles and waves; NaN where unknown.
        present: Whether the side has the unit, [units].
        trailing_idle: Trailing idle ns, [steps].
        recorded: The weight of the recorded events; None for a device trace.
    """

    busy: Floats
    gap: Floats
    flop: Floats
    bytes: Floats
    ideal: Floats
    predicted: Floats
    present: Mask
    trailing_idle: Floats
    recorded: RecordWeight | None = None


class PartSums(Struct, frozen=True):
    """The means per step over the kernels of each part, [parts]; NaN if unknown, 0 if absent."""

    busy: Floats
    flop: Floats
    bytes: Floats
    ideal: Floats
    predicted: Floats


class UnitParts(Struct, frozen=True):
    """The parts of the units; `unit[i]` is the unit of part i.

    A unit on both sides has several parts where both run the same ones, else one. A unit on one
    side has those of that side.
    """

    unit: NDArray[np.int64]
    dense: PartSums
    pruned: PartSums


class Units(Struct, frozen=True):
    """The units of a pair.

    Attributes:
        keys: The layer (of the dense model), role and class of each unit.
        dense: The sums of the dense side.
        pruned: The sums of the pruned side.
        alignment: The alignment of their layers.
        parts: The parts of the units; None takes each unit as one part.
        kept: The share of calls that is left of matched work without a known layer, and of layers
            that lost a sublayer, [units], where either were removed; None means that all calls of
            every unit are left.
    """

    keys: list[UnitKey]
    dense: UnitSums
    pruned: UnitSums
    alignment: Alignment
    parts: UnitParts | None = None
    kept: Floats | None = None

    @property
    def table(self) -> pl.DataFrame:
        """The key of each unit, in the columns of the kernels frame, and its index as `unit`."""
        return pl.DataFrame(self.keys, schema=_UNIT, orient="row").with_row_index("unit")

    @property
    def kept_calls(self) -> Floats:
        """`kept`, 1 where it is not known."""
        return np.ones(len(self.keys)) if self.kept is None else self.kept

    @property
    def matched(self) -> Mask:
        """The units on both sides."""
        return self.dense.present & self.pruned.present

    @property
    def removed(self) -> Mask:
        """The units on the dense side alone."""
        return self.dense.present & ~self.pruned.present

    @property
    def added(self) -> Mask:
        """The units on the pruned side alone."""
        return ~self.dense.present & self.pruned.present


def pair(dense: Kernels, pruned: Kernels, layer_map: list[int] | None = None) -> Units:
    """Pair the work of both sides by unit.

    Layers are those of the dense model; negative ones were added.

    Args:
        dense: The kernels of the dense side.
        pruned: The kernels of the pruned side.
        layer_map: The dense layer of each pruned one, as the run gives it; None where it does not.
    """
    alignment = align(dense, pruned, layer_map)
    frames = (
        dense.frame.with_columns(unit_layer=pl.col("layer")),
        with_dense_layer(pruned.frame, alignment),
    )
    d, p = (_sum_units(frame) for frame in frames)
    keys = sorted(
        {*_unit_keys(d), *_unit_keys(p)},
        key=lambda k: (k[0] is None, k[0] if k[0] is not None else 0, k[1:]),
    )
    index = {k: i for i, k in enumerate(keys)}
    cut = _find_cut_layers(_unit_keys(d), _unit_keys(p))
    is_shorter = bool(cut or alignment.removed)
    if is_shorter:
        frames = _with_sizes(frames[0], dense), _with_sizes(frames[1], pruned)
    return Units(
        keys,
        _side_sums(d, index, dense),
        _side_sums(p, index, pruned),
        alignment,
        _sum_parts(frames, index, (dense, pruned), is_shorter=is_shorter),
        _count_kept_calls(keys, frames, (dense, pruned), cut) if is_shorter else None,
    )


def _with_sizes(frame: pl.DataFrame, kernels: Kernels) -> pl.DataFrame:
    """Add a column with the sizes and types of each row's call, as text."""
    sizes = pl.Series(
        [f"{call.shapes}{call.dtypes}" for call in kernels.shapes.calls], dtype=pl.String
    )
    return frame.with_columns(sizes=sizes.gather(frame["call"]).fill_null(""))


def _count_kept_calls(
    keys: list[UnitKey],
    frames: tuple[pl.DataFrame, pl.DataFrame],
    sides: tuple[Kernels, Kernels],
    cut: list[int],
) -> Floats:
    """Return the share of the calls of each unit that is left, by the gaps before them.

    It is below 1 for norms and the like that no module assigns to a layer, and for the norm and the
    residual of a layer that lost a sublayer: the calls of what was removed, and the gaps before
    them, are gone. Calls are told apart by op and sizes where the pruned side has no other ones.
    """
    of_cut = pl.col("unit_layer").is_null() | (
        pl.col("unit_layer").is_in(cut) & pl.col("class").is_in(PRODUCTS).not_()
    )
    calls = []
    for frame, side in zip(frames, sides, strict=True):
        rows = frame.filter(of_cut).with_columns(of=pl.coalesce("op", "name") + pl.col("sizes"))
        gaps = rows.group_by(*_UNIT, "of", "step", "instance").agg(pl.col("gap").sum())
        sums = gaps.group_by(*_UNIT, "of").agg(
            pl.len() / side.num_steps,
            pl.col("gap").sum() / side.num_steps,
            pl.col("gap").median().alias("usual"),
        )
        units: dict[UnitKey, dict[str, Gaps]] = defaultdict(dict)
        for *unit, call, count, gap, usual in sums.iter_rows():
            units[tuple(unit)][call] = count, gap, usual
        calls.append(units)
    return np.array([_share_kept(*(units.get(key, {}) for units in calls)) for key in keys])


Gaps = tuple[float, float, float]  # calls of a step, all gaps before them and the median, ns


def _share_kept(dense: dict[str, Gaps], pruned: dict[str, Gaps]) -> float:
    """Return the share of the gaps before dense calls that is left.

    A call that went had the median of the gaps before its like: a long one at the begin of a step
    is of what came before. It is the share of calls where the pruned side has other ones, or no
    gap.
    """
    old, new = (sum(count for count, _, _ in calls.values()) for calls in (dense, pruned))
    whole = sum(gap for _, gap, _ in dense.values())
    if not old or not new:
        return 1.0
    if not whole or not pruned.keys() <= dense.keys():
        return min(1.0, new / old)
    gone = (
        gap if call not in pruned else max(0.0, count - pruned[call][0]) * min(usual, gap / count)
        for call, (count, gap, usual) in dense.items()
    )
    return 1.0 - sum(gone) / whole


def _find_cut_layers(dense: list[UnitKey], pruned: list[UnitKey]) -> list[int]:
    """Return the layers that are on both sides, and lost all products of some role."""
    here = {(layer, role) for layer, role, _ in pruned}
    layers = {layer for layer, _ in here}
    return sorted(
        {
            layer
            for layer, role, cls in dense
            if cls in PRODUCTS and layer in layers and (layer, role) not in here
            if layer is not None
        }
    )


def _sum_known(column: str) -> pl.Expr:
    """Sum a column; null where one of the rows that carry work is unknown."""
    of_work = pl.col(column).filter("carries_work")
    return pl.when(of_work.is_not_null().all() & (of_work.len() > 0)).then(of_work.sum())


def _sum_units(frame: pl.DataFrame) -> pl.DataFrame:
    """Sum the rows by unit and step."""
    return frame.group_by([*_UNIT, "step"], maintain_order=True).agg(
        pl.col("busy").sum(),
        pl.col("gap").sum(),
        pl.col("recorded_inside").sum(),
        pl.col("recorded_before").sum(),
        *(_sum_known(c).alias(c) for c in ("flop", "bytes", "ideal", "predicted")),
    )


_GENERATED, _AUXILIARY = "triton_", "auxiliary"
_BY_SIZES, _BY_OP, _POOLED = range(3)  # what is one part of a unit
_PART_COLUMNS = ("busy", "flop", "bytes", "ideal", "predicted")


def _sum_parts(
    frames: tuple[pl.DataFrame, pl.DataFrame],
    index: dict[UnitKey, int],
    sides: tuple[Kernels, Kernels],
    *,
    is_shorter: bool,
) -> UnitParts:
    """Sum the parts of all units.

    A part keeps what is known of it alone: bytes of an op that shrank are not pooled with those of
    one that did not. Where layers or sublayers went (`is_shorter`), an op went with them.
    """
    by_order = any(side.is_by_order for side in sides)
    tables: list[list[pl.DataFrame]] = [[], []]
    left = list(frames)
    for level in (_BY_SIZES, _BY_OP, _POOLED) if is_shorter else (_BY_OP, _POOLED):
        parts = [
            _sum_by_part(frame, side.num_steps, level, by_order=by_order)
            for frame, side in zip(left, sides, strict=True)
        ]
        old, new = (_name_parts(side_parts) for side_parts in parts)
        differ = [
            unit
            for unit in old.keys() & new.keys()
            if level != _POOLED
            and not (new[unit] <= old[unit] if is_shorter else new[unit] == old[unit])
        ]
        units = pl.DataFrame(differ, schema=_UNIT, orient="row")
        for table, side_parts in zip(tables, parts, strict=True):
            table.append(side_parts.join(units, on=[*_UNIT], how="anti", nulls_equal=True))
        if not differ:
            break
        left = [frame.join(units, on=[*_UNIT], how="semi", nulls_equal=True) for frame in left]
    d, p = (pl.concat(table) for table in tables)
    on = [*_UNIT, "part"]
    rows = d.join(p, on=on, how="full", nulls_equal=True, coalesce=True).sort(on)
    unit = np.array([index[key] for key in _unit_keys(rows)], np.int64)
    absent = [rows["busy"].is_null(), rows["busy_right"].is_null()]
    sums = [
        {c: _fill_absent(rows[c + end], absent[i]) for c in _PART_COLUMNS}
        for i, end in enumerate(("", "_right"))
    ]
    return UnitParts(unit, PartSums(**sums[0]), PartSums(**sums[1]))


def _name_parts(parts: pl.DataFrame) -> dict[UnitKey, set[str]]:
    """List the names of the parts of each unit."""
    names: dict[UnitKey, set[str]] = defaultdict(set)
    for *unit, part in parts[[*_UNIT, "part"]].iter_rows():
        names[tuple(unit)].add(part)
    return names


def _sum_by_part(frame: pl.DataFrame, steps: int, level: int, *, by_order: bool) -> pl.DataFrame:
    """Return means per step by unit and part.

    The part of a product says whether its shapes are known, that of other work its op. Names of
    generated kernels are numbers of one compilation, and differ between two.

    Args:
        frame: The rows of a side.
        steps: The number of steps.
        level: Whether a part is of one op and its sizes, of one op, or of all rows of its unit.
        by_order: Whether the place of a product is inferred, so that its ratio is not applied
            to its auxiliary kernels.
    """
    op = pl.coalesce("op", "name", pl.lit(""))
    op = pl.when(op.str.starts_with(_GENERATED)).then(pl.lit(_GENERATED)).otherwise(op)
    of_kind = pl.when(pl.col("class").is_in(PRODUCTS)).then(pl.lit("")).otherwise(op)
    unknown = pl.when("modelled").then(pl.lit("")).otherwise(pl.lit("?"))
    if level == _BY_SIZES:
        of_kind = pl.when(of_kind == "").then(of_kind).otherwise(of_kind + pl.col("sizes"))
    if by_order:
        of_kind = pl.when("auxiliary").then(pl.lit(_AUXILIARY)).otherwise(of_kind)
    part = of_kind + pl.when(of_kind == _GENERATED).then(pl.lit("")).otherwise(unknown)
    if level == _POOLED:
        part = pl.lit("")
    return frame.group_by(*_UNIT, part.alias("part")).agg(
        pl.col("busy").sum() / steps, *(_sum_known(c).alias(c) / steps for c in _PART_COLUMNS[1:])
    )


def _fill_absent(values: pl.Series, absent: pl.Series) -> Floats:
    """Return a column of part sums: 0 where the part is absent, NaN where it is not known."""
    sums = np.array(values.to_numpy(), np.float64)  # null becomes NaN
    sums[absent.to_numpy()] = 0.0
    return sums


def _unit_keys(rows: pl.DataFrame) -> list[UnitKey]:
    """Return the unit of each row."""
    return rows[[*_UNIT]].rows()


def _side_sums(sums: pl.DataFrame, index: dict[UnitKey, int], kernels: Kernels) -> UnitSums:
    """Arrange the sums of a side by unit and step."""
    shape = (len(index), kernels.num_steps)
    unit = np.array([index[key] for key in _unit_keys(sums)], int)
    step = sums["step"].to_numpy()
    columns: dict[str, Floats] = {}
    for column in ("busy", "gap", "flop", "bytes", "ideal", "predicted"):
        values = np.zeros(shape)
        values[unit, step] = sums[column].to_numpy()  # null becomes NaN
        columns[column] = values
    present = np.zeros(len(index), bool)
    present[unit] = True
    trailing_idle = kernels.linked.trailing_idle.astype(np.float64)
    return UnitSums(
        **columns,
        present=present,
        trailing_idle=trailing_idle,
        recorded=_weigh_records(sums, unit, shape, kernels),
    )


def _weigh_records(
    sums: pl.DataFrame, unit: NDArray[np.int64], shape: tuple[int, int], kernels: Kernels
) -> RecordWeight | None:
    """Return the weight of what was recorded in a step; None for a device trace."""
    if kernels.on_device:
        return None
    inside, before = np.zeros(shape[0]), np.zeros(shape[0])
    np.add.at(inside, unit, sums["recorded_inside"].to_numpy() / shape[1])
    np.add.at(before, unit, sums["recorded_before"].to_numpy() / shape[1])
    after = kernels.profiler.recorded_after
    return RecordWeight(inside, before, float(after.mean()) if len(after) else 0.0)
