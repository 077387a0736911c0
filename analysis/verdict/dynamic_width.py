"""Dynamic width, read back: MLP GEMMs on gathered slices of whole weights."""

from __future__ import annotations

from prunescope.analysis.verdict.evidence import Detection, Evidence, matrices
from prunescope.analysis.verdict.layer_shares import counted_in_words
from prunescope.taxonomy.roles import MLP_ROLES
from prunescope.taxonomy.run_blocks import WeightStats


def detect(e: Evidence) -> Detection | None:
    """N of gate and up and K of down fell, but the weights are whole: slices were gathered."""
    moved = [p for p in e.pairs if p.key[1] in MLP_ROLES and p.axis in ("N", "K")]
    if not moved or any(p.axis not in ("none", "N", "K") for p in e.pairs if p.key[1] in MLP_ROLES):
        return None
    gathers = sum(e.added(role=role, cls="gather_scatter") for role in MLP_ROLES)
    if not (gathers and _weights_are_whole(e)):
        return None
    pair = next((p for p in moved if p.key[1] == "down"), moved[0])
    assert pair.dense is not None
    assert pair.pruned is not None
    axis = pair.axis.lower()
    line = (
        f"{len(moved)} MLP GEMMs run on gathered slices of whole weights ({pair.key[1]} "
        f"{pair.axis} {getattr(pair.dense, axis):g} → {getattr(pair.pruned, axis):g}), {gathers} "
        f"gathers were added{counted_in_words(e, 'channels')}"
    )
    return Detection([line], lambda p: float(p.key[1] in MLP_ROLES), explains=("static-nk-mlp",))


def _weights_are_whole(e: Evidence) -> bool:
    """Whether the pruned run stores MLP matrices of the dense shapes; so too where it is silent."""

    def shapes(census: WeightStats | None) -> list[list[int] | None]:
        return [m.shape for m in matrices(census) if m.role in MLP_ROLES]

    return e.stats_pruned is None or shapes(e.stats_pruned) == shapes(e.stats_dense)
