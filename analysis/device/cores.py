"""Which units a kernel multiplies on, by its name: matrix units or CUDA cores.

In: a kernel's name, and the dtype of its op. Out: whether it runs on CUDA cores, and the dtype of
its products: that of the op where the name does not show it.
"""

from __future__ import annotations

import re

import polars as pl

from prunescope.taxonomy.dtypes import THREE_TF32

# CUTLASS calls tensor cores "tensorop" and CUDA cores "simt"; cuBLAS names the instruction's shape
# for the first (s1688, s16816, s64x128x8), and a bare sgemm or hgemm is on the second.
_MATRIX = re.compile(r"tensorop|tf32|_s(?:1688|16816|64x\d+x8)gemm")
_PLAIN = re.compile(
    r"_simt_|^(?:kepler|maxwell|pascal|volta|turing|ampere|ada|hopper|blackwell)_[hsd]gemm_"
    r"|^(?:void )?magma_[hsd]gemm|gemmSN_"
)


# CUTLASS's fused attention splits fp32 into TF32 there, three products for one
# (OpMultiplyAddFastF32, from compute capability 8.0 on).
_IN_THREE = re.compile(r"fmha_cutlass[FB]_f32_\w*sm(?:8|9|1\d)\d")


def on_cuda_cores(name: str) -> bool:
    """Whether a GEMM kernel runs on CUDA cores, by its name."""
    return _PLAIN.search(name) is not None


# CUTLASS's kernels for tensor cores name how many elements they load at once, of the 16 bytes that
# aligned operands allow; those for CUDA cores always load one (simt_..._align1).
_ONE_AT_A_TIME = re.compile(r"tensorop\w*_align1(?!\d)")


def has_scalar_loads(name: str) -> bool:
    """Whether a kernel on matrix units loads its operands one by one, by its name."""
    return _ONE_AT_A_TIME.search(name) is not None


def multiplied_in(names: pl.Series, dtype: pl.Series) -> pl.Series:
    """The dtype in which each kernel multiplies: that of its op, except fp32 on matrix units, which
    multiply it in TF32, or as three products in TF32."""
    fp32 = dtype == "fp32"
    for name in names.filter(fp32).unique():
        if format_ := _format_of_fp32(name or ""):
            dtype = pl.Series([format_]).zip_with(fp32 & (names == name), dtype)
    return dtype


def _format_of_fp32(name: str) -> str | None:
    """The format in which matrix units multiply fp32, by a kernel's name; None on CUDA cores."""
    if _IN_THREE.search(name):
        return THREE_TF32
    return "tf32" if _MATRIX.search(name) else None
