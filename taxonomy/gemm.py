"""A GEMM and its three logical axes, and what pruning moved between two of them.

O = A·Wᵀ with A[M, K] and W[N, K]: M counts tokens, N output features, K input features. These are
logical axes: a library may swap them in memory (column-major BLAS, 2:4 kernels run W·Xᵀ).
FLOPs count a multiply and an add; bytes are compulsory traffic, every operand once.
"""

from __future__ import annotations

from msgspec import Struct

# The axis of a GEMM row in a report; see `axis_moved`. G: the groups of a grouped GEMM, experts.
# gone: the pruned run makes none of the dense run's calls of this shape, or fewer of them.
AXES = ("none", "M", "N", "K", "NK", "G", "heads", "rank", "2:4", "gone", "added", "unknown")


class Gemm(Struct, frozen=True):
    """A (batched) matrix product [batch, m, k] x [batch, k, n]."""

    m: int
    n: int
    k: int
    batch: int = 1

    @property
    def flop(self) -> int:
        """The FLOPs of the product: 2·M·N·K for every matrix of the batch."""
        return 2 * self.batch * self.m * self.n * self.k

    def bytes(self, itemsize: float) -> float:
        """Return the compulsory bytes: A, W and O once each, `itemsize` bytes per element."""
        return itemsize * self.batch * (self.m * self.k + self.n * self.k + self.m * self.n)


def axis_moved(dense: Gemm, pruned: Gemm) -> str:
    """Return which axis moved between a dense GEMM and the pruned one that replaces it.

    It is "none", "M", "N", "K", "NK", "heads" (only the batch of a batched GEMM fell) or "unknown"
    (M moved together with N or K, or the batch with a dimension: no family does that to one GEMM).
    """
    moved = "".join(
        letter
        for letter, old, new in (
            ("B", dense.batch, pruned.batch),
            ("M", dense.m, pruned.m),
            ("N", dense.n, pruned.n),
            ("K", dense.k, pruned.k),
        )
        if old != new
    )
    known = {"": "none", "B": "heads", "M": "M", "N": "N", "K": "K", "NK": "NK"}
    return known.get(moved, "unknown")
