"""Token dropping: after a layer only the int(p·S) most attended prompt tokens go on.

The last prompt token always stays; positions are kept; the caches of the layers behind are shorter,
and the states of mixers there are those of the tokens that went on.
With logits of all tokens there are rows for the kept tokens alone. A forward of prompt and answer
together ranks by another last token, so that its tokens need not be those of prefill and decode.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families.token_drop import checked
from prunescope.taxonomy.keep import kept_count
from prunescope.tracer.attention.counted_cache import LayerPlace, last_rows, layer_places
from prunescope.tracer.attention.parts import AttentionParts
from prunescope.tracer.attention.pruned import PlainAttention
from prunescope.tracer.attention.rotation import taken_rotary
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.model import compat
from prunescope.tracer.model.forwards import by_name, extend
from prunescope.tracer.pruners import Applied
from prunescope.tracer.routing.learning import NothingTrained
from prunescope.tracer.routing.prenorm import (
    check_runs,
    has_mixers,
    layer_attentions,
    movable_layers,
    rebuilt,
)
from prunescope.tracer.routing.routing import Counted, Draws, Tally, flat_places

_DROPPED = "with tokens dropped"


def prune(model: PreTrainedModel, point: Point) -> Applied:
    """Drop tokens before layer `after`."""
    layers = movable_layers(model)
    attentions = layer_attentions(model)
    valid = range(attentions[0].layer + 1, len(layers))
    after = checked(int(point.knobs["after"]), valid)
    watched = next(parts for parts in reversed(attentions) if parts.layer < after)
    places = layer_places(model, layers)
    drop = _Drop(any(place.tracked for place in places))
    draws = Draws(point, "token-drop")
    ranker = TokenRanker(draws)

    def build() -> list[TokenRanker]:
        for place, layer in zip(places, layers, strict=True):
            parts: Any = layer
            extend(layer, _Dropping)
            parts.place, parts.drop, parts.tally = place, drop, Tally("rows")
            parts.late = place.number >= after
        model.set_submodule(watched.path, _WatchedAttention(watched, drop))
        late: Any = layers[after]
        late.router = ranker
        return [ranker]

    rebuilt(model, build, sparsity=point.sparsity)
    try:
        check_runs(model, _DROPPED, draws.stream)
    except PrunescopeError:
        # Some give hidden states the shape of the prompt again: then they need all rows.
        drop.last = len(layers) - 1
        check_runs(model, _DROPPED, draws.stream)
    kept = {"tokens": 1 - point.sparsity, "after": after}
    notes = [f"ranked by the attention of layer {watched.layer}, the last before the drop"]
    notes = notes if watched.layer < after - 1 else []
    if has_mixers(model):
        notes.append("the states of mixers behind the drop are those of the tokens that go on")
    trained = NothingTrained("trained on all tokens, as none is ranked by a weight", [ranker])
    return Applied(model=model, record={"kept": kept, "notes": notes}, learners=[trained])


@dataclass
class _Drop:
    """What the layers tell each other in one forward: its tokens, the watched query (scaled) and
    keys, then the places [B, k] of the tokens that go on (None: all do), and what was taken of the
    arguments for them. `counted`: whether caches count tokens, for masks of windows; `last`: the
    layer that puts zeros where tokens left, None where they stay away."""

    counted: bool
    last: int | None = None
    tokens: int = 0
    query: torch.Tensor | None = None
    keys: torch.Tensor | None = None
    places: torch.Tensor | None = None
    taken: dict[int, Any] = field(default_factory=dict)

    def of_kept(self, arguments: dict[str, Any], places: torch.Tensor) -> dict[str, Any]:
        """The arguments of a layer for the tokens at `places` that go on: their positions."""
        kept = dict(arguments)
        for name, take in (("position_embeddings", taken_rotary), ("position_ids", _taken_ids)):
            value: Any = arguments.get(name)
            if value is not None:
                if id(value) not in self.taken:
                    self.taken[id(value)] = take(value, places)
                kept[name] = self.taken[id(value)]
        return kept


class TokenRanker(nn.Module):
    """Takes the tokens that the last one attends to most, over all heads."""

    def __init__(self, draws: Draws) -> None:
        super().__init__()
        self.sparsity, self.draws = 0.0, draws

    def forward(
        self, hidden: torch.Tensor, query: torch.Tensor, keys: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of hidden states [B, S, h] those of k tokens in their order, and the places [B, k] of
        these, by the last token's query [B, n_q, 1, d] (scaled) and all keys [B, n_kv, S, d]."""
        batch, heads, length, _ = keys.shape
        grouped = query.view(batch, heads, -1, query.shape[-1])  # [B, n_kv, G, d]
        mass = (grouped @ keys.transpose(-1, -2)).softmax(-1).mean((1, 2))  # [B, S]
        scores = self.draws.instead_of(mass)
        scores[:, -1] = float("inf")  # the next token follows from the last one
        places = scores.topk(kept_count(length, self.sparsity)).indices.sort().values
        flat = flat_places(places, length).flatten()
        rows = hidden.reshape(batch * length, -1).index_select(0, flat)
        return rows.view(*places.shape, -1), places


