"""Shapes that only one side recorded: no axis can be told from them, and roles that need them are
found on that side alone.

In: a phase of both sides. Out: the same; where one side's ops have no shapes, neither's have any.
Without that, work whose role only shapes tell (a head) seems added, or gone.
"""

from __future__ import annotations

from dataclasses import replace

from prunescope.analysis.inputs.subject import SidePhase

ONE_SIDED = "only one side recorded shapes"


def of_equal_shapes(dense: SidePhase, pruned: SidePhase) -> tuple[SidePhase, SidePhase]:
    """Both sides, with shapes or without. Graph replays, whose ops an eager trace tells, and shapes
    that a config tells are left as they are."""
    sides = dense, pruned
    if dense.kernels.has_shapes == pruned.kernels.has_shapes or any(map(_is_told, sides)):
        return sides
    lacking = pruned if dense.kernels.has_shapes else dense
    if not lacking.kernels.calls or any(call.shapes for call in lacking.kernels.calls):
        return sides  # a part of its ops has shapes: which, its own warnings say
    note = (
        f"{ONE_SIDED}, {lacking.side.path.name} has none: capture it again with "
        "profile(..., record_shapes=True); until then what was pruned, FLOPs and bounds are unknown"
    )
    found = [one if one is lacking else one.without_shapes() for one in sides]
    own = found[1]
    kernels = replace(own.kernels, notes=[*own.kernels.notes, note])
    return found[0], replace(own, kernels=kernels)


def _is_told(one: SidePhase) -> bool:
    """Whether something beside its own trace tells the shapes of a side."""
    return bool(one.kernels.linked.replayed.any()) or one.side.model is not None
