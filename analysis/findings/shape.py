"""Findings on the shapes of GEMMs.

They are about dimensions that do not propagate or are not aligned, kernels on CUDA cores, waves
that were not saved, and better dimensions close by.

In: a Context; tiles and cores come from the names of device kernels. Out: Found, or None. Times are
ns a step, as recorded.
"""

from __future__ import annotations

import math
from typing import Any

import polars as pl
from msgspec import Struct

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
from prunescope.analysis.findings.context import Context, largest_sums, role_or_kernel
from prunescope.analysis.findings.registry import Found, finding
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.kernels.role import GEMM_KINDS
from prunescope.analysis.kernels.what_if import is_hidden, spread_at, tiling_of
from prunescope.analysis.ledger.call import Call
from prunescope.analysis.verdict.detectors.widths import EXPERT_ROLES
from prunescope.analysis.verdict.outside import FIRST, NO_DYNAMIC, reason
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.keep import ALIGNMENTS
from prunescope.taxonomy.numbers import brief_time
from prunescope.taxonomy.words import ms, percent, shortened, when

_KINDS = ("gemm", "batched_gemm", "grouped_gemm")  # a matrix times a vector needs no tensor cores
_HELD = 0.2  # of a kernel's time, from which the rate of the CUDA cores limits it
_FASTER = 1.5  # times the rate of CUDA cores: worth another dtype
_SHARE = 0.01  # of the busy time: kernels or gains worth a finding
_UNALIGNED = 0.02  # of the step: kernels of unaligned operands worth a finding
_WORTH = 0.05  # of the time of a GEMM: a saving worth another dimension


@finding("broken-propagation", "warning")
def broken_propagation(c: Context) -> Found | None:
    """Report that a producer's N fell and its consumer's K did not, or the other way round."""
    broken = [detection for detection in c.detections if detection.broken]
    lines = [line for detection in broken for line in detection.broken]
    if not lines:
        return None
    return Found(
        text="the pruning does not propagate: a producer's N and its consumer's K disagree",
        evidence=lines,
        change="slice both sides of the removed dimension",
        explains_roles=frozenset(
            pair.key[1] for pair in c.pairs if any(detection.touches(pair) for detection in broken)
        ),
    )


def _first_two(texts: list[str]) -> str:
    """Join the first two texts, and say how many more there are."""
    return f"{', '.join(texts[:2])}{when(len(texts) > 2, f' and {len(texts) - 2} more')}"


@finding("outside-taxonomy", "warning", compares=True)
def outside_taxonomy(c: Context) -> Found | None:
    """Report that the change is not a pruning of M, N or K."""
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
    """Return whether the pruning chose rows and let all of them through.

    Nothing else may differ but the work of choosing them.
    """
    census = c.side.run.census if c.side.run is not None else None
    if census is None or c.evidence is None or not census.runs_every_row(c.name):
        return False
    return reason(c.evidence, FIRST) is None and reason(c.evidence, NO_DYNAMIC) is None


