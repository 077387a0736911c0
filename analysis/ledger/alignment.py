"""Which dense layer each pruned layer is, where layers were removed.

In: the kernels frames of both sides. Out: an Alignment. Layers that were cut out are often
renumbered, so a number is evidence only where the numbers have holes; else layers are aligned in
order by what they hold: kinds of work first, then sizes, then the times of their work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prunescope.analysis.kernels.frame import ATTENTION, MATMUL, Kernels

# Times decide only if their alignment fits at least twice as well as the alignment from the front;
# less may be noise: layers that differ by noise alone fit about equally well in every alignment.
_DECISIVE = 0.5
_LEVELS = 1000  # steps of a likeness: sums of whole numbers compare exactly


@dataclass(frozen=True)
class Alignment:
    """`dense_layer[pruned layer] = dense layer`; pruned layers without one are added.

    `how`: "identity" | "map" (the run's own) | "number" (holes) | "order" (equal layers from the
    front) | "times" (in order, equal layers where their times agree) | "none". `exact`: whether the
    indices of removed layers are evidence.
    """

    dense_layer: dict[int, int]
    removed: list[int]
    how: str
    exact: bool
    num_dense: int


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
        mapped, how = _align_by_content(_content(dense, d), _content(pruned, p))
        exact = False
    if not d or not p:
        how = "none"
    removed = [i for i in d if i not in set(mapped.values())]
    return Alignment(mapped, removed, how, exact or not removed, len(d))


def _layers(frame: pl.DataFrame) -> list[int]:
    return sorted(frame["layer"].drop_nulls().unique().to_list())


def _has_holes(layers: list[int]) -> bool:
    return layers != list(range(len(layers)))


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


# -- by content ---------------------------------------------------------------------------------

_Matrix = NDArray[np.float64]
_Unit = tuple[str, str]  # role, class


@dataclass(frozen=True)
class _Content:
    """The work in the layers of a side: ns and FLOPs a step by unit, both [layers, units]; FLOPs
    are NaN where unknown, ns where the layer has no such unit."""

    layers: list[int]
    units: list[_Unit]
    ns: _Matrix
    flop: _Matrix

    def of(self, units: Sequence[_Unit]) -> _Content:
        """The same layers with these units as columns."""
        at = {unit: i for i, unit in enumerate(self.units)}
        known = [(column, at[unit]) for column, unit in enumerate(units) if unit in at]
        ns, flop = (np.full((len(self.layers), len(units)), np.nan) for _ in range(2))
        for column, i in known:
            ns[:, column], flop[:, column] = self.ns[:, i], self.flop[:, i]
        return _Content(self.layers, list(units), ns, flop)


def _content(kernels: Kernels, layers: list[int]) -> _Content:
    rows = kernels.frame.filter(pl.col("layer").is_not_null())
    own = pl.col("flop").filter("carries_work")
    sums = rows.group_by("layer", "role", "class").agg(
        pl.col("busy").sum(), flop=pl.when(own.is_not_null().all()).then(own.sum())
    )
    units = sorted(sums.select("role", "class").unique().rows())
    row = {layer: i for i, layer in enumerate(layers)}
    column = {unit: i for i, unit in enumerate(units)}
    ns, flop = (np.full((len(layers), len(units)), np.nan) for _ in range(2))
    for layer, role, cls, busy, work in sums.iter_rows():
        at = row[layer], column[role, cls]
        ns[at] = busy / kernels.num_steps
        flop[at] = np.nan if work is None else work / kernels.num_steps
    return _Content(layers, units, ns, flop)


def _align_by_content(dense: _Content, pruned: _Content) -> tuple[dict[int, int], str]:
    """The alignment in order of the layers that are most similar, and how equal layers were
    matched: from the front, or by their times where these are decisive."""
    # Routers and other work that pruning adds do not identify the layer.
    pruned = pruned.of(dense.units)
    alike = _likeness(dense, pruned)
    front = _best_pairs_in_order(alike)
    for scaled in (False, True):
        apart = _times_apart(dense, pruned, scaled=scaled)
        found = _best_pairs_in_order(alike - apart / (len(alike) + 1))
        far, near = (sum(apart[pair] for pair in pairs) for pairs in (front, found))
        if near < far and near <= _DECISIVE * far:
            return _named(found, dense, pruned), "times"
    return _named(front, dense, pruned), "order"


def _named(pairs: list[tuple[int, int]], dense: _Content, pruned: _Content) -> dict[int, int]:
    return {pruned.layers[i]: dense.layers[j] for i, j in pairs}


def _likeness(dense: _Content, pruned: _Content) -> _Matrix:
    """[pruned layers, dense layers]: how alike what they multiply is, in whole numbers; 0 where
    they have nothing in common. Kinds of work: 2·|A∩B| ÷ (|A|+|B|) (Dice); sizes: the share of the
    common units whose FLOPs are equal. A layer without products, of which a file was cut off or
    all GEMMs were removed, is compared by its other work."""
    products = np.array([cls in (MATMUL, ATTENTION) for _, cls in dense.units], bool)
    any_d, any_p = ~np.isnan(dense.ns), ~np.isnan(pruned.ns)
    out = np.zeros((len(pruned.layers), len(dense.layers)))
    for i, everything in enumerate(any_p):
        read = products if (everything & products).any() else np.ones_like(products)
        row, has_d = everything & read, any_d & read
        common = (row & has_d).sum(axis=1)
        sizes = (row & has_d & (pruned.flop[i] == dense.flop)).sum(axis=1)
        of = row.sum() + has_d.sum(axis=1)
        kinds = np.where(of > 0, 2 * common / np.maximum(of, 1), 1.0)
        out[i] = np.rint(_LEVELS * (kinds + sizes / np.maximum(common, 1)))
    return out


def _times_apart(dense: _Content, pruned: _Content, *, scaled: bool) -> _Matrix:
    """[pruned layers, dense layers]: |a - b| ÷ (a + b) of the times of a unit, mean over units; 1
    for a unit that one of them lacks. `scaled`: relative to the median layer of each side, for
    units that pruning or another clock changed in all layers alike."""
    d, p = dense.ns, pruned.ns
    if scaled:
        d, p = d / _median(d), p / _median(p)
    out = np.ones((len(p), len(d)))
    if d.shape[1]:
        for i, row in enumerate(p):
            with np.errstate(invalid="ignore"):
                apart = np.abs(row - d) / (row + d)
            apart[np.isnan(row) & np.isnan(d)] = 0.0
            out[i] = np.where(np.isnan(apart), np.isnan(row) != np.isnan(d), apart).mean(axis=1)
    return out


def _median(ns: _Matrix) -> _Matrix:
    """The median of each unit over the layers that have it; 1 where it takes no time in any."""
    found = np.ones(ns.shape[1])
    for column, times in enumerate(ns.T):
        times = times[~np.isnan(times)]
        found[column] = np.median(times) if len(times) else 1.0
    return np.where(found > 0, found, 1.0)


def _best_pairs_in_order(alike: _Matrix) -> list[tuple[int, int]]:
    """The pairs (row, column), in order, with the largest sum of what they have in common; of equal
    sums the one nearest the front."""
    rows, columns = alike.shape
    best = np.zeros((rows + 1, columns + 1))
    for i in range(rows - 1, -1, -1):
        both = np.where(alike[i] > 0, best[i + 1, 1:] + alike[i], 0.0)
        most = np.maximum(best[i + 1, :-1], both)
        best[i, :-1] = np.maximum.accumulate(most[::-1])[::-1]
    out: list[tuple[int, int]] = []
    i = j = 0
    while i < rows and j < columns:
        if alike[i, j] > 0 and best[i, j] == best[i + 1, j + 1] + alike[i, j]:
            out.append((i, j))
            i, j = i + 1, j + 1
        elif best[i, j] == best[i, j + 1]:
            j += 1
        else:
            i += 1
    return out
