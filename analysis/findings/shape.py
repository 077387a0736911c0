"""Findings on the shapes of GEMMs: dimensions that do not propagate or are not aligned, kernels on
CUDA cores, waves that were not saved, better dimensions close by.

In: a Context; tiles and cores come from the names of device kernels. Out: Found, or None. Times are
ns a step, as recorded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import polars as pl

from prunescope.analysis.device.cores import has_scalar_loads, runs_on_cuda_cores
from prunescope.analysis.device.hardware import Device
from prunescope.analysis.device.tiles import (
    ALIGNED,
    GOOD,
    HALF,
    NEAR,
    Tiling,
    aligned_neighbours,
    wave_aligned_neighbours,
)
from prunescope.analysis.findings.allocate import allocation
from prunescope.analysis.findings.context import Context, role_or_kernel
from prunescope.analysis.findings.registry import Found, finding
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.kernels.role import GEMM_KINDS
from prunescope.analysis.kernels.what_if import is_hidden, spread_at, tiling_of
from prunescope.analysis.ledger.gemms import Call
from prunescope.analysis.verdict.detectors.widths import EXPERT_ROLES
from prunescope.analysis.verdict.outside import FIRST, NO_DYNAMIC, reason
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.keep import ALIGNMENTS
from prunescope.taxonomy.words import ms, percent, shortened

_KINDS = ("gemm", "batched_gemm", "grouped_gemm")  # a matrix times a vector needs no tensor cores
_HELD = 0.2  # of a kernel's time, from which the rate of the CUDA cores limits it
_FASTER = 1.5  # times the rate of CUDA cores: worth another dtype
_SHARE = 0.01  # of the busy time: kernels or gains worth a finding
_UNALIGNED = 0.02  # of the step: kernels of unaligned operands worth a finding
_WORTH = 0.05  # of the time of a GEMM: a saving worth another dimension


@finding("broken-propagation", "warning")
def broken_propagation(c: Context) -> Found | None:
    """A producer's N fell and its consumer's K did not, or the other way round."""
    broken = [one for one in c.detections if one.broken]
    lines = [line for one in broken for line in one.broken]
    if not lines:
        return None
    return Found(
        text="the pruning does not propagate: a producer's N and its consumer's K disagree",
        evidence=lines,
        change="slice both sides of the removed dimension",
        explains_roles=frozenset(
            p.key[1] for p in c.pairs or [] if any(one.touches(p) for one in broken)
        ),
    )


def _first_two(of: list[str]) -> str:
    """The first two as text, and that there are more."""
    return ", ".join(of[:2]) + (f" and {len(of) - 2} more" if len(of) > 2 else "")


@finding("outside-taxonomy", "warning", compares=True)
def outside_taxonomy(c: Context) -> Found | None:
    """The change is not a pruning of M, N or K."""
    family = c.phase.family
    if family is None or family.id != "outside":
        return None
    if _runs_every_row(c):
        return Found(
            text="every row runs: the routers let all of them through, so that no M, N or K moved",
            evidence=family.evidence,
            change="time it with --mode eager, where a step skips rows, or with a batch B of which "
            "int(p·B) rows are fewer than B",
        )
    return Found(
        text="what changed is not a pruning of M, N or K: the ledger shows its effect, but the "
        "taxonomy has no family for it",
        evidence=family.evidence,
        change="compare with a dense baseline that differs only in the pruning",
    )


def _runs_every_row(c: Context) -> bool:
    """Whether the pruning chose rows and let all of them through, and nothing else differs but the
    work of choosing them."""
    census = c.side.run.census if c.side.run is not None else None
    if census is None or c.evidence is None or not census.runs_every_row(c.name):
        return False
    return reason(c.evidence, FIRST) is None and reason(c.evidence, NO_DYNAMIC) is None


@finding("unaligned", "warning", compares=True)
def unaligned(c: Context) -> Found | None:
    """N or K of a pruned GEMM is no longer a multiple of 8."""
    if not c.kernels.on_device:
        return None
    bad = []
    for g in c.phase.gemms:
        if g.kind not in GEMM_KINDS or g.axis in (None, "none", "gone") or g.dtype not in HALF:
            continue
        for axis, new, old in (("N", g.n, g.dense_n), ("K", g.k, g.dense_k)):
            if new and old and new != old and new % ALIGNED and old % ALIGNED == 0:
                up = -(-new // GOOD) * GOOD
                more = f"{up} is (+{percent(up / new - 1, 1)})"
                line = f"{g.role} {axis} = {new} is not a multiple of {ALIGNED}; {more}"
                bad.append((g, line, f"{g.role} {axis} to {up}"))
    busy = sum({id(g): g.busy_ns for g, _, _ in bad}.values())
    if not bad or c.is_little(busy):
        return None
    return Found(
        text=f"{len({id(g) for g, _, _ in bad})} pruned GEMMs ({c.ms(busy)} a step) have "
        "dimensions that tensor-core kernels cannot load aligned",
        evidence=[line for _, line, _ in bad[:4]],
        change=f"round the kept dimension up to a multiple of {GOOD} (--set align={GOOD}): "
        f"{_first_two([where for _, _, where in bad])}",
        explains_roles=frozenset(g.role for g, _, _ in bad[:4]),
    )


@finding("cuda-cores", "warning")
def cuda_cores(c: Context) -> Found | None:
    """GEMM kernels run on CUDA cores, which are slower than the device's tensor cores."""
    names = [name for name in c.kernels.values("name") if runs_on_cuda_cores(name)]
    if not names:
        return None
    device = c.side.peaks.device if c.side.peaks else None
    frame = c.kernels.frame.filter(pl.col("kind").is_in(_KINDS))
    slow = frame.filter(pl.col("name").is_in(names) & _is_held(device))
    busy = int(slow["busy"].sum()) / c.kernels.num_steps
    if busy < _SHARE * c.phase.busy_ns or not busy or c.is_little(busy):
        return None
    formats = slow["dtype"].unique().drop_nulls().sort().to_list()
    faster = _faster(device, formats)
    if device is not None and device.dense_flop_per_s and formats and not faster:
        return None  # its matrix units are no faster
    keys = ["role", "call", "dtype", "name"]
    shown = (
        slow.group_by(keys)
        .agg(pl.col("busy").sum() / c.kernels.num_steps)
        .sort("busy", *keys, descending=[True] + [False] * len(keys))
    )
    rows = list(shown.iter_rows(named=True))
    is_unaligned = any(
        _unaligned_dims(gemm, row["dtype"]) for row in rows if (gemm := _gemm(c, row))
    )
    return Found(
        text=f"GEMM kernels that take {c.ms(busy)} of the busy time run on CUDA cores"
        f"{_rates(faster)}",
        evidence=[_line(c, row) for row in rows[:4]],
        change=_change(c, formats, faster, is_unaligned=is_unaligned),
        explains_roles=frozenset(role_or_kernel(row["role"], row["name"]) for row in rows[:4]),
    )


