"""Units: dense and pruned work paired by (layer, role, class).

In: the kernels frames of both sides. Out: `Units`: per unit and step busy, gap, FLOP, bytes, ideal
and predicted ns of both sides, as arrays; NaN where a model is unknown. No unit is dropped. Within
a unit, `UnitParts` are what can be distinguished: GEMMs of known and of unknown shape, other work
by its op.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prunescope.analysis.kernels.frame import PRODUCTS, Kernels
from prunescope.analysis.ledger.alignment import Alignment, align, with_dense_layer

Floats = NDArray[np.float64]
UnitKey = tuple[int | None, str, str]  # layer (of the dense model), role, class


@dataclass(frozen=True)
class RecordWeight:
    """Weight of what was recorded (timeline/overhead.py), a step: in busy time and gaps [units],
    and in the tail."""

    busy: Floats
    gap: Floats
    tail: float

    @property
    def total(self) -> float:
        """Busy, gap and trailing idle ns of a step."""
        return float(self.busy.sum() + self.gap.sum()) + self.tail


@dataclass(frozen=True)
class UnitSums:
    """[units, steps] arrays: busy and gap ns (0 where absent), the rest NaN where unknown."""

    busy: Floats
    gap: Floats
    flop: Floats
    bytes: Floats
    ideal: Floats
    predicted: Floats
    present: NDArray[np.bool_]  # [units]
    tail: Floats  # [steps]
    recorded: RecordWeight | None = None  # of a CPU trace


@dataclass(frozen=True)
class PartSums:
    """Means a step over the kernels of each part, [parts]; NaN where unknown, 0 where absent."""

    busy: Floats
    flop: Floats
    bytes: Floats
    ideal: Floats
    predicted: Floats


@dataclass(frozen=True)
class UnitParts:
    """The parts of the units. A unit on both sides has several where both run the same ones, else
    one; a unit on one side has those of that side. `unit[i]`: the unit of part i."""

    unit: NDArray[np.int64]
    dense: PartSums
    pruned: PartSums


@dataclass(frozen=True)
class Units:
    """The units of a pair; `keys[i]` names unit i, whose layer is that of the dense model. `parts`:
    None takes each unit as one part. `kept`, [units]: where layers are gone, the share of the calls
    that is left of matched work which no layer is known of; None: all of every unit's."""

    keys: list[UnitKey]
    dense: UnitSums
    pruned: UnitSums
    alignment: Alignment
    parts: UnitParts | None = None
    kept: Floats | None = None

    @property
    def kept_calls(self) -> Floats:
        """`kept`, 1 where it is not known."""
        return np.ones(len(self.keys)) if self.kept is None else self.kept

    @property
    def matched(self) -> NDArray[np.bool_]:
        """On both sides."""
        return self.dense.present & self.pruned.present

    @property
    def removed(self) -> NDArray[np.bool_]:
        """On the dense side alone."""
        return self.dense.present & ~self.pruned.present

    @property
    def added(self) -> NDArray[np.bool_]:
        """On the pruned side alone."""
        return ~self.dense.present & self.pruned.present


def pair(dense: Kernels, pruned: Kernels, layer_map: list[int] | None = None) -> Units:
    """The units of both sides. Layers are those of the dense model; negative: added."""
    alignment = align(dense, pruned, layer_map)
    frames = (
        dense.frame.with_columns(unit_layer=pl.col("layer")),
        with_dense_layer(pruned.frame, alignment),
    )
    d, p = (_unit_sums(frame) for frame in frames)
    keys = sorted(
        {*_keys(d), *_keys(p)}, key=lambda k: (k[0] is None, k[0] if k[0] is not None else 0, k[1:])
    )
    index = {k: i for i, k in enumerate(keys)}
    return Units(
        keys,
        _side(d, index, dense),
        _side(p, index, pruned),
        alignment,
        _parts(frames, index, (dense, pruned)),
        _kept_calls(keys, frames, (dense, pruned)) if alignment.removed else None,
    )


def _kept_calls(
    keys: list[UnitKey], frames: tuple[pl.DataFrame, pl.DataFrame], sides: tuple[Kernels, Kernels]
) -> Floats:
    """The share of the calls of each unit that is left: of norms and the like, which no module puts
    into a layer, those of layers that are gone went with these, and the gaps before them too."""
    calls = []
    for frame, side in zip(frames, sides, strict=True):
        rows = frame.filter(pl.col("unit_layer").is_null()).select(*_UNIT, "step", "instance")
        counts = rows.unique().group_by(_UNIT).len()
        calls.append({(a, b, c): n / side.num_steps for a, b, c, n in counts.iter_rows()})
    before, after = calls
    return np.array([min(1.0, after.get(k, 0.0) / before[k]) if k in before else 1.0 for k in keys])


_UNIT = ["unit_layer", "role", "class"]


def _known(column: str) -> pl.Expr:
    """The sum of a column, null where one of the rows that carry work is unknown."""
    of_main = pl.col(column).filter("carries_work")
    return pl.when(of_main.is_not_null().all() & (of_main.len() > 0)).then(of_main.sum())


