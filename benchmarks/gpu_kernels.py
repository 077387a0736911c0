"""Slices of single kernels: `calibrate`, `sparse24` and `waves`.

In: a Bench. Out: cells with raw samples (ns a call). M tokens, N outputs and K inputs of a linear
layer; its weight is [N, K].
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from gpu_slice import Bench, CannotHere, Cell, reason_of
from gpu_timing import FEW_SAMPLES, SAMPLES, captured, copies, named, timed, wall_ns
from torch.nn import functional as F  # noqa: N812 - its usual name
from torch.sparse import (
    SparseSemiStructuredTensorCUSPARSELT,
    SparseSemiStructuredTensorCUTLASS,
)

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import plain
from prunescope.tracer.machine.calibrate import calibrate
from prunescope.tracer.pruners.static_k_24 import lowest_two_of_four

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_PEAK_SHAPES = (
    (8192, 8192, 8192), (4096, 4096, 4096), (16384, 4096, 4096), (8192, 4096, 14336),
    (8192, 14336, 4096), (2048, 2048, 2048), (16384, 8192, 8192),
)  # fmt: skip
_TINY_SHAPES = ((64, 64, 64), (128, 64, 64))
_TENSOR_BYTES = 2 << 30
# (role, N, K) of the linear layers of Llama-3.2-1B and Llama-3.1-8B; up is gate again.
LINEARS = {
    "1b": {"q": (2048, 2048), "k": (512, 2048), "gate": (8192, 2048), "down": (2048, 8192)},
    "8b": {"q": (4096, 4096), "k": (1024, 4096), "gate": (14336, 4096), "down": (4096, 14336)},
    "tiny": {"q": (64, 64), "down": (64, 128)},
}
_TOKENS = tuple(2**i for i in range(15))  # 1 … 16384
# Not a multiple of what a sparse kernel takes: torch pads the tokens.
_PADDED_TOKENS = (7, 9, 15, 17, 1000, 1001, 1023)
# Weights that are no multiple of the sparse formats' tiles, as structured pruning leaves them.
_ODD_WEIGHTS = (
    (2048, 2056), (2048, 2064), (2048, 2080), (2048, 2112), (2056, 2048), (2064, 2048),
    (2080, 2048), (3435, 2048), (2048, 3435), (3440, 2048), (2048, 3440),
)  # fmt: skip
_BACKENDS: dict[str, Any] = {
    "cusparselt": SparseSemiStructuredTensorCUSPARSELT,
    "cutlass": SparseSemiStructuredTensorCUTLASS,
}


def calibrate_cells(bench: Bench) -> list[Cell]:
    """GEMM rates by dtype and shape, bandwidth, launches, and what `prunescope calibrate` says."""
    cells = []
    for m, n, k in _TINY_SHAPES if bench.tiny else _PEAK_SHAPES:
        for dtype in ("bf16", "fp16", "fp32", "tf32", "fp8"):
            what = {"of": "gemm", "dtype": dtype, "m": m, "n": n, "k": k}
            run = partial(_gemm, bench, dtype, (m, n, k))
            cells.append(Cell(id=f"gemm/{dtype}/{m}x{n}x{k}", what=what, run=run, kind="gemm"))
    others = [(of, partial(_bandwidth, bench, of)) for of in ("read", "write", "copy")]
    launches = ("floor", "launch", "round-trip", "graph-launch")
    others += [(of, partial(_launch, bench, of)) for of in launches]
    others.append(("tool", partial(_tool, bench)))
    cells += [Cell(id=of, what={"of": of}, run=run, kind=of) for of, run in others]
    rank = {"bf16": 0, "fp16": 1, "fp32": 2, "tf32": 2, "fp8": 2}
    return sorted(cells, key=lambda c: rank.get(str(c.what.get("dtype")), 1))


def sparse24_cells(bench: Bench) -> list[Cell]:
    """A linear layer with dense, cuSPARSELt and CUTLASS weights of the same 2:4 zeros."""
    models = ("tiny",) if bench.tiny else ("1b", "8b")
    cells = []
    for m in (1, 8, 24) if bench.tiny else (*_TOKENS, *_PADDED_TOKENS):
        for model in models:
            for role, (n, k) in LINEARS[model].items():
                if m not in _PADDED_TOKENS or role == "gate":
                    cells.append(_sparse_cell(bench, f"{model}/{role}/m{m}", (m, n, k)))
    for n, k in ((72, 64),) if bench.tiny else _ODD_WEIGHTS:
        cells += [_sparse_cell(bench, f"odd/{n}x{k}/m{m}", (m, n, k)) for m in (8, 1024)]
    # The first cells answer the question at both ends; the others fill the curve in between.
    ends = ("/m1024", "/m1", "/m8192")
    return sorted(cells, key=lambda c: not c.id.endswith(ends))


def waves_cells(bench: Bench) -> list[Cell]:
    """GEMM time over N in steps of 64 (over K for `down-k`), in random order of the steps."""
    cells = []
    for m in (16,) if bench.tiny else (1024, 8192):
        for model, sweep, shapes in _sweeps(bench):
            order = list(shapes)
            # Drifts of the clock must not look like a trend in N.
            random.Random(f"{model} {sweep} {m}").shuffle(order)
            for n, k in order:
                what = {"model": model, "sweep": sweep, "m": m, "n": n, "k": k, "dtype": "bf16"}
                run = partial(_dense, bench, (m, n, k))
                cells.append(Cell(id=f"{model}/{sweep}/m{m}/{n}x{k}", what=what, run=run))
    return cells


def _sweeps(bench: Bench) -> Iterator[tuple[str, str, list[tuple[int, int]]]]:
    step = 64
    for model in ("tiny",) if bench.tiny else ("1b", "8b"):
        for role in ("q", "down") if bench.tiny else ("q", "gate", "down"):
            n, k = LINEARS[model][role]
            widths = range(n // 2, n + 4 * step + 1, step)
            yield model, role, [(width, k) for width in widths]
            if role == "down":
                yield model, "down-k", [(n, depth) for depth in range(k // 2, k + 1, step)]


def _sparse_cell(bench: Bench, cell_id: str, shape: tuple[int, int, int]) -> Cell:
    m, n, k = shape
    what = {"m": m, "n": n, "k": k, "dtype": "bf16"}
    return Cell(id=cell_id, what=what, run=partial(_sparse, bench, shape))


def _gemm(bench: Bench, dtype: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    m, n, k = shape
    device = bench.device
    if dtype == "tf32" and device.type == "cpu":
        raise CannotHere("a CPU has no tf32")
    if dtype == "fp8":
        return _timed_and_named(bench, [_fp8(shape, device)])
    number = _DTYPES["fp32" if dtype == "tf32" else dtype]
    a = torch.randn(m, k, device=device).to(number)
    w = torch.randn(n, k, device=device).to(number)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    try:
        return _timed_and_named(bench, [lambda: F.linear(a, w)])
    finally:
        torch.set_float32_matmul_precision(before)


def _fp8(shape: tuple[int, int, int], device: torch.device) -> Callable[[], object]:
    """One scale a tensor; the second operand column-major, as tensor cores take it."""
    if not hasattr(F, "scaled_mm"):
        raise CannotHere("this torch has no torch.nn.functional.scaled_mm")
    m, n, k = shape
    a = torch.randn(m, k, device=device).to(torch.float8_e4m3fn)
    w = torch.randn(n, k, device=device).to(torch.float8_e4m3fn).t()
    one, by_tensor = torch.ones((), device=device), F.ScalingType.TensorWise
    return lambda: F.scaled_mm(
        a, w, one, by_tensor, one, by_tensor, output_dtype=torch.bfloat16, use_fast_accum=True
    )


def _timed_and_named(bench: Bench, calls: list[Callable[[], object]]) -> dict[str, Any]:
    with torch.inference_mode():
        found = timed(calls, bench.device, tiny=bench.tiny)
        return found | named(calls[0], bench.device)


def _dense(bench: Bench, shape: tuple[int, int, int]) -> dict[str, Any]:
    m, n, k = shape
    device = bench.device
    x = torch.randn(m, k, device=device).bfloat16()
    count = copies(n * k * x.element_size(), device)
    weights = [torch.randn(n, k, device=device).bfloat16() for _ in range(count)]
    return _timed_and_named(bench, [partial(F.linear, x, w) for w in weights])


def _sparse(bench: Bench, shape: tuple[int, int, int]) -> dict[str, Any]:
    m, n, k = shape
    x = torch.randn(m, k, device=bench.device).bfloat16()
    weights = _two_of_four(bench, n, k)
    found = {"dense": _timed_and_named(bench, [partial(F.linear, x, w) for w in weights])}
    with torch.inference_mode():
        want = F.linear(x.float(), weights[0].float())
    for name in _BACKENDS:
        try:
            found[name] = _backend(bench, name, x, want)
        except (RuntimeError, ValueError, AssertionError) as error:
            found[name] = {"why": reason_of(error)}
    return found


def _two_of_four(bench: Bench, n: int, k: int) -> list[torch.Tensor]:
    """Weights with the smaller two of each four zeroed, made once for all M."""
    known = bench.kept.setdefault("weights", {})
    if (n, k) not in known:
        made = []
        for _ in range(copies(2 * n * k, bench.device)):
            w = torch.randn(n, k, device=bench.device).bfloat16()
            made.append(w.masked_fill_(lowest_two_of_four(w.abs().float()), 0))
        known[n, k] = made
    return known[n, k]


def _packed(bench: Bench, name: str, n: int, k: int) -> list[torch.Tensor]:
    known = bench.kept.setdefault("packed", {})
    if (name, n, k) not in known:
        with torch.inference_mode():
            made = [_BACKENDS[name].from_dense(w) for w in _two_of_four(bench, n, k)]
        known[name, n, k] = made
    return known[name, n, k]


def _backend(bench: Bench, name: str, x: torch.Tensor, want: torch.Tensor) -> dict[str, Any]:
    """Times of one sparse format, what it stores, and how far its product is from the dense one."""
    if x.device.type == "cpu":
        return {"why": "torch packs 2:4 weights for NVIDIA GPUs"}
    sparse: list[Any] = _packed(bench, name, want.shape[1], x.shape[1])
    with torch.inference_mode():
        error = (F.linear(x, sparse[0]).float() - want).norm() / want.norm()
    stored = [t for t in (sparse[0].packed, sparse[0].meta) if t is not None]
    found = _timed_and_named(bench, [partial(F.linear, x, w) for w in sparse])
    found["relative_error"] = float(error)
    found["stored_bytes"] = sum(t.numel() * t.element_size() for t in stored)
    return found


def _bandwidth(bench: Bench, of: str) -> dict[str, Any]:
    size = 1 << 20 if bench.tiny else _TENSOR_BYTES
    a = torch.ones(size // 4, device=bench.device)
    b = torch.empty_like(a) if of == "copy" else a
    calls: dict[str, Callable[[], object]] = {
        "read": a.sum, "write": lambda: a.fill_(1), "copy": lambda: b.copy_(a),
    }  # fmt: skip
    moved = 2 * size if of == "copy" else size
    return {"bytes": moved, **_timed_and_named(bench, [calls[of]])}


def _launch(bench: Bench, of: str) -> dict[str, Any]:
    """floor: a small kernel among many in a graph. launch: from Python, without waiting. round-trip
    and graph-launch: host time of one kernel, or of a graph of one, and of waiting for it."""
    device, x = bench.device, torch.ones(32, device=bench.device)
    samples = FEW_SAMPLES if bench.tiny else SAMPLES
    count = 10 if bench.tiny else 1000

    def run() -> object:
        return x.add_(1)

    if of in ("floor", "graph-launch") and device.type == "cpu":
        raise CannotHere("a CPU has no graphs")
    if of == "floor":
        return timed([run], device, tiny=bench.tiny)["graph"]
    if of == "round-trip":
        return {"samples_ns": wall_ns(run, device, samples=10 * samples), "calls": 1}
    if of == "graph-launch":
        run()
        replay = captured(run, device)
        return {"samples_ns": wall_ns(replay, device, samples=10 * samples), "calls": 1}
    many = wall_ns(lambda: [run() for _ in range(count)], device, samples=samples)
    return {"samples_ns": [round(ns / count, 1) for ns in many], "calls": count}


def _tool(bench: Bench) -> dict[str, Any]:
    """What the tool itself measures, to hold against the samples of the other cells."""
    name = bench.device.type
    try:
        return {"entry": plain(calibrate(name, budget_s=0.05 if bench.tiny else 3.0))}
    except PrunescopeError as error:
        raise CannotHere(str(error)) from error
