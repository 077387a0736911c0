"""Work of the fused ops of training frameworks (Megatron-LM, apex): bytes alone.

They are autograd functions, whose ops have their classes' names. Sizes and results as their kernels
read and write them.
"""

from __future__ import annotations

from prunescope.analysis.ops.call import (
    NoModel,
    OpCall,
    Work,
    bytes_only,
    op_model,
    operands,
    size,
    tensor,
)


@op_model("ScaledUpperTriangMaskedSoftmax", kind="softmax")
def causal_softmax(call: OpCall) -> Work:
    """Scores [b, S, L]: a row reads those up to its own place, (L + 1)/2 of L on average, and
    writes all."""
    x = tensor(call, 0, rank=3)
    if not x.shape[-1]:
        raise NoModel
    read = x.numel * (x.shape[-1] + 1) // (2 * x.shape[-1])
    return bytes_only([size(read, x.dtype), x.bytes], kind="softmax")


@op_model("ScaledSoftmax", "ScaledMaskedSoftmax", kind="softmax")
def scaled_softmax(call: OpCall) -> Work:
    """Scores and a mask in, as many probabilities out."""
    return bytes_only([*(t.bytes for t in operands(call)), tensor(call, 0).bytes], kind="softmax")


@op_model(
    "FusedLayerNormAffineFunction",
    "FusedRMSNormAffineFunction",
    "FusedLayerNormFunction",
    "FusedRMSNormFunction",
    "FastLayerNormFN",
    kind="norm",
)
def fused_norm(call: OpCall) -> Work:
    """Rows in, weight and bias, rows out; a mean and a deviation in fp32 a row (RMS: one)."""
    read = operands(call)
    x = read[0]
    width = read[1].numel if len(read) > 1 else 0
    rows = x.numel // width if width else 0
    kept = size(rows * (1 if "RMS" in call.name else 2), "fp32")
    return bytes_only([*(t.bytes for t in read), x.bytes, kept], kind="norm")
