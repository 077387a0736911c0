"""Dynamic M: a router before each attention and MLP, or each layer, lets a share p of tokens pass.

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
from tracer.attention_parts import AttentionParts, unread
from tracer.calibration import calibration_of
from tracer.channels import find_channels
from tracer.counted_cache import past_length
from tracer.inserted import extend
from tracer.layers import decoder_layers
from tracer.prenorm import is_prenorm, layer_attentions, rebuilt
from tracer.pruned_attention import PlainAttention, Rotary, refuse_padding, taken_rotary
from tracer.pruners import Applied, Point
from tracer.router_fit import Site, fit_routers
from tracer.routing import Counted, Draws, Tally, flat_places, score_weight
from tracer.sublayers import roots


def prune(model: PreTrainedModel, point: Point) -> Applied:
    """Put a router before every sublayer. No weight goes."""
    sites: list[Site] = []
    attentions = layer_attentions(model)  # what cannot be taken apart says so before it is run

    def build() -> list[RowRouter]:
        sites.extend(_sites(model, attentions, point))
        return [site.router for site in sites]

    rebuilt(model, build, sparsity=0.0 if point.calibrated else point.sparsity)
    record = _fitted(model, sites, point) if point.calibrated else _drawn(point)
    return Applied(model=model, record=record)


def _drawn(point: Point) -> dict[str, Any]:
    note = (
        "prefill: the int(p·S) best rows of each sequence; decode: a drawn number of the B rows, "
        "each with probability p, the best ones by the router's score"
    )
    return {"kept": {"rows": 1 - point.sparsity}, "notes": [note]}


def _fitted(model: Any, sites: list[Site], point: Point) -> dict[str, Any]:
    """Fit the routers to the text, and say how."""
    calibration = calibration_of(model, point.calibration, seed=point.seed)
    r2 = fit_routers(model, sites, calibration, sparsity=point.sparsity)
    told = "" if r2 is None else f", R² {r2:.2f} (median) on sequences that were held out"
    shares = {
        kind: [round(1 - site.router.sparsity, 4) for site in sites if site.kind == kind]
        for kind in dict.fromkeys(site.kind for site in sites)
    }
    return {
        "kept": {"rows": 1 - point.sparsity, "rows_by_layer": shares},
        "calibration": calibration.record,
        "notes": [
            f"each {point.knobs['unit']} has a share p of its own, by how much it changes tokens; "
            "prefill: the int(p·S) best rows of each sequence; decode: rows that score as the best "
            "p of the text",
            f"{len(sites)} routers fitted to how much each changes a token{told}",
        ],
    }


def _sites(model: Any, attentions: list[AttentionParts], point: Point) -> list[Site]:
    """Give every sublayer a router; their sites, attention and MLP of each layer in turn."""
    name, layers = decoder_layers(model)
    mlps = [_mlp_of(model, layer, f"{name}.{i}") for i, layer in enumerate(layers)]
    draws = Draws(point, "dynamic-m")
    sites: list[Site] = []
    mlp: nn.Module
    for index, parts in enumerate(attentions):
        attention = _RoutedAttention(parts, point, draws)
        own: RowRouter | None = None
        if point.knobs["unit"] == "sublayer":
            own = RowRouter(point, draws, f"mlp {index}", parts.like)
        router = own or _SameRows(attention.router)
        if is_prenorm(layers[index]):
            routed = layers[index] = _RoutedLayer(layers[index], attention, router)
            mlp = routed.mlp
        else:
            model.set_submodule(parts.path, attention)
            mlp = _route(model, mlps[index], router, attention)
        layer = layers[index]
        if own is None:
            sites.append(Site(kind="layer", layer=layer, router=attention.router, sublayer=layer))
            continue
        sites += (
            Site(kind="attention", layer=layer, router=attention.router, sublayer=attention),
            Site(kind="mlp", layer=layer, router=own, sublayer=mlp),
        )
    return sites


def _mlp_of(model: nn.Module, layer: nn.Module, path: str) -> list[str]:
    """Where the MLP of a layer is, gated or not, or its experts: a module of its own, or the first
    and the last of its projections where it has none."""
    found = [at for at in roots(layer, path)["mlp"] if _weighs(model.get_submodule(at))]
    if len(found) == 1:
        return found
    bare = [part for part in find_channels(layer, path) if not part.modules]
    if len(bare) == 1 and len(bare[0].ups) == 1:
        return [bare[0].ups[0].path, bare[0].down.path]
    raise unread(model, "its MLP is no module of its own")


def _weighs(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


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
        self.threshold: float | None = None  # of a fitted router: the score that a row needs
        self.last: Rows | None = None  # the rows of the forward at hand

    def forward(
        self,
        x: torch.Tensor,
        *,
        past: int,
        masked: bool,
        given: torch.Tensor | None = None,
    ) -> Rows | None:
        """[B, T, h] to Rows; None where no row goes through. `masked`: attention follows; `given`:
        its mask [1 or B, 1, T, L], None for a causal one."""
        self.last = self._rows(x, past=past, masked=masked, given=given)
        return self.last

    def _rows(
        self, x: torch.Tensor, *, past: int, masked: bool, given: torch.Tensor | None
    ) -> Rows | None:
        batch, tokens, _ = x.shape
        scores = self.draws.instead_of(linear(x, self.weight).squeeze(-1))  # [B, T]
        if tokens == 1:
            flat = self._of_step(scores.view(-1))
            return None if flat is None else Rows(flat, flat.unsqueeze(-1), None)
        count = kept_count(tokens, self.sparsity)
        places = scores.topk(count).indices.sort().values
        flat, mask = flat_places(places, tokens), None
        if given is not None:
            every = given.expand(batch, -1, -1, -1)
            mask = every.gather(2, places[:, None, :, None].expand(-1, -1, -1, given.shape[-1]))
        elif masked:
            mask = self._mask(places, past, tokens, x)
        return Rows(flat.flatten(), places, mask)

    def _of_step(self, scores: torch.Tensor) -> torch.Tensor | None:
        """Of the scores [B] of a decode step the rows that go through, None for none."""
        if self.threshold is not None:
            # Their number depends on the data: the host waits for the device.
            flat = (scores >= self.threshold).nonzero().view(-1)
            return flat if flat.numel() else None
        count = self.draws.successes(len(scores), 1 - self.sparsity)
        return scores.topk(count).indices.sort().values if count else None

    def _mask(self, places: torch.Tensor, past: int, tokens: int, x: torch.Tensor) -> torch.Tensor:
        keys = torch.arange(past + tokens, device=x.device)
        future = keys > (places + past).unsqueeze(-1)
        return x.new_zeros(future.shape).masked_fill_(future, float("-inf")).unsqueeze(1)


class _SameRows(nn.Module):
    """In the place of an MLP's router: the rows that the attention of its layer has taken."""

    def __init__(self, router: RowRouter) -> None:
        super().__init__()
        self.of = (router,)  # a child of the attention alone

    def forward(self, _x: torch.Tensor, **_: Any) -> Rows | None:
        """[B, T, h] to Rows."""
        return self.of[0].last


