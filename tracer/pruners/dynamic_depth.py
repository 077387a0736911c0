"""Dynamic depth: each forward skips whole layers, any of them or the last ones (early exit).

A router on the pooled hidden state stands before every layer; which layers an input skips is drawn
anew for each forward. A skipped layer caches nothing for its tokens, so that its cache has holes:
decode after prefill is no forward of the whole sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from taxonomy.keep import removed_layers, rounding
from tracer import compat
from tracer.prenorm import prenorm_layers, rebuilt
from tracer.pruned_attention import PlainAttention, counted_layer, past_length, refuse_padding
from tracer.pruners import Applied, Point
from tracer.routing import Draws, Tally, refuse_calibration, score_weight


def prune(model: PreTrainedModel, point: Point) -> Applied:
    """Put a router before every layer. No weight goes."""
    refuse_calibration(point, "dynamic-depth")
    layers = prenorm_layers(model)
    early = point.knobs["exit"] == "early"
    route = _Route(len(layers), early, Draws(point, "dynamic-depth"))

    def rebuild(sparsity: float) -> None:
        if not isinstance(layers[0], _SkippableLayer):
            for index in range(len(layers)):
                layers[index] = _SkippableLayer(layers[index], point, route)
        route.sparsity = sparsity

    rebuilt(model, rebuild, sparsity=point.sparsity)
    gone = removed_layers(len(layers), point.sparsity)
    how = f"one of the {gone} ± 1 last layers" if early else f"{gone} of {len(layers)} layers"
    notes = [f"each forward skips {how}, drawn with the seed; a skipped layer caches nothing"]
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

    def __init__(self, point: Point, layer: int, like: torch.Tensor) -> None:
        super().__init__()
        self.weight = score_weight(
            1, like.shape[-1], like=like, seed=point.seed, what=f"dynamic-depth {layer}"
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, h] to whether each sequence runs, [B, 1]."""
        return linear(x.mean(1), self.weight) > 0


class _SkippableLayer(compat.TakesCache):
    """A decoder layer, or the identity."""

    def __init__(self, layer: nn.Module, point: Point, route: _Route) -> None:
        super().__init__()
        parts: Any = layer
        self.self_attn = PlainAttention(parts.self_attn)
        self.index = self.self_attn.layer_idx
        self.router = _DepthRouter(point, self.index, self.self_attn.q_proj.weight)
        self.input_layernorm, self.mlp = parts.input_layernorm, parts.mlp
        self.post_attention_layernorm = parts.post_attention_layernorm
        self.route, self.tally = route, Tally("layers")

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: Any = None, **arguments: Any
    ) -> torch.Tensor:
        """[B, T, h] to [B, T, h]."""
        cache = arguments.get("cache")
        cached = None if cache is None else counted_layer(cache, self.index)
        if self.index == 0:
            past = past_length(cache, 0)
            refuse_padding(attention_mask, hidden_states.shape[1], past)
            self.route.start()
        if not (self.route.early and self.index in self.route.skipped):
            # The value is drawn in `start`: a decision on the host would stop the device here.
            self.router(hidden_states)
        runs = self.index not in self.route.skipped
        self.tally.add(int(runs), 1)
        if not runs:
            if cached is not None:
                cached.seen += hidden_states.shape[1]
            return hidden_states
        normed = self.input_layernorm(hidden_states)
        hidden_states = hidden_states + self.self_attn(normed, **arguments)[0]
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))

    def prunescope_stats(self) -> dict[str, Any]:
        """Whether the layer ran, see `tracer.pruners.Counting`."""
        return self.tally.take()
