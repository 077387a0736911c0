"""Two sides of which one tells no shapes: graph replays without an eager trace.

In: the sides and their Kernels. Out: Kernels that can be compared, and a warning that names the
option which is missing. Else every GEMM would be gone on one side and added on the other.
"""

from __future__ import annotations

from prunescope.analysis.inputs.subject import Side
from prunescope.analysis.kernels.frame import Kernels

OF_BASELINE, OF_SUBJECT = "--baseline-eager-trace", "--eager-trace"
Phase = tuple[Side, Kernels, str]  # a side, its kernels, its name of the phase


def alike(dense: Phase, pruned: Phase) -> tuple[Kernels, Kernels]:
    """Both sides; without the ops of their replays where only one has them."""
    kernels = dense[1], pruned[1]
    if kernels[0].has_shapes == kernels[1].has_shapes:
        return kernels
    option = OF_SUBJECT if kernels[0].has_shapes else OF_BASELINE
    lacking, bare, _ = pruned if kernels[0].has_shapes else dense
    if not bare.linked.replayed.any():
        return kernels
    lacking.warnings.append(
        f"only one side tells its shapes: give {option} for the graph replays of "
        f"{lacking.path.name}; until then replays are compared by the names of their kernels, and "
        "shares of FLOPs and bytes are null"
    )
    first, second = (
        own if own.mapping_rate is None else side.kernels(name, mapped=False)
        for side, own, name in (dense, pruned)
    )
    return first, second
