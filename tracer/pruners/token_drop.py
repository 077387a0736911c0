"""Token dropping: after a layer only the int(p·S) most attended prompt tokens go on.

The last prompt token always stays; positions are kept; the caches of the layers behind are shorter.
With logits of all tokens there are rows for the kept tokens alone. A forward of prompt and answer
together ranks by another last token, so that its tokens need not be those of prefill and decode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from taxonomy.errors import PrunescopeError
from taxonomy.keep import kept_count
from tracer import compat
from tracer.prenorm import prenorm_layers, rebuilt
from tracer.pruned_attention import PlainAttention, Rotary, past_length, refuse_padding
from tracer.pruners import Applied, Point
from tracer.pruners.dynamic_m import taken_rotary
from tracer.routing import Draws, Tally


def prune(model: PreTrainedModel, point: Point) -> Applied:
    """Drop tokens before layer `after`."""
    layers = prenorm_layers(model)
    after = int(point.knobs["after"])
    if not 1 <= after < len(layers):
        raise PrunescopeError(
            f"after={after}, but the model has {len(layers)} layers",
            hint=f"tokens can be dropped after 1 to {len(layers) - 1} layers",
        )
    drop = _Drop()
    ranker = TokenRanker(Draws(point, "token-drop"))

    parts_of: list[Any] = [layer.self_attn for layer in layers]

    def rebuild(sparsity: float) -> None:
        if not isinstance(layers[0], _DroppingLayer):
            for index in range(len(layers)):
                layers[index] = _DroppingLayer(layers[index], drop, late=index >= after)
                if index == after - 1:
                    layers[index].self_attn = _WatchedAttention(parts_of[index], drop)
            layers[after].router = ranker
        ranker.sparsity = sparsity

    rebuilt(model, rebuild, sparsity=point.sparsity)
    kept = {"tokens": 1 - point.sparsity, "after": after}
    return Applied(model=model, record={"kept": kept})


@dataclass
class _Drop:
    """What the layers tell each other in one forward: the watched query and keys, then the rotary
    embeddings of the tokens that go on (None: all do)."""

    query: torch.Tensor | None = None
    keys: torch.Tensor | None = None
    rotary: Rotary | None = None


class TokenRanker(nn.Module):
    """Takes the tokens that the last one attends to most, over all heads."""

    def __init__(self, draws: Draws) -> None:
        super().__init__()
        self.sparsity, self.draws = 0.0, draws

    def forward(
        self, hidden: torch.Tensor, rotary: Rotary, query: torch.Tensor, keys: torch.Tensor
    ) -> tuple[torch.Tensor, Rotary]:
        """Of hidden states [B, S, h] and their rotary embeddings those of k tokens in their order,
        by the last token's query [B, n_q, 1, d] (scaled) and all keys [B, n_kv, S, d]."""
        batch, heads, length, _ = keys.shape
        grouped = query.view(batch, heads, -1, query.shape[-1])  # [B, n_kv, G, d]
        mass = (grouped @ keys.transpose(-1, -2)).softmax(-1).mean((1, 2))  # [B, S]
        scores = self.draws.instead_of(mass)
        scores[:, -1] = float("inf")  # the next token is told from the last one
        places = flat = scores.topk(kept_count(length, self.sparsity)).indices.sort().values
        if batch > 1:
            flat = places + torch.arange(0, batch * length, length, device=places.device)[:, None]
        rows = hidden.reshape(batch * length, -1).index_select(0, flat.flatten())
        return rows.view(*places.shape, -1), taken_rotary(rotary, places)


class _WatchedAttention(PlainAttention):
    """The dense attention; its last query and its keys are kept for the ranking."""

    def __init__(self, original: nn.Module, drop: _Drop) -> None:
        super().__init__(original)
        self.drop = drop

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: Rotary,
        attention_mask: Any = None,  # noqa: ARG002
        cache: Any = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """[B, T, h] to [B, T, h]."""
        q = self.queries(hidden_states, position_embeddings)
        k, v = self.keys_values(hidden_states, position_embeddings)
        k, v = self.appended(cache, k, v)
        self.drop.query, self.drop.keys = q[:, :, -1:], k
        return self.o_proj(self.attend_causally(q, k, v)), None


class _DroppingLayer(compat.TakesCache):
    """A decoder layer before the drop, at it (with a router) or behind it (`late`)."""

    router: TokenRanker

    def __init__(self, layer: nn.Module, drop: _Drop, *, late: bool) -> None:
        super().__init__()
        parts: Any = layer
        self.self_attn: PlainAttention = PlainAttention(parts.self_attn)
        self.input_layernorm, self.mlp = parts.input_layernorm, parts.mlp
        self.post_attention_layernorm = parts.post_attention_layernorm
        self.drop, self.late, self.tally = drop, late, Tally("rows")

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: Rotary,
        attention_mask: Any = None,
        cache: Any = None,
        **_: Any,
    ) -> torch.Tensor:
        """[B, S, h] to [B, S, h]; behind the drop [B, k, h]."""
        index = self.self_attn.layer_idx
        batch, tokens, _width = hidden_states.shape
        if index == 0:
            refuse_padding(attention_mask, tokens, past_length(cache, 0))
        total = batch * position_embeddings[0].shape[1]
        if hasattr(self, "router"):
            hidden_states = self._dropped(hidden_states, position_embeddings, cache)
        rotary = position_embeddings
        if self.late and self.drop.rotary is not None:
            rotary = self.drop.rotary
        self.tally.add(batch * hidden_states.shape[1], total)
        normed = self.input_layernorm(hidden_states)
        hidden_states = hidden_states + self.self_attn(normed, rotary, cache=cache)[0]
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))

    def _dropped(self, hidden: torch.Tensor, rotary: Rotary, cache: Any) -> torch.Tensor:
        """The hidden states that go on. Only a prompt on an empty cache drops tokens."""
        drop, query, keys = self.drop, self.drop.query, self.drop.keys
        drop.query = drop.keys = drop.rotary = None
        past = past_length(cache, self.self_attn.layer_idx)
        if query is None or keys is None or hidden.shape[1] == 1 or past:
            return hidden
        hidden, drop.rotary = self.router(hidden, rotary, query * self.self_attn.scaling, keys)
        return hidden

    def prunescope_stats(self) -> dict[str, Any]:
        """Rows that went through, see `tracer.pruners.Counting`."""
        return self.tally.take()
