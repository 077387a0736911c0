"""Units: dense and pruned work paired by (layer, role, class), layers aligned across a removal.

In: the kernels frames of both sides. Out: `Units`: per unit and step busy, gap, FLOP, bytes, ideal
and predicted ns of both sides, as arrays; NaN where a model is unknown. No unit is dropped. Within
a unit, `Parts` are what can be told apart: products of known and of unknown shape, other work by
its op.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prunescope.analysis.kernels.frame import ATTENTION, MATMUL, PRODUCTS, Kernels

Floats = NDArray[np.float64]
Key = tuple[int | None, str, str]  # layer (of the dense model), role, class


@dataclass(frozen=True)
class Cost:
    """Weight of what was recorded (timeline/overhead.py), a step: in busy time and gaps [units],
    and in the tail."""

    busy: Floats
    gap: Floats
    tail: float

    @property
    def total(self) -> float:
        """Of a whole step."""
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
    recorded: Cost | None = None  # of a CPU trace


@dataclass(frozen=True)
class Alignment:
    """`dense_layer[pruned layer] = dense layer`; pruned layers without one are added.

    `how`: "identity" | "map" (the run's own) | "number" (holes) | "order" (equal layers from the
    front) | "none". `exact`: whether the indices of removed layers are evidence.
    """

    dense_layer: dict[int, int]
    removed: list[int]
    how: str
    exact: bool
    num_dense: int


@dataclass(frozen=True)
class PartSums:
    """Means a step over the kernels of each part, [parts]; NaN where unknown, 0 where absent."""

    busy: Floats
    flop: Floats
    bytes: Floats
    ideal: Floats
    predicted: Floats


@dataclass(frozen=True)
class Parts:
    """The parts of the units. A unit on both sides has several where both run the same ones, else
    one; a unit on one side has those of that side. `unit[i]`: the unit of part i."""

    unit: NDArray[np.int64]
    dense: PartSums
    pruned: PartSums


@dataclass(frozen=True)
class Units:
    """The units of a pair; `keys[i]` names unit i, whose layer is that of the dense model. `parts`:
    None takes each unit as one part."""

    keys: list[Key]
    dense: UnitSums
    pruned: UnitSums
    alignment: Alignment
    parts: Parts | None = None

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


def align(dense: Kernels, pruned: Kernels, layer_map: list[int] | None) -> Alignment:
    """Which dense layer each pruned layer is (docs/ledger.md)."""
    d, p = _layers(dense.frame), _layers(pruned.frame)
    if layer_map is not None:
        mapped = {i: layer_map[i] for i in p if i < len(layer_map) and layer_map[i] in d}
        how, exact = "map", True
    elif p == d:
        mapped, how, exact = {i: i for i in p}, "identity", True
    elif _has_holes(p) and set(p) <= set(d) or _has_holes(d) and set(d) <= set(p):
        mapped, how, exact = {i: i for i in p if i in set(d)}, "number", True
    else:
        known = _signatures(dense.frame, d)
        of_dense = frozenset[Any]().union(*(signature for _, signature in known))
        # Routers and other work that pruning adds tell nothing of which layer this was.
        mapped = _in_order(known, [(i, x & of_dense) for i, x in _signatures(pruned.frame, p)])
        how, exact = "order", False
    if not d or not p:
        how = "none"
    removed = [i for i in d if i not in set(mapped.values())]
    return Alignment(mapped, removed, how, exact or not removed, len(d))


def _layers(frame: pl.DataFrame) -> list[int]:
    return sorted(frame["layer"].drop_nulls().unique().to_list())


def _has_holes(layers: list[int]) -> bool:
    return layers != list(range(len(layers)))


def _signatures(frame: pl.DataFrame, layers: list[int]) -> list[tuple[int, frozenset[Any]]]:
    """The (role, class) pairs of each layer: equal for layers of one make."""
    rows = frame.filter(pl.col("layer").is_not_null() & pl.col("class").is_in([MATMUL, ATTENTION]))
    seen: dict[int, set[Any]] = {i: set() for i in layers}
    for layer, role, cls in rows.select("layer", "role", "class").unique().iter_rows():
        seen[layer].add((role, cls))
    return [(i, frozenset(seen[i])) for i in layers]


def _in_order(
    dense: list[tuple[int, frozenset[Any]]], pruned: list[tuple[int, frozenset[Any]]]
) -> dict[int, int]:
    """The longest common subsequence of signatures, equal layers from the front."""
    rows, columns = len(pruned), len(dense)
    best = np.zeros((rows + 1, columns + 1), np.int64)
    for i in range(rows - 1, -1, -1):
        for j in range(columns - 1, -1, -1):
            skip = max(best[i + 1, j], best[i, j + 1])
            best[i, j] = max(skip, best[i + 1, j + 1] + (pruned[i][1] == dense[j][1]))
    out: dict[int, int] = {}
    i = j = 0
    while i < rows and j < columns:
        if pruned[i][1] == dense[j][1] and best[i, j] == best[i + 1, j + 1] + 1:
            out[pruned[i][0]] = dense[j][0]
            i, j = i + 1, j + 1
        elif best[i, j] == best[i, j + 1]:
            j += 1
        else:
            i += 1
    return out


def with_dense_layer(pruned: pl.DataFrame, alignment: Alignment) -> pl.DataFrame:
    """Column `unit_layer`: the dense layer of each pruned row; -1 - layer where it is added."""
    old = list(alignment.dense_layer)
    mapped = pl.lit(None, pl.Int64)
    if old:
        new = list(alignment.dense_layer.values())
        mapped = pl.col("layer").replace_strict(old, new, default=None, return_dtype=pl.Int64)
    added = -1 - pl.col("layer")
    return pruned.with_columns(
        unit_layer=pl.when(pl.col("layer").is_not_null()).then(pl.coalesce(mapped, added))
    )


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
    )


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
    frames: tuple[pl.DataFrame, pl.DataFrame], index: dict[Key, int], sides: tuple[Kernels, Kernels]
) -> Parts:
    """The parts of all units. What is known of a part is not diluted by the rest of its unit: bytes
    of an op that shrank are not pooled with those of one that did not."""
    by_order = any(side.roles_from == "order" for side in sides)
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
    return Parts(unit, PartSums(**sums[0]), PartSums(**sums[1]))


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


def _keys(sums: pl.DataFrame) -> list[Key]:
    return list(sums.select(_UNIT).unique().iter_rows())


def _side(sums: pl.DataFrame, index: dict[Key, int], kernels: Kernels) -> UnitSums:
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
) -> Cost | None:
    """What was recorded a step; None of a device trace."""
    if kernels.on_device:
        return None
    inside, before = np.zeros(shape[0]), np.zeros(shape[0])
    np.add.at(inside, unit, sums["recorded_inside"].to_numpy() / shape[1])
    np.add.at(before, unit, sums["recorded_before"].to_numpy() / shape[1])
    after = kernels.recorded_after
    return Cost(inside, before, float(after.mean()) if len(after) else 0.0)
