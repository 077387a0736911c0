"""GEMMs that were replayed alone (`prunescope gemm`), compared with the kernel row of a ledger.

Their speedups over the removed share of N or K are those that the paper's study of GEMM shapes
plots. Times are in ns; null: not known.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from prunescope.analysis.schema.fields import meaning
from prunescope.taxonomy.replays import StepCurve


class ReplayLine(msgspec.Struct, kw_only=True):
    """The GEMMs of one role, alone and in the model."""

    role: Annotated[str, meaning("where in the model")]
    axis: Annotated[str | None, meaning("what moved")]
    m: Annotated[int, meaning("rows of a call: tokens")]
    n: Annotated[int, meaning("output features")]
    k: Annotated[int, meaning("input features")]
    dense_n: Annotated[int | None, meaning("N of the dense GEMM")]
    dense_k: Annotated[int | None, meaning("K of the dense GEMM")]
    dtype: Annotated[str, meaning("number format")]
    count: Annotated[float, meaning("calls of the pruned GEMM", "calls a step")]
    inside_ns: Annotated[float, meaning("of a call in the model, in the time base of the ledger")]
    warm_ns: Annotated[float, meaning("of a call alone, its operands just used")]
    warm_ci95: Annotated[list[float] | None, meaning("its 95 % interval")]
    cold_ns: Annotated[float, meaning("of a call alone, the last-level cache flushed")]
    cold_ci95: Annotated[list[float] | None, meaning("its 95 % interval")]
    dense_warm_ns: Annotated[float | None, meaning("of a call of the dense GEMM alone")]
    dense_cold_ns: Annotated[float | None, meaning("of a call of it, the cache flushed")]
    share_of_bound: Annotated[float | None, meaning("roofline time / warm_ns", "ratio")]
    ledger_ns: Annotated[
        float | None, meaning("this role's part of the row kernel_efficiency, a step")
    ]
    ledger_ci95: Annotated[list[float] | None, meaning("its 95 % interval")]
    alone_ci95: Annotated[
        list[float] | None,
        meaning(
            "that part as the GEMMs alone have it, a step: from the lower end of its 95 % interval "
            "with warm or cold operands to the upper end; null: none, or an unpruned GEMM"
        ),
    ]
    verdict: Annotated[
        str,
        meaning(
            "library: slower than its shape alone too; inside: only in the model; faster; none: "
            "no loss beyond the intervals; unpruned: the same GEMM in both models; withheld: "
            "times are not valid; unknown"
        ),
    ]
    text: Annotated[str, meaning("the verdict in a sentence")]


class AlignedTime(msgspec.Struct, kw_only=True):
    """The time at a dimension near the kept one that `align` divides, and 2 `align` does not."""

    role: str
    axis: str
    now: Annotated[int, meaning("the kept dimension")]
    align: int
    size: int
    ns: Annotated[float, meaning("of a call alone, warm")]
    relative: Annotated[float, meaning("time a kept number over that of the kept dimension")]


class Replay(msgspec.Struct, kw_only=True):
    """The replayed GEMMs of a phase."""

    lines: list[ReplayLine]
    ledger_ns: Annotated[
        float | None, meaning("what `lines` of pruned GEMMs have of kernel_efficiency")
    ]
    ledger_ci95: list[float] | None
    alone_ci95: list[float] | None
    explains: Annotated[bool | None, meaning("whether the two intervals meet")]
    text: str
    curves: list[StepCurve] = []
    alignments: list[AlignedTime] = []
    device: str | None = None
    placements: int = 0
    repeats: int = 0
    disturbed: list[str] = []
    withheld: Annotated[
        str | None, meaning("why no GEMM has a verdict; null: the times are valid")
    ] = None

    @property
    def timing_valid(self) -> bool:
        """Whether the times of the GEMMs alone are evidence."""
        return not self.disturbed


class SpeedupPoint(msgspec.Struct, kw_only=True):
    """A size of a curve.

    `gone` is the share of the largest size that is missing; `speedup` is the time of the largest
    size over its own; `roofline` is that ratio by FLOPs, bytes and peaks.
    """

    size: int
    gone: float
    ns: float
    ci95: list[float] | None
    speedup: float
    speedup_ci95: list[float] | None
    roofline: float | None


class SpeedupCurve(msgspec.Struct, kw_only=True):
    """A curve, its points from the smallest size to the largest, and how it was measured.

    `disturbed` says what disturbed it, if its times are not valid.
    """

    curve: StepCurve
    points: list[SpeedupPoint]
    device: str | None
    placements: int
    repeats: int
    disturbed: list[str]

    @property
    def timing_valid(self) -> bool:
        """Whether its times are evidence."""
        return not self.disturbed
