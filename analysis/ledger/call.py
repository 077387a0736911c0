"""One logical GEMM of a unit: what it multiplies, how often, and how long it takes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from prunescope.taxonomy.gemm import Gemm

GemmKey = tuple[int | None, str, str, int]  # layer of the dense model, role, group, position
# Groups of the products of attention, Q·Kᵀ and P·V: they have no weight, and N or K is the number
# of keys, which grows step by step.
OF_ATTENTION = ("qk", "pv")


@dataclass(frozen=True)
class Call:
    """One logical GEMM of a unit, as means per step. Dimensions are means if they vary (a context
    length grows with the step); None where no model knows them. Times in ns."""

    layer: int | None
    role: str
    group: str
    op: str | None
    kind: str
    dtype: str | None
    batch: float | None
    m: float | None
    n: float | None
    k: float | None
    count: float
    flop: float | None
    bytes: float | None
    busy: float
    auxiliary: float
    ideal: float | None
    bound: str
    kernel: str
    split: bool
    duration: float = 0.0  # of its kernels, also where they run concurrently with others
    shapes: str | None = None  # where its dimensions come from
    # Least and most of batch, M, N and K over its steps: keys grow; empty where they are not known.
    spans: tuple[tuple[float, float], ...] = ()
    groups: float | None = None  # experts that saw tokens, a step; of other GEMMs None
    stack: int | None = None  # experts whose matrices one call of a grouped GEMM holds
    of_weight: bool | None = None  # of a gradient: whether it is a weight's; None where unknown
    rows: float | None = None  # of experts: rows a step, of all calls; M is that of those with rows

    @property
    def all_rows(self) -> float:
        """Rows a step, of all calls together; 0 where M is not known."""
        if self.rows is not None:
            return self.rows
        return (self.m or 0.0) * (self.batch or 1.0) * self.count

    @cached_property
    def gemm(self) -> Gemm | None:
        """Rounded dimensions, to compare."""
        if self.m is None or self.n is None or self.k is None or self.batch is None:
            return None
        return Gemm(round(self.m), round(self.n), round(self.k), round(self.batch))
