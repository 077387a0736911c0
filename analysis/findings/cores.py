"""GEMMs that the plain cores of a device hold back: in, a Context; out, a Finding, or None. ns a
step. A GEMM that waits for memory, or is too short for either, loses nothing on them.
"""

from __future__ import annotations

import polars as pl

from prunescope.analysis.device.cores import on_plain_cores
from prunescope.analysis.device.hardware import Device
from prunescope.analysis.device.tiles import ALIGNED, HALF
from prunescope.analysis.findings.context import Context, ms, shortened
from prunescope.analysis.schema.report import Finding
from prunescope.taxonomy.gemm import Gemm

_KINDS = ("gemm", "batched_gemm", "grouped_gemm")  # a vector times a matrix needs no matrix unit
_SHARE = 0.01  # of the busy time: worth a sentence
_HELD = 0.2  # of a kernel's time, from which on the rate of the plain cores decides it
_FASTER = 1.5  # times the rate of plain cores: worth another format
_NOT_ASKED = "capture with record_shapes=True: the trace does not say what these GEMMs multiply"


def cuda_cores(c: Context) -> Finding | None:
    """GEMM kernels whose names say CUDA cores, with the reason."""
    frame = c.pruned.frame.filter(pl.col("kind").is_in(_KINDS))
    names = [n for n in frame["name"].unique().drop_nulls() if on_plain_cores(n)]
    device = c.side.peaks.device if c.side.peaks else None
    slow = frame.filter(pl.col("name").is_in(names) & _is_held(device))
    busy = int(slow["busy"].sum()) / c.pruned.num_steps
    if busy < _SHARE * c.phase.busy_ns or not busy or c.is_little(busy):
        return None
    formats = slow["dtype"].unique().drop_nulls().sort().to_list()
    faster = _faster(device, formats)
    if device is not None and device.dense_flop_per_s and formats and not faster:
        return None  # its matrix units are no faster
    keys = ["role", "call", "dtype", "name"]
    shown = (
        slow.group_by(keys)
        .agg(pl.col("busy").sum() / c.pruned.num_steps)
        .sort("busy", *keys, descending=[True] + [False] * len(keys))
    )
    lines = [_line(c, row) for row in shown.iter_rows(named=True)]
    unaligned = any("is not aligned" in line for line in lines)
    return Finding(
        id="cuda-cores",
        severity="warning",
        text=f"GEMM kernels that take {ms(busy)} of the busy time run on CUDA cores"
        f"{_rates(faster)}",
        evidence=lines[:4],
        change=_change(c, formats, faster, unaligned=unaligned),
        predicted_ns=None,
    )


def _is_held(device: Device | None) -> pl.Expr:
    """Kernels whose time the rate of the plain cores can explain, or of which that is not known."""
    rate = device.peak("fp32") if device else None
    if rate is None:
        return pl.lit(value=True)
    ns = pl.col("flop") * (1e9 / rate)
    memory = pl.col("memory_ns").fill_null(0.0)
    return ((ns >= memory) & (ns >= _HELD * pl.col("duration"))).fill_null(value=True)


def _faster(device: Device | None, formats: list[str]) -> dict[str, float]:
    """How many times the rate of the plain cores the matrix units have, by format; where it is
    worth one. Of 16-bit GEMMs, in their own format."""
    plain = device.peak("fp32") if device else None
    if device is None or not plain:
        return {}
    wanted = [f for f in formats if f in HALF] or [*HALF, "tf32"]
    rates = {f: rate / plain for f in wanted if (rate := device.peak(f))}
    return {f: times for f, times in rates.items() if times >= _FASTER}


def _rates(faster: dict[str, float]) -> str:
    """The rates in words: `; tensor cores multiply 16 times as fast in bf16 and fp16`."""
    by: dict[str, list[str]] = {}
    for name, times in faster.items():
        by.setdefault(f"{times:.0f}", []).append(name)
    gains = [f"{times} times as fast in {' and '.join(names)}" for times, names in by.items()]
    return f"; this device's tensor cores multiply {', '.join(gains)}" if gains else ""


def _line(c: Context, row: dict[str, object]) -> str:
    """What the trace says of a kernel: its GEMM and format where they are known."""
    call, dtype, cost = row["call"], row["dtype"], ms(float(str(row["busy"])))
    name = shortened(str(row["name"]))
    work = c.pruned.works[call] if isinstance(call, int) else None
    if work is None or len(work.gemms) != 1 or dtype is None:
        return f"{name}: {cost}"
    gemm = work.gemms[0]
    reason = _reason(gemm, str(dtype))
    return f"{row['role']} {gemm.m}×{gemm.n}×{gemm.k} {dtype}: {cost}, {reason}, {name}"


def _reason(gemm: Gemm, dtype: str) -> str:
    if dtype not in HALF:
        return "not a 16-bit format"
    odd = [f"{axis} = {n}" for axis, n in (("N", gemm.n), ("K", gemm.k)) if n and n % ALIGNED]
    return f"{', '.join(odd)} is not aligned" if odd else "chosen by the library"


def _change(
    c: Context, formats: list[str], faster: dict[str, float], *, unaligned: bool
) -> str | None:
    """What would put them on matrix units, in formats in which those are faster."""
    if not formats:
        return None if c.side.asked_for_shapes else _NOT_ASKED
    if all(f in HALF for f in formats):
        return f"give N and K that {ALIGNED} divides" if unaligned else None
    device = c.side.peaks.device if c.side.peaks else None
    if device is None:
        return "run in a 16-bit format"
    fast = " or ".join(f for f in HALF if f in faster) or "a 16-bit format"
    tf32 = ", or allow TF32 (torch.set_float32_matmul_precision('high'))"
    has_tf32 = "tf32" in faster or device.tf32 and not device.dense_flop_per_s
    return f"run in {fast}{tf32 if has_tf32 else ''}"
