"""Layers that are numbered by the order of kernels, on two sides that cut their steps otherwise.

In: both sides' Kernels. Out: the same, with one number of layers. A trace without steps whose
passes nothing divides holds one long run of layers; replays of a graph have those of its eager
pass, again and again.
"""

from __future__ import annotations

import dataclasses

import polars as pl

from prunescope.analysis.kernels.frame import Kernels


def refold(dense: Kernels, pruned: Kernels) -> tuple[Kernels, Kernels]:
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
