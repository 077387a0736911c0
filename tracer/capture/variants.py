"""The models of a capture: the dense baseline, the pruned one, or either alone.

A TraceRequest comes in; Variants by name go out, "dense" first. Each has weights of its own.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from prunescope.taxonomy.allocations.allocation_plan import read_plan
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.runs.run_blocks import Pruning
from prunescope.taxonomy.runs.run_quality import Quality
from prunescope.taxonomy.timings import part
from prunescope.taxonomy.words import when
from prunescope.tracer.capture.application import apply_request
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.machine.device import free_bytes
from prunescope.tracer.model.layers import is_in_tower, is_known
from prunescope.tracer.model.load import Loaded, load_model
from prunescope.tracer.model.logits import probe
from prunescope.tracer.model.packed_weights import weight_bytes
from prunescope.tracer.pruners.user_method import check_returned, load_method

# A second model needs so many times the size of its weights in free memory, some for a forward.
_ROOM = 1.2
# Names of tables of learnt positions in transformers.
_POSITIONS = re.compile(r"(?:^|\.)(?:wpe|embed_positions|position_embeddings?|pos_embed)$")


class BaselineDoesNotFit(Exception):
    """The error that dense and pruned do not fit in memory together."""


@dataclass(kw_only=True)
class Variant:
    """A model to run, and its pruning (None for an unpruned model)."""

    name: str  # "dense" | "pruned"
    model: Any
    loaded: Loaded
    pruning: Pruning | None = None
    layer_map: list[int] | None = None
    adapter: Any = None  # of recovery training, where it is saved unmerged


@dataclass(kw_only=True)
class Prepared:
    """Variants for several captures, "dense" first.

    `quality` is that of each manifest, by variant. `evaluated_for` is what it was measured for: the
    length of its windows, and the phase.
    """

    variants: list[Variant]
    quality: dict[str, Quality] = field(default_factory=dict)
    evaluated_for: tuple[int, str] | None = None


def check_method(request: TraceRequest) -> None:
    """Check the method and its knobs before a model is loaded.

    Raises:
        PrunescopeError: The method is unknown, or a knob has no effect on it.
    """
    if request.method is None or request.parts is not None:
        return
    if request.plan is not None:
        read_plan(request.plan)
    else:
        load_method(request.method)
    if request.knobs:
        raise PrunescopeError(
            f"--set has no effect on {Path(request.method).name}",
            hint="a plan says what stays of each layer"
            if request.plan is not None
            else "a method of your own takes only (model, sparsity)",
        )


def variant_names(request: TraceRequest) -> tuple[str, ...]:
    """Return the variants of a request: "dense" and/or "pruned", in this order."""
    names = []
    alone = request.no_baseline and request.method is not None
    if request.baseline is None and not alone:
        names.append("dense")
    if request.method or request.baseline_model is not None or request.baseline is not None:
        names.append("pruned")
    return tuple(names)


@part("prune")
def make_variants(
    request: TraceRequest,
    device: torch.device,
    names: tuple[str, ...],
    *,
    dense: Loaded | None = None,
) -> list[Variant]:
    """Load and prune the models of a capture.

    Dense and pruned come from the same weights unless two models are named.

    Args:
        request: The request.
        device: The device that the models run on.
        names: The variants to make.
        dense: The dense model of this request where it is in memory; None loads it.

    Raises:
        BaselineDoesNotFit: There is no memory for the second of two models.
    """
    options: dict[str, Any] = {"dtype": request.dtype, "device": device, "attn": request.attn}
    variants: list[Variant] = []
    if "dense" in names:
        loaded = dense or load_model(request.baseline_model or request.model, **options)
        _check_positions(loaded.model, request)
        _check_runs(loaded.model, "unpruned")
        variants.append(Variant(name="dense", model=loaded.model, loaded=loaded))
    if "pruned" in names:
        if variants and (weight_bytes(variants[0].model) or 0) * _ROOM > free_bytes(device):
            raise BaselineDoesNotFit
        if variants and request.baseline_model is None:
            loaded = replace(variants[0].loaded, model=copy.deepcopy(variants[0].model))
        else:
            loaded = load_model(request.model, **options)
            _check_positions(loaded.model, request)
        variants.append(_make_pruned(request, loaded))
    return variants


def _make_pruned(request: TraceRequest, loaded: Loaded) -> Variant:
    """Prune a loaded model by the request, and check that it runs."""
    if request.method is None:
        return Variant(name="pruned", model=loaded.model, loaded=loaded)
    applied, pruning = apply_request(request, loaded)
    if not hasattr(applied.model, "config"):
        raise PrunescopeError(
            f"the model that {request.method} returned has no `config`",
            hint="return a model of transformers",
        )
    if (
        request.parts is None and request.plan is None
    ):  # also for known architectures: it may have changed anything
        check_returned(request.method, applied.model)
    _check_runs(applied.model, f"pruned with {Path(request.method).name}")
    return Variant(
        name="pruned",
        model=applied.model,
        loaded=loaded,
        pruning=pruning,
        layer_map=applied.layer_map,
        adapter=applied.adapter,
    )


def _check_positions(model: Any, request: TraceRequest) -> None:
    """Raise PrunescopeError if the phases need more positions than the model has learnt."""
    decodes = "decode" in request.phases
    wanted = request.prompt_len + (request.decode_steps if decodes else 0)
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Embedding) or not _POSITIONS.search(name):
            continue
        if is_in_tower(name):  # positions of image patches
            continue
        most = module.num_embeddings - getattr(module, "offset", 0)  # OPT's first two are unused
        if wanted > most:
            raise PrunescopeError(
                f"{wanted} tokens were requested, and this model has {most} learnt positions",
                hint=f"--prompt-len {request.prompt_len - (wanted - most)} is the most"
                + when(decodes, " with these --decode-steps"),
            )


def _check_runs(model: Any, description: str) -> None:
    """Probe a model of an unknown architecture before it is timed."""
    if not is_known(model):
        probe(model, description)
