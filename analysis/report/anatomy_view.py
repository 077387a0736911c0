"""What figures show of an anatomy: the points of a roofline with its ceilings, roles of layers.

In: an anatomy and the device. Out: plain values that can be plotted, or told in a caption.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from prunescope.analysis.schema.anatomy import LayerTime, RooflinePoint, Shape, SideAnatomy
from prunescope.analysis.schema.report import Phase
from prunescope.analysis.schema.sides import DeviceUsed
from prunescope.taxonomy.dtypes import THREE_TF32, three_tf32_rate

MOST_KINDS = 8
_MOST_ROLES, _FEWEST_LAYERS = 16, 2
_VISIBLE = 0.001  # of the time of all points


class Ceiling(NamedTuple):
    """A ceiling of a roofline; `is_second` where its peaks are not those in use."""

    name: str
    flop_per_s: float
    byte_per_s: float
    is_second: bool
    is_split: bool  # fp32 as three products of TF32


def visible_points(anatomy: SideAnatomy) -> list[RooflinePoint]:
    """Return the points of a roofline that take more than a thousandth of the time of all."""
    least = _VISIBLE * sum(point.busy_ns for point in anatomy.points)
    return [point for point in anatomy.points if point.busy_ns > least]


def ceilings(device: DeviceUsed, points: Iterable[RooflinePoint]) -> list[Ceiling]:
    """Return the ceilings of a roofline.

    They are those of the dtype that takes the most time, at the peaks in use, and next to measured
    peaks also at those of the data sheet. If fp32 runs as three products of TF32, that has a
    ceiling of its own.
    """
    time: dict[str, float] = {}
    for point in points:
        if point.dtype is not None:
            time[point.dtype] = time.get(point.dtype, 0.0) + point.busy_ns
    found: list[Ceiling] = []
    measured = bool(device.get("measured"))
    sources: list[tuple[str, Any, bool]] = [
        ("measured" if measured else "data sheet", device.get("peaks"), False)
    ]
    if measured and device.get("sheet"):
        sources.append(("data sheet", device["sheet"], True))
    for name, peaks, is_second in sources:
        rates = (peaks or {}).get("dense_flop_per_s") or {}
        byte_per_s = (peaks or {}).get("byte_per_s")
        dtype = next((d for d in sorted(time, key=lambda d: -time[d]) if d in rates), None)
        if dtype is not None and byte_per_s:
            label = f"{dtype}, {name}"
            found.append(Ceiling(label, rates[dtype], byte_per_s, is_second, is_split=False))
        slower = three_tf32_rate(rates)  # its ceiling differs from that of fp32
        if THREE_TF32 in time and slower and byte_per_s:
            label = f"{THREE_TF32}, {name}"
            found.append(Ceiling(label, slower, byte_per_s, is_second, is_split=True))
    return found


def numbered_layers(anatomy: SideAnatomy) -> list[LayerTime]:
    """Return the layers of a model, without what lies outside of all; empty if there is but one."""
    layers = [layer for layer in anatomy.layers if layer.layer is not None]
    return layers if len(layers) >= _FEWEST_LAYERS else []


def longest_roles(sides: Iterable[Sequence[LayerTime]]) -> list[str]:
    """Return the roles that take a hundredth of the time of the largest, the largest first."""
    time: dict[str, float] = {}
    for layers in sides:
        for layer in layers:
            for role, ns in layer.roles.items():
                time[role] = time.get(role, 0.0) + ns
    ranked = sorted(time, key=lambda role: (-time[role], role))
    return [role for role in ranked if time[role] > max(time.values()) / 100][:_MOST_ROLES]


def largest_kinds(sides: Iterable[SideAnatomy]) -> list[str]:
    """Return the kinds of work that take the most time on either side, the largest first."""
    time: dict[str, float] = {}
    for anatomy in sides:
        for kind, parts in anatomy.kind_bounds.items():
            time[kind] = max(time.get(kind, 0.0), sum(parts.values()))
    return sorted((kind for kind in time if time[kind]), key=lambda kind: -time[kind])[:MOST_KINDS]


def shapes_with_curves(phase: Phase) -> list[Shape]:
    """Return the GEMMs whose time over N is predicted."""
    return [shape for shape in phase.anatomy.shapes if shape.curve] if phase.anatomy else []


def step_name(phase: Phase) -> str:
    """Return which step busy times belong to: a profiled one if the profiler slows the ops."""
    return "a profiled step" if phase.is_slowed else "a step"
