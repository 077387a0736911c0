"""The work of one distinct op call: FLOPs, compulsory bytes and logical GEMMs.

An OpCall as a torch profiler trace records it gives a Work, or None where nothing is known. Every
op has one model, a decorated function in analysis/ops.
"""

from __future__ import annotations

from prunescope.analysis.ops import (
    attention,
    convolution,
    matmul,
    memory,
    pointwise,
    quantised,
    serving,
    sparse,
)
from prunescope.analysis.ops import grouped_gemms as experts
from prunescope.analysis.ops.call import (
    MODELS,
    NEED_RESULT,
    USUAL_KINDS,
    Model,
    NoModel,
    OpCall,
    Work,
    op_model,
)

__all__ = ["MODELS", "NEED_RESULT", "USUAL_KINDS", "OpCall", "Work", "op_model", "work_of"]

# Importing a module registers its models; the tuple is the list of them.
MODEL_MODULES = (
    attention, convolution, experts, matmul, memory, pointwise, quantised, serving,
    sparse,
)  # fmt: skip


def work_of(call: OpCall) -> Work | None:
    """Return the FLOPs, bytes and GEMMs of a call.

    Args:
        call: The call, as a trace records it.

    Returns:
        The work; None where the op has no model, or the trace has no shapes of its inputs or
        shapes that do not fit.
    """
    if not call.shapes:
        return None
    model: Model | None
    if sparse.indexed_operand(call) is not None:
        model = sparse.indexed_product
    else:
        model = (
            MODELS.get(call.name)
            or pointwise.generated_kernel_model(call.name)
            or quantised.library_product_model(call.name)
            or experts.library_grouped_model(call.name)
        )
    if model is None:
        return None
    try:
        return model(call)
    except NoModel:
        return None
