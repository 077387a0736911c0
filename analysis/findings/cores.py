"""GEMMs that do not run on the matrix units: in, a Context; out, a Finding, or None. ns a step."""

from __future__ import annotations

import re

from analysis.findings.context import Context, ms
from analysis.report.model import Finding, Gemm
from analysis.tiles import ALIGNED, HALF

# CUTLASS calls CUDA cores "simt"; cuBLAS names the instruction's shape for tensor cores (s16816,
# s884), and a bare sgemm or hgemm for CUDA cores.
_CUDA_CORES = re.compile(
    r"_simt_|^(?:maxwell|volta|turing|ampere|hopper)_[hsd]gemm_|^(?:void )?magma_[hsd]gemm|gemmSN_"
)
_KINDS = ("gemm", "batched_gemm", "grouped_gemm")  # a vector times a matrix needs no matrix unit
_SHARE = 0.01  # of the busy time: worth a sentence


def cuda_cores(c: Context) -> Finding | None:
    """GEMM kernels whose names say CUDA cores, with the reason."""
    slow = [g for g in c.phase.gemms if g.kind in _KINDS and _on_cuda_cores(g)]
    busy = sum(g.busy_ns for g in slow)
    if busy < _SHARE * c.phase.busy_ns or not busy:
        return None
    return Finding(
        id="cuda-cores",
        severity="warning",
        text=f"GEMMs of {ms(busy)} run on CUDA cores, where tensor cores do several times as much",
        evidence=[
            f"{g.role} {g.m}×{g.n}×{g.k} {g.dtype or ''}: {ms(g.busy_ns)}, {_reason(g)}, "
            f"{g.kernels[0][:60]}"
            for g in sorted(slow, key=lambda g: -g.busy_ns)[:4]
        ],
        change="run in bf16 or fp16, or allow TF32 (torch.set_float32_matmul_precision('high'))"
        if any(g.dtype not in HALF for g in slow)
        else f"give N and K that {ALIGNED} divides",
        predicted_ns=None,
    )


def _on_cuda_cores(gemm: Gemm) -> bool:
    return any(_CUDA_CORES.search(name) for name in gemm.kernels)


def _reason(gemm: Gemm) -> str:
    if gemm.dtype not in HALF:
        return "not a 16-bit format"
    odd = [f"{axis} = {n}" for axis, n in (("N", gemm.n), ("K", gemm.k)) if n and n % ALIGNED]
    return f"{', '.join(odd)} is not aligned" if odd else "chosen by the library"