def _is_held(device: Device | None) -> pl.Expr:
    """Kernels whose time the rate of the CUDA cores explains, or for which that is unknown."""
    rate = device.peak("fp32") if device else None
    if rate is None:
        return pl.lit(value=True)
    ns = pl.col("flop") * (1e9 / rate)
    memory = pl.col("memory_ns").fill_null(0.0)
    return ((ns >= memory) & (ns >= _HELD * pl.col("duration"))).fill_null(value=True)


def _faster(device: Device | None, formats: list[str]) -> dict[str, float]:
    """Rate of the tensor cores ÷ that of the CUDA cores by dtype, where it is at least _FASTER; for
    16-bit GEMMs in their own dtype only."""
    plain = device.peak("fp32") if device else None
    if device is None or not plain:
        return {}
    wanted = [f for f in formats if f in HALF] or [*HALF, "tf32"]
    rates = {f: rate / plain for f in wanted if (rate := device.peak(f))}
    return {f: times for f, times in rates.items() if times >= _FASTER}


def _rates(faster: dict[str, float]) -> str:
    """The rates as text: `; tensor cores multiply 16 times as fast in bf16 and fp16`."""
    by: dict[str, list[str]] = {}
    for name, times in faster.items():
        by.setdefault(f"{times:.0f}", []).append(name)
    gains = [f"{times} times as fast in {' and '.join(names)}" for times, names in by.items()]
    return f"; this device's tensor cores multiply {', '.join(gains)}" if gains else ""


