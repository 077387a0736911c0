"""Dynamic M: a router before each attention and MLP, or each layer, lets a share p of tokens pass.

q, o, gate, up and down run on the active rows, k and v on all. Active queries attend to every key,
and mixers take every token. The cache is full. With `keys=routed` (MoD, D-LLM) k and v run on the
active rows too, and the cache has keys of these alone; where sequences of a batch differ in their
active steps, slots that some of them leave empty are masked. The top-k over a sequence looks ahead
(as in MoD): a forward of the whole sequence chooses other rows than prefill and decode, so that
their tokens may differ. With `choose=threshold` each token is decided alone, by its score (as MoD
does where it generates), and the forwards agree.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.runs.run_blocks import Record
from prunescope.tracer.attention.attention_parts import AttentionParts
from prunescope.tracer.attention.counted_cache import counted_layer, past_length
from prunescope.tracer.attention.plain_attention import PlainAttention, lower_right, refuse_padding
from prunescope.tracer.attention.projections import KV
from prunescope.tracer.attention.rotation import Rotary, first_sequence, taken_rotary
from prunescope.tracer.calibration.collect import calibration_of
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.calibration.router_fit import Site, fit_routers
from prunescope.tracer.model import compat
from prunescope.tracer.model.layers import decoder_layers
from prunescope.tracer.pruners import Applied
from prunescope.tracer.routing.decisions import Counted, Sampler, Tally
from prunescope.tracer.routing.learning import RowLearner
from prunescope.tracer.routing.rebuild import has_mixers, is_prenorm, layer_attentions, rebuild
from prunescope.tracer.routing.routed_mlp import Mlp, RoutedMlp, find_mlp, route_mlp
from prunescope.tracer.routing.row_router import RowRouter, Rows, SameRows, add_rows, place_rows

_RANDOM = (
    "prefill: the int(p·S) best rows of each sequence; decode, where no recovery trained the "
    "routers: a random number of the B rows, each with probability p, the best ones by the "
    "router's score"
)


def prune(model: PreTrainedModel, point: Point) -> Applied:
    """Put a router before every sublayer; no weights are removed."""
    sites: list[Site] = []
    attentions = layer_attentions(model)  # raises for unsupported models before anything runs

    def build() -> list[RowRouter]:
        sites.extend(_sites(model, attentions, point))
        return [site.router for site in sites]

    rebuild(model, build, sparsity=0.0 if point.uses_importance else point.sparsity)
    record: Record = {"kept": {"rows": 1 - point.sparsity}, "notes": [_RANDOM]}
    if point.uses_importance:
        record = _fit(model, sites, point)
    if point.knobs["choose"] == "threshold":
        record["notes"].append(
            "prefill: each token by the threshold of decode, so that their number varies"
        )
    if has_mixers(model):
        record["notes"].append("mixers take every token, which their states need: they stay dense")
    learner = RowLearner(model, sites, point.sparsity, is_fitted=point.uses_importance)
    return Applied(model=model, record=record, learners=[learner])


def _fit(model: Any, sites: list[Site], point: Point) -> Record:
    """Fit the routers to the text, and return the record of the fit."""
    calibration = calibration_of(model, point.calibration, seed=point.seed)
    r2 = fit_routers(model, sites, calibration, sparsity=point.sparsity)
    fit = "" if r2 is None else f", R² {r2:.2f} (median) on held-out sequences"
    shares = {
        kind: [round(1 - site.router.sparsity, 4) for site in sites if site.kind == kind]
        for kind in dict.fromkeys(site.kind for site in sites)
    }
    return {
        "kept": {"rows": 1 - point.sparsity, "rows_by_layer": shares},
        "calibration": calibration.record,
        "notes": [
            f"each {point.knobs['unit']} has a share p of its own, by how much it changes tokens "
            "(rows_by_layer; their mean is 1 − s); prefill: the int(p·S) best rows of each "
            "sequence; decode: rows that score as the best p of the text",
            f"{len(sites)} routers fitted to how much each changes a token{fit}",
        ],
    }


def _sites(model: Any, attentions: list[AttentionParts], point: Point) -> list[Site]:
    """Give every attention and every MLP a router, and return their sites, layer by layer.

    Raises:
        PrunescopeError: Whole layers with mixers are to be skipped, or masks count every token.
    """
    name, layers = decoder_layers(model)
    mlps = [find_mlp(model, layer, f"{name}.{i}") for i, layer in enumerate(layers)]
    parts_of = {parts.layer: parts for parts in attentions}
    kind: type[_RoutedAttention] = _RoutedAttention
    if point.knobs["keys"] == "routed":
        _check_keys(model, attentions)
        kind = _RoutedKeys
    if point.knobs["unit"] == "layer" and has_mixers(model):
        raise PrunescopeError(
            f"tokens cannot skip whole layers of {type(model).__name__}",
            hint="they have mixers, whose state needs every token: use --set unit=sublayer",
        )
    sampler, like = Sampler(point, "dynamic-m"), attentions[0].like
    sites: list[Site] = []
    for index, mlp in enumerate(mlps):
        parts = parts_of.get(index)
        attention = None if parts is None else kind(parts, point, sampler)
        own: RowRouter | None = None
        if point.knobs["unit"] == "sublayer":
            own = RowRouter(point, sampler, f"mlp {index}", like)
        sites += _route_layer(model, (name, index), attention, own, mlp)
    return sites


def _check_keys(model: Any, attentions: list[AttentionParts]) -> None:
    """Refuse layers whose masks count every token."""
    if any(parts.is_masked or parts.window is not None for parts in attentions):
        raise PrunescopeError(
            f"layers of {type(model).__name__} attend through masks or windows, which count the "
            "tokens without keys too",
            hint="remove keys=routed: all tokens then have keys",
        )


def _route_layer(
    model: Any,
    position: tuple[str, int],
    attention: _RoutedAttention | None,
    own: RowRouter | None,
    mlp: Mlp,
) -> list[Site]:
    """Route the layer at `position`, its list and number, and return its sites.

    The layer gets this attention. `own` is the router of its MLP; None lets the MLP run on the rows
    of the attention.
    """
    layers, index = model.get_submodule(position[0]), position[1]
    layer = layers[index]
    router: nn.Module
    if own is not None:
        router = own
    else:
        assert attention is not None
        router = SameRows(attention.router)
    if attention is not None and is_prenorm(layer):
        layer = layers[index] = _RoutedLayer(layer, attention, router)
        outputs: list[nn.Module] = [layer.mlp]
    else:
        if attention is not None:
            model.set_submodule(attention.parts.path, attention)
        outputs = route_mlp(model, mlp, router, attention)
    if own is None and attention is not None:
        return [Site(kind="layer", layer=layer, router=attention.router, sublayers=[layer])]
    sites = []
    if attention is not None:
        own_router = attention.router
        sites.append(Site(kind="attention", layer=layer, router=own_router, sublayers=[attention]))
    return [*sites, Site(kind="mlp", layer=layer, router=own, sublayers=outputs)]


class _RoutedAttention(PlainAttention, Counted):
    """Attention with keys and values of all tokens, and queries and output of the active ones."""

    def __init__(self, parts: AttentionParts, point: Point, sampler: Sampler) -> None:
        super().__init__(parts)
        self.router = RowRouter(point, sampler, f"attention {self.layer_idx}", parts.like)
        self.seen = (0, 0)  # sequences and tokens of the current forward
        self.tally = Tally("rows")

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        position_embeddings: Rotary | None = None,
        attention_mask: Any = None,
        *,
        cache: Any = None,
        residual: Tensor | None = None,
        **_: Any,
    ) -> Any:
        """Attend with the active rows of normed hidden states [B, T, h].

        The result is the residual stream [B, T, h] with their output added. Without a residual it
        is the attention's output, which is zero for inactive rows.
        """
        self.seen = hidden_states.shape[0], hidden_states.shape[1]
        rows, output = self._attend(hidden_states, position_embeddings, attention_mask, cache)
        self.tally.add(0 if rows is None else rows.flat.numel(), self.seen[0] * self.seen[1])
        if rows is None:
            return residual if residual is not None else (torch.zeros_like(hidden_states), None)
        output = rows.gated(output)
        if residual is None:
            return place_rows(hidden_states, rows.flat, output), None
        return add_rows(residual, rows.flat, output)

    def _attend(
        self, hidden: Tensor, rotary: Rotary | None, given: Any, cache: Any
    ) -> tuple[Rows | None, Any]:
        """Return the active rows, and their attention output [.., k, h]."""
        past = past_length(cache, self.layer_idx)
        mask = self.mask_of(given, hidden.shape[1], past)
        rows = self.router(hidden, past=past, masked=True, given=mask)
        k, v = self.append_to(cache, *self.project_keys_values(hidden, rotary))
        return rows, None if rows is None else self._attend_rows(hidden, rotary, (k, v), rows)

    def _attend_rows(
        self, hidden: Tensor, rotary: Rotary | None, keys_values: KV, rows: Rows
    ) -> Tensor:
        """Attend with the active rows to the whole cache: [.., k, h]."""
        width, (k, v) = hidden.shape[-1], keys_values
        x = hidden.reshape(-1, width).index_select(0, rows.flat).view(*rows.positions.shape, width)
        is_decode = hidden.shape[1] == 1  # rows are sequences, not tokens of them
        if not is_decode and rotary is not None:
            rotary = taken_rotary(rotary, rows.positions)
        if is_decode and x.shape[0] < hidden.shape[0]:
            k, v = k.index_select(0, rows.flat), v.index_select(0, rows.flat)
            rotary = None if rotary is None else first_sequence(rotary)
        k, v = self.expand(k, v)
        return self.project_output(self.attend(self.project_queries(x, rotary), k, v, rows.mask))


class _RoutedKeys(_RoutedAttention):
    """Attention with keys and values of the active tokens alone."""

    def _attend(
        self, hidden: Tensor, rotary: Rotary | None, given: Any, cache: Any
    ) -> tuple[Rows | None, Any]:
        """Return the active rows, and their attention output [.., k, h]."""
        tokens = hidden.shape[1]
        layer: Any = None if cache is None else counted_layer(cache, self.layer_idx)
        past = 0 if layer is None else layer.seen
        refuse_padding(given, tokens, past)
        if layer is not None and past == 0:
            layer.present = None
        rows = self.router(hidden, past=past, masked=False)
        if rows is not None:
            return rows, self._attend_active(hidden, rotary, rows, layer)
        if layer is not None:
            layer.seen += tokens
        return None, None

    def _attend_active(
        self, hidden: Tensor, rotary: Rotary | None, rows: Rows, layer: Any
    ) -> Tensor:
        """Attend with the active rows to the keys of active rows: [.., k, h]."""
        batch, tokens, width = hidden.shape
        x = hidden.reshape(-1, width).index_select(0, rows.flat).view(*rows.positions.shape, width)
        if rotary is not None:
            rotary = taken_rotary(rotary, rows.positions) if tokens > 1 else first_sequence(rotary)
        q, k, v = self.project(x, rotary)
        is_part = tokens == 1 and len(x) < batch  # a decode step of some sequences only
        present = None if self.router.learns else _filled_slots(rows, batch, is_part=is_part)
        if layer is not None:
            if is_part:  # [k, n, 1, d] becomes a slot of all B sequences, zero for the others
                zeros = [y.new_zeros(batch, *y.shape[1:]) for y in (k, v)]
                k, v = zeros[0].index_copy_(0, rows.flat, k), zeros[1].index_copy_(0, rows.flat, v)
            slots = k.shape[2]
            k, v = layer.update(k, v)
            layer.seen += tokens - slots
            present = _append_present(layer, present, batch, slots)
            if is_part:
                k, v = k.index_select(0, rows.flat), v.index_select(0, rows.flat)
        k, v = self.expand(k, v)
        if present is None:
            return self.project_output(self.attend_causally(q, k, v))
        present = present.index_select(0, rows.flat) if is_part else present
        return self.project_output(self.attend(q, k, v, _mask_of(present, q)))


def _filled_slots(rows: Rows, batch: int, *, is_part: bool) -> Tensor | None:
    """Return a mask [B, slots] of the sequences that have a key in each new slot; None means all.

    Sequences without an active token in a decode step have none (`is_part`), and neither have rows
    that fill up a sequence, whose gate is zero.
    """
    if is_part:
        slot = torch.zeros(batch, 1, dtype=torch.bool, device=rows.flat.device)
        return slot.index_fill_(0, rows.flat, value=True)
    return None if rows.gate is None else (rows.gate != 0).view(batch, -1)


def _append_present(layer: Any, new: Tensor | None, batch: int, slots: int) -> Tensor | None:
    """Append to `layer.present` [B, held] which sequences have a key in the newest slots.

    The result is `layer.present`; None while there is no empty slot.
    """
    if layer.present is None and new is None:
        return None
    held, device = layer.keys.shape[2] - slots, layer.keys.device
    before, now = (
        torch.ones(batch, count, dtype=torch.bool, device=device) if known is None else known
        for known, count in ((layer.present, held), (new, slots))
    )
    layer.present = torch.cat((before, now), dim=1)
    return layer.present


def _mask_of(present: Tensor, q: Tensor) -> Tensor:
    """Make an additive mask [k, 1, T, L] that hides empty slots [k, L] and later tokens.

    Each of the T newest tokens sees itself, so that no row is empty.
    """
    num_queries, num_keys = q.shape[2], present.shape[1]
    mask = lower_right(num_queries, num_keys, like=q)
    itself = torch.ones_like(mask, dtype=torch.bool).tril(num_keys - num_queries)
    itself = itself.triu(num_keys - num_queries)
    hidden = ~present[:, None, None] & ~itself
    return mask.expand(len(q), 1, -1, -1).masked_fill(hidden, float("-inf"))


class _RoutedLayer(compat.TakesCache):
    """A decoder layer whose sublayers add to the residual stream of active rows only."""

    def __init__(self, layer: nn.Module, attention: _RoutedAttention, router: nn.Module) -> None:
        super().__init__()
        parts: Any = layer
        self.input_layernorm = parts.input_layernorm
        self.self_attn = attention
        self.post_attention_layernorm = parts.post_attention_layernorm
        self.mlp = RoutedMlp(parts.mlp, router)

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        """Run attention and MLP on their active rows: [B, T, h] to [B, T, h]."""
        normed = self.input_layernorm(hidden_states)
        hidden_states = self.self_attn(normed, residual=hidden_states, **arguments)
        return self.mlp(residual=hidden_states, norm=self.post_attention_layernorm)
