"""Tiles, waves and alignment of GEMMs: a step that was not crossed, the nearest good dimension, and
kernels for operands that are not aligned.

In: a Context of device traces whose kernels' names tell a tile. Out: a Finding, or None. Times are
ns a step, as recorded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import polars as pl

from prunescope.analysis.device.cores import loads_singly
from prunescope.analysis.device.good import NEAR, Tiling, aligned_neighbours, good_neighbours
from prunescope.analysis.device.tiles import ALIGNED, HALF
from prunescope.analysis.findings.context import Context, ms
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.kernels.gemm_summaries import is_hidden, tiling_of
from prunescope.analysis.kernels.role import GEMM_KINDS
from prunescope.analysis.kernels.what_if import spread_at
from prunescope.analysis.ledger.calls import Call
from prunescope.analysis.schema.report import Finding
from prunescope.taxonomy.gemm import Gemm

_SHARE = 0.01  # of the busy time of a step: a gain worth a sentence
_OF_STEP = 0.02  # of the step: kernels worth a sentence on what they load
_KINDS = ("gemm", "batched_gemm", "grouped_gemm")
_WORTH = 0.05  # of the time of a GEMM: a dimension worth a move


def unaligned_operands(c: Context) -> Finding | None:
    """GEMMs in kernels that load operands element by element, as their names say."""
    rows = c.pruned.frame.filter(
        pl.col("kind").is_in(_KINDS) & pl.col("dtype").is_in([*HALF, "tf32"]).fill_null(value=True)
    )
    names = [name for name in rows["name"].unique().drop_nulls() if loads_singly(name)]
    keys = ["role", "call", "name", "dtype"]
    sums = rows.filter(pl.col("name").is_in(names)).group_by(keys).agg(pl.col("busy").sum())
    busy = int(sums["busy"].sum()) / c.pruned.num_steps
    if not busy or busy < _OF_STEP * c.phase.wall_ns:
        return None
    order = sums.sort("busy", *keys, descending=[True] + [False] * len(keys))
    return Finding(
        id="unaligned-operands",
        severity="warning",
        text=f"{ms(busy)} of GEMM time ran in kernels for operands that are not aligned (…align1): "
        "they load one element at a time",
        evidence=[_loaded(c, row) for row in order.head(4).iter_rows(named=True)],
        change="give matrices leading dimensions of whole 16 bytes, that is a multiple of 8 "
        "elements at 16 bit or of 4 at 32: pad what is odd, or prune to such a multiple",
        predicted_ns=None,
    )


def _loaded(c: Context, row: dict[str, Any]) -> str:
    """A kernel of such GEMMs, with the sizes that are odd where they are known."""
    cost, name = ms(row["busy"] / c.pruned.num_steps), str(row["name"])
    said = f"{cost}, {name[: name.index('align1') + len('align1')].split('<')[-1]}"
    work = c.pruned.works[row["call"]] if row["call"] is not None else None
    if work is None or len(work.gemms) != 1:
        return said
    gemm = work.gemms[0]
    sizes = (("M", gemm.m), ("N", gemm.n), ("K", gemm.k))
    whole = ALIGNED if row["dtype"] in HALF else ALIGNED // 2  # elements in 16 bytes
    odd = ", ".join(f"{axis} = {size}" for axis, size in sizes if size % whole)
    because = f" ({odd})" if odd else ""
    return f"{row['role']} {gemm.m}×{gemm.n}×{gemm.k}{because}: {said}"


@dataclass
class _Group:
    """GEMMs of one role and one pair of shapes: their time, and their tiles."""

    role: str
    axis: str
    dense: Call
    pruned: Call
    old: Gemm
    new: Gemm
    busy: float = 0.0
    busy_dense: float = 0.0


def wave_step(c: Context) -> Finding | None:
    """Fewer tiles, as many waves: the time does not fall until a wave does."""
    lines, gain, busy = [], 0.0, 0.0
    if c.dense is None:
        return None
    old_tiles, new_tiles = _tiled(c.dense), _tiled(c.pruned)
    for g in _groups(c, ("N", "M")):
        old, new = old_tiles.get((g.role, g.old)), new_tiles.get((g.role, g.new))
        if old is None or new is None or not old.tiling.slots or not new.tiling.slots:
            continue
        before, after = old.tiling.waves(g.old.n), new.tiling.waves(g.new.n)
        if new.tiles >= old.tiles or after < before:
            continue
        at = new.tiling.widest(after - 1) if g.axis == "N" else None
        busy += g.busy
        gain += g.busy / after if at else 0.0
        lines.append(
            f"{g.role} {g.axis} {getattr(g.old, g.axis.lower())} → "
            f"{getattr(g.new, g.axis.lower())}: {old.tiles} → {new.tiles} tiles in "
            f"{before} → {after} waves" + (f"; N = {at} saves one" if at else "")
        )
    if busy < _SHARE * c.phase.busy_ns or not lines or c.is_little(busy):
        return None
    return Finding(
        id="wave-step",
        severity="warning",
        text=f"the GEMMs of {ms(busy)} have fewer tiles and as many waves: the step that makes "
        "them faster was not crossed",
        evidence=lines[:4],
        change="prune to the N named, or give the rest back: up to the step it costs no time"
        if gain
        else "prune M less or more, batch more rows, or remove whole layers",
        predicted_ns=gain or None,
    )


def nearest_dimension(c: Context) -> Finding | None:
    """A dimension close by at which the GEMM is predicted to be faster.

    The time at N' is that of the dense GEMM, whose kernel is aligned, times K'/K and the waves of
    its own tile at N' over those at N (times N'/N where memory binds it): an aligned dimension gets
    the dense GEMM's kernel back, which `kernels.what_if` cannot know of a trace alone.
    """
    if c.dense is None or not c.pruned.on_device:
        return None
    tiles = _tiled(c.dense)
    lines, gain = [], 0.0
    for g in _groups(c, ("N", "K", "NK")):
        tiled = tiles.get((g.role, g.old))
        if tiled is None or g.pruned.dtype not in HALF:
            continue
        found = _better(g, tiled.tiling)
        if found is not None:
            axis, now, best, saved = found
            gain += saved
            lines.append(
                f"{g.role} {axis} = {now}: {best} ({100 * (best / now - 1):+.1f} %) is predicted "
                f"to save {ms(saved)}{_within(c, g, axis, best, saved)} of {ms(g.busy)}"
            )
    if gain < _SHARE * c.phase.busy_ns or not lines or c.is_little(gain):
        return None
    return Finding(
        id="nearest-dimension",
        severity="warning",
        text=f"dimensions close to the kept ones are predicted to run {ms(gain)} faster",
        evidence=lines[:5],
        change="keep the dimensions named",
        predicted_ns=gain,
    )


def _within(c: Context, g: _Group, axis: str, value: int, saved: float) -> str:
    """The 95 % interval of a saving, by how time and prediction differ among the trace's GEMMs."""
    fit = c.phase.anatomy.fit if c.phase.anatomy is not None else None
    if fit is None or fit.spread is None:
        return ""
    n, k = (value, g.new.k) if axis == "N" else (g.new.n, value)
    now, was = (g.new.n, g.old.n) if axis == "N" else (g.new.k, g.old.k)
    anchor = g.new if _is_aligned(now, was) else g.old  # whose time the prediction starts from
    off = spread_at(fit.spread, Gemm(anchor.m, n, k), anchor)
    low, high = (g.busy - (g.busy - saved) * math.exp(x) for x in (off, -off))
    return f" (95 %: {ms(low)} to {ms(high)})"


