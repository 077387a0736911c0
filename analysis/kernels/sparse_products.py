"""Products with matrices that store some of their numbers (CSR, CSC, COO), and how long they take.

In: Kernels. Out: `SparseProducts`, ns per step, or None. M, N, K of such a product are those of the
dense matrices: its work is known where the trace shows how many numbers are stored.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from msgspec import Struct

from prunescope.analysis.kernels.frame import MATMUL, Kernels
from prunescope.analysis.ops.sparse import indexed_operand


class SparseProducts(Struct, frozen=True):
    """The products with sparse matrices of a phase.

    Attributes:
        ops: Their ops.
        busy: Their busy time, ns per step.
        unknown: The busy time of those whose work is unknown, ns per step.
    """

    ops: list[str]
    busy: float
    unknown: float


def sparse_products(kernels: Kernels) -> SparseProducts | None:
    """Find the products with sparse matrices of a phase; None without any.

    A product inside another one counts alone.
    """
    calls = [i for i, call in enumerate(kernels.shapes.calls) if indexed_operand(call) is not None]
    if not calls:
        return None
    product = pl.col("call").is_in(calls) & (pl.col("class") == MATMUL)
    is_product = kernels.frame.select(product.fill_null(value=False)).to_series().to_numpy()
    outer = np.zeros(len(is_product), bool)
    above = kernels.linked.above[is_product]
    outer[above[above >= 0]] = True
    rows = kernels.frame.filter(is_product & ~outer)
    if rows.is_empty():
        return None
    unknown = rows.filter(pl.col("modelled").not_())
    return SparseProducts(
        ops=sorted(rows["op"].unique().drop_nulls()),
        busy=int(rows["busy"].sum()) / kernels.num_steps,
        unknown=int(unknown["busy"].sum()) / kernels.num_steps,
    )