class _RoutedAttention(PlainAttention, Counted):
    """Keys and values of all tokens, queries and output of the active ones, onto the residual."""

    def __init__(self, parts: AttentionParts, point: Point, draws: Draws) -> None:
        super().__init__(parts)
        what = f"attention {self.layer_idx}"
        self.router = RowRouter(point, draws, what, parts.like)
        self.seen = (0, 0)  # sequences and tokens of the forward at hand
        self.tally = Tally("rows")

    def forward(  # type: ignore[override]
        self,
        hidden_states: torch.Tensor,
        position_embeddings: Rotary | None = None,
        attention_mask: Any = None,
        *,
        cache: Any = None,
        residual: torch.Tensor | None = None,
        **_: Any,
    ) -> Any:
        """Normed hidden states and the residual stream, [B, T, h] both, to the residual stream;
        without a residual to what the attention puts out, zeros where no row went."""
        batch, tokens, _width = hidden_states.shape
        past, self.seen = past_length(cache, self.layer_idx), (batch, tokens)
        if not self.masked:
            refuse_padding(attention_mask, tokens, past)
            attention_mask = None
        rows = self.router(hidden_states, past=past, masked=True, given=attention_mask)
        k, v = self.keys_values(hidden_states, position_embeddings)
        k, v = self.appended(cache, k, v)
        self.tally.add(0 if rows is None else rows.flat.numel(), batch * tokens)
        if rows is None:
            return residual if residual is not None else (torch.zeros_like(hidden_states), None)
        out = self._of_rows(hidden_states, position_embeddings, (k, v), rows)
        if residual is None:
            return spread(hidden_states, rows.flat, out), None
        return scattered(residual, rows.flat, out)

    def _of_rows(
        self,
        hidden: torch.Tensor,
        rotary: Rotary | None,
        keys_values: tuple[torch.Tensor, torch.Tensor],
        rows: Rows,
    ) -> torch.Tensor:
        """What the active rows of [B, T, h] get from all keys and values: [.., k, h]."""
        width, (k, v) = hidden.shape[-1], keys_values
        x = hidden.reshape(-1, width).index_select(0, rows.flat).view(*rows.places.shape, width)
        if rows.mask is not None and rotary is not None:
            rotary = taken_rotary(rotary, rows.places)
        if rows.mask is None and x.shape[0] < hidden.shape[0]:
            k, v = k.index_select(0, rows.flat), v.index_select(0, rows.flat)
        return self.output(self.attend(self.queries(x, rotary), k, v, rows.mask))


