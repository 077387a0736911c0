"""Linears that one side's modules call otherwise, found by their order and shape in a layer.

In: the kernels of both sides. Out: the same, in which GEMMs without a role have those of the other
side's layer that this one lacks; only where there are as many, in order, and each keeps N or K.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

import polars as pl

from prunescope.analysis.kernels.frame import Kernels
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.roles import LINEARS

_PLAIN = ("gemm", "gemv", "sparse_gemm")


@dataclass(frozen=True)
class _Linear:
    """A product by a weight of a layer: where it ran, its role and its sizes."""

    instance: int
    role: str
    gemm: Gemm


def with_roles_of(one: Kernels, other: Kernels) -> Kernels:
    """`one` with the roles that `other` has for its unnamed linears; itself where it has none."""
    layers, references = _layers(one), _layers(other)
    known = {layer: linears for (step, layer), linears in references.items() if step == 0}
    if not known:
        return one
    first = next(iter(known.values()))
    roles_of: list[tuple[int, int, str]] = []
    for (step, layer), linears in layers.items():
        found = _roles_of(linears, known.get(layer, first))
        if found is None:
            return one  # layers that differ in more than their names
        roles_of += [(step, linear.instance, role) for linear, role in found]
    if not roles_of:
        return one
    schema = {"step": pl.Int64, "instance": pl.Int64, "_told": pl.String}
    table = pl.DataFrame(roles_of, schema=schema, orient="row")
    frame = one.frame.join(table, on=["step", "instance"], how="left", maintain_order="left")
    frame = frame.with_columns(role=pl.coalesce("_told", "role")).drop("_told")
    roles = ", ".join(dict.fromkeys(role for _, _, role in roles_of))
    note = f"modules of the other side name these GEMMs, by order and shape in a layer: {roles}"
    return replace(one, frame=frame, notes=[*one.notes, note])


def _roles_of(linears: list[_Linear], reference: list[_Linear]) -> list[tuple[_Linear, str]] | None:
    """The unnamed linears of a layer with the roles that it lacks; None where they do not fit."""
    named = {linear.role for linear in linears}
    unnamed = [linear for linear in linears if linear.role not in LINEARS]
    lacking = [
        linear for linear in reference if linear.role in LINEARS and linear.role not in named
    ]
    if not unnamed:
        return []
    if len(unnamed) != len(lacking):
        return None
    pairs = list(zip(unnamed, lacking, strict=True))
    alike = all(a.gemm.n == b.gemm.n or a.gemm.k == b.gemm.k for a, b in pairs)
    return [(a, b.role) for a, b in pairs] if alike else None


def _layers(kernels: Kernels) -> dict[tuple[int, int], list[_Linear]]:
    """The plain linears of each step and layer, in the order of their launch."""
    rows = kernels.frame.filter(
        pl.col("primary")
        & pl.col("kind").is_in(_PLAIN)
        & pl.col("layer").is_not_null()
        & pl.col("call").is_not_null()
    ).sort("launched", "start")
    out: dict[tuple[int, int], list[_Linear]] = defaultdict(list)
    for step, layer, instance, role, call in rows.select(
        "step", "layer", "instance", "role", "call"
    ).iter_rows():
        work = kernels.works[call]
        if work is not None and len(work.gemms) == 1 and work.gemms[0].batch == 1:
            out[step, layer].append(_Linear(instance, role, work.gemms[0]))
    return out
