"""One logical GEMM of a unit: what it multiplies, how often, and how long it takes."""

from __future__ import annotations

from functools import cached_property

from msgspec import Struct

from prunescope.taxonomy.gemm import Gemm

GemmKey = tuple[int | None, str, str, int]  # layer of the dense model, role, group, position
# Groups of the products of attention, Q·Kᵀ and P·V: they have no weight, and N or K is the number
# of keys, which grows step by step.
OF_ATTENTION = ("qk", "pv")


class Call(Struct, frozen=True, dict=True):
    """One logical GEMM of a unit, as means per step.

    Attributes:
        layer: The layer in its own model; None outside of the layers.
        role: The role of the weight, or "attention".
        group: The group of the role.
        op: The op that ran it; None for a kernel without one.
        kind: The kind of its kernel.
        dtype: The number format; None if unknown.
        batch: The batch, a mean if it varies; None where no model knows the dimensions.
        m: M, likewise: a context length grows with the step.
        n: N, likewise.
        k: K, likewise.
        count: Calls per step.
        flop: FLOP per call; None if unknown.
        bytes: Bytes per call; None if unknown.
        busy: Busy time per step, ns.
        auxiliary: The part of it in auxiliary kernels, ns.
        ideal: The roofline time per step, ns; None if unknown.
        bound: What bounds the roofline time.
        kernel: The name of its first kernel.
        split: Whether its op multiplies several GEMMs, which share the time by their FLOPs.
        duration: The time of its kernels per step, ns, also where others run at the same time.
        shapes: The source of its dimensions.
        spans: The least and most of batch, M, N and K over the steps; empty where not known.
        groups: Experts per step that received tokens; None for other GEMMs.
        stack: Experts whose matrices one call of a grouped GEMM holds; None for other GEMMs.
        is_weight_gradient: Whether a gradient is that of a weight; None where unknown.
        rows: Rows per step of all calls of experts, of which `m` counts those with rows alone; None
            for other GEMMs.
    """

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
    duration: float = 0.0
    shapes: str | None = None
    spans: tuple[tuple[float, float], ...] = ()
    groups: float | None = None
    stack: int | None = None
    is_weight_gradient: bool | None = None
    rows: float | None = None

    @property
    def all_rows(self) -> float:
        """Rows per step of all calls together; 0 where M is not known."""
        if self.rows is not None:
            return self.rows
        return (self.m or 0.0) * (self.batch or 1.0) * self.count

    @cached_property
    def gemm(self) -> Gemm | None:
        """The rounded dimensions, to compare; None where one is not known."""
        if self.m is None or self.n is None or self.k is None or self.batch is None:
            return None
        return Gemm(round(self.m), round(self.n), round(self.k), round(self.batch))