def _unit_sums(frame: pl.DataFrame) -> pl.DataFrame:
    """Sums by unit and step."""
    return frame.group_by([*_UNIT, "step"], maintain_order=True).agg(
        pl.col("busy").sum(),
        pl.col("gap").sum(),
        pl.col("recorded_inside").sum(),
        pl.col("recorded_before").sum(),
        *(_known(c).alias(c) for c in ("flop", "bytes", "ideal", "predicted")),
    )


_GENERATED, _AUXILIARY = "triton_", "auxiliary"
_OF_PART = ("busy", "flop", "bytes", "ideal", "predicted")


def _parts(
    frames: tuple[pl.DataFrame, pl.DataFrame],
    index: dict[UnitKey, int],
    sides: tuple[Kernels, Kernels],
) -> UnitParts:
    """The parts of all units. What is known of a part is not diluted by the rest of its unit: bytes
    of an op that shrank are not pooled with those of one that did not."""
    by_order = any(side.is_by_order for side in sides)
    steps = [side.num_steps for side in sides]
    made = [
        _by_make(frame, count, by_order=by_order)
        for frame, count in zip(frames, steps, strict=True)
    ]
    makes = [one.group_by(_UNIT).agg(pl.col("make").sort().alias("makes")) for one in made]
    both = makes[0].join(makes[1], on=_UNIT, how="inner", nulls_equal=True)
    pooled = both.filter(pl.col("makes") != pl.col("makes_right")).select(_UNIT)
    kept = [one.join(pooled, on=_UNIT, how="anti", nulls_equal=True) for one in made]
    kept += [
        _by_make(frame.join(pooled, on=_UNIT, how="semi", nulls_equal=True), count, pooled=True)
        for frame, count in zip(frames, steps, strict=True)
    ]
    d, p = (pl.concat([kept[i], kept[i + 2]]) for i in (0, 1))
    on = [*_UNIT, "make"]
    rows = d.join(p, on=on, how="full", nulls_equal=True, coalesce=True).sort(on)
    unit = np.array([index[k] for k in rows.select(_UNIT).iter_rows()], np.int64)
    absent = [rows["busy"].is_null(), rows["busy_right"].is_null()]
    sums = [
        {c: _column(rows[c + end], absent[i]) for c in _OF_PART}
        for i, end in enumerate(("", "_right"))
    ]
    return UnitParts(unit, PartSums(**sums[0]), PartSums(**sums[1]))


def _by_make(
    frame: pl.DataFrame, steps: int, *, by_order: bool = False, pooled: bool = False
) -> pl.DataFrame:
    """Means a step by unit and make: of products whether their shapes are known, else the op. Names
    of generated kernels are numbers of a compilation, which say nothing across two. Where the place
    of a product is inferred (`by_order`), its ratio is not lent to what is launched beside it."""
    op = pl.coalesce("op", "name", pl.lit(""))
    op = pl.when(op.str.starts_with(_GENERATED)).then(pl.lit(_GENERATED)).otherwise(op)
    of_kind = pl.when(pl.col("class").is_in(PRODUCTS)).then(pl.lit("")).otherwise(op)
    unknown = pl.when("modelled").then(pl.lit("")).otherwise(pl.lit("?"))
    if by_order:
        of_kind = pl.when("auxiliary").then(pl.lit(_AUXILIARY)).otherwise(of_kind)
    make = of_kind + pl.when(of_kind == _GENERATED).then(pl.lit("")).otherwise(unknown)
    if pooled:
        make = pl.lit("")
    return (
        frame.with_columns(make=make)
        .group_by([*_UNIT, "make"])
        .agg(pl.col("busy").sum() / steps, *(_known(c).alias(c) / steps for c in _OF_PART[1:]))
    )


def _column(values: pl.Series, absent: pl.Series) -> Floats:
    """A column of part sums: 0 where the part is absent, NaN where it is not known."""
    out = values.cast(pl.Float64).fill_null(float("nan")).to_numpy().copy()
    out[absent.to_numpy()] = 0.0
    return out


def _keys(sums: pl.DataFrame) -> list[UnitKey]:
    return list(sums.select(_UNIT).unique().iter_rows())


def _side(sums: pl.DataFrame, index: dict[UnitKey, int], kernels: Kernels) -> UnitSums:
    shape = (len(index), kernels.num_steps)
    unit = np.array([index[k] for k in sums.select(_UNIT).iter_rows()], int)
    step = sums["step"].to_numpy()
    out: dict[str, Floats] = {}
    for column in ("busy", "gap", "flop", "bytes", "ideal", "predicted"):
        values = np.zeros(shape)
        values[unit, step] = sums[column].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        out[column] = values
    present = np.zeros(len(index), bool)
    present[unit] = True
    tail = kernels.linked.trailing_idle.astype(np.float64)
    return UnitSums(**out, present=present, tail=tail, recorded=_cost(sums, unit, shape, kernels))


def _cost(
    sums: pl.DataFrame, unit: NDArray[np.int64], shape: tuple[int, int], kernels: Kernels
) -> RecordWeight | None:
    """What was recorded a step; None of a device trace."""
    if kernels.on_device:
        return None
    inside, before = np.zeros(shape[0]), np.zeros(shape[0])
    np.add.at(inside, unit, sums["recorded_inside"].to_numpy() / shape[1])
    np.add.at(before, unit, sums["recorded_before"].to_numpy() / shape[1])
    after = kernels.recorded_after
    return RecordWeight(inside, before, float(after.mean()) if len(after) else 0.0)