def _line(c: Context, row: dict[str, Any]) -> str:
    """A kernel's name and busy time, and its GEMM and dtype where they are known."""
    dtype, cost, name = row["dtype"], c.ms(row["busy"]), shortened(str(row["name"]))
    gemm = _gemm(c, row)
    if gemm is None or dtype is None:
        return f"{name}: {cost}"
    odd = _unaligned_dims(gemm, dtype)
    reason = f"{', '.join(odd)} is not aligned" if odd else "chosen by the library"
    reason = reason if dtype in HALF else "not a 16-bit format"
    return f"{row['role']} {gemm.m}×{gemm.n}×{gemm.k} {dtype}: {cost}, {reason}, {name}"


def _gemm(c: Context, row: dict[str, Any]) -> Gemm | None:
    """The one GEMM of a kernel's call; None where it is unknown, or one of several."""
    work = c.kernels.shapes.works[row["call"]] if row["call"] is not None else None
    return None if work is None else work.single_gemm


def _unaligned_dims(gemm: Gemm, dtype: str | None) -> list[str]:
    """N and K of a 16-bit GEMM that are not aligned, as text."""
    sizes = (("N", gemm.n), ("K", gemm.k)) if dtype in HALF else ()
    return [f"{axis} = {n}" for axis, n in sizes if n and n % ALIGNED]


def _change(
    c: Context, formats: list[str], faster: dict[str, float], *, is_unaligned: bool
) -> str | None:
    """How to run on tensor cores, in dtypes in which those are faster."""
    if not formats:
        how = c.kernels.profiler.recorder.shapes
        lacking = f"capture with {how}: the trace lacks the shapes of these GEMMs"
        return None if c.side.asked_for_shapes else lacking
    if all(f in HALF for f in formats):
        return f"make N and K multiples of {ALIGNED}" if is_unaligned else None
    device = c.side.peaks.device if c.side.peaks else None
    if device is None:
        return "run in a 16-bit format"
    fast = " or ".join(f for f in HALF if f in faster) or "a 16-bit format"
    tf32 = ", or allow TF32 (torch.set_float32_matmul_precision('high'))"
    has_tf32 = "tf32" in faster or device.tf32 and not device.dense_flop_per_s
    return f"run in {fast}{tf32 if has_tf32 else ''}"


@finding("unaligned-operands", "warning")
def unaligned_operands(c: Context) -> Found | None:
    """GEMM kernels load operands element by element, because these are not aligned."""
    names = [name for name in c.kernels.values("name") if has_scalar_loads(name)]
    if not names:
        return None
    rows = c.kernels.frame.filter(
        pl.col("kind").is_in(_KINDS) & pl.col("dtype").is_in([*HALF, "tf32"]).fill_null(value=True)
    )
    keys = ["role", "call", "name", "dtype"]
    sums = rows.filter(pl.col("name").is_in(names)).group_by(keys).agg(pl.col("busy").sum())
    busy = int(sums["busy"].sum()) / c.kernels.num_steps
    if not busy or busy < _UNALIGNED * c.phase.wall_ns:
        return None
    order = sums.sort("busy", *keys, descending=[True] + [False] * len(keys)).head(4)
    return Found(
        text=f"{c.ms(busy)} of GEMM time is in kernels for operands that are not aligned "
        "(…align1), which load one element at a time",
        evidence=[_unaligned_line(c, row) for row in order.iter_rows(named=True)],
        change="make leading dimensions a multiple of 16 bytes (8 elements of 16 bits or 4 of 32): "
        "pad them, or prune to such a multiple",
        explains_roles=frozenset(
            role_or_kernel(*row) for row in order.select("role", "name").rows()
        ),
    )


def _unaligned_line(c: Context, row: dict[str, Any]) -> str:
    """A kernel of unaligned operands, with the unaligned sizes where they are known."""
    cost, name = c.ms(row["busy"] / c.kernels.num_steps), str(row["name"])
    text = f"{cost}, {name[: name.index('align1') + len('align1')].split('<')[-1]}"
    gemm = _gemm(c, row)
    if gemm is None:
        return text
    sizes = (("M", gemm.m), ("N", gemm.n), ("K", gemm.k))
    whole = ALIGNED if row["dtype"] in HALF else ALIGNED // 2  # elements in 16 bytes
    odd = ", ".join(f"{axis} = {size}" for axis, size in sizes if size % whole)
    because = f" ({odd})" if odd else ""
    return f"{row['role']} {gemm.m}×{gemm.n}×{gemm.k}{because}: {text}"


@dataclass
class _Group:
    """GEMMs of one role and one pair of shapes, with their busy ns a step."""

    role: str
    axis: str
    dense: Call
    pruned: Call
    old: Gemm
    new: Gemm
    busy: float = 0.0
    busy_dense: float = 0.0


