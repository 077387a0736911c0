"""Dynamic width: a low-rank predictor chooses f' = int(f·p) MLP channels for each forward.

f' is aligned, and p = 1 − s. All tokens of a forward share one set of channels. The chosen rows of
gate and up and columns of down are gathered, and the GEMMs run on these slices. All weights stay in
memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import cutting
from prunescope.taxonomy.keep import aligned, kept_intermediate, rounding
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.model.channels import Channels, find_channels
from prunescope.tracer.model.forwards import extend
from prunescope.tracer.model.layers import decoder_layers
from prunescope.tracer.model.weights import Weight
from prunescope.tracer.pruners import Applied
from prunescope.tracer.routing.decisions import (
    Counted,
    Sampler,
    Tally,
    refuse_calibration,
    score_weight,
)
from prunescope.tracer.routing.rebuild import rebuild

_RANK = 16  # the predictor's rank is h/16, as a multiple of 16


def prune(model: PreTrainedModel, point: Point) -> Applied:
    """Put a predictor before every MLP; no weights are removed."""
    refuse_calibration(point, "dynamic-width")
    parts = _mlps(model)
    sampler = Sampler(point, "dynamic-width")

    def build() -> list[ChannelPredictor]:
        return [
            _slice_mlp(model, part, ChannelPredictor(point, sampler, index, part))
            for index, part in enumerate(parts)
        ]

    widths = [kept_intermediate(part.total, point.sparsity, point.align) for part in parts]
    notes = ["all tokens of a forward use one set of channels"]
    notes += rounding(widths[0], parts[0].total, point.sparsity, "MLP channels")
    rebuild(model, build, sparsity=point.sparsity)
    return Applied(model=model, record={"kept": {"intermediate": widths}, "notes": notes})


def _mlps(model: Any) -> list[Channels]:
    """Find the MLP of every layer.

    Raises:
        PrunescopeError: A layer has none, several, or one with norms inside.
    """
    name, layers = decoder_layers(model)
    parts = [
        part
        for index, layer in enumerate(layers)
        for part in find_channels(layer, f"{name}.{index}")
    ]
    kinds = {part.kind for part in parts}
    if kinds - {"mlp"}:
        raise PrunescopeError(
            f"{type(model).__name__} has experts, which a router of the model chooses",
            hint=f"dynamic-width takes models with one MLP a layer; use {cutting('channels')}",
        )
    if len(parts) != len(layers) or any(part.norms for part in parts):
        raise PrunescopeError(
            f"the layers of {type(model).__name__} do not have one MLP each, without norms inside",
            hint=f"use {cutting('channels')}, or {cutting('layers')}, which removes whole layers",
        )
    return parts


def _slice_mlp(model: Any, part: Channels, router: ChannelPredictor) -> ChannelPredictor:
    """Make an MLP run on the channels that `router` chooses, and return the router."""
    for weight in (*part.ups, part.down):
        extend(weight.module, _Sliced)
        weight.module.slicing = _Slicing(weight, router, part)
    # An MLP without a module begins at its first projection.
    host: Any = model.get_submodule(part.path) if part.modules else part.ups[0].module
    extend(host, _Predicting)
    host.router, host.tally = router, Tally("channels")
    return router


class ChannelPredictor(nn.Module):
    """A predictor that scores channels by the mean hidden state, [h] → r → [f]."""

    def __init__(self, point: Point, sampler: Sampler, layer: int, part: Channels) -> None:
        super().__init__()
        hidden, like = part.ups[0].k, part.ups[0].tensor
        rank, purpose = aligned(max(_RANK, hidden / _RANK)), f"dynamic-width {layer}"
        self.sparsity, self.align = point.sparsity, point.align
        self.sampler = sampler.stream_for(point, purpose)
        self.chosen: Tensor | None = None
        seed = point.seed
        self.weight_in = score_weight(rank, hidden, like=like, seed=seed, purpose=f"{purpose} in")
        self.weight_out = score_weight(part.total, rank, like=like, seed=seed, purpose=purpose)

    def forward(self, x: Tensor) -> Tensor:
        """Choose the channels [f'] with the highest scores for x [.., h], sorted.

        They are kept in `chosen` until the next forward.
        """
        pooled = x.mean(tuple(range(x.dim() - 1))).unsqueeze(0)
        scores = linear(linear(pooled, self.weight_in), self.weight_out).squeeze(0)
        count = kept_intermediate(scores.numel(), self.sparsity, self.align)
        self.chosen = self.sampler.replace(scores).topk(count).indices.sort().values
        return self.chosen


class _Slicing:
    """The features of a weight [N, K] that belong to the channels chosen by a router."""

    def __init__(self, weight: Weight, router: ChannelPredictor, part: Channels) -> None:
        self.weight, self.router, self.part = weight, router, part
        self.slices_inputs = weight is part.down
        self.axis = int(weight.is_transposed != self.slices_inputs)

    def features(self) -> Tensor:
        """Return the features of the chosen channels: [f'], or [2·f'] of a fused gate and up."""
        chosen = self.router.chosen
        assert chosen is not None
        return chosen if self.slices_inputs else self.part.output_rows(self.weight, chosen)


class _Sliced:
    """A linear layer that runs on some of its output or input features; its weight is kept."""

    weight: Tensor
    bias: Tensor | None
    slicing: _Slicing

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by the slice: x [.., K] to [.., f'], or [.., f'] to [.., N]."""
        slicing, bias = self.slicing, self.bias
        features = slicing.features()
        if bias is not None and not slicing.slices_inputs:
            bias = bias.index_select(0, features)
        weight = self.weight.index_select(slicing.axis, features)
        if slicing.axis == int(slicing.slices_inputs):  # the weight is stored as [N, K]
            return linear(x, weight, bias)
        rows = x.reshape(-1, x.shape[-1])
        output = rows @ weight if bias is None else torch.addmm(bias, rows, weight)
        return output.view(*x.shape[:-1], -1)


class _Predicting(Counted):
    """An MLP that first chooses its channels, and counts them."""

    router: ChannelPredictor

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the module on the channels that the router chooses."""
        channels = self.router(x)
        self.tally.add(channels.numel(), self.router.weight_out.shape[0])
        return super().forward(x, *args, **kwargs)  # type: ignore[misc]
