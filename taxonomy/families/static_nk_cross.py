"""Static NK, cross-layer: the residual stream itself is narrower."""

from __future__ import annotations

from dataclasses import replace

from taxonomy.family import Family, Knob, Point, pattern
from taxonomy.keep import kept_hidden
from taxonomy.plan import Plan, Workload
from taxonomy.shape import ModelShape
from taxonomy.theory import dense_plan


def plans(shape: ModelShape, work: Workload, point: Point) -> list[Plan]:
    """h' = up16(int(h·p)) everywhere: q, k, v, gate, up K; o, down N; embedding, norms, lm_head K.

    Where junctions keep different sets, each sublayer's residual gets an h'×h' GEMM.
    """
    if point.sparsity == 0:
        return [dense_plan(shape, work)]
    narrow = replace(shape, hidden=kept_hidden(shape.hidden, point.sparsity))
    return [replace(dense_plan(narrow, work), residual=point.knobs["junctions"] == "different")]


FAMILY = Family(
    id="static-nk-cross",
    title="Static NK, cross-layer",
    dynamics="static",
    axes=pattern("K - - N K N"),
    unit="residual-stream (hidden) dimensions",
    methods=("SliceGPT",),
    plans=plans,
    knobs={
        "junctions": Knob(
            "different",
            "whether every junction keeps the same dimensions, or each its own (residual GEMMs)",
            ("different", "same"),
        )
    },
    adds=("gemm",),
)
