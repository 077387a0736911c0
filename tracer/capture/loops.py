"""The loop of a phase for each variant, on the same inputs.

In: a TraceRequest and variants. Out: Loops, eager ones or recorded ones, by variant.
"""

from __future__ import annotations

import torch

from prunescope.tracer.capture.graph_mode import RECORDERS, Record, static_loop
from prunescope.tracer.capture.phases import DecodeLoop, Loop, PrefillLoop
from prunescope.tracer.capture.real_text import input_ids
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.capture.variants import Variant


def loops_of(
    request: TraceRequest,
    phase: str,
    variants: list[Variant],
    device: torch.device,
    record: Record | None = None,
) -> dict[str, Loop]:
    """Of one phase, by variant; `record`: what stands in for the mode's own way to record steps."""
    length = request.prompt_len + (request.decode_steps if phase == "decode" else 0)
    ids = input_ids(request, variants, length=length)[0].to(device)
    loops: dict[str, Loop] = {}
    for variant in variants:
        if request.mode != "eager":
            how = record or RECORDERS[request.mode]
            loops[variant.name] = static_loop(variant.model, ids, request, phase, how)
        elif phase == "prefill":
            loops[variant.name] = PrefillLoop(variant.model, ids, logits=request.logits)
        else:
            loops[variant.name] = DecodeLoop(
                variant.model, ids, prompt_len=request.prompt_len, logits=request.logits
            )
    return loops
