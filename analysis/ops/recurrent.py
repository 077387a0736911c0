"""Work of a recurrent layer in one op: the products of its inputs and of its states by weights.

FLOPs are those of the two products alone. The Gemm is one of both: gates read inputs and states.
"""

from __future__ import annotations

from prunescope.analysis.ops.call import NoModel, OpCall, Work, op_model, size, tensor, total
from prunescope.taxonomy.gemm import Gemm


@op_model("aten::mkldnn_rnn_layer", kind="gemm")
def mkldnn_rnn_layer(call: OpCall) -> Work:
    """Inputs [T, B, I], weights [G·H, I] and [G·H, H], two biases [G·H], states [B, H] each: all T
    steps multiply T·B rows by G·H x (I + H) numbers."""
    x, of_inputs, of_states = tensor(call, 0, rank=3), tensor(call, 1, rank=2), tensor(call, 2)
    (steps, batch, width), (gates, inputs) = x.shape, of_inputs.shape
    if inputs != width or len(of_states.shape) != 2 or of_states.shape[0] != gates:
        raise NoModel
    hidden = of_states.shape[1]
    gemm = Gemm(steps * batch, gates, width + hidden)
    weights = [one.bytes for one in (of_inputs, of_states, tensor(call, 3), tensor(call, 4))]
    written = size(steps * batch * hidden, x.dtype)
    return Work(
        flop=gemm.flop,
        bytes=total([x.bytes, *weights, written]),
        gemms=(gemm,),
        dtype=x.dtype,
        kind="gemm",
    )