@finding("same-waves", "warning", compares=True)
def same_waves(c: Context) -> Found | None:
    """Pruned GEMMs have fewer tiles but as many waves, so they are not faster.

    How many rows an expert multiplies is its router's choice, and no pruning.
    """
    lines, roles, gain, busy = [], [], 0.0, 0.0
    axes: set[str] = set()
    narrower: list[str] = []
    if c.baseline_kernels is None:
        return None
    old_tiles, new_tiles = _tiled(c.baseline_kernels), _tiled(c.kernels)
    for g in _groups(c, ("N", "M")):
        if g.role in EXPERT_ROLES and g.axis == "M":
            continue
        old, new = old_tiles.get((g.role, g.old)), new_tiles.get((g.role, g.new))
        if old is None or new is None or not old.tiling.slots or not new.tiling.slots:
            continue
        before, after = old.tiling.waves(g.old.n), new.tiling.waves(g.new.n)
        if new.tiles >= old.tiles or after < before or _follows(g, new.tiles / old.tiles):
            continue
        at = new.tiling.widest(after - 1) if g.axis == "N" else None
        busy += g.busy
        gain += g.busy / after if at else 0.0
        roles.append(g.role)
        axes.add(g.axis)
        if at:
            narrower.append(f"{g.role} N to {at}")
        lines.append(
            f"{g.role} {g.axis} {getattr(g.old, g.axis.lower())} → "
            f"{getattr(g.new, g.axis.lower())}: {old.tiles} → {new.tiles} tiles in "
            f"{before} → {after} waves" + (f"; N = {at} saves one" if at else "")
        )
    if busy < _SHARE * c.phase.busy_ns or not lines or c.is_little(busy):
        return None
    return Found(
        text=f"GEMMs that take {c.ms(busy)} have fewer tiles but as many waves: they are not "
        "faster",
        evidence=lines[:4],
        change=_fewer_waves(axes, narrower) + allocation(c),
        predicted_ns=c.in_step(gain) or None,
        explains_roles=frozenset(roles[:4]),
    )


def _follows(g: _Group, kept: float) -> bool:
    """Whether the time of a GEMM fell with its tiles rather than staying with its waves: it is
    nearer to the share of the tiles that is kept than to the dense time, as where memory limits
    it."""
    return g.busy < g.busy_dense * (1 + kept) / 2


def _fewer_waves(axes: set[str], narrower: list[str]) -> str:
    """How to save a wave along the axes that moved; `narrower`: each N that does."""
    of_n = (
        f"prune {_first_two(narrower)}, which saves a wave, or prune less, which costs no time up "
        "to the next wave"
        if narrower
        else "prune N until a wave less is left, or less, which costs no time up to the next wave"
    )
    of_m = "skip rows until a wave less is left, batch more of them, or remove whole layers"
    return "; ".join(text for axis, text in (("N", of_n), ("M", of_m)) if axis in axes)


@finding("nearest-dimension", "warning", compares=True)
def nearest_dimension(c: Context) -> Found | None:
    """At a dimension close to the kept one, the GEMM is predicted to be faster.

    The time at N' is that of the dense GEMM, whose kernel is aligned, times K'/K and the waves of
    its tile at N' over those at N (times N'/N where it is memory-bound): an aligned dimension gets
    the dense GEMM's kernel back, which `kernels.what_if` cannot know from one trace.
    """
    if c.baseline_kernels is None or not c.kernels.on_device:
        return None
    tiles = _tiled(c.baseline_kernels)
    lines, roles, gain, moved = [], [], 0.0, []
    better: list[str] = []
    for g in _groups(c, ("N", "K", "NK")):
        tiled = tiles.get((g.role, g.old))
        if tiled is None or g.pruned.dtype not in HALF:
            continue
        dimension = _Dimension(g, tiled.tiling)
        moved.append(dimension)
        best = dimension.better()
        if best is not None:
            axis, now, saved = dimension.axis, dimension.now, dimension.saved(best)
            gain += saved
            roles.append(g.role)
            better.append(f"{best} of {g.role} {axis} in place of {now}")
            lines.append(
                f"{g.role} {axis} = {now}: {best} ({100 * (best / now - 1):+.1f} %) is predicted "
                f"to save {ms(saved)}{_within(c, g, axis, best, saved)} of {ms(g.busy)}"
            )
    if gain < _SHARE * c.phase.busy_ns or not lines or c.is_little(gain):
        return None
    aligned, with_alignment = _paying_alignment(moved, gain)
    return Found(
        text=f"dimensions close to the kept ones are predicted to run {ms(gain)} faster",
        evidence=lines[:5],
        change=f"keep {_first_two(better)}{aligned}",
        predicted_ns=max(gain, with_alignment),
        explains_roles=frozenset(roles[:5]),
    )