@finding("unaligned", "warning", compares=True)
def unaligned(c: Context) -> Found | None:
    """Report that N or K of a pruned GEMM is no longer a multiple of 8."""
    if not c.kernels.on_device:
        return None
    gemms, lines, changes = [], [], []
    for gemm in c.phase.gemms:
        is_pruned = gemm.kind in GEMM_KINDS and gemm.axis not in (None, "none", "gone")
        if not is_pruned or gemm.dtype not in HALF:
            continue
        for axis, new, old in (("N", gemm.n, gemm.dense_n), ("K", gemm.k, gemm.dense_k)):
            if new and old and new != old and new % ALIGNED and old % ALIGNED == 0:
                up = -(-new // GOOD) * GOOD
                gemms.append(gemm)
                lines.append(
                    f"{gemm.role} {axis} = {new} is not a multiple of {ALIGNED}; {up} is "
                    f"(+{percent(up / new - 1, 1)})"
                )
                changes.append(f"{gemm.role} {axis} to {up}")
    times = {id(gemm): gemm.busy_ns for gemm in gemms}
    busy = sum(times.values())
    if not gemms or c.is_little(busy):
        return None
    return Found(
        text=f"{len(times)} pruned GEMMs ({c.ms(busy)} a step) have dimensions that tensor-core "
        "kernels cannot load aligned",
        evidence=lines[:4],
        change=f"round the kept dimension up to a multiple of {GOOD} (--set align={GOOD}): "
        f"{_first_two(changes)}",
        explains_roles=frozenset(gemm.role for gemm in gemms[:4]),
    )


@finding("cuda-cores", "warning")
def cuda_cores(c: Context) -> Found | None:
    """Report that GEMM kernels run on CUDA cores, which are slower than tensor cores."""
    names = [name for name in c.kernels.values("name") if runs_on_cuda_cores(name)]
    if not names:
        return None
    device = c.side.peaks.device if c.side.peaks else None
    frame = c.kernels.frame.filter(pl.col("kind").is_in(_KINDS))
    slow = frame.filter(pl.col("name").is_in(names) & _is_limited(device))
    busy = c.per_step(slow)
    if busy < _SHARE * c.phase.busy_ns or not busy or c.is_little(busy):
        return None
    formats = slow["dtype"].unique().drop_nulls().sort().to_list()
    faster = _faster(device, formats)
    if device is not None and device.dense_flop_per_s and formats and not faster:
        return None  # its matrix units are no faster
    rows = largest_sums(slow, "role", "call", "dtype", "name").rows(named=True)
    is_unaligned = any(_odd_sizes(gemm, row["dtype"]) for row in rows if (gemm := _gemm(c, row)))
    return Found(
        text=f"GEMM kernels that take {c.ms(busy)} of the busy time run on CUDA cores"
        f"{_rates(faster)}",
        evidence=[_slow_kernel(c, row) for row in rows[:4]],
        change=_use_tensor_cores(c, formats, faster, is_unaligned=is_unaligned),
        explains_roles=frozenset(role_or_kernel(row["role"], row["name"]) for row in rows[:4]),
    )


def _is_limited(device: Device | None) -> pl.Expr:
    """Select kernels whose time the rate of the CUDA cores explains, or may explain."""
    rate = device.peak("fp32") if device else None
    if rate is None:
        return pl.lit(value=True)
    ns = pl.col("flop") * (1e9 / rate)
    memory = pl.col("memory_ns").fill_null(0.0)
    return ((ns >= memory) & (ns >= _HELD * pl.col("duration"))).fill_null(value=True)


def _faster(device: Device | None, formats: list[str]) -> dict[str, float]:
    """Return the rate of the tensor cores ÷ that of the CUDA cores, by dtype.

    Only rates of at least _FASTER are returned; for 16-bit GEMMs those in their own dtype.
    """
    plain = device.peak("fp32") if device else None
    if device is None or not plain:
        return {}
    wanted = [name for name in formats if name in HALF] or [*HALF, "tf32"]
    rates = {name: rate / plain for name in wanted if (rate := device.peak(name))}
    return {name: times for name, times in rates.items() if times >= _FASTER}


def _rates(faster: dict[str, float]) -> str:
    """Format the rates: `; this device's tensor cores multiply 16 times as fast in bf16`."""
    names: dict[str, list[str]] = {}
    for name, times in faster.items():
        names.setdefault(f"{times:.0f}", []).append(name)
    gains = [f"{times} times as fast in {' and '.join(each)}" for times, each in names.items()]
    return f"; this device's tensor cores multiply {', '.join(gains)}" if gains else ""


def _slow_kernel(c: Context, row: dict[str, Any]) -> str:
    """Describe a kernel's name and busy time, and its GEMM and dtype where they are known."""
    dtype, gemm = row["dtype"], _gemm(c, row)
    cost, name = c.ms(row["busy"] / c.kernels.num_steps), shortened(str(row["name"]))
    if gemm is None or dtype is None:
        return f"{name}: {cost}"
    why = "not a 16-bit format"
    if dtype in HALF:
        sizes = _odd_sizes(gemm, dtype)
        why = f"{', '.join(sizes)} is not aligned" if sizes else "chosen by the library"
    return f"{row['role']} {gemm.m}×{gemm.n}×{gemm.k} {dtype}: {cost}, {why}, {name}"


def _gemm(c: Context, row: dict[str, Any]) -> Gemm | None:
    """Return the one GEMM of a kernel's call; None where it is unknown, or one of several."""
    work = c.kernels.shapes.works[row["call"]] if row["call"] is not None else None
    return None if work is None else work.single_gemm


def _odd_sizes(gemm: Gemm, dtype: str | None) -> list[str]:
    """Return N and K of a 16-bit GEMM that are not aligned, as text."""
    sizes = (("N", gemm.n), ("K", gemm.k)) if dtype in HALF else ()
    return [f"{axis} = {size}" for axis, size in sizes if size and size % ALIGNED]


def _use_tensor_cores(
    c: Context, formats: list[str], faster: dict[str, float], *, is_unaligned: bool
) -> str | None:
    """Say how to run on tensor cores, in dtypes in which those are faster."""
    if not formats:
        how = c.kernels.profiler.recorder.shapes
        lacking = f"capture with {how}: the trace lacks the shapes of these GEMMs"
        return None if c.side.asked_for_shapes else lacking
    if all(name in HALF for name in formats):
        return f"make N and K multiples of {ALIGNED}" if is_unaligned else None
    device = c.side.peaks.device if c.side.peaks else None
    if device is None:
        return "run in a 16-bit format"
    fast = " or ".join(name for name in HALF if name in faster) or "a 16-bit format"
    has_tf32 = "tf32" in faster or bool(device.tf32 and not device.dense_flop_per_s)
    tf32 = ", or allow TF32 (torch.set_float32_matmul_precision('high'))"
    return f"run in {fast}{when(has_tf32, tf32)}"


@finding("unaligned-operands", "warning")
def unaligned_operands(c: Context) -> Found | None:
    """Report that GEMM kernels load operands element by element, as these are not aligned."""
    names = [name for name in c.kernels.values("name") if has_scalar_loads(name)]
    if not names:
        return None
    rows = c.kernels.frame.filter(
        pl.col("kind").is_in(_KINDS)
        & pl.col("dtype").is_in([*HALF, "tf32"]).fill_null(value=True)
        & pl.col("name").is_in(names)
    )
    busy = c.per_step(rows)
    if not busy or busy < _UNALIGNED * c.phase.wall_ns:
        return None
    largest = largest_sums(rows, "role", "call", "name", "dtype").head(4).rows(named=True)
    return Found(
        text=f"{c.ms(busy)} of GEMM time is in kernels for operands that are not aligned "
        "(…align1), which load one element at a time",
        evidence=[_unaligned_kernel(c, row) for row in largest],
        change="make leading dimensions a multiple of 16 bytes (8 elements of 16 bits or 4 of 32): "
        "pad them, or prune to such a multiple",
        explains_roles=frozenset(role_or_kernel(row["role"], row["name"]) for row in largest),
    )


def _unaligned_kernel(c: Context, row: dict[str, Any]) -> str:
    """Describe a kernel of unaligned operands, with the unaligned sizes where they are known."""
    cost, name = c.ms(row["busy"] / c.kernels.num_steps), str(row["name"])
    text = f"{cost}, {name[: name.index('align1') + len('align1')].split('<')[-1]}"
    gemm = _gemm(c, row)
    if gemm is None:
        return text
    sizes = (("M", gemm.m), ("N", gemm.n), ("K", gemm.k))
    whole = ALIGNED if row["dtype"] in HALF else ALIGNED // 2  # elements in 16 bytes
    odd = ", ".join(f"{axis} = {size}" for axis, size in sizes if size % whole)
    return f"{row['role']} {gemm.m}×{gemm.n}×{gemm.k}{when(bool(odd), f' ({odd})')}: {text}"


class _Group(Struct):
    """GEMMs of one role and one pair of shapes, with their busy ns a step."""

    role: str
    axis: str
    dense: Call
    old: Gemm
    new: Gemm
    dtype: str | None
    busy: float = 0.0
    busy_dense: float = 0.0


def _groups(c: Context, axes: tuple[str, ...]) -> list[_Group]:
    """Group the GEMMs that moved along some axes by role and shapes, the largest first."""
    groups: dict[tuple[str, Gemm, Gemm], _Group] = {}
    for pair in c.pairs:
        old, new, role = pair.dense, pair.pruned, pair.key[1]
        if pair.axis not in axes or old is None or new is None or new.kind not in GEMM_KINDS:
            continue
        if old.gemm is None or new.gemm is None:
            continue
        if any(is_hidden(call.busy, call.duration) for call in (old, new)):
            continue
        group = _Group(role, pair.axis, old, old.gemm, new.gemm, new.dtype)
        group = groups.setdefault((role, old.gemm, new.gemm), group)
        group.busy += new.busy
        group.busy_dense += old.busy
    return sorted(groups.values(), key=lambda group: -group.busy)


def _tilings(kernels: Kernels) -> dict[tuple[str, Gemm], tuple[Tiling, int]]:
    """Map (role, GEMM) to the layout and number of the tiles of its kernel.

    Of several kernels it is that with the most time whose name contains a tile size.
    """
    keys, frame = ["role", "call", "along_n", "tiles", "waves"], kernels.frame
    tiled = frame[[*keys, "busy"]].filter(frame["primary"] & (frame["tiles"] >= 0))
    sums = tiled.drop_nulls("call").group_by(keys, maintain_order=True).agg(pl.col("busy").sum())
    tilings: dict[tuple[str, Gemm], tuple[Tiling, int]] = {}
    for row in sums.sort("busy", "call").iter_rows(named=True):
        work = kernels.shapes.works[row["call"]]
        if work is not None and (gemm := work.single_gemm) is not None:
            tilings[row["role"], gemm] = tiling_of(gemm, row), row["tiles"]
    return tilings


@finding("same-waves", "warning", compares=True)
def same_waves(c: Context) -> Found | None:
    """Report that pruned GEMMs have fewer tiles but as many waves, so they are not faster.

    How many rows an expert multiplies is its router's choice, and no pruning.
    """
    if c.baseline_kernels is None:
        return None
    lines, roles, gain, busy = [], [], 0.0, 0.0
    axes: set[str] = set()
    narrower: list[str] = []
    dense, pruned = _tilings(c.baseline_kernels), _tilings(c.kernels)
    for group in _groups(c, ("N", "M")):
        role, axis = group.role, group.axis
        key, dense_key = (role, group.new), (role, group.old)
        if (role in EXPERT_ROLES and axis == "M") or key not in pruned or dense_key not in dense:
            continue
        (old, old_tiles), (new, new_tiles) = dense[dense_key], pruned[key]
        if not old.slots or not new.slots:
            continue
        before, after = old.waves(group.old.n), new.waves(group.new.n)
        # A GEMM whose time is nearer to the share of the tiles that is kept than to the dense time
        # fell with its tiles, as where memory limits it.
        follows = group.busy < group.busy_dense * (1 + new_tiles / old_tiles) / 2
        if new_tiles >= old_tiles or after < before or follows:
            continue
        width = new.widest(after - 1) if axis == "N" else None
        busy += group.busy
        roles.append(role)
        axes.add(axis)
        sizes = " → ".join(str(getattr(gemm, axis.lower())) for gemm in (group.old, group.new))
        line = f"{role} {axis} {sizes}: {old_tiles} → {new_tiles} tiles in {before} → {after} waves"
        if width:
            gain += group.busy / after
            narrower.append(f"{role} N to {width}")
            line += f"; N = {width} saves one"
        lines.append(line)
    if busy < _SHARE * c.phase.busy_ns or not lines or c.is_little(busy):
        return None
    first, *others = _save_waves(axes, narrower)
    return Found(
        text=f"GEMMs that take {c.ms(busy)} have fewer tiles but as many waves: they are not "
        "faster",
        evidence=lines[:4],
        change=first,
        also=others,
        allocate=allocation(c),
        predicted_ns=c.scale_to_step(gain) or None,
        explains_roles=frozenset(roles[:4]),
    )


def _save_waves(axes: set[str], narrower: list[str]) -> list[str]:
    """Say how to save a wave along the axes that moved; `narrower`: each N that saves one."""
    prune = "prune N until a wave less is left, or less"
    if narrower:
        prune = f"prune {_first_two(narrower)}, which saves a wave, or prune less"
    columns = f"{prune}, which costs no time up to the next wave"
    rows = "skip rows until a wave less is left, batch more of them, or remove whole layers"
    return [text for axis, text in (("N", columns), ("M", rows)) if axis in axes]


@finding("nearest-dimension", "warning", compares=True)
def nearest_dimension(c: Context) -> Found | None:
    """Report that the GEMM is predicted to be faster at a dimension close to the kept one.

    The time at N' is that of the dense GEMM, whose kernel is aligned, times K'/K and the waves of
    its tile at N' over those at N (times N'/N where it is memory-bound): an aligned dimension gets
    the dense GEMM's kernel back, which `kernels.what_if` cannot know from one trace.
    """
    if c.baseline_kernels is None or not c.kernels.on_device:
        return None
    tilings = _tilings(c.baseline_kernels)
    dimensions = [
        _Dimension(group, tilings[group.role, group.old][0])
        for group in _groups(c, ("N", "K", "NK"))
        if (group.role, group.old) in tilings and group.dtype in HALF
    ]
    better = [(dimension, size) for dimension in dimensions if (size := dimension.better())]
    gain = sum(dimension.saved(size) for dimension, size in better)
    if gain < _SHARE * c.phase.busy_ns or not better or c.is_little(gain):
        return None
    sizes = [f"{size} of {moved.name} in place of {moved.now}" for moved, size in better]
    aligned, with_alignment = _paying_alignment(dimensions, gain)
    return Found(
        text=f"dimensions close to the kept ones are predicted to run {ms(gain)} faster",
        evidence=[
            f"{dimension.name} = {dimension.now}: {size} ({100 * (size / dimension.now - 1):+.1f} "
            f"%) is predicted to save {ms(dimension.saved(size))}{_interval(c, dimension, size)} "
            f"of {ms(dimension.group.busy)}"
            for dimension, size in better[:5]
        ],
        change=f"keep {_first_two(sizes)}{aligned}",
        predicted_ns=max(gain, with_alignment),
        explains_roles=frozenset(dimension.group.role for dimension, _ in better[:5]),
    )


class _Dimension:
    """The axis of a pruned GEMM that another size could make faster, and what a size saves."""

    def __init__(self, group: _Group, tiling: Tiling) -> None:
        self.group, self.tiling = group, tiling
        old, new = group.old, group.new
        narrows_k = new.k != old.k and (new.k % ALIGNED or new.n == old.n)
        self.axis = "K" if narrows_k else "N"
        self.now, was = (new.k, old.k) if narrows_k else (new.n, old.n)
        self.name = f"{group.role} {self.axis}"
        # Or was not aligned in the dense model either.
        self.is_aligned = self.now % ALIGNED == 0 or was % ALIGNED != 0

    def better(self) -> int | None:
        """Return the nearest better size; None where no size nearby is better."""
        if self.axis == "K" and self.is_aligned:
            return None
        near = wave_aligned_neighbours(self.tiling, self.axis, self.now, reach=NEAR)
        if near == (None, None) and not self.is_aligned:
            near = aligned_neighbours(self.now)  # no wave ends nearby, an aligned kernel is faster
        worth = [size for size in near if size and self.saved(size) > _WORTH * self.group.busy]
        return min(worth, key=lambda size: (abs(size - self.now), -size), default=None)

    def saved(self, size: int) -> float:
        """Return how many ns a step `size` in place of the kept size is predicted to save."""
        busy = self.group.busy
        if size == self.now:
            return 0.0
        # An aligned kernel differs from the prediction for other reasons.
        if self.is_aligned:
            return busy * (1 - self._time(size) / self._time(self.now))
        return busy - self._time(size)

    def at(self, size: int) -> Gemm:
        """Return the GEMM with `size` in place of the kept size."""
        new = self.group.new
        return Gemm(new.m, new.n, size) if self.axis == "K" else Gemm(new.m, size, new.k)

    def _time(self, size: int) -> float:
        group, old, new = self.group, self.group.old, self.at(size)
        if group.dense.bound == "memory":
            wide = new.n / old.n
        else:
            wide = self.tiling.waves(new.n) / self.tiling.waves(old.n)
        return group.busy_dense * new.k / old.k * wide


def _interval(c: Context, dimension: _Dimension, size: int) -> str:
    """Format the 95 % interval of a saving, by how predictions miss the times of this trace."""
    fit = c.phase.anatomy.fit if c.phase.anatomy is not None else None
    if fit is None or fit.spread is None:
        return ""
    group = dimension.group
    anchor = group.new if dimension.is_aligned else group.old  # whose time the prediction starts at
    gemm = dimension.at(size)
    off = spread_at(fit.spread, Gemm(anchor.m, gemm.n, gemm.k), anchor)
    time = group.busy - dimension.saved(size)
    low, high = (group.busy - time * math.exp(sign) for sign in (off, -off))
    return f" (95 %: {ms(low)} to {ms(high)})"


def _paying_alignment(dimensions: list[_Dimension], gain: float) -> tuple[str, float]:
    """Find the smallest alignment that gets nearly the most of a gain.

    It is GOOD or more, which `unaligned` advises too: below ALIGNED kernels load element by
    element, which no model of the tiles predicts.

    Returns:
        The alignment as text, and what it saves in ns a step; "" and 0 where none does.
    """
    saved = {
        align: sum(dimension.saved(-(-dimension.now // align) * align) for dimension in dimensions)
        for align in map(int, filter(str.isdecimal, ALIGNMENTS))
        if align >= GOOD
    }
    most = max(saved.values())
    if most < _WORTH * gain:
        return "", 0.0
    align = next(align for align, ns in saved.items() if ns >= most - _WORTH * abs(most))
    how = f"--set align={align}, {brief_time(saved[align])} faster"
    return f", or round up to multiples of {align} ({how})", saved[align]
