"""Dynamic M: a router before each attention and MLP lets a share p of the tokens through.

q, o, gate, up and down see the active rows, k and v all; active queries attend to every key. The
cache is full. The top-k over a sequence looks ahead (as in MoD): a forward of the whole sequence
chooses other rows than prefill and decode do, so that their tokens need not agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from taxonomy.keep import kept_count
from tracer import compat
from tracer.prenorm import prenorm_layers, rebuilt
from tracer.pruned_attention import PlainAttention, Rotary, past_length, refuse_padding
from tracer.pruners import Applied, Point
from tracer.routing import Draws, Tally, refuse_calibration, score_weight


def prune(model: PreTrainedModel, point: Point) -> Applied:
    """Put a router before every sublayer. No weight goes."""
    refuse_calibration(point, "dynamic-m")
    layers = prenorm_layers(model)
    draws = Draws(point, "dynamic-m")
    routers: list[RowRouter] = []

    def rebuild(sparsity: float) -> None:
        for index in range(len(layers) * (not routers)):
            layer = _RoutedLayer(layers[index], point, draws)
            layers[index] = layer
            routers.extend((layer.self_attn.router, layer.mlp.router))
        for router in routers:
            router.sparsity = sparsity

    rebuilt(model, rebuild, sparsity=point.sparsity)
    notes = [
        "prefill: the int(p·S) best rows of each sequence; decode: a drawn number of the B rows, "
        "each with probability p, the best ones by the router's score"
    ]
    return Applied(model=model, record={"kept": {"rows": 1 - point.sparsity}, "notes": notes})


@dataclass(frozen=True)
class Rows:
    """The active rows of a forward. `places`: in each sequence, [B, k]; `flat`: in [B·T], sorted.
    `mask`: additive [B, 1, k, L], None in decode, where the rows are sequences."""

    flat: torch.Tensor
    places: torch.Tensor
    mask: torch.Tensor | None


class RowRouter(nn.Module):
    """Scores [h] → 1 for every token, and the rows that go through."""

    def __init__(self, point: Point, draws: Draws, what: str, like: torch.Tensor) -> None:
        super().__init__()
        self.sparsity, self.draws = point.sparsity, draws.own(point, what)
        self.weight = score_weight(1, like.shape[-1], like=like, seed=point.seed, what=what)

    def forward(self, x: torch.Tensor, *, past: int, masked: bool) -> Rows | None:
        """[B, T, h] to Rows; None where no row goes through. `masked`: attention follows."""
        batch, tokens, _ = x.shape
        scores = self.draws.instead_of(linear(x, self.weight).squeeze(-1))  # [B, T]
        if tokens == 1:
            count = self.draws.successes(batch, 1 - self.sparsity)
            if not count:
                return None
            flat = scores.view(-1).topk(count).indices.sort().values
            return Rows(flat, flat.unsqueeze(-1), None)
        count = kept_count(tokens, self.sparsity)
        places = scores.topk(count).indices.sort().values
        flat = places
        if batch > 1:
            flat = places + torch.arange(0, batch * tokens, tokens, device=x.device).unsqueeze(-1)
        mask = self._mask(places, past, tokens, x) if masked else None
        return Rows(flat.flatten(), places, mask)

    def _mask(self, places: torch.Tensor, past: int, tokens: int, x: torch.Tensor) -> torch.Tensor:
        keys = torch.arange(past + tokens, device=x.device)
        future = keys > (places + past).unsqueeze(-1)
        return x.new_zeros(future.shape).masked_fill_(future, float("-inf")).unsqueeze(1)


class _RoutedAttention(PlainAttention):
    """Keys and values of all tokens, queries and output of the active ones, onto the residual."""

    def __init__(self, original: nn.Module, point: Point, draws: Draws) -> None:
        super().__init__(original)
        what = f"attention {self.layer_idx}"
        self.router = RowRouter(point, draws, what, self.q_proj.weight)
        self.tally = Tally("rows")

    def forward(  # type: ignore[override]
        self,
        hidden_states: torch.Tensor,
        position_embeddings: Rotary,
        *,
        cache: Any = None,
        residual: torch.Tensor,
        **_: Any,
    ) -> torch.Tensor:
        """Normed hidden states and the residual stream, [B, T, h] both, to the residual stream."""
        batch, tokens, width = hidden_states.shape
        rows = self.router(hidden_states, past=past_length(cache, self.layer_idx), masked=True)
        k, v = self.keys_values(hidden_states, position_embeddings)
        k, v = self.appended(cache, k, v)
        self.tally.add(0 if rows is None else rows.flat.numel(), batch * tokens)
        if rows is None:
            return residual
        x = hidden_states.view(-1, width).index_select(0, rows.flat).view(*rows.places.shape, width)
        if rows.mask is None:
            rotary = position_embeddings
            if x.shape[0] < batch:
                k, v = k.index_select(0, rows.flat), v.index_select(0, rows.flat)
        else:
            rotary = taken_rotary(position_embeddings, rows.places)
        out = self.o_proj(self.attend(self.queries(x, rotary), k, v, rows.mask))
        return scattered(residual, rows.flat, out)

    def prunescope_stats(self) -> dict[str, Any]:
        """Active rows, see `tracer.pruners.Counting`."""
        return self.tally.take()


class _RoutedMlp(nn.Module):
    """An MLP on the active rows, onto the residual."""

    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear
    act_fn: nn.Module

    def __init__(self, original: nn.Module, point: Point, draws: Draws, layer: int) -> None:
        super().__init__()
        for name, child in original.named_children():
            setattr(self, name, child)
        self.router = RowRouter(point, draws, f"mlp {layer}", self.up_proj.weight)
        self.tally = Tally("rows")

    def forward(self, residual: torch.Tensor, norm: nn.Module) -> torch.Tensor:
        """The residual stream [B, T, h] to itself with the MLP of the normed active rows added."""
        batch, tokens, width = residual.shape
        rows = self.router(residual, past=0, masked=False)
        self.tally.add(0 if rows is None else rows.flat.numel(), batch * tokens)
        if rows is None:
            return residual
        x = norm(residual.view(-1, width).index_select(0, rows.flat))
        out = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return scattered(residual, rows.flat, out)

    def prunescope_stats(self) -> dict[str, Any]:
        """Active rows, see `tracer.pruners.Counting`."""
        return self.tally.take()


class _RoutedLayer(compat.TakesCache):
    """A decoder layer whose sublayers add to the residual stream where their routers say so."""

    def __init__(self, layer: nn.Module, point: Point, draws: Draws) -> None:
        super().__init__()
        parts: Any = layer
        self.input_layernorm = parts.input_layernorm
        self.self_attn = _RoutedAttention(parts.self_attn, point, draws)
        self.post_attention_layernorm = parts.post_attention_layernorm
        self.mlp = _RoutedMlp(parts.mlp, point, draws, self.self_attn.layer_idx)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: Any = None, **arguments: Any
    ) -> torch.Tensor:
        """[B, T, h] to [B, T, h]."""
        past = past_length(arguments.get("cache"), self.self_attn.layer_idx)
        refuse_padding(attention_mask, hidden_states.shape[1], past)
        normed = self.input_layernorm(hidden_states)
        hidden_states = self.self_attn(normed, residual=hidden_states, **arguments)
        out: torch.Tensor = self.mlp(hidden_states, self.post_attention_layernorm)
        return out


def taken_rotary(rotary: Rotary, places: torch.Tensor) -> Rotary:
    """Cos and sin [1 or B, T, d] of the tokens at `places` [B, k]."""
    cos, sin = rotary
    shape = (*places.shape, cos.shape[-1])
    return (
        cos[0].index_select(0, places.flatten()).view(shape),
        sin[0].index_select(0, places.flatten()).view(shape),
    )


def scattered(residual: torch.Tensor, flat: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The residual stream [B, T, h] with `rows` added at the flat indices."""
    width = residual.shape[-1]
    summed = residual.reshape(-1, width).clone()
    return summed.index_add_(0, flat, rows.reshape(-1, width)).view(residual.shape)
