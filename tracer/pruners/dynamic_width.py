"""Dynamic width: a low-rank predictor chooses f' = up16(int(f·p)) MLP channels for each forward.

The tokens of a forward share one channel set. The chosen rows of gate and up and columns of down
are gathered, and the GEMMs run on the slices; all weights stay in memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from taxonomy.keep import kept_intermediate, rounding, up16
from tracer.prenorm import prenorm_layers, rebuilt
from tracer.pruners import Applied, Point
from tracer.routing import Draws, Tally, refuse_calibration, score_weight

_RANK = 16  # the predictor's rank is h/16, as a multiple of 16


def prune(model: PreTrainedModel, point: Point) -> Applied:
    """Put a predictor before every MLP. No weight goes."""
    refuse_calibration(point, "dynamic-width")
    layers = prenorm_layers(model)
    draws = Draws(point, "dynamic-width")

    def rebuild(sparsity: float) -> None:
        for index, layer in enumerate(layers):
            parts: Any = layer
            if not isinstance(parts.mlp, _SlicedMlp):
                parts.mlp = _SlicedMlp(parts.mlp, point, draws, index)
            parts.mlp.router.sparsity = sparsity

    rebuilt(model, rebuild, sparsity=point.sparsity)
    widths = [kept_intermediate(_width(layer), point.sparsity) for layer in layers]
    notes = ["all tokens of a forward use one set of channels"]
    notes += rounding(widths[0], _width(layers[0]), point.sparsity, "MLP channels")
    return Applied(model=model, record={"kept": {"intermediate": widths}, "notes": notes})


def _width(layer: Any) -> int:
    return int(layer.mlp.down_proj.weight.shape[1])


class ChannelPredictor(nn.Module):
    """Scores [h] → r → [f] of the mean hidden state, and the channels with the highest ones."""

    def __init__(self, point: Point, draws: Draws, layer: int, like: torch.Tensor) -> None:
        super().__init__()
        channels, hidden = like.shape
        rank, what = up16(max(_RANK, hidden / _RANK)), f"dynamic-width {layer}"
        self.sparsity, self.draws = point.sparsity, draws.own(point, what)
        self.weight_in = score_weight(rank, hidden, like=like, seed=point.seed, what=f"{what} in")
        self.weight_out = score_weight(channels, rank, like=like, seed=point.seed, what=what)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, h] to the sorted channels [f']."""
        pooled = x.mean((0, 1)).unsqueeze(0)
        scores = linear(linear(pooled, self.weight_in), self.weight_out).squeeze(0)
        count = kept_intermediate(scores.numel(), self.sparsity)
        return self.draws.instead_of(scores).topk(count).indices.sort().values


class _SlicedLinear(nn.Module):
    """A linear layer on some of its output (dim 0) or input (dim 1) features."""

    def __init__(self, original: nn.Linear, dim: int) -> None:
        super().__init__()
        self.weight, self.bias, self.dim = original.weight, original.bias, dim

    def forward(self, x: torch.Tensor, channels: torch.Tensor) -> torch.Tensor:
        """[B, T, K] or [B, T, f'] to [B, T, f'] or [B, T, N]."""
        bias: torch.Tensor | None = self.bias
        if bias is not None and self.dim == 0:
            bias = bias.index_select(0, channels)
        return linear(x, self.weight.index_select(self.dim, channels), bias)


class _SlicedMlp(nn.Module):
    """An MLP on the channels that its predictor chose."""

    def __init__(self, original: nn.Module, point: Point, draws: Draws, layer: int) -> None:
        super().__init__()
        parts: Any = original
        self.router = ChannelPredictor(point, draws, layer, parts.up_proj.weight)
        self.gate_proj = _SlicedLinear(parts.gate_proj, 0)
        self.up_proj = _SlicedLinear(parts.up_proj, 0)
        self.down_proj = _SlicedLinear(parts.down_proj, 1)
        self.act_fn, self.tally = parts.act_fn, Tally("channels")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, h] to [B, T, h]."""
        channels = self.router(x)
        self.tally.add(channels.numel(), self.up_proj.weight.shape[0])
        inner = self.act_fn(self.gate_proj(x, channels)) * self.up_proj(x, channels)
        return self.down_proj(inner, channels)

    def prunescope_stats(self) -> dict[str, Any]:
        """Channels used, see `tracer.pruners.Counting`."""
        return self.tally.take()
