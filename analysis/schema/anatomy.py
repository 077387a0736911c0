"""The parts of a phase beneath its totals.

They are bounds of a kind, layers, gaps by cause, host time, and the cost of neighbouring
dimensions. They are plain values of schema 1, in ns per step; null: unknown.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from prunescope.analysis.schema.fields import meaning


class RooflinePoint(msgspec.Struct, kw_only=True):
    """The calls of one shape in a roofline plot.

    x = flop / bytes and y = flop · count / clock_ns. `clock_ns` is the busy time or, of concurrent
    kernels, the time that they ran.
    """

    name: Annotated[str, meaning("the longest of the kernels")]
    kind: Annotated[str, meaning("what they do")]
    role: Annotated[str, meaning("where in the model")]
    dtype: Annotated[str | None, meaning("number format that the GEMM multiplies in")]
    count: Annotated[
        float, meaning("calls of one shape: one point of roofline-PHASE", "calls a step")
    ]
    flop: Annotated[float, meaning("of one call")]
    bytes: Annotated[float, meaning("compulsory traffic of one call")]
    busy_ns: Annotated[float, meaning("device time of a step")]
    clock_ns: Annotated[
        float,
        meaning(
            "time that the rate rests on: busy_ns, or how long concurrent kernels "
            "ran; flop · count / clock_ns is the height of the point"
        ),
    ]
    bound: Annotated[str, meaning("compute, memory, latency or unknown")]

    @property
    def flop_per_s(self) -> float | None:
        """The rate at which the calls ran; None where they took no time."""
        return self.flop * self.count / self.clock_ns * 1e9 if self.clock_ns else None

    @property
    def flop_per_byte(self) -> float | None:
        """The arithmetic intensity of a call; None where it moves no bytes."""
        return self.flop / self.bytes if self.bytes else None


class LayerTime(msgspec.Struct, kw_only=True):
    """The busy time of one layer by role, and the idle time before its kernels.

    `layer` null: outside of all layers.
    """

    layer: int | None
    busy_ns: float
    gap_ns: float
    roles: dict[str, float]


class HostTime(msgspec.Struct, kw_only=True):
    """The host time up to the launches of one op in one role, and the device's wait for them.

    A call outside of any op that copies or waits counts as an op.
    """

    op: str
    role: str
    count: Annotated[float, meaning("of launch calls: a graph replay is one")]
    host_ns: Annotated[
        float, meaning("from the launch before to these, by any thread; without `blocked_ns`")
    ]
    blocked_ns: Annotated[
        float | None, meaning("in calls inside this op that copy or wait; null: in host_ns")
    ] = None
    wait_ns: Annotated[
        float, meaning("gaps whose launch began after the device had run out of work")
    ]


class Idle(msgspec.Struct, kw_only=True):
    """Idle time by what the launching thread did then.

    `doing` is first_call (or compilation), memcpy (in a copy that no graph holds), copy_launch (in
    a copy call that returns without waiting), sync, allocation (in a call that allocates or frees
    memory), computed (an op on the host), stalled (an op or call far above its median), launch
    (another runtime call), op, collective (of other threads), nothing (that was recorded), held,
    replay, device, unknown, or other_step (the device ran work of a later step). `beside` is the
    annotation, frame of Python or long op that the host was in for at least half of its part of a
    gap; `ns` is all of that part.
    """

    doing: str
    beside: str | None
    ns: float


class Good(msgspec.Struct, kw_only=True):
    """A good dimension: with one more, another wave (or another step of K) begins.

    `change_ns` is the change of time per step.
    """

    value: int
    change_ns: float | None
    low_ns: Annotated[
        float | None, meaning("lower end of the 95 % interval, by the spread of the fit")
    ]
    high_ns: Annotated[float | None, meaning("upper end of that interval")]


class Shape(msgspec.Struct, kw_only=True):
    """The time of a GEMM with a dimension near its own.

    `refused` says why no time is predicted.
    """

    role: str
    count: float
    m: int | None
    n: int | None
    k: int | None
    axis: Annotated[str, meaning("N or K")]
    busy_ns: float
    tile: str | None = None
    waves: float | None = None
    dense: Annotated[int | None, meaning("the same dimension of the dense GEMM")] = None
    below: Good | None = None
    above: Good | None = None
    refused: str | None = None
    curve: Annotated[list[list[float]], meaning("[dimension, ns a step]")] = []


class Fit(msgspec.Struct, kw_only=True):
    """How well tile, wave and roofline explain the measured GEMMs: time ÷ prediction."""

    gemms: Annotated[int, meaning("distinct ones, without the latency-bound")]
    factor: Annotated[float, meaning("geometric mean, by time")]
    spread: Annotated[
        float | None,
        meaning("of its logarithm, a factor e apart in shape; null for fewer than three"),
    ]
    unaligned: Annotated[
        float | None, meaning("factor of the unaligned ones over that of the rest")
    ]


class Communication(msgspec.Struct, kw_only=True):
    """The communication kernels of a step.

    `exposed_ns` is how long nothing else runs concurrently, `overlapped_ns` how long other kernels
    do, and `kinds` the busy time of those by kind; exposed_ns and kinds sum to busy_ns.
    """

    exposed_ns: float
    overlapped_ns: float
    kinds: dict[str, float]


class SideAnatomy(msgspec.Struct, kw_only=True):
    """What figures compare of the dense and the pruned side of a phase."""

    kind_bounds: Annotated[dict[str, dict[str, float]], meaning("busy of a kind by bound")]
    layers: list[LayerTime]
    points: list[RooflinePoint]


class Anatomy(SideAnatomy, kw_only=True):
    """The anatomy of one phase."""

    tiles: Annotated[
        dict[str, float], meaning("GEMM time by how the tile explains the grid, or why it cannot")
    ]
    gaps: Annotated[
        dict[str, float], meaning("idle time by cause, trailing idle as tail: sum = gap + tail")
    ]
    graph_speedup: Annotated[
        float | None,
        meaning(
            "wall ÷ (wall − dispatch_ns): the speedup if no dispatch were late; not the most by a "
            "CUDA graph, which is kernels_speedup; null where causes are not known"
        ),
    ]
    host: list[HostTime]
    shapes: list[Shape]
    fit: Fit | None
    dispatch_ns: Annotated[
        float | None,
        meaning(
            "the part of gaps[host] that is dispatch: the rest is loading data or other host work"
        ),
    ] = None
    kernels_speedup: Annotated[
        float | None,
        meaning(
            "wall ÷ (wall − dispatch_ns − gaps[device] − launches of copies): the upper bound of "
            "the speedup by a CUDA graph, which also removes gaps between kernels already queued; "
            "null where the step is a graph already"
        ),
    ] = None
    idle: Annotated[list[Idle], meaning("the same idle time without the tail, split further")] = []
    communication: Annotated[
        Communication | None, meaning("null: none on the device, or an older report")
    ] = None

    @property
    def idle_ns(self) -> float:
        """Idle time of a step, trailing idle included, ns."""
        return sum(self.gaps.values())

    @property
    def late_dispatch_ns(self) -> float:
        """Idle time because the host dispatched late, ns: of all host work, where not split."""
        return self.gaps.get("host", 0.0) if self.dispatch_ns is None else self.dispatch_ns

    @property
    def idle_in_graph_ns(self) -> float:
        """Idle time that a CUDA graph of the step would leave, ns."""
        copies = sum(part.ns for part in self.idle if part.doing == "copy_launch")
        queued = self.gaps.get("device", 0.0)
        return self.idle_ns - self.late_dispatch_ns - queued - copies