class _RoutedMlp(nn.Module, Counted):
    """An MLP on the active rows, onto the residual."""

    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear
    act_fn: nn.Module

    def __init__(self, original: nn.Module, router: nn.Module) -> None:
        super().__init__()
        for name, child in original.named_children():
            setattr(self, name, child)
        self.router = router
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


class _RoutedLayer(compat.TakesCache):
    """A decoder layer whose sublayers add to the residual stream where their routers say so."""

    def __init__(self, layer: nn.Module, attention: _RoutedAttention, router: nn.Module) -> None:
        super().__init__()
        parts: Any = layer
        self.input_layernorm = parts.input_layernorm
        self.self_attn = attention
        self.post_attention_layernorm = parts.post_attention_layernorm
        self.mlp = _RoutedMlp(parts.mlp, router)

    def forward(self, hidden_states: torch.Tensor, **arguments: Any) -> torch.Tensor:
        """[B, T, h] to [B, T, h]."""
        normed = self.input_layernorm(hidden_states)
        hidden_states = self.self_attn(normed, residual=hidden_states, **arguments)
        out: torch.Tensor = self.mlp(residual=hidden_states, norm=self.post_attention_layernorm)
        return out


class _Routed(Counted):
    """An MLP of any kind that runs on the active rows, and puts out zeros for the others."""

    own_router: tuple[nn.Module]  # in a tuple: it is registered already, beside that of experts
    outputs: int  # of an MLP that gives a tuple, else 0

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """[B, T, h] to [B, T, h]."""
        batch, tokens, width = hidden_states.shape
        rows = self.own_router[0](hidden_states, past=0, masked=False)
        self.tally.add(0 if rows is None else rows.flat.numel(), batch * tokens)
        if rows is None:
            zeros = torch.zeros_like(hidden_states)
            return (zeros, *[None] * (self.outputs - 1)) if self.outputs else zeros
        x = hidden_states.reshape(-1, width).index_select(0, rows.flat).unsqueeze(0)
        out = super().forward(x, *args, **kwargs)  # type: ignore[misc]
        self.outputs = len(out) if isinstance(out, tuple) else 0
        if self.outputs:
            return (spread(hidden_states, rows.flat, out[0]), *out[1:])
        return spread(hidden_states, rows.flat, out)


class _MlpEntry(Counted):
    """The first projection of an MLP without a module of its own: it takes the active rows of the
    tokens [B, T] that the attention before it saw, and hands them on as [k, f]."""

    router: RowRouter
    attention: tuple[_RoutedAttention]
    rows: tuple[torch.Tensor, torch.Tensor] | None  # those of the forward at hand, and like what

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B·T, h] to [k, f]."""
        batch, tokens = self.attention[0].seen
        rows = self.router(x.view(batch, tokens, -1), past=0, masked=False)
        flat = x.new_empty(0, dtype=torch.long) if rows is None else rows.flat
        self.tally.add(flat.numel(), batch * tokens)
        self.rows = flat, x
        if rows is None:
            return x.new_empty(0, 0)
        out: torch.Tensor = super().forward(x.index_select(0, flat))  # type: ignore[misc]
        return out


class _MlpExit:
    """The last projection of such an MLP: zeros for the rows that it did not get."""

    entry: tuple[_MlpEntry]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[k, f] to [B·T, h]."""
        assert self.entry[0].rows is not None
        flat, like = self.entry[0].rows
        if not flat.numel():
            return torch.zeros_like(like)
        return spread(like, flat, super().forward(x))  # type: ignore[misc]


def _route(model: Any, at: list[str], router: nn.Module, attention: _RoutedAttention) -> nn.Module:
    """Put a router into the MLP at these paths, which otherwise runs as it is. Returns the module
    that puts out what the MLP does."""
    mlp: Any = model.get_submodule(at[0])
    mlp.tally = Tally("rows")
    if len(at) == 1:
        # Experts may have a router of their own.
        if hasattr(mlp, "router"):
            mlp.added = nn.ModuleDict({"router": router})
        else:
            mlp.router = router
        extend(mlp, _Routed)
        mlp.own_router = (router,)
        return mlp
    extend(mlp, _MlpEntry)
    mlp.router, mlp.attention, mlp.rows = router, (attention,), None
    last: Any = model.get_submodule(at[1])
    extend(last, _MlpExit)
    last.entry = (mlp,)
    return last


def scattered(residual: torch.Tensor, flat: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The residual stream [B, T, h] with `rows` added at the flat indices."""
    width = residual.shape[-1]
    summed = residual.reshape(-1, width).clone()
    return summed.index_add_(0, flat, rows.reshape(-1, width)).view(residual.shape)


def spread(like: torch.Tensor, flat: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Zeros of the shape of `like` [B, T, h], with `rows` at the flat indices."""
    width = like.shape[-1]
    zeros = torch.zeros_like(like).view(-1, width)
    return zeros.index_copy_(0, flat, rows.reshape(-1, width)).view(like.shape)
