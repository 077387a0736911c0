"""Which units of the device a kernel's name says it multiplies on: matrix units or plain cores.

In: a kernel's name. Out: True or False, or an expression over a column of names. A name that does
not say is neither.
"""

from __future__ import annotations

import re

import polars as pl

# CUTLASS calls tensor cores "tensorop" and CUDA cores "simt"; cuBLAS names the instruction's shape
# for the first (s1688, s16816, s64x128x8), and a bare sgemm or hgemm is on the second.
_MATRIX = r"tensorop|tf32|_s(?:1688|16816|64x\d+x8)gemm"
_PLAIN = re.compile(
    r"_simt_|^(?:kepler|maxwell|pascal|volta|turing|ampere|ada|hopper|blackwell)_[hsd]gemm_"
    r"|^(?:void )?magma_[hsd]gemm|gemmSN_"
)


# CUTLASS's fused attention takes fp32 apart into TF32 there, three products for one
# (OpMultiplyAddFastF32, from compute capability 8.0 on).
_IN_THREE = r"fmha_cutlass[FB]_f32_\w*sm(?:8|9|1\d)\d"


def on_plain_cores(name: str) -> bool:
    """Whether a GEMM kernel's name says CUDA cores."""
    return _PLAIN.search(name) is not None


def in_tf32(name: pl.Expr) -> pl.Expr:
    """Whether a kernel of an fp32 op multiplies on matrix units: those take fp32 as TF32."""
    return name.str.contains(_MATRIX)


def in_three_tf32(name: pl.Expr) -> pl.Expr:
    """Whether a kernel of an fp32 op makes three products of TF32 for each."""
    return name.str.contains(_IN_THREE)