def _within(c: Context, g: _Group, axis: str, value: int, saved: float) -> str:
    """The 95 % interval of a saving, from how times and predictions of the trace's GEMMs differ."""
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
    """Whether a dimension is aligned, or was not aligned in the dense model either."""
    return now % ALIGNED == 0 or was % ALIGNED != 0


class _Dimension:
    """The axis of a pruned GEMM that another size could make faster, and what a size saves."""

    def __init__(self, g: _Group, tiling: Tiling) -> None:
        self.group, self.tiling = g, tiling
        narrow_k = g.new.k != g.old.k and (g.new.k % ALIGNED or g.new.n == g.old.n)
        self.axis = "K" if narrow_k else "N"
        self.now, was = (g.new.k, g.old.k) if narrow_k else (g.new.n, g.old.n)
        self.is_aligned = _is_aligned(self.now, was)

    def better(self) -> int | None:
        """The nearest better size; None where no size nearby is better."""
        if self.axis == "K" and self.is_aligned:
            return None
        near = wave_aligned_neighbours(self.tiling, self.axis, self.now, reach=NEAR)
        if near == (None, None) and not self.is_aligned:
            near = aligned_neighbours(self.now)  # no wave ends nearby, an aligned kernel is faster
        worth = [one for one in near if one and self.saved(one) > _WORTH * self.group.busy]
        return min(worth, key=lambda value: (abs(value - self.now), -value), default=None)

    def saved(self, value: int) -> float:
        """ns a step that `value` in place of the kept size is predicted to save."""
        busy = self.group.busy
        if value == self.now:
            return 0.0
        # An aligned kernel differs from the prediction for other reasons.
        return (
            busy * (1 - self._time(value) / self._time(self.now))
            if self.is_aligned
            else (busy - self._time(value))
        )

    def _time(self, value: int) -> float:
        g, tiling = self.group, self.tiling
        n, k = (g.new.n, value) if self.axis == "K" else (value, g.new.k)
        wide = n / g.old.n if g.dense.bound == "memory" else tiling.waves(n) / tiling.waves(g.old.n)
        return g.busy_dense * k / g.old.k * wide


def _paying_alignment(dimensions: list[_Dimension], gain: float) -> tuple[str, float]:
    """The smallest alignment that gets nearly the most of a gain, as text, and what it saves in ns;
    "" and 0 where none does.

    From GOOD on, which `unaligned` advises too: below ALIGNED kernels load element by element,
    which no model of the tiles predicts.
    """
    saved = {
        align: sum(one.saved(-(-one.now // align) * align) for one in dimensions)
        for align in map(int, filter(str.isdecimal, ALIGNMENTS))
        if align >= GOOD
    }
    most = max(saved.values())
    if most < _WORTH * gain:
        return "", 0.0
    align = next(align for align, ns in saved.items() if ns >= most - _WORTH * abs(most))
    how = f"--set align={align}, {ms(saved[align])} faster"
    return f", or round up to multiples of {align} ({how})", saved[align]


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
    """The tiles of a GEMM's kernel: their layout and number."""

    tiling: Tiling
    tiles: int


def _tiled(kernels: Kernels) -> dict[tuple[str, Gemm], _Tiled]:
    """(role, GEMM) -> tiles of its kernel with the most time whose name contains a tile size."""
    keys, frame = ["role", "call", "along_n", "tiles", "waves"], kernels.frame
    tiled = frame[[*keys, "busy"]].filter(frame["primary"] & (frame["tiles"] >= 0))
    if tiled.is_empty():
        return {}
    known = tiled.drop_nulls("call")
    sums = known.group_by(keys, maintain_order=True).agg(pl.col("busy").sum())
    found: dict[tuple[str, Gemm], _Tiled] = {}
    for row in sums.sort("busy", "call").iter_rows(named=True):
        work = kernels.shapes.works[row["call"]]
        if work is not None and (gemm := work.single_gemm) is not None:
            found[row["role"], gemm] = _Tiled(tiling_of(gemm, row), row["tiles"])
    return found
