"""Standalone scripts that reproduce a GEMM with torch alone, as for a bug report to a library.

Replays come in; for each pruned or given shape a .py file goes out, which times it together with
nearby shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import chain, count
from pathlib import Path

from prunescope.taxonomy.atomic_write import write_file
from prunescope.taxonomy.replays import ReplayedGemm, Replays
from prunescope.tracer.machine.backends import BACKENDS, CUDA
from prunescope.tracer.machine.timed_calls import TORCH_DTYPES

_LONGEST = 40  # letters of a word in a file's name
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


gpu = None if DEVICE == "cpu" else getattr(torch, DEVICE)


def call_ns(run):
    if gpu is not None:
        first, last = gpu.Event(enable_timing=True), gpu.Event(enable_timing=True)
        first.record()
        run()
        last.record()
        gpu.synchronize()
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
                if gpu is not None:
                    gpu.synchronize()
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
    """Write a script for each pruned or given GEMM.

    Args:
        replays: The replays whose GEMMs are reproduced.
        folder: The folder of the scripts, which is made if it is missing.

    Returns:
        The paths of the scripts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    taken: set[str] = set()
    for number, gemm in enumerate(replays.gemms):
        if not {"pruned", "given"} & set(gemm.reasons):
            continue
        around = [
            near
            for near in replays.gemms[number + 1 :]
            if (near.role, near.phase) == (gemm.role, gemm.phase) and gemm.dense_n is not None
        ]
        stem = _stem(gemm)
        same = chain([stem], (f"{stem}-{i}" for i in count(2)))
        name = next(name for name in same if name.lower() not in taken)
        taken.add(name.lower())
        path = folder / f"{name}.py"
        write_file(path, script(replays, gemm, around).encode())
        written.append(path)
    return written


def _stem(gemm: ReplayedGemm) -> str:
    """Name a GEMM by its phase, role and shape, of which the first two are anybody's words.

    Such a word is cut, and begins with a letter or digit: no shell takes the name for an option.
    """
    words = [gemm.phase, gemm.role, f"{gemm.m}x{gemm.n}x{gemm.k}", gemm.dtype]
    plain = (re.sub(r"[^A-Za-z0-9._]+", "-", word or "").strip("-._")[:_LONGEST] for word in words)
    return "-".join(word for word in plain if word)


def script(replays: Replays, gemm: ReplayedGemm, around: Iterable[ReplayedGemm] = ()) -> str:
    """Return the script of a GEMM, which also times the shapes `around` it."""
    shapes = {_label(shape): shape for shape in (gemm, *around)}
    lines = [
        f"    {label!r}: ({shape.batch}, {shape.m}, {shape.n}, {shape.k}),"
        for label, shape in shapes.items()
    ]
    types = {backend.kind: backend.device_type for backend in BACKENDS}
    warm = "" if gemm.warm is None else f"Measured here: {gemm.warm.ns / 1e3:.1f} us warm"
    cold = "" if gemm.cold is None else f", {gemm.cold.ns / 1e3:.1f} us cold."
    return _TEMPLATE.format(
        dtype=gemm.dtype,
        title=f"M = {gemm.m}, N = {gemm.n}, K = {gemm.k}",
        device=types.get(str(replays.device.kind), CUDA.device_type),
        torch_dtype=str(TORCH_DTYPES[gemm.dtype]).removeprefix("torch."),
        threads=replays.device.threads or 0,
        flush_bytes=replays.flush_bytes or 0,
        warmup=replays.warmup,
        repeats=max(15, replays.repeats),
        shapes="\n".join(lines),
        measured=warm + cold,
    )


def _label(gemm: ReplayedGemm) -> str:
    """Name a shape by why it is replayed: pruned, dense, align-8, good-448x576."""
    reason = gemm.reasons[0]
    if reason == "aligned":
        return f"align-{gemm.align}"
    return reason if reason in ("pruned", "dense", "given") else f"{reason}-{gemm.n}x{gemm.k}"
