"""The alignment of MLP channels whose GEMMs are fastest on this device, as `gemm` measures them.

In: a model with its request. Out: the arguments of the repair `pad-dimensions`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from prunescope.taxonomy.dtypes import dtype as dtype_name
from prunescope.tracer.gemm.replay import replay
from prunescope.tracer.gemm.request import GemmRequest
from prunescope.tracer.repairs.plain.linear_maps import DoesNotApply
from prunescope.tracer.repairs.plain.zeros import find_channels
from prunescope.tracer.repairs.request import FixCall
from prunescope.tracer.repairs.sides import FixSubject

ALIGNMENTS = (8, 16, 32, 64, 128)


def fastest_alignment(model: nn.Module, call: FixCall, subject: FixSubject) -> dict[str, int]:
    """Return the alignment whose padded sizes multiply fastest, by the sizes of the first MLP.

    Raises:
        DoesNotApply: The model has no MLP whose channels are known, or no padding is needed.
    """
    mlps = find_channels(model)
    if not mlps:
        raise DoesNotApply("no MLP of which the channels are known")
    linear = mlps[0].consumer
    width, hidden = linear.in_features, linear.out_features
    sizes = {a: width + -width % a for a in ALIGNMENTS if width % a}
    if not sizes:
        raise DoesNotApply(f"the MLPs have {width} channels, a multiple of {ALIGNMENTS[-1]}")
    rows = call.batch * (call.prompt_len if "prefill" in subject.phases else 1)
    dtype: Any = dtype_name(str(linear.weight.dtype)) or "fp32"
    request = GemmRequest(
        m=[rows],
        n=sorted(set(sizes.values())),
        k=[hidden],
        dtype=dtype,
        device=subject.device.type,
        placements=4,
        repeats=12,
    )
    replays = replay(request.shapes(), request)
    ns = {gemm.n: gemm.warm.ns for gemm in replays.gemms if gemm.warm is not None}
    timed = [a for a, size in sizes.items() if size in ns]
    if not timed:
        raise DoesNotApply("the GEMMs of padded sizes could not be timed")
    return {"alignment": min(timed, key=lambda a: ns[sizes[a]])}
