"""Two sides made comparable before they are paired: what one of them does not tell, neither does.

In: a phase of both sides. Out: the same phases with kernels that can be compared. Graph replays
without an eager trace have no shapes: every GEMM would be gone on one side and added on the other.
Layers that are numbered by the order of kernels are numbered alike where the sides cut their steps
otherwise.
"""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from prunescope.analysis.inputs.subject import Diagnostics, SidePhase
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.ledger.renamed import with_roles_of

OF_BASELINE, OF_SUBJECT = "--baseline-eager-trace", "--eager-trace"


def comparable(dense: SidePhase, pruned: SidePhase) -> tuple[SidePhase, SidePhase]:
    """Both sides; without the ops of their replays where only one has them, with one numbering
    of their layers and the roles that either side's modules tell."""
    dense, pruned = fold_layers(*_of_equal_shapes(dense, pruned))
    if dense.side.run is not None or pruned.side.run is not None:
        return dense, pruned  # whose modules the tracer named
    return (
        replace(dense, kernels=with_roles_of(dense.kernels, pruned.kernels)),
        replace(pruned, kernels=with_roles_of(pruned.kernels, dense.kernels)),
    )


def _of_equal_shapes(dense: SidePhase, pruned: SidePhase) -> tuple[SidePhase, SidePhase]:
    if dense.kernels.has_shapes == pruned.kernels.has_shapes:
        return dense, pruned
    lacking, option = (pruned, OF_SUBJECT) if dense.kernels.has_shapes else (dense, OF_BASELINE)
    if not lacking.kernels.linked.replayed.any():
        return dense, pruned
    said = (
        f"only one side tells its shapes: give {option} for the graph replays of "
        f"{lacking.side.path.name}; until then replays are compared by the names of their "
        "kernels, and shares of FLOPs and bytes are null"
    )
    first, second = (
        replace(one, diagnostics=one.diagnostics + Diagnostics((said,))) if one is lacking else one
        for one in (dense, pruned)
    )
    return _without_ops(first), _without_ops(second)


def _without_ops(one: SidePhase) -> SidePhase:
    """A side whose graph replays have no ops."""
    if one.kernels.mapping_rate is None:
        return one
    again = one.side.read(one.name, mapped=False)
    return replace(again, diagnostics=one.diagnostics + again.diagnostics)


def fold_layers(dense: SidePhase, pruned: SidePhase) -> tuple[SidePhase, SidePhase]:
    """Both sides, with the longer numbering counted anew after as many layers as the shorter one
    has, where both run as many layers a step in all: a side that runs fewer has lost some."""
    if not dense.kernels.roles_from == pruned.kernels.roles_from == "order":
        return dense, pruned
    (layers_d, runs_d), (layers_p, runs_p) = _layers(dense.kernels), _layers(pruned.kernels)
    fewer, more = sorted((layers_d, layers_p))
    if not fewer or fewer == more or more % fewer or runs_d != runs_p:
        return dense, pruned
    note = (
        f"both sides run {runs_d:g} layers a step, numbered to {layers_d} and to {layers_p} by the "
        f"order of kernels: taken for {fewer} layers, {runs_d / fewer:g} times a step"
    )
    folded = _folded(pruned.kernels, fewer)
    return (
        replace(dense, kernels=_folded(dense.kernels, fewer)),
        replace(pruned, kernels=replace(folded, notes=[*folded.notes, note])),
    )


def _layers(kernels: Kernels) -> tuple[int, float]:
    """How many layers have numbers, and how many attentions of layers a step runs."""
    rows = kernels.frame.filter(pl.col("layer").is_not_null() & (pl.col("kind") == "attention"))
    runs = rows.select("step", "instance").unique().height
    return rows["layer"].n_unique(), runs / kernels.num_steps


def _folded(kernels: Kernels, layers: int) -> Kernels:
    return replace(kernels, frame=kernels.frame.with_columns(layer=pl.col("layer") % layers))
