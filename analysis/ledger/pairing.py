"""Units: dense and pruned work paired by (layer, role, class).

In: the kernels frames of both sides. Out: `Units`: per unit and step busy, gap, FLOP, bytes, ideal
and predicted ns of both sides, as arrays; NaN where a model is unknown. No unit is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.ledger.alignment import Alignment, align, with_dense_layer

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
class Units:
    """The units of a pair; `keys[i]` names unit i, whose layer is that of the dense model."""

    keys: list[Key]
    dense: UnitSums
    pruned: UnitSums
    alignment: Alignment

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
    d = _unit_sums(dense.frame.with_columns(unit_layer=pl.col("layer")))
    p = _unit_sums(with_dense_layer(pruned.frame, alignment))
    keys = sorted(
        {*_keys(d), *_keys(p)}, key=lambda k: (k[0] is None, k[0] if k[0] is not None else 0, k[1:])
    )
    index = {k: i for i, k in enumerate(keys)}
    return Units(
        keys,
        _side(d, index, dense),
        _side(p, index, pruned),
        alignment,
    )


_UNIT = ["unit_layer", "role", "class"]


def _unit_sums(frame: pl.DataFrame) -> pl.DataFrame:
    """Sums by unit and step. A sum is null where one of the rows that carry work is unknown."""

    def known(column: str) -> pl.Expr:
        of_main = pl.col(column).filter("carries_work")
        return pl.when(of_main.is_not_null().all() & (of_main.len() > 0)).then(of_main.sum())

    return frame.group_by([*_UNIT, "step"], maintain_order=True).agg(
        pl.col("busy").sum(),
        pl.col("gap").sum(),
        pl.col("recorded_inside").sum(),
        pl.col("recorded_before").sum(),
        *(known(c).alias(c) for c in ("flop", "bytes", "ideal", "predicted")),
    )


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
