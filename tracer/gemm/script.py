"""Standalone scripts that reproduce a GEMM with torch alone, as for a bug report to a library.

In: Replays. Out: a .py for each pruned or given shape, which times it together with nearby shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from prunescope.taxonomy.atomic_write import write_file
from prunescope.taxonomy.replays import ReplayedGemm, Replays
from prunescope.tracer.machine.timed_calls import TORCH_DTYPES

_TEMPLATE = '''\
"""A[M, K] x W[N, K]^T in {dtype}: {title}.

Needs torch alone. Prints the median of {repeats} calls of each shape in turns: warm, and with a
flushed last-level cache. {measured}
"""

import statistics
import time

import torch

DEVICE, DTYPE, THREADS = "{device}", torch.{torch_dtype}, {threads}
FLUSH_BYTES, WARMUP, REPEATS = {flush_bytes}, {warmup}, {repeats}
SHAPES = {{  # name: (batch, M, N, K)
{shapes}
}}


def call_ns(run):
    if DEVICE == "cuda":
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        run()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last) * 1e6
    start = time.perf_counter_ns()
    run()
    return time.perf_counter_ns() - start


if THREADS:
    torch.set_num_threads(THREADS)
torch.manual_seed(0)
flush = torch.zeros(FLUSH_BYTES // 4, dtype=torch.int32, device=DEVICE)
runs = {{}}
for name, (batch, m, n, k) in SHAPES.items():
    lead = (batch,) if batch > 1 else ()
    a = torch.randn(*lead, m, k, device=DEVICE).to(DTYPE)
    w = torch.randn(*lead, n, k, device=DEVICE).to(DTYPE)
    runs[name] = lambda a=a, w=w: a @ w.mT
times = {{(name, state): [] for name in runs for state in ("warm", "cold")}}
with torch.inference_mode():
    for number in range(WARMUP + REPEATS):
        for name in list(runs)[:: -1 if number % 2 else 1]:
            for state in ("warm", "cold"):
                if state == "cold":
                    flush.add_(1)
                else:
                    runs[name]()
                if DEVICE == "cuda":
                    torch.cuda.synchronize()
                ns = call_ns(runs[name])
                if number >= WARMUP:
                    times[name, state].append(ns)
print(torch.__version__, DEVICE, DTYPE, torch.get_num_threads(), "threads")
for name, (batch, m, n, k) in SHAPES.items():
    warm, cold = (statistics.median(times[name, state]) / 1e3 for state in ("warm", "cold"))
    rate = 2 * batch * m * n * k / warm / 1e6
    print(f"{{name:>16}} M={{m}} N={{n}} K={{k}}:", end=" ")
    print(f"warm {{warm:9.1f}} us, cold {{cold:9.1f}} us, {{rate:6.3f}} TFLOP/s warm")
'''


def write_scripts(replays: Replays, folder: Path) -> list[Path]:
    """A script for each pruned or given GEMM; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, one in enumerate(replays.gemms):
        if not {"pruned", "given"} & set(one.reasons):
            continue
        around = [
            other
            for other in replays.gemms[number + 1 :]
            if (other.role, other.phase) == (one.role, one.phase) and one.dense_n is not None
        ]
        path = folder / f"{_name(one)}.py"
        write_file(path, script(replays, one, around).encode())
        written.append(path)
    return written


def script(replays: Replays, one: ReplayedGemm, around: Iterable[ReplayedGemm] = ()) -> str:
    """The script of a GEMM, with the shapes `around` it."""
    shapes = {_label(each): each for each in (one, *around)}
    lines = [
        f"    {label!r}: ({each.batch}, {each.m}, {each.n}, {each.k}),"
        for label, each in shapes.items()
    ]
    warm = "" if one.warm is None else f"Measured here: {one.warm.ns / 1e3:.1f} us warm"
    cold = "" if one.cold is None else f", {one.cold.ns / 1e3:.1f} us cold."
    return _TEMPLATE.format(
        dtype=one.dtype,
        title=f"M = {one.m}, N = {one.n}, K = {one.k}",
        device="cpu" if replays.device.kind == "cpu" else "cuda",
        torch_dtype=str(TORCH_DTYPES[one.dtype]).removeprefix("torch."),
        threads=replays.device.threads or 0,
        flush_bytes=replays.flush_bytes or 0,
        warmup=replays.warmup,
        repeats=max(15, replays.repeats),
        shapes="\n".join(lines),
        measured=warm + cold,
    )


def _label(one: ReplayedGemm) -> str:
    """pruned, dense, align-8, good-448 ..."""
    reason = one.reasons[0]
    if reason == "aligned":
        return f"align-{one.align}"
    return reason if reason in ("pruned", "dense", "given") else f"{reason}-{one.n}x{one.k}"


def _name(one: ReplayedGemm) -> str:
    words = [one.phase, one.role, f"{one.m}x{one.n}x{one.k}", one.dtype]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(word for word in words if word))
