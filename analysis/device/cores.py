"""The units that a kernel multiplies on, by its name: matrix units or CUDA cores.

A kernel's name tells whether it runs on CUDA cores, and together with the dtype of its op it tells
the dtype of its products: that of the op where the name does not show another.
"""

from __future__ import annotations

import polars as pl

from prunescope.taxonomy.dtypes import THREE_TF32
from prunescope.taxonomy.lazy_pattern import lazy_pattern

# CUTLASS calls tensor cores "tensorop" and CUDA cores "simt". cuBLAS names the shape of the
# instruction for tensor cores (s1688, s16816, s64x128x8), and a bare sgemm or hgemm runs on CUDA
# cores.
_ON_MATRIX_UNITS = lazy_pattern(r"tensorop|tf32|_s(?:1688|16816|64x\d+x8)gemm")
_ON_CUDA_CORES = lazy_pattern(
    r"_simt_|^(?:kepler|maxwell|pascal|volta|turing|ampere|ada|hopper|blackwell)_[hsd]gemm_"
    r"|^(?:void )?magma_[hsd]gemm|gemmSN_"
)


# CUTLASS's fused attention splits fp32 into TF32, with three products for one
# (OpMultiplyAddFastF32, from compute capability 8.0 on).
_AS_THREE_PRODUCTS = lazy_pattern(r"fmha_cutlass[FB]_f32_\w*sm(?:8|9|1\d)\d")


def runs_on_cuda_cores(name: str) -> bool:
    """Return whether a GEMM kernel runs on CUDA cores, by its name.

    Limitations: a name that follows none of the known conventions counts as matrix units.
    """
    return _ON_CUDA_CORES.search(name) is not None


# CUTLASS's kernels for tensor cores name how many elements they load at once, of the 16 bytes that
# aligned operands allow; those for CUDA cores always load one (simt_..._align1).
_SCALAR_LOADS = lazy_pattern(r"tensorop\w*_align1(?!\d)")


def has_scalar_loads(name: str) -> bool:
    """Return whether a kernel on matrix units loads its operands one by one, by its name."""
    return _SCALAR_LOADS.search(name) is not None


def multiplication_dtypes(names: pl.Series, dtype: pl.Series) -> pl.Series:
    """Return the dtype in which each kernel multiplies.

    That is the dtype of its op, except for fp32 on matrix units, which multiply it in TF32 or as
    three products in TF32.

    Args:
        names: Names of the kernels.
        dtype: Dtypes of their ops, by our names.

    Returns:
        A series like `dtype`.
    """
    fp32 = dtype == "fp32"
    for name in names.filter(fp32).unique():
        if product := _format_of_fp32(name or ""):
            dtype = pl.Series([product]).zip_with(fp32 & (names == name), dtype)
    return dtype


def _format_of_fp32(name: str) -> str | None:
    """Return the format in which matrix units multiply fp32, by a kernel's name.

    Returns None for a kernel on CUDA cores.
    """
    if _AS_THREE_PRODUCTS.search(name):
        return THREE_TF32
    return "tf32" if _ON_MATRIX_UNITS.search(name) else None
