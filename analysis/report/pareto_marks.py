"""How points of a sweep that are no full evidence are marked, alike in tables and figures.

In: a SweepPoint and its name. Out: the name with its marks.
"""

from __future__ import annotations

from prunescope.analysis.schema.pareto import SweepPoint

SIMULATED, ZEROS = "*", "†"


def marks_of_point(point: SweepPoint) -> str:
    """`*` of a simulated point, `†` of one that does the dense work."""
    return SIMULATED * (point.simulated is not None) + ZEROS * point.removed_nothing


def marked(name: str, *points: SweepPoint) -> str:
    """A name with the marks of its points, each once."""
    found = "".join(map(marks_of_point, points))
    marks = "".join(mark for mark in (SIMULATED, ZEROS) if mark in found)
    return f"{name} {marks}" if marks else name
