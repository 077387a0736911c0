"""Dynamic families in an eager loop and as steps of fixed shapes, with the same decisions."""

from __future__ import annotations

from typing import Any

import torch

from prunescope.tracer.calibration.point import Point
from prunescope.tracer.capture.graph_mode import Record, StaticDecode, StaticPrefill, record_nothing
from prunescope.tracer.capture.phases import DecodeLoop, Loop, PrefillLoop
from prunescope.tracer.model.load import load_model
from prunescope.tracer.pruners import family_point, pruner

BATCH, PROMPT, STEPS = 2, 40, 4
FAMILIES = {
    "dynamic-m": {},
    "dynamic-m by layer": {"unit": "layer"},
    "dynamic-m by threshold": {"choose": "threshold"},
    "token-drop": {},
    "token-drop in steps": {"schedule": "1,3"},
    "dynamic-width": {},
    "dynamic-depth": {"in_graphs": "masked"},
    "dynamic-depth by early exit": {"in_graphs": "masked", "exit": "early"},
    "dynamic-depth of lower layers": {"exit": "lower"},
    "dynamic-nk": {},
    "dynamic-nk of values": {"blocks": "value"},
    "kv-evict": {},
    "kv-evict but the latest": {"keep": "recent"},
    "kv-evict but sinks": {"keep": "sinks"},
    "kv-evict in steps": {"keep": "accumulated"},
}
# Eager steps draw random numbers of the shape of the keys so far, static ones of all places: their
# decisions are compared by scores.
SCORED = {"dynamic-nk", "dynamic-nk of values", "kv-evict in steps"}


def pruned(name: str, *, dtype: str = "auto") -> Any:
    """tiny-llama at s = 0.5 by the family and knobs of FAMILIES."""
    select = "importance" if name in SCORED else "random"
    device = torch.device("cpu")
    model = load_model("tiny-llama", dtype=dtype, device=device, attn="sdpa").model
    request = Point(sparsity=0.5, knobs=FAMILIES[name], select=select)
    family = name.split()[0]
    return pruner(family).prune(model, family_point(family, request)).model


def ids() -> torch.Tensor:
    """Token ids of the prompts and the steps, [B, S + T]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (BATCH, PROMPT + STEPS), generator=generator)


def loops(model: Any, phase: str, record: Record = record_nothing) -> tuple[Loop, Any]:
    """The eager loop of a phase, and the static one."""
    tokens = ids()
    if phase == "prefill":
        prompt = tokens[:, :PROMPT]
        return (
            PrefillLoop(model, prompt, logits="all"),
            StaticPrefill(model, prompt, logits="all", record=record),
        )
    return (
        DecodeLoop(model, tokens, prompt_len=PROMPT, logits="last"),
        StaticDecode(model, tokens, prompt_len=PROMPT, logits="last", record=record),
    )


def restart(model: Any) -> None:
    """Begin the random stream of every router again."""
    for module in model.modules():
        owner = getattr(module, "route", module)  # layers that may be skipped share a sampler
        sampler = getattr(owner, "sampler", None)
        if sampler is not None:
            sampler.stream.seed(7)


def sampled(model: Any, loop: Any) -> torch.Tensor:
    """The logits of a sample, whose decisions are those of streams that begin with its prompt."""
    loop.prepare()  # a static loop finds its samplers, and records its step
    restart(model)
    if isinstance(loop, StaticDecode):
        loop._read(PROMPT)
        loop._filled = PROMPT
        loop._static.resample()
    else:
        if isinstance(loop, DecodeLoop):
            loop._fill(0)
        loop.prepare()
    out: torch.Tensor = loop.sample().logits.clone()
    return out