class _WatchedAttention(PlainAttention):
    """The dense attention; its last query and its keys are kept for the ranking."""

    def __init__(self, parts: AttentionParts, drop: _Drop) -> None:
        super().__init__(parts)
        self.drop = drop

    def attend_causally(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        given: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As the dense layer does."""
        if q.shape[2] == k.shape[2] > 1:  # a prompt on an empty cache
            self.drop.query, self.drop.keys = q[:, :, -1:] * self.scaling, k
        return super().attend_causally(q, k, v, given)


class _Dropping(Counted):
    """A decoder layer before the drop, at it (with a router) or behind it (`late`)."""

    router: TokenRanker
    drop: _Drop
    place: LayerPlace
    late: bool

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """[B, S, h] to [B, S, h]; behind the drop [B, k, h]."""
        arguments = by_name(self, args, kwargs)
        cache, mask = compat.cache_in(arguments), arguments.get("attention_mask")
        past, drop = self.place.past(cache), self.drop
        if self.place.number == 0:
            drop.tokens = hidden_states.shape[1]
            self.place.refuse_padding(mask, drop.tokens, past)
        if hasattr(self, "router"):
            hidden_states = self._dropped(hidden_states)
        at = drop.places if self.late else None
        if at is not None:
            arguments = drop.of_kept(arguments, at)
        batch, rows = hidden_states.shape[:2]
        self.tally.add(batch * rows, batch * drop.tokens)
        if not self.place.attends:
            pass  # a mixer takes the tokens that come, without a mask
        elif drop.counted:
            cached = self.place.counted(cache) or self.place.empty()
            arguments["attention_mask"] = cached.mask_of(mask, rows, at)
            # Positions go by the tokens seen, of which some have left.
            cached.seen += drop.tokens - rows
        else:
            arguments["attention_mask"] = last_rows(mask, past + rows)
        out = super().forward(hidden_states, **arguments)  # type: ignore[misc]
        if at is None or self.place.number != drop.last:
            return out
        if isinstance(out, tuple):
            return (self._returned(out[0], at), *out[1:])
        return self._returned(out, at)

    def _returned(self, hidden: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """Rows [B, k, h] at their places [B, k] of the prompt, [B, S, h], among zeros."""
        zeros = hidden.new_zeros(hidden.shape[0], self.drop.tokens, hidden.shape[2])
        return zeros.scatter_(1, at.unsqueeze(-1).expand_as(hidden), hidden)

    def _dropped(self, hidden: torch.Tensor) -> torch.Tensor:
        """The hidden states that go on, all where no query was watched."""
        drop, query, keys = self.drop, self.drop.query, self.drop.keys
        drop.query = drop.keys = drop.places = None
        drop.taken.clear()
        if query is None or keys is None:
            return hidden
        hidden, drop.places = self.router(hidden, query, keys)
        return hidden


def _taken_ids(ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Positions [1 or B, S] of the tokens at `places` [B, k]."""
    return ids.expand(places.shape[0], -1).gather(1, places)