def _is_aligned(now: int, was: int) -> bool:
    """Whether a dimension is aligned, or was no better in the dense model."""
    return now % ALIGNED == 0 or was % ALIGNED != 0


def _better(g: _Group, tiling: Tiling) -> tuple[str, int, int, float] | None:
    """(axis, now, nearest, ns saved); None where the dimension is as good as those around it."""

    def time(n: int, k: int) -> float:
        wide = n / g.old.n if g.dense.bound == "memory" else tiling.waves(n) / tiling.waves(g.old.n)
        return g.busy_dense * k / g.old.k * wide

    axis = "K" if g.new.k != g.old.k and (g.new.k % ALIGNED or g.new.n == g.old.n) else "N"
    now, was = (g.new.k, g.old.k) if axis == "K" else (g.new.n, g.old.n)
    aligned = _is_aligned(now, was)
    if axis == "K" and aligned:
        return None

    def saved(value: int) -> float:
        at, here = (
            time(g.new.n, one) if axis == "K" else time(one, g.new.k) for one in (value, now)
        )
        # A kernel that is aligned already differs from the prediction for other reasons.
        return g.busy * (1 - at / here) if aligned else g.busy - at

    near = good_neighbours(tiling, axis, now, reach=NEAR)
    if near == (None, None) and not aligned:  # no wave ends here, but another kernel would do
        near = aligned_neighbours(now)
    worth = [one for one in near if one is not None and saved(one) > _WORTH * g.busy]
    if not worth:
        return None
    best = min(worth, key=lambda value: (abs(value - now), -value))
    return axis, now, best, saved(best)


def _groups(c: Context, axes: tuple[str, ...]) -> list[_Group]:
    groups: dict[tuple[str, Gemm, Gemm], _Group] = {}
    for pair in c.pairs or []:
        old, new = pair.dense, pair.pruned
        if pair.axis not in axes or old is None or new is None or new.kind not in GEMM_KINDS:
            continue
        if old.gemm is None or new.gemm is None:
            continue
        if any(is_hidden(one.busy, one.duration) for one in (old, new)):
            continue
        key = (pair.key[1], old.gemm, new.gemm)
        group = groups.setdefault(key, _Group(key[0], pair.axis, old, new, old.gemm, new.gemm))
        group.busy += new.busy
        group.busy_dense += old.busy
    return sorted(groups.values(), key=lambda g: -g.busy)


@dataclass(frozen=True)
class _Tiled:
    """The tiles of a GEMM's kernel, and how they lie."""

    tiling: Tiling
    tiles: int


def _tiled(kernels: Kernels) -> dict[tuple[str, Gemm], _Tiled]:
    """Of each (role, GEMM) the tiles of the kernel with the most time whose name tells one."""
    known = kernels.frame.filter(
        pl.col("primary") & pl.col("tiles").is_not_null() & pl.col("call").is_not_null()
    )
    keys = ["role", "call", "along_n", "tiles", "waves"]
    sums = known.group_by(keys, maintain_order=True).agg(pl.col("busy").sum())
    found: dict[tuple[str, Gemm], _Tiled] = {}
    for row in sums.sort("busy", "call").iter_rows(named=True):
        work = kernels.works[row["call"]]
        if work is not None and len(work.gemms) == 1:
            gemm = work.gemms[0]
            found[row["role"], gemm] = _Tiled(tiling_of(gemm, row), row["tiles"])
    return found
