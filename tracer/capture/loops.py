"""The token ids that a capture runs on, and the loops of its phases over them.

A request and its variants come in. Ids [B, L] go out, the same for all variants: ids of a text
where they decide what runs, else random ids. So do Loops by variant, eager or recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from prunescope.taxonomy.families import family
from prunescope.taxonomy.runs.run_blocks import InputText
from prunescope.taxonomy.runs.run_quality import RANDOM_IDS
from prunescope.tracer.calibration.texts import random_ids, read_text
from prunescope.tracer.capture.graph_mode import (
    RECORDERS,
    Record,
    record_nothing,
    static_loop,
)
from prunescope.tracer.capture.one_layer import LayerLoop, RestLoop, layers_alone
from prunescope.tracer.capture.phases import (
    DecodeLoop,
    FlushedLoop,
    Loop,
    PrefillLoop,
    Sampled,
)
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.capture.variants import Variant
from prunescope.tracer.machine.timed_calls import CacheFlush
from prunescope.tracer.model import compat
from prunescope.tracer.model.layers import decoder_layers
from prunescope.tracer.model.load import load_tokenizer


def loops_of(
    request: TraceRequest,
    phase: str,
    variants: list[Variant],
    device: torch.device,
    record: Record | None = None,
) -> dict[str, Loop]:
    """Return the loops of a phase, by variant.

    `record` replaces the recorder of the request's mode; None keeps that recorder.
    """
    if request.only == "layer":
        loops: dict[str, Loop] = dict(layer_loops(request, phase, variants, device, record))
    else:
        loops = whole_loops(request, phase, variants, device, record)
    return _flush_loops(request, loops, device)


def _flush_loops(
    request: TraceRequest, loops: Mapping[str, Loop], device: torch.device
) -> dict[str, Loop]:
    """Let the loops flush the last-level cache where the request asks for it."""
    if not request.flush:
        return dict(loops)
    flush = CacheFlush(device)
    return {name: FlushedLoop(loop, flush) for name, loop in loops.items()}


def layer_sum_loops(
    request: TraceRequest, phase: str, variants: list[Variant], device: torch.device
) -> dict[str, dict[str, Sampled]]:
    """Return the loops of a layer sum, by variant.

    Each variant has three: one "layer" alone, the "rest" without the layers, and the "whole" model.
    """
    layers = layer_loops(request, phase, variants, device)
    layer = _flush_loops(request, layers, device)
    whole, without_layers = (
        _flush_loops(request, whole_loops(request, phase, variants, device), device)
        for _ in range(2)
    )
    return {
        variant.name: {
            "layer": layer[variant.name],
            "rest": RestLoop(
                without_layers[variant.name],
                decoder_layers(variant.model)[1],
                layers[variant.name].form,
            ),
            "whole": whole[variant.name],
        }
        for variant in variants
    }


def whole_loops(
    request: TraceRequest,
    phase: str,
    variants: list[Variant],
    device: torch.device,
    record: Record | None = None,
) -> dict[str, Loop]:
    """Return the loops of the whole models, none of which flushes."""
    length = request.prompt_len + (request.decode_steps if phase == "decode" else 0)
    ids = input_ids(request, variants, length=length)[0].to(device)
    loops: dict[str, Loop] = {}
    for variant in variants:
        if request.mode != "eager":
            recorder = record or RECORDERS[request.mode]
            loops[variant.name] = static_loop(variant.model, ids, request, phase, recorder)
        elif phase == "prefill":
            loops[variant.name] = PrefillLoop(variant.model, ids, logits=request.logits)
        else:
            loops[variant.name] = DecodeLoop(
                variant.model, ids, prompt_len=request.prompt_len, logits=request.logits
            )
    return loops


def layer_loops(
    request: TraceRequest,
    phase: str,
    variants: list[Variant],
    device: torch.device,
    record: Record | None = None,
) -> dict[str, LayerLoop]:
    """Return the loops of one layer of each model, the same layer, none of which flushes."""
    whole = whole_loops(request, phase, variants, device, record_nothing)
    length = request.prompt_len + (request.decode_steps if phase == "decode" else 0)
    numbers, recorder = layers_alone(variants), None
    new_cache: Callable[[Any], Any] = compat.new_cache
    if request.mode != "eager":
        recorder = record or RECORDERS[request.mode]
        more = length - request.prompt_len
        new_cache = partial(compat.new_static_cache, prompt_len=request.prompt_len, more=more)
    return {
        variant.name: LayerLoop(
            whole[variant.name],
            decoder_layers(variant.model)[1][numbers[variant.name]],
            decodes=phase == "decode",
            new_cache=partial(new_cache, variant.model),
            record=recorder,
        )
        for variant in variants
    }


def input_ids(
    request: TraceRequest, variants: Sequence[Variant], *, length: int
) -> tuple[torch.Tensor, InputText]:
    """Return token ids [batch, length], and their record for run.json.

    For families that decide at run time they are tokens of the evaluation half of the text, if
    there is a tokenizer: a router that was fitted to a text cannot tell random ids apart. In all
    other cases they are random.
    """
    vocabulary = min(v.model.get_input_embeddings().num_embeddings for v in variants)
    is_dynamic = any(family(part.family).is_dynamic for part in request.parts or ())
    tokenizer = load_tokenizer(variants[0].loaded) if is_dynamic else None
    if tokenizer is not None:
        source, count = read_text(request.text_path), request.batch * length
        ids = tokenizer(source.evaluation[: 16 * count], add_special_tokens=False)["input_ids"]
        if len(ids) > 1 and max(ids) < vocabulary:
            whole = torch.tensor(ids).repeat(-(-count // len(ids)))[:count]
            record = InputText(
                source=source.name,
                sha256=source.sha256,
                part=source.evaluation_part,
                dataset=source.evaluation_dataset,
            )
            return whole.view(request.batch, length), record
    ids_BL = random_ids(vocabulary, batch=request.batch, length=length, seed=request.seed)
    return ids_BL, InputText(source=RANDOM_IDS, seed=request.seed)
