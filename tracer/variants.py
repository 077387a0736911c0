"""The models of a capture: the dense twin, the pruned one, or either alone.

In: a TraceRequest. Out: Variants by name, "dense" first. Each has weights of its own.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch

from taxonomy.errors import PrunescopeError
from tracer.models import Loaded, load_model
from tracer.pruners import Applied, Point, family_point, pruner
from tracer.request import TraceRequest
from tracer.user_method import apply_method, load_method


@dataclass(kw_only=True)
class Variant:
    """A model that is run, and what was done to it (None for a model as it was loaded)."""

    name: str  # "dense" | "pruned"
    model: Any
    loaded: Loaded
    pruning: dict[str, Any] | None = None
    layer_map: list[int] | None = None


def check_method(request: TraceRequest) -> None:
    """Raises PrunescopeError on a method or knob that does not exist, before a model is loaded."""
    if request.method is None:
        return
    if ":" in request.method:
        load_method(request.method)
        if request.knobs:
            raise PrunescopeError(
                f"--set has no meaning for {request.method}",
                hint="a method of your own takes (model, sparsity) alone",
            )
    else:
        _point(request)


def make_variants(request: TraceRequest, device: torch.device) -> list[Variant]:
    """Load and prune. Dense and pruned come from the same weights unless two models are named."""
    options: dict[str, Any] = {"dtype": request.dtype, "device": device, "attn": request.attn}
    loaded = load_model(request.model, **options)
    variants = []
    if request.baseline_model is not None:
        dense = load_model(request.baseline_model, **options)
        variants.append(Variant(name="dense", model=dense.model, loaded=dense))
    elif request.baseline is None and not (request.no_baseline and request.method):
        variants.append(Variant(name="dense", model=loaded.model, loaded=loaded))
    if request.method or request.baseline_model is not None or request.baseline is not None:
        shared = any(v.model is loaded.model for v in variants)
        variants.append(_pruned(request, loaded, copy_first=shared))
    return variants


def _pruned(request: TraceRequest, loaded: Loaded, *, copy_first: bool) -> Variant:
    model = copy.deepcopy(loaded.model) if copy_first else loaded.model
    if request.method is None:
        return Variant(name="pruned", model=model, loaded=loaded)
    point = _point(request)
    applied = _apply(request.method, model, point)
    if not hasattr(applied.model, "config"):
        raise PrunescopeError(
            f"the model that {request.method} returned has no `config`",
            hint="return a model of transformers, changed as you like",
        )
    pruning = {
        "method": request.method,
        "sparsity": request.sparsity,
        "knobs": dict(point.knobs),
        "selection": request.select,
        "seed": request.seed,
        **applied.record,
    }
    return Variant(
        name="pruned",
        model=applied.model,
        loaded=loaded,
        pruning=pruning,
        layer_map=applied.layer_map,
    )


def _point(request: TraceRequest) -> Point:
    asked = Point(
        sparsity=request.sparsity, knobs=request.knobs, select=request.select, seed=request.seed
    )
    if request.method is None or ":" in request.method:
        return asked
    return family_point(request.method, asked)


def _apply(method: str, model: Any, point: Point) -> Applied:
    if ":" in method:
        return apply_method(method, model, point)
    with torch.no_grad():
        return pruner(method).prune(model, point)
