"""The work of one distinct op call: FLOPs, compulsory bytes and logical GEMMs.

In: an OpCall as a torch profiler trace records it. Out: a Work, or None where nothing is known.
Every op has one model, a decorated function in analysis/ops.
"""

from __future__ import annotations

from prunescope.analysis.ops import (
    attention,
    convolution,
    experts,
    matmul,
    memory,
    pointwise,
    quantised,
    serving,
    sparse,
    training,
)
from prunescope.analysis.ops.call import (
    MODELS,
    NEED_RESULT,
    USUAL_KINDS,
    NoModel,
    OpCall,
    Work,
    op_model,
)

__all__ = ["MODELS", "NEED_RESULT", "USUAL_KINDS", "OpCall", "Work", "op_model", "work_of"]

# Importing a module registers its models; the tuple is the list of them.
MODEL_MODULES = (
    attention, convolution, experts, matmul, memory, pointwise, quantised, serving,
    sparse, training,
)  # fmt: skip


def work_of(call: OpCall) -> Work | None:
    """FLOPs, bytes and GEMMs of a call; None where its op has no model, the trace has no shapes
    of its inputs, or they do not fit."""
    if not call.shapes:
        return None
    is_indexed = sparse.indexed_operand(call) is not None
    model = sparse.indexed_product if is_indexed else MODELS.get(call.name)
    model = model or pointwise.generated(call.name)
    model = model or quantised.custom_product(call.name) or experts.custom_grouped(call.name)
    if model is None:
        return None
    try:
        return model(call)
    except NoModel:
        return None
