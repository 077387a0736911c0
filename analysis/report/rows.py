"""Rows of the written tables and of the data frames.

In: a Report. Out: structs of raw values: times in ns a step, FLOP, bytes, shares 0..1; null is
unknown, never 0. Each struct says what its columns mean: the data dictionary takes it from here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import msgspec

from prunescope.analysis.report.ledger_view import shown_bounds
from prunescope.analysis.schema.anatomy import RooflinePoint
from prunescope.analysis.schema.fields import meaning
from prunescope.analysis.schema.report import Phase

_LOW = "lower end of the 95 % bootstrap interval over placements (of one: over steps and samples)"
_HIGH = "upper end of that interval"


class LedgerLine(msgspec.Struct, kw_only=True):
    """A row of the ledger or, with `part`, a part of it."""

    row: Annotated[
        str,
        meaning(
            "dense, promised, coverage, roofline_shift, shape, kernel_efficiency, added_work, "
            "launch_idle, not_explained (without shapes only), pruned"
        ),
    ]
    part: Annotated[
        str | None, meaning("empty: the whole row; else a part of it, and the parts sum to the row")
    ] = None
    role: Annotated[
        str | None, meaning("where in the model: q, k, v, o, gate, up, down, lm_head and so on")
    ] = None
    cls: Annotated[str | None, meaning("matmul, attention, pointwise, or the kind of kernel")] = (
        msgspec.field(default=None, name="class")
    )
    ns: Annotated[
        float | None,
        meaning("time of a step; promised and the changes after it sum to pruned; empty: unknown"),
    ]
    ci95_low: Annotated[float | None, meaning(_LOW, "ns")]
    ci95_high: Annotated[float | None, meaning(_HIGH, "ns")]
    noise_ns: Annotated[
        float | None,
        meaning("root mean square of the row for dense against dense, split in halves"),
    ]
    evidence: Annotated[list[str], meaning("the largest kernels of the part")] = []


class LadderLine(msgspec.Struct, kw_only=True):
    """A bound of the ladder, or a measured ratio."""

    bound: Annotated[str, meaning("nominal, flop, coverage, roofline, busy, realised")]
    speedup: Annotated[float | None, meaning("dense over pruned", "ratio")]
    ci95_low: Annotated[
        float | None, meaning("lower end of the 95 % interval; empty for nominal and flop", "ratio")
    ]
    ci95_high: Annotated[float | None, meaning(_HIGH, "ratio")]


class BoundLine(msgspec.Struct, kw_only=True):
    """Busy time of a kind of kernels that one bound limits."""

    side: Annotated[str | None, meaning("dense or pruned; empty: a run alone")]
    kind: Annotated[str, meaning("what the kernels do")]
    bound: Annotated[
        str | None, meaning("compute, memory, latency or unknown; empty: not split")
    ] = None
    busy_ns: Annotated[
        float, meaning("device time of a step, of all kernels: what bounds-PHASE plots")
    ]


class LayerLine(msgspec.Struct, kw_only=True):
    """Time of a role in one layer, or the idle time before its kernels."""

    side: Annotated[str | None, meaning("dense or pruned; empty: a run alone")]
    layer: Annotated[int | None, meaning("index in the list of layers; empty: outside of all")]
    role: Annotated[
        str | None, meaning("where in the layer; empty: idle time before its kernels")
    ] = None
    ns: Annotated[float, meaning("device time of a step, or idle time: what layers-PHASE plots")]


class RooflineLine(RooflinePoint, kw_only=True):
    """A point of the roofline plot."""

    side: Annotated[str | None, meaning("dense or pruned; empty: a run alone")]


class WaveLine(msgspec.Struct, kw_only=True):
    """A point of a curve of predicted time over N."""

    role: Annotated[str, meaning("where in the model")]
    m: Annotated[int | None, meaning("rows of a call")]
    n: Annotated[int | None, meaning("output features that ran")]
    k: Annotated[int | None, meaning("input features")]
    dense_n: Annotated[int | None, meaning("N of the dense GEMM")]
    at_n: Annotated[int, meaning("a dimension on the curve of waves-PHASE")]
    predicted_ns: Annotated[
        float, meaning("time of a step that tiles, waves and roofline give there")
    ]


def ledger_lines(phase: Phase) -> Iterator[LedgerLine]:
    """Yield every row of the ledger, each before its parts."""
    for row in phase.ledger or []:
        low, high = row.ci95 or (None, None)
        yield LedgerLine(
            row=row.row, ns=row.ns, ci95_low=low, ci95_high=high, noise_ns=row.noise_ns
        )
        for part in row.parts:
            low, high = part.ci95 or (None, None)
            yield LedgerLine(
                row=row.row,
                part=part.name,
                role=part.role,
                cls=part.cls,
                ns=part.ns,
                ci95_low=low,
                ci95_high=high,
                noise_ns=part.noise_ns,
                evidence=part.evidence,
            )


def ladder_lines(phase: Phase) -> Iterator[LadderLine]:
    """Yield the bounds of the ladder, in order."""
    if phase.ladder is None:
        return
    for bound in shown_bounds(phase.ladder):
        low, high = phase.ladder.interval_of(bound) or (None, None)
        speedup = getattr(phase.ladder, bound)
        yield LadderLine(bound=bound, speedup=speedup, ci95_low=low, ci95_high=high)


def bound_lines(phase: Phase) -> Iterator[BoundLine]:
    """Yield busy time by kind and bound; by kind alone where the phase has no anatomy."""
    if phase.anatomy is None:
        yield from (BoundLine(side=None, kind=kind, busy_ns=ns) for kind, ns in phase.kinds.items())
    for side, anatomy in phase.anatomies.items():
        for kind, parts in anatomy.kind_bounds.items():
            for bound, ns in parts.items():
                yield BoundLine(side=side, kind=kind, bound=bound, busy_ns=ns)


def roofline_lines(phase: Phase) -> Iterator[RooflineLine]:
    """Yield the points of the roofline plot."""
    for side, anatomy in phase.anatomies.items():
        for point in anatomy.points:
            yield RooflineLine(side=side, **msgspec.structs.asdict(point))


def layer_lines(phase: Phase) -> Iterator[LayerLine]:
    """Yield busy time of each layer by role, and the idle time before its kernels."""
    for side, anatomy in phase.anatomies.items():
        for time in anatomy.layers:
            for role, ns in time.roles.items():
                yield LayerLine(side=side, layer=time.layer, role=role, ns=ns)
            yield LayerLine(side=side, layer=time.layer, ns=time.gap_ns)


def wave_lines(phase: Phase) -> Iterator[WaveLine]:
    """Yield the points of the curves of predicted time over N."""
    for shape in phase.anatomy.shapes if phase.anatomy else ():
        for n, ns in shape.curve:
            yield WaveLine(
                role=shape.role,
                m=shape.m,
                n=shape.n,
                k=shape.k,
                dense_n=shape.dense,
                at_n=int(n),
                predicted_ns=ns,
            )
