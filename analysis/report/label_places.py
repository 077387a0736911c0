"""Where the labels of points stand: beside their marks, on no other label, mark or line.

In: labels with the places of their marks, and what they should not hide. Out: annotations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import cos, pi, sin
from typing import Any

from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

from prunescope.analysis.report.figure_style import SMALL, Ends

Label = tuple[float, float, str]  # where it points, and its text
Line = tuple[tuple[float, float], tuple[float, float]]
# Where a label may stand, in points from its mark, the best place first: beside it, then on rings.
_PLACES: tuple[tuple[float, float], ...] = (
    (4, 4), (4, -9), (-4, 5), (-4, -10), (9, -3), (-9, -3), (0, 8), (0, -16),
    *((radius * cos(pi * i / 8), radius * sin(pi * i / 8) - 3)
      for radius in (16, 24, 34, 46)
      for i in (1, 15, 7, 9, 2, 14, 6, 10, 0, 8, 3, 13, 5, 11, 4, 12)),
)  # fmt: skip
_NEAR = 12  # points: a label beyond them has a line to its mark
_RADIUS = 3.5  # points, of a mark
_SHARES = {"left": 0.0, "center": 0.5, "right": 1.0}  # of the width that is left of the place


@dataclass
class Obstacles:
    """The marks and ends of lines that labels should not hide, in units of the axes."""

    marks: list[tuple[float, float]] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)

    def add(self, at: tuple[float, float], across: Ends, up: Ends) -> None:
        """Add a point with its intervals across and up."""
        x, y = at
        (left, right), (low, high) = across or (x, x), up or (y, y)
        self.marks.append(at)
        self.lines += [((left, y), (right, y)), ((x, low), (x, high))]


def place_labels(axes: Axes, labels: Sequence[Label], obstacles: Obstacles) -> None:
    """Write each label where it hides no other label, no mark and no line.

    Where there is no such place, it may lie on a line. A label far from its mark gets a line to it,
    and one that has no place without another label or mark is left out.

    Args:
        axes: The axes, of a figure that was laid out.
        labels: Place and text of each label.
        obstacles: The marks and lines.
    """
    figure = axes.figure
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    inside = axes.get_window_extent(renderer)
    point = figure.dpi / 72
    centres = [axes.transData.transform(at) for at in obstacles.marks]
    taken = [Bbox([middle - _RADIUS * point, middle + _RADIUS * point]) for middle in centres]
    lines = [Bbox(axes.transData.transform(ends)) for ends in obstacles.lines]
    for x, y, text in sorted(labels):
        middle = axes.transData.transform((x, y))
        written = axes.text(x, y, text, fontsize=SMALL)
        size = written.get_window_extent(renderer)
        written.remove()
        for place, free in [(p, [*taken, *lines]) for p in _PLACES] + [(p, taken) for p in _PLACES]:
            box = _box(middle, size, place, point)
            is_inside = inside.contains(*box.min) and inside.contains(*box.max)
            if is_inside and not any(box.overlaps(obstacle) for obstacle in free):
                _write_label(axes, (x, y), text, place)
                taken.append(box)
                break


def _box(middle: Any, size: Bbox, place: tuple[float, float], point: float) -> Bbox:
    """Return where a text of this size stands at a place beside its mark, in pixels."""
    left = middle[0] + place[0] * point - size.width * _SHARES[_side(place)]
    bottom = middle[1] + place[1] * point
    return Bbox([[left, bottom], [left + size.width, bottom + size.height]])


def _side(place: tuple[float, float]) -> str:
    return "left" if place[0] > 0 else "right" if place[0] < 0 else "center"


def _write_label(
    axes: Axes, at: tuple[float, float], text: str, place: tuple[float, float]
) -> None:
    line = {"arrowstyle": "-", "linewidth": 0.4, "shrinkA": 0, "shrinkB": 2}
    arrow = line if max(map(abs, place)) > _NEAR else None
    look: dict[str, Any] = {"fontsize": SMALL, "ha": _side(place), "va": "bottom"}
    axes.annotate(text, at, textcoords="offset points", xytext=place, arrowprops=arrow, **look)
