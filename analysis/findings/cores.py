"""GEMMs that do not run on the matrix units: in, a Context; out, a Finding, or None. ns a step."""

from __future__ import annotations

import polars as pl

from prunescope.analysis.device.cores import on_plain_cores
from prunescope.analysis.device.tiles import ALIGNED, HALF
from prunescope.analysis.findings.context import Context, ms, shortened
from prunescope.analysis.schema.report import Finding
from prunescope.taxonomy.gemm import Gemm

_KINDS = ("gemm", "batched_gemm", "grouped_gemm")  # a vector times a matrix needs no matrix unit
_SHARE = 0.01  # of the busy time: worth a sentence
_NOT_ASKED = "capture with record_shapes=True: the trace does not say what these GEMMs multiply"


def cuda_cores(c: Context) -> Finding | None:
    """GEMM kernels whose names say CUDA cores, with the reason."""
    frame = c.pruned.frame.filter(pl.col("kind").is_in(_KINDS))
    names = [n for n in frame["name"].unique().drop_nulls() if on_plain_cores(n)]
    slow = frame.filter(pl.col("name").is_in(names))
    busy = int(slow["busy"].sum()) / c.pruned.num_steps
    if busy < _SHARE * c.phase.busy_ns or not busy:
        return None
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
        text=f"GEMMs of {ms(busy)} run on CUDA cores, where tensor cores do several times as much",
        evidence=lines[:4],
        change=_change(c, slow["dtype"].unique().to_list(), unaligned=unaligned),
        predicted_ns=None,
    )


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


def _change(c: Context, formats: list[str | None], *, unaligned: bool) -> str | None:
    """What would put them on matrix units, in formats that the device has units for."""
    known = [f for f in formats if f is not None]
    if not known:
        trace = c.side.bare
        asked = trace is not None and trace.source.meta.get("record_shapes")
        return None if asked else _NOT_ASKED
    if all(f in HALF for f in known):
        return f"give N and K that {ALIGNED} divides" if unaligned else None
    device = c.side.peaks.device if c.side.peaks else None
    if device is None:
        return "run in a 16-bit format"
    fast = " or ".join(f for f in HALF if device.peak(f)) or "a 16-bit format"
    tf32 = ", or allow TF32 (torch.set_float32_matmul_precision('high'))"
    return f"run in {fast}{tf32 if device.tf32 else ''}"
