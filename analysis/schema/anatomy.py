"""What a phase is made of beneath its totals: bounds of a kind, layers, gaps by cause, host time,
and the cost of neighbouring dimensions. Plain values of schema 1; ns a step; null: unknown.
"""

from __future__ import annotations

import msgspec


class RooflinePoint(msgspec.Struct, kw_only=True):
    """Calls of one shape in a roofline plot: x = flop / bytes, y = flop · count / clock_ns, the
    busy time or, of kernels that ran beside others, the time that they ran."""

    name: str
    kind: str
    role: str
    dtype: str | None
    count: float
    flop: float  # per call
    bytes: float  # per call
    busy_ns: float
    clock_ns: float
    bound: str


class LayerTime(msgspec.Struct, kw_only=True):
    """Busy time of one layer by role, and the idle time before its kernels; null: outside."""

    layer: int | None
    busy_ns: float
    gap_ns: float
    roles: dict[str, float]


class HostTime(msgspec.Struct, kw_only=True):
    """Host time up to the launches of one op in one role, and the device's wait for them; a call
    outside of any op that copies or waits stands for one."""

    op: str
    role: str
    count: float  # of launch calls: a graph replay is one
    host_ns: float  # from the launch before to these, by any thread, outside of such calls:
    blocked_ns: float | None = None  # in calls inside this op that copy or wait; null: in host_ns
    wait_ns: float  # gaps whose launch began after the device had run out of work


class Idle(msgspec.Struct, kw_only=True):
    """Idle time by what the launching thread did then: memcpy (in a copy that no graph holds),
    copy_launch (in one that returns at once), sync, launch (another runtime call), computed
    (a product on the host), op, nothing (that was recorded), held, replay, device, unknown,
    other_step (the device ran work of a later step);
    `beside`: the annotation, frame of Python or long op that the host was in for at least half of
    its part of a gap; `ns` is all of that part."""

    doing: str
    beside: str | None
    ns: float


class Good(msgspec.Struct, kw_only=True):
    """A good dimension: one more and a wave (or a step of K) begins. Change of time a step."""

    value: int
    change_ns: float | None
    low_ns: float | None  # 95 % by the spread of the fit
    high_ns: float | None


class Shape(msgspec.Struct, kw_only=True):
    """What a dimension near that of a GEMM would cost; `refused` says why nothing is claimed."""

    role: str
    count: float
    m: int | None
    n: int | None
    k: int | None
    axis: str  # N or K
    busy_ns: float
    tile: str | None = None
    waves: float | None = None
    dense: int | None = None  # the same dimension of the dense GEMM
    below: Good | None = None
    above: Good | None = None
    refused: str | None = None
    curve: list[list[float]] = []  # [dimension, ns a step]


class Fit(msgspec.Struct, kw_only=True):
    """How well tile, wave and roofline explain the GEMMs seen: time ÷ prediction."""

    gemms: int  # distinct ones, without the latency-bound
    factor: float  # geometric mean, by time
    spread: float | None  # of its logarithm, a factor e apart in shape; null for fewer than three
    unaligned: float | None  # factor of the unaligned ones over that of the rest


class Anatomy(msgspec.Struct, kw_only=True):
    """All of it, for one phase."""

    kind_bounds: dict[str, dict[str, float]]  # busy of a kind by bound
    layers: list[LayerTime]
    points: list[RooflinePoint]
    tiles: dict[str, float]  # GEMM time by how the tile explains the grid, or why it cannot
    gaps: dict[str, float]  # by cause, and tail: sum = gap + tail
    # wall ÷ (wall − dispatch_ns): without late dispatch; null where causes are not known
    graph_speedup: float | None
    host: list[HostTime]
    shapes: list[Shape]
    fit: Fit | None
    # What of gaps[host] is dispatch: the rest is loading data or other work of the host.
    dispatch_ns: float | None = None
    # wall ÷ (wall − dispatch_ns − gaps[device]): the most by a CUDA graph, which spares what lies
    # between kernels that were launched in time too; null where the step is a graph already
    kernels_speedup: float | None = None
    idle: list[Idle] = []  # the same idle time without the tail, split further
