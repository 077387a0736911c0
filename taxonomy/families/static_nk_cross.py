"""Static NK, cross-layer: the residual stream itself is narrower."""

from __future__ import annotations

from operator import attrgetter

from msgspec.structs import replace

from prunescope.taxonomy.applies import YES, Applies
from prunescope.taxonomy.architecture_traits import Traits
from prunescope.taxonomy.family import ALIGNMENT, Family, FamilyPoint, Knob, pattern
from prunescope.taxonomy.keep import kept_hidden
from prunescope.taxonomy.plan import Plan, Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plan


def plans(shape: ModelShape, work: Workload, point: FamilyPoint) -> list[Plan]:
    """Return the forward of a stream with h' = int(h·p), aligned, of h dimensions (p = 1 − s).

    h' is K of q, k, v, gate, up, routers, experts and mixers; N of o, down, experts and mixers; the
    width of embedding, norms and lm_head.

    Where junctions keep different dimensions, the residual from one to the next gets an h'×h' GEMM,
    and lm_head a matrix of its own. A norm with a bias becomes an RMS norm, and the matrices that
    read it take over its bias.
    """
    if point.sparsity == 0:
        return [dense_plan(shape, work)]
    different, biased = point.knobs["junctions"] == "different", shape.norms.per_element == 2
    narrow = shape.change(
        hidden=kept_hidden(shape.hidden, point.sparsity, point.align),
        tied=shape.embedding.tied and not (different or shape.norms.centred),
        head_bias=shape.embedding.head_bias or biased,
        norm_parameters=1,
        embedding_norm=False,
        cross_width=shape.cross.width
        and kept_hidden(shape.cross.width, point.sparsity, point.align),
    )
    return [replace(dense_plan(narrow, work), residual=different, shifted=biased)]


def applies(traits: Traits) -> Applies:
    """Answer for every stream; with one basis if residuals cannot go through a map."""
    shape, entry = traits.shape, traits.entry
    if shape is None:
        return Applies(YES)
    reasons = []
    if shape.norms.centred:
        reasons.append("layer norms become RMS norms, their mean and bias part of the weights")
    if entry is not None and entry.no_maps:
        reasons.append(f"with junctions=same alone: {entry.no_maps}")
    return Applies(YES, "; ".join(reasons))


FAMILY = Family(
    id="static-nk-cross",
    title="Static NK, cross-layer",
    dynamics="static",
    axes=pattern("K - - N K N"),
    unit="residual-stream (hidden) dimensions",
    cuts=("stream",),
    applies=applies,
    not_implemented=attrgetter("outside"),
    leaves=("q_b", "kv_b"),  # they read latents, not the stream
    mixers="stream",
    methods=("SliceGPT",),
    plans=plans,
    knobs={
        "junctions": Knob(
            "different",
            "whether every junction (where a sublayer reads or adds to the stream) keeps the "
            "same dimensions, or each its own (residual GEMMs)",
            ("different", "same"),
            "every junction keeps its own dimensions, as SliceGPT does, with a residual GEMM "
            "after each sublayer; --set junctions=same (Minitron, Sheared LLaMA) has none",
        ),
        "align": ALIGNMENT,
    },
    adds=("gemm",),
    calibration="text",
)
