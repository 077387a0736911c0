"""Which dense layer each pruned layer is, where layers were removed.

In: the kernels frames of both sides. Out: an Alignment. Layers that were cut out are often
renumbered, so a number is evidence only where the numbers have holes; else layers are aligned in
order by what they hold: kinds of work first, then sizes, then the times of their work.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from msgspec import Struct
from numpy.typing import NDArray

from prunescope.analysis.kernels.frame import ATTENTION, MATMUL, Kernels
from prunescope.analysis.ops.pairs_in_order import pair_in_order

# Times decide only if their alignment fits at least twice as well as the alignment from the front;
# less may be noise: layers that differ by noise alone fit about equally well in every alignment.
_DECISIVE = 0.5
_LEVELS = 1000  # steps of a likeness: sums of whole numbers compare exactly


class Alignment(Struct, frozen=True):
    """The dense layer of each pruned layer.

    Attributes:
        dense_layer: The dense layer by the pruned layer; pruned layers without one are added.
        removed: The dense layers that no pruned layer is.
        how: "identity", "map" (the run says it), "number" (the numbers have holes), "order" (equal
            layers pair from the front), "times" (equal layers pair in order where their times
            agree), "sequence" (one side has the layers of the other, with which its products were
            aligned) or "none".
        exact: Whether the indices of removed layers are evidence.
        num_dense: The number of dense layers.
    """

    dense_layer: dict[int, int]
    removed: list[int]
    how: str
    exact: bool
    num_dense: int


def align(dense: Kernels, pruned: Kernels, layer_map: list[int] | None) -> Alignment:
    """Find the dense layer of each pruned layer (docs/ledger.md).

    Args:
        dense: The kernels of the dense side.
        pruned: The kernels of the pruned side.
        layer_map: The dense layer of each pruned one, as the run gives it; None where it does not.

    Limitations: layers that were renumbered are aligned by what they hold, so of equal layers in a
    row nothing but their times shows which ones are left.
    """
    d, p = _list_layers(dense.frame), _list_layers(pruned.frame)
    if layer_map is not None:
        mapped = {i: layer_map[i] for i in p if i < len(layer_map) and layer_map[i] in d}
        how, exact = "map", True
    elif dense.modules.were_aligned or pruned.modules.were_aligned:
        mapped, how, exact = {i: i for i in p if i in set(d)}, "sequence", False
    elif p == d:
        mapped, how, exact = {i: i for i in p}, "identity", True
    elif _has_holes(p) and set(p) <= set(d) or _has_holes(d) and set(d) <= set(p):
        mapped, how, exact = {i: i for i in p if i in set(d)}, "number", True
    else:
        mapped, how = _align_by_content(_read_content(dense, d), _read_content(pruned, p))
        exact = False
    if not d or not p:
        how = "none"
    removed = [i for i in d if i not in set(mapped.values())]
    return Alignment(mapped, removed, how, exact or not removed, len(d))


def _list_layers(frame: pl.DataFrame) -> list[int]:
    """List the numbers of the layers that have rows."""
    return sorted(frame["layer"].drop_nulls().unique().to_list())


def _has_holes(layers: list[int]) -> bool:
    """Return whether the numbers of layers are not 0, 1, 2 and so on."""
    return layers != list(range(len(layers)))


def with_dense_layer(pruned: pl.DataFrame, alignment: Alignment) -> pl.DataFrame:
    """Add the column `unit_layer`: the dense layer of each pruned row.

    It is -1 - layer where the layer was added, and null where the row has none.
    """
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


class _Content(Struct, frozen=True):
    """The work in the layers of a side, by unit.

    Attributes:
        layers: The number of each layer.
        units: The role and class of each unit.
        ns: Busy time per step, [layers, units]; NaN where the layer has no such unit.
        flop: FLOP per step, [layers, units]; NaN where unknown.
    """

    layers: list[int]
    units: list[_Unit]
    ns: _Matrix
    flop: _Matrix

    def with_units(self, units: Sequence[_Unit]) -> _Content:
        """Return the same layers with these units as columns."""
        at = {unit: i for i, unit in enumerate(self.units)}
        known = [(column, at[unit]) for column, unit in enumerate(units) if unit in at]
        ns, flop = (np.full((len(self.layers), len(units)), np.nan) for _ in range(2))
        for column, i in known:
            ns[:, column], flop[:, column] = self.ns[:, i], self.flop[:, i]
        return _Content(self.layers, list(units), ns, flop)


def _read_content(kernels: Kernels, layers: list[int]) -> _Content:
    """Sum the work of each layer by unit."""
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
    """Align layers in order so that the paired ones are most similar.

    Returns:
        The dense layer by the pruned one, and how equal layers were paired: from the front
        ("order"),
        or by their times ("times") where these are decisive.
    """
    # Routers and other work that pruning adds do not identify the layer.
    pruned = pruned.with_units(dense.units)
    alike = _compare_work(dense, pruned)
    front = pair_in_order(alike)
    fits = []
    for scaled in (False, True):
        distance = _compare_times(dense, pruned, scaled=scaled)
        by_times = pair_in_order(alike - distance / (len(alike) + 1))
        far, near = (sum(distance[pair] for pair in pairs) for pairs in (front, by_times))
        fits.append((near, far, by_times))
    # Times as they are count, unless those relative to the median layers agree better.
    near, far, by_times = min(fits, key=lambda fit: fit[0])
    if near < far and near <= _DECISIVE * far:
        return _name_layers(by_times, dense, pruned), "times"
    return _name_layers(front, dense, pruned), "order"


def _name_layers(pairs: list[tuple[int, int]], dense: _Content, pruned: _Content) -> dict[int, int]:
    """Turn pairs of indices into the dense layer by the pruned one."""
    return {pruned.layers[i]: dense.layers[j] for i, j in pairs}


def _compare_work(dense: _Content, pruned: _Content) -> _Matrix:
    """Return how similar the work of layers is, [pruned layers, dense layers], in whole numbers.

    It is 0 where they have nothing in common. The kinds of work count by 2·|A∩B| ÷ (|A|+|B|)
    (Dice), their sizes by the share of the common units whose FLOPs are equal. A layer without
    products, of which a file was cut off or all GEMMs were removed, is compared by its other work.
    """
    products = np.array([cls in (MATMUL, ATTENTION) for _, cls in dense.units], bool)
    any_d, any_p = ~np.isnan(dense.ns), ~np.isnan(pruned.ns)
    likeness = np.zeros((len(pruned.layers), len(dense.layers)))
    for i, everything in enumerate(any_p):
        read = products if (everything & products).any() else np.ones_like(products)
        row, has_d = everything & read, any_d & read
        common = (row & has_d).sum(axis=1)
        sizes = (row & has_d & (pruned.flop[i] == dense.flop)).sum(axis=1)
        total = row.sum() + has_d.sum(axis=1)
        kinds = np.where(total > 0, 2 * common / np.maximum(total, 1), 1.0)
        likeness[i] = np.rint(_LEVELS * (kinds + sizes / np.maximum(common, 1)))
    return likeness


def _compare_times(dense: _Content, pruned: _Content, *, scaled: bool) -> _Matrix:
    """Return how far the times of layers differ, [pruned layers, dense layers]: 0 to 1.

    It is |a - b| ÷ (a + b) of the times of a unit, mean over units; 1 for a unit that one of the
    two lacks. With `scaled`, times are relative to the median layer of each side, for units that
    pruning or another clock changed equally in all layers.
    """
    d, p = dense.ns, pruned.ns
    if scaled:
        d, p = d / _median_layer(d), p / _median_layer(p)
    distances = np.ones((len(p), len(d)))
    if d.shape[1]:
        for i, row in enumerate(p):
            with np.errstate(invalid="ignore"):
                relative = np.abs(row - d) / (row + d)
            relative[np.isnan(row) & np.isnan(d)] = 0.0
            distances[i] = np.where(
                np.isnan(relative), np.isnan(row) != np.isnan(d), relative
            ).mean(axis=1)
    return distances


def _median_layer(ns: _Matrix) -> _Matrix:
    """Return the median time of each unit over the layers that have it; 1 if they take no time."""
    medians = np.ones(ns.shape[1])
    for column, times in enumerate(ns.T):
        times = times[~np.isnan(times)]
        medians[column] = np.median(times) if len(times) else 1.0
    return np.where(medians > 0, medians, 1.0)
