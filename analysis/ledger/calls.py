"""The calls of a side: every kernel that multiplies matrices, as the logical GEMMs of its unit.

In: kernels of one side and the alignment of its layers. Out: `Call`s by `Key`, means a step. A
fused attention kernel is two logical GEMMs.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import polars as pl

from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.kernels.role import GEMM_KINDS
from prunescope.analysis.ledger.pairing import Alignment, with_dense_layer
from prunescope.analysis.ops.work import Work
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.roles import GROUPS, UNPLACED

Key = tuple[int | None, str, str, int]  # layer of the dense model, role, group, position
# Positions of what has neither role nor shape (a replay beside ops): counted apart, or steps that
# hold more or fewer of them lend it the shapes of other GEMMs.
_APART = 1 << 32
Parts = list[tuple[Gemm | None, float]]
_UNREAD: Parts = [(None, 1.0)]  # of a call that no model reads
# What is read of an op's row.
_READ = ("step", "unit_layer", "layer", "role", "op", "kind", "dtype", "name", "call", "total",
         "help", "took", "ideal", "flop", "bytes", "bound", "shapes")  # fmt: skip
# What of the kernels frame tells it.
_WANTED = ("step", "instance", "wrapper", "primary", "carries_work", "launched", "start", "busy",
           "duration",
           "unit_layer", "layer", "role", "op", "kind", "dtype", "name", "call", "ideal", "flop",
           "bytes", "bound", "shapes")  # fmt: skip


@dataclass(frozen=True)
class Call:
    """One logical GEMM of a unit, means a step. Dimensions are means where they vary (a context
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
    helper: float
    ideal: float | None
    bound: str
    kernel: str
    split: bool
    duration: float = 0.0  # of its kernels, also where they run beside others
    shapes: str | None = None  # where its dimensions come from
    # Least and most of batch, M, N and K over its steps: keys grow; empty where they are not known.
    spans: tuple[tuple[float, float], ...] = ()

    @property
    def gemm(self) -> Gemm | None:
        """Rounded dimensions, to compare."""
        if self.m is None or self.n is None or self.k is None or self.batch is None:
            return None
        return Gemm(round(self.m), round(self.n), round(self.k), round(self.batch))


@dataclass
class _Sum:
    """Sums over the calls and steps of one key."""

    calls: int = 0
    busy: float = 0.0
    helper: float = 0.0
    duration: float = 0.0
    ideal: float | None = 0.0
    flop: float | None = 0.0
    bytes: float | None = 0.0
    dims: list[tuple[int, int, int, int]] = field(default_factory=list)
    first: dict[str, object] = field(default_factory=dict)
    known: tuple[int, int] | None = None  # N and K, where M of some call is not known
    bounds: dict[str, float] = field(default_factory=lambda: defaultdict(float))


def calls_of(
    kernels: Kernels, alignment: Alignment | None = None, *, by_shape: bool = False
) -> dict[Key, Call]:
    """The logical GEMMs of one side by (layer, role, group, position in the unit).

    `by_shape`, for a side without a baseline: GEMMs without a role are keyed by their op and shape,
    not by their position, where steps may hold different ones.
    """
    frame = kernels.frame
    if alignment is None:
        frame = frame.with_columns(unit_layer=pl.col("layer"))
    else:
        frame = with_dense_layer(frame, alignment)
    gemms = _op_calls(frame if kernels.on_device else frame.with_columns(duration="busy"))
    products = [_products(work) for work in kernels.works]
    makes: dict[tuple[object, ...], int] = {}
    sums: dict[Key, _Sum] = defaultdict(_Sum)
    position: dict[tuple[object, ...], int] = defaultdict(int)
    for row in gemms.iter_rows(named=True):
        parts = products[row["call"]] if row["call"] is not None else _UNREAD
        for i, (gemm, share) in enumerate(parts):
            group = _group(row, i, len(parts), position)
            apart = _APART if gemm is None and row["role"] in UNPLACED else 0
            place = (row["step"], row["unit_layer"], row["role"], group, apart)
            key = (row["unit_layer"], row["role"], group, apart + position[place])
            position[place] += 1
            if by_shape and row["role"] in UNPLACED:
                make = (row["op"], row["kind"], row["dtype"], gemm, row["name"])
                key = (*key[:3], makes.setdefault(make, len(makes)))
            _accumulate(sums[key], row, gemm, share)
            sums[key].known = kernels.known.get(row["call"]) or sums[key].known
    return {key: _call(key, s, kernels.num_steps) for key, s in sums.items()}


def _products(work: Work | None) -> Parts:
    """The logical GEMMs of an op call, each with its share of the call's FLOPs."""
    if work is None or not work.gemms:
        return _UNREAD
    total = sum(gemm.flop for gemm in work.gemms)
    return [(gemm, gemm.flop / total if total else 1.0) for gemm in work.gemms]


def _op_calls(frame: pl.DataFrame) -> pl.DataFrame:
    """One row per op instance whose main row is a GEMM or attention, in time order; of an op that
    is none itself and has no shapes (a compiled region), one per such kernel."""
    instance, kinds = ["step", "instance"], [*GEMM_KINDS, "attention"]
    frame = frame.select(_WANTED)
    alone = frame.filter(pl.col("wrapper") & pl.col("kind").is_in(kinds)).with_columns(
        total=pl.col("busy"), took=pl.col("duration"), help=pl.lit(0, pl.Int64)
    )
    frame = frame.filter(pl.col("wrapper").not_())
    totals = frame.group_by(instance).agg(
        *(_of_own(name) for name in ("ideal", "flop", "bytes")),
        total=pl.col("busy").sum(),
        took=pl.col("duration").sum(),
        help=pl.col("busy").filter(pl.col("carries_work").not_()).sum(),
    )
    main = frame.filter(pl.col("primary") & pl.col("kind").is_in(kinds))
    main = main.drop("ideal", "flop", "bytes")
    main = main.join(totals, on=instance, how="left", maintain_order="left")
    both = pl.concat([main, alone.select(main.columns)]).sort("step", "launched", "start")
    return both.select(_READ)


def _of_own(column: str) -> pl.Expr:
    """The sum over the kernels that share an op's work, null where one of them is unknown."""
    own = pl.col(column).filter("carries_work")
    return pl.when(own.is_not_null().all()).then(own.sum()).alias(column)


def _group(
    row: dict[str, object], index: int, logical: int, position: dict[tuple[object, ...], int]
) -> str:
    """qk and pv for attention (fused, or in the order in which an eager one multiplies)."""
    role = str(row["role"])
    if logical == 2:
        return ("qk", "pv")[index]
    if role == "attention":
        place = (row["step"], row["unit_layer"], role)
        return "pv" if position[*place, "qk", 0] > position[*place, "pv", 0] else "qk"
    return GROUPS.get(role, "other")


def _accumulate(total: _Sum, row: dict[str, object], gemm: Gemm | None, share: float) -> None:
    total.calls += 1
    total.busy += float(row["total"]) * share  # type: ignore[arg-type]
    total.helper += float(row["help"]) * share  # type: ignore[arg-type]
    total.duration += float(row["took"]) * share  # type: ignore[arg-type]
    flop = gemm.flop if gemm is not None and row["flop"] is None else row["flop"]
    total.ideal = _more(total.ideal, row["ideal"], share)
    total.flop = _more(total.flop, flop, share)
    total.bytes = _more(total.bytes, row["bytes"], share)
    if gemm is not None:
        total.dims.append((gemm.batch, gemm.m, gemm.n, gemm.k))
    if not total.first:
        total.first = {**row, "share": share}
    total.bounds[str(row["bound"])] += float(row["total"])  # type: ignore[arg-type]


def _more(total: float | None, value: object, share: float) -> float | None:
    """The sum with a part of one more; None once one of them is unknown."""
    return None if total is None or value is None else total + float(value) * share  # type: ignore[arg-type]


def _call(key: Key, total: _Sum, num_steps: int) -> Call:
    first, dims = total.first, total.dims
    mean: list[float | None] = [None] * 4
    if total.known is not None:
        mean = [1, None, *total.known]
    elif dims:
        mean = [sum(d[i] for d in dims) / len(dims) for i in range(4)]
    share = float(first["share"])  # type: ignore[arg-type]

    def mean_of(value: float | None) -> float | None:
        """Of its calls: a decode's keys grow by one a step."""
        return None if value is None or total.known is not None else value / total.calls

    return Call(
        layer=first["layer"],  # type: ignore[arg-type]
        role=key[1],
        group=key[2],
        op=first["op"],  # type: ignore[arg-type]
        kind=str(first["kind"]),
        dtype=first["dtype"],  # type: ignore[arg-type]
        batch=mean[0],
        m=mean[1],
        n=mean[2],
        k=mean[3],
        shapes=first["shapes"],  # type: ignore[arg-type]
        spans=tuple((min(sizes), max(sizes)) for sizes in zip(*dims, strict=True)),
        count=total.calls / num_steps,
        flop=mean_of(total.flop),
        bytes=mean_of(total.bytes),
        busy=total.busy / num_steps,
        helper=total.helper / num_steps,
        ideal=None if total.ideal is None else total.ideal / num_steps,
        bound=max(total.bounds, key=lambda b: total.bounds[b]),
        kernel=str(first["name"]),
        split=share != 1.0,
        duration=total.duration / num_steps,
    )
