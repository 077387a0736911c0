"""Dynamic depth: each forward skips whole layers, any of them or the last ones (early exit).

A router on the pooled hidden state stands before every layer; which layers an input skips is drawn
anew for each forward. A skipped layer caches nothing for its tokens, so that its cache has holes,
and a mixer in it updates no state: decode after prefill is no forward of the whole sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from prunescope.taxonomy.keep import removed_layers, rounding
from prunescope.tracer.attention.inserted import by_name, extend
from prunescope.tracer.attention.layer_places import LayerPlace, layer_places
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.model import compat
from prunescope.tracer.model.layers import text_config
from prunescope.tracer.pruners import Applied
from prunescope.tracer.routing.prenorm import check_runs, has_mixers, movable_layers, rebuilt
from prunescope.tracer.routing.routing import (
    Counted,
    Draws,
    Tally,
    refuse_calibration,
    score_weight,
)


def prune(model: PreTrainedModel, point: Point) -> Applied:
    """Put a router before every layer. No weight goes."""
    refuse_calibration(point, "dynamic-depth")
    layers = movable_layers(model)
    places = layer_places(model, layers)
    hidden = int(text_config(model).hidden_size)
    early = point.knobs["exit"] == "early"
    route = _Route(len(layers), early, Draws(point, "dynamic-depth"))

    def build() -> list[_Route]:
        for place, layer in zip(places, layers, strict=True):
            extend(layer, _Skippable)
            parts: Any = layer
            parts.router = _DepthRouter(point, place.number, next(layer.parameters()), hidden)
            parts.place, parts.route, parts.tally = place, route, Tally("layers")
        return [route]

    rebuilt(model, build, sparsity=point.sparsity)
    check_runs(model, "with layers skipped", route.draws.stream)
    gone = removed_layers(len(layers), point.sparsity)
    how = f"one of the {gone} ± 1 last layers" if early else f"{gone} of {len(layers)} layers"
    state = " and updates no state" if has_mixers(model) else ""
    notes = [
        f"each forward skips {how}, drawn with the seed; a skipped layer caches nothing{state}"
    ]
    notes += rounding(len(layers) - gone, len(layers), point.sparsity, "layers")
    return Applied(model=model, record={"kept": {"layers": len(layers) - gone}, "notes": notes})


@dataclass
class _Route:
    """Which layers the forward at hand skips."""

    num_layers: int
    early: bool
    draws: Draws
    sparsity: float = 0.0
    skipped: set[int] = field(default_factory=set)

    def start(self) -> None:
        """Draw for a new forward: int(n·s) layers, or that many ± 1 (with that mean) at the end."""
        count = removed_layers(self.num_layers, self.sparsity)
        if self.early:
            spread = min(1, count, max(0, self.num_layers - 1 - count))
            count += self.draws.stream.randint(-spread, spread)
            self.skipped = set(range(self.num_layers - count, self.num_layers))
        else:
            self.skipped = set(self.draws.stream.sample(range(self.num_layers), count))


class _DepthRouter(nn.Module):
    """A score [h] → 1 of the mean hidden state of each sequence."""

    def __init__(self, point: Point, layer: int, like: torch.Tensor, hidden: int) -> None:
        super().__init__()
        self.weight = score_weight(
            1, hidden, like=like, seed=point.seed, what=f"dynamic-depth {layer}"
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, h] to whether each sequence runs, [B, 1]."""
        return linear(x.mean(1), self.weight) > 0


class _Skippable(Counted):
    """A decoder layer, or the identity."""

    router: _DepthRouter
    route: _Route
    place: LayerPlace
    outputs: int  # of a layer that gives a tuple, else 0

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """[B, T, h] to [B, T, h]."""
        arguments = by_name(self, args, kwargs)
        index, mask = self.place.number, arguments.get("attention_mask")
        cached = self.place.counted(compat.cache_in(arguments))
        tokens = hidden_states.shape[1]
        if index == 0:
            self.place.refuse_padding(mask, tokens, cached.seen if cached is not None else 0)
            self.route.start()
        if not (self.route.early and index in self.route.skipped):
            # The value is drawn in `start`: a decision on the host would stop the device here.
            self.router(hidden_states)
        runs = index not in self.route.skipped
        self.tally.add(int(runs), 1)
        if not runs:
            if cached is not None:
                cached.seen += tokens
            return (hidden_states, *[None] * (self.outputs - 1)) if self.outputs else hidden_states
        if cached is not None:
            arguments["attention_mask"] = cached.mask_of(mask, tokens)
        out = super().forward(hidden_states, **arguments)  # type: ignore[misc]
        self.outputs = len(out) if isinstance(out, tuple) else 0
        return out
