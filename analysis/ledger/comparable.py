"""Two sides made comparable before they are paired: what one of them does not tell, neither does.

In: the sides and their Kernels. Out: Kernels that can be compared. Graph replays without an eager
trace have no shapes: every GEMM would be gone on one side and added on the other. Layers that are
numbered by the order of kernels are numbered alike where the sides cut their steps otherwise.
"""

from __future__ import annotations

import dataclasses

import polars as pl

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


def fold_layers(dense: Kernels, pruned: Kernels) -> tuple[Kernels, Kernels]:
    """Both sides, with the longer numbering counted anew after as many layers as the shorter one
    has, where both run as many layers a step in all: a side that runs fewer has lost some."""
    if not dense.roles_from == pruned.roles_from == "order":
        return dense, pruned
    (layers_d, runs_d), (layers_p, runs_p) = _layers(dense), _layers(pruned)
    fewer, more = sorted((layers_d, layers_p))
    if not fewer or fewer == more or more % fewer or runs_d != runs_p:
        return dense, pruned
    note = (
        f"both sides run {runs_d:g} layers a step, numbered to {layers_d} and to {layers_p} by the "
        f"order of kernels: taken for {fewer} layers, {runs_d / fewer:g} times a step"
    )
    pruned = dataclasses.replace(pruned, notes=[*pruned.notes, note])
    return _folded(dense, fewer), _folded(pruned, fewer)


def _layers(kernels: Kernels) -> tuple[int, float]:
    """How many layers have numbers, and how many attentions of layers a step runs."""
    rows = kernels.frame.filter(pl.col("layer").is_not_null() & (pl.col("kind") == "attention"))
    runs = rows.select("step", "instance").unique().height
    return rows["layer"].n_unique(), runs / kernels.num_steps


def _folded(kernels: Kernels, layers: int) -> Kernels:
    frame = kernels.frame.with_columns(layer=pl.col("layer") % layers)
    return dataclasses.replace(kernels, frame=frame)
