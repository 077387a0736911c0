"""What the figures of the anatomy draw, as rows: in, a Report; out, rows of raw values (ns, FLOP,
bytes), each with its phase in front, in the columns of the data dictionary.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from prunescope.analysis.schema.anatomy import Anatomy
from prunescope.analysis.schema.report import Report

Row = list[str | int | float | None]


def bounds(report: Report) -> Iterator[Row]:
    """Busy time by kind and bound; by kind alone where a phase has no anatomy."""
    for name, phase in report.phases.items():
        if phase.anatomy is None:
            for kind, ns in phase.kinds.items():
                yield [name, kind, None, ns]
            continue
        for kind, parts in phase.anatomy.kind_bounds.items():
            for bound, ns in parts.items():
                yield [name, kind, bound, ns]


def layers(report: Report) -> Iterator[Row]:
    """Busy time of each layer by role, and the idle time before its kernels."""
    for name, anatomy in _anatomies(report):
        for one in anatomy.layers:
            yield from ([name, one.layer, role, ns] for role, ns in one.roles.items())
            yield [name, one.layer, None, one.gap_ns]


def roofline(report: Report) -> Iterator[Row]:
    """The points of the roofline."""
    for name, anatomy in _anatomies(report):
        yield from ([name, *msgspec.structs.astuple(point)] for point in anatomy.points)


def waves(report: Report) -> Iterator[Row]:
    """The curves of predicted time over N."""
    for name, anatomy in _anatomies(report):
        for one in anatomy.shapes:
            own: Row = [name, one.role, one.m, one.n, one.k, one.dense]
            yield from ([*own, int(n), ns] for n, ns in one.curve)


def _anatomies(report: Report) -> Iterator[tuple[str, Anatomy]]:
    for name, phase in report.phases.items():
        if phase.anatomy is not None:
            yield name, phase.anatomy
