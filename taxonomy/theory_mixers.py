"""The mixers of a hybrid: gated delta net, Mamba-2, short convolution.

In: a Plan and a number of layers. Out: Op records of one layer: projections, convolution,
recurrence. They see every token and stay dense in every family but those that take whole sublayers
or narrow the stream. FLOPs count multiply and add, token by token; bytes are compulsory traffic.
"""

from __future__ import annotations

from collections.abc import Iterable

from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.plan import Op, Plan, whole_gemm
from prunescope.taxonomy.shape import STATE_ITEMSIZE

# FLOPs a token and number of state. Delta rule (arXiv 2412.06464): decay 1, what the key reads 2,
# the correction added 2, what the query reads 2. Mamba-2 (arXiv 2405.21060): decay 1, input times B
# and its sum 2, what C reads 2. A scan in chunks computes more, to use matrix units.
_STATE_FLOP = {"linear": 7, "ssm": 5}


def mixer_ops(plan: Plan, layers: float) -> Iterable[Op]:
    """Projections in, convolution, recurrence (a short convolution has none), projection out."""
    for name, (n, k) in plan.shape.mixer_linears().items():
        if name == "mixer_out":
            yield _convolution(plan, layers)
            if plan.shape.mixer in _STATE_FLOP:
                yield _recurrence(plan, layers)
        role, gemm = name.partition(".")[0], Gemm(plan.work.rows, n, k)
        yield whole_gemm(plan, name, gemm, role=role, group="other", layers=layers)


def _convolution(plan: Plan, layers: float) -> Op:
    """Depthwise and causal: 2·taps FLOPs a channel and token. In and out once; a short convolution
    has a gate before and one behind, which read a channel each. In decode the last taps − 1 inputs
    of each sequence are read too, and one is written."""
    shape, work, b = plan.shape, plan.work, plan.work.itemsize
    channels, taps = shape.mixer_channels, shape.mixer_taps
    last = b * work.batch * channels * (taps - 1)
    read, write = (last, b * work.batch * channels) if not work.prefill else (0.0, last)
    moved = 4 if shape.mixer == "conv" else 2
    extras = 0 if shape.mixer in _STATE_FLOP else shape.mixer_extras
    numbers = channels * taps + extras
    return Op(
        name="conv",
        role="conv",
        group="other",
        cls="conv",
        layers=layers,
        flop=2 * taps * channels * work.rows,
        bytes=b * (work.rows * moved * channels + numbers) + read + write,
        weight_bytes=b * numbers,
        kv_read=read,
        kv_write=write,
        parameters=numbers,
        stored_bytes=b * numbers,
    )


def _recurrence(plan: Plan, layers: float) -> Op:
    """State of d_k (or d_state) numbers a channel. In: values, keys and queries (x, B, C), steps
    and decays, the gate of the norm; out: values. A prefill writes the state once, a decode step
    reads and writes it."""
    shape, work, b = plan.shape, plan.work, plan.work.itemsize
    numbers = shape.mixer_width * shape.mixer_state
    state = float(STATE_ITEMSIZE * work.batch * numbers)
    read = 0.0 if work.prefill else state
    elements = 3 * shape.mixer_width + 2 * shape.mixer_keys + shape.mixer_gates
    return Op(
        name="scan",
        role="scan",
        group="other",
        cls="scan",
        layers=layers,
        flop=_STATE_FLOP[shape.mixer] * numbers * work.rows,
        bytes=b * work.rows * elements + read + state,
        kv_read=read,
        kv_write=state,
        parameters=shape.mixer_extras,
        stored_bytes=b * shape.mixer_extras,
    )
