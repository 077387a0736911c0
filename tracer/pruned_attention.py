"""The attention of a decoder layer taken apart, so that a dynamic family changes one step.

Shapes: B batch, T query tokens, L keys, h hidden, n_q and n_kv heads of d. All sequences of a batch
have one length: there is no padding. Everything is ordinary torch on any device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers.cache_utils import DynamicLayer

from taxonomy.errors import PrunescopeError
from tracer import compat
from tracer.attention_parts import AttentionParts, own_function
from tracer.inserted import extend

Rotary = tuple[torch.Tensor, torch.Tensor]  # cos and sin, [1, T, d] or [B, T, d]


class PlainAttention(compat.TakesCache):
    """The attention of a layer with the projections of the original, under their names.

    `forward` is the dense one; a family overrides it and uses the steps.
    """

    def __init__(self, parts: AttentionParts) -> None:
        super().__init__()
        self.parts = parts
        self.layer_idx, self.head_dim = parts.layer_idx, parts.head_dim
        self.scaling, self.masked = parts.scaling, parts.masked or parts.window is not None
        self.groups = parts.heads // (parts.kv_heads * parts.repeats)
        for name, child in parts.module.named_children():
            setattr(self, name, child)
        for name, parameter in parts.module.named_parameters(recurse=False):
            setattr(self, name, parameter)  # attention sinks
        if "qkv" in parts.names:
            split_rows(self._part("qkv"), parts)

    def queries(self, x: torch.Tensor, rotary: Rotary | None) -> torch.Tensor:
        """[B, T, h] to rotated queries [B, n_q, T, d]."""
        fused = "qkv" in self.parts.names
        return self._finished("q", self._part("qkv" if fused else "q")(x, *["q"][:fused]), rotary)

    def keys_values(
        self, x: torch.Tensor, rotary: Rotary | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, T, h] to rotated keys and values [B, n_kv, T, d]."""
        if "qkv" in self.parts.names:
            k, v = self._part("qkv")(x, "kv").chunk(2, dim=-1)
        else:
            k, v = self._part("k")(x), self._part("v")(x)
        return self._finished("k", k, rotary), self._finished("v", v, None)

    def projected(
        self, x: torch.Tensor, rotary: Rotary | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values of the same tokens: one GEMM where they are fused."""
        if "qkv" not in self.parts.names:
            return self.queries(x, rotary), *self.keys_values(x, rotary)
        width, size = self.parts.heads * self.head_dim, self.parts.kv_heads * self.head_dim
        q, k, v = self._part("qkv")(x).split((width, size, size), dim=-1)
        return (
            self._finished("q", q, rotary),
            self._finished("k", k, rotary),
            self._finished("v", v, None),
        )

    def output(self, attended: torch.Tensor) -> torch.Tensor:
        """[B, T, n_q·d] to [B, T, h]."""
        out: torch.Tensor = self._part("o")(attended)
        return out

    def _part(self, role: str) -> Any:
        return getattr(self, self.parts.names[role])

    def _finished(self, role: str, x: torch.Tensor, rotary: Rotary | None) -> torch.Tensor:
        """A projection [B, T, n·d], normed, rotated and repeated: [B, n, T, d]."""
        name, spans = self.parts.norms.get(role), self.parts.spans
        norm = getattr(self, name) if name else None
        x = norm(x) if norm is not None and spans == "all" else x
        x = x.unflatten(-1, (-1, self.head_dim))
        x = norm(x) if norm is not None and spans == "head" else x
        x = x.transpose(1, 2)
        x = norm(x) if norm is not None and spans == "heads" else x
        if rotary is not None and self.parts.turns is not None:
            if self.parts.short:
                rotary = (torch.cat((rotary[0],) * 2, -1), torch.cat((rotary[1],) * 2, -1))
            x = rotated(x, rotary, turns=self.parts.turns)
        if role != "q" and self.parts.repeats > 1:
            x = x.repeat_interleave(self.parts.repeats, dim=1)
        return x

    def appended(
        self, cache: Any, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values [B, n_kv, L, d] after these were written to the cache."""
        if cache is None:
            return k, v
        keys, values = cache.update(k, v, self.layer_idx)
        return keys, values

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None = None,
        *,
        causal: bool = False,
    ) -> torch.Tensor:
        """[B, n_q, T, d] over [B, n_kv, L, d] to [B, T, n_q·d]. `mask` is additive [.., T, L]."""
        if self.parts.eager:
            return self._attend_eagerly(q, k, v, mask, causal=causal)
        grouped = self.groups > 1
        if grouped and mask is not None and q.device.type == "cuda":
            # Masked attention with grouped heads has no fused kernel there.
            k, v = (x.repeat_interleave(self.groups, dim=1) for x in (k, v))
            grouped = False
        out = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=self.scaling, enable_gqa=grouped
        )
        return out.transpose(1, 2).flatten(2)

    def _attend_eagerly(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        *,
        causal: bool,
    ) -> torch.Tensor:
        """As the model's own function does, with its caps of scores and sinks."""
        module = self.parts.module
        if causal:
            mask = lower_right(q.shape[2], k.shape[2], like=q)
        cap = getattr(module, "attn_logit_softcapping", None)
        arguments = {} if cap is None else {"softcap": cap}
        function = own_function(module, "eager_attention_forward")
        out = function(module, q, k, v, mask, scaling=self.scaling, dropout=0.0, **arguments)[0]
        attended: torch.Tensor = out.flatten(2)
        return attended

    def attend_causally(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        given: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Each of the T queries, the newest tokens, sees the keys up to its own, or those that the
        mask `given` to a layer with a window lets it see."""
        num_queries, num_keys = q.shape[2], k.shape[2]
        if self.masked and given is not None:
            return self.attend(q, k, v, given[..., -num_keys:])
        if num_queries == 1 or num_queries == num_keys:
            return self.attend(q, k, v, causal=num_queries > 1)
        return self.attend(q, k, v, lower_right(num_queries, num_keys, like=q))

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: Rotary | None = None,
        attention_mask: Any = None,
        cache: Any = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """[B, T, h] to [B, T, h], as the original."""
        q, k, v = self.projected(hidden_states, position_embeddings)
        k, v = self.appended(cache, k, v)
        return self.output(self.attend_causally(q, k, v, attention_mask)), None


class _Rows:
    """A fused projection, its rows in the order q, k, v, that gives a part of its outputs."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    width: int  # of the queries

    def forward(self, x: torch.Tensor, part: str = "") -> torch.Tensor:
        """[B, T, h] to [B, T, n·d]: of the queries ("q"), of keys and values ("kv"), or of all."""
        rows = {"q": slice(0, self.width), "kv": slice(self.width, None)}.get(part, slice(None))
        bias = None if self.bias is None else self.bias[rows]
        stored = self.weight.T if type(self).__name__ == "Conv1D" else self.weight
        return linear(x, stored[rows], bias)


def split_rows(projection: Any, parts: AttentionParts) -> None:
    """Bring the rows of a fused projection into the order q, k, v, and let it run on a part."""
    kv, size = parts.kv_heads, parts.head_dim
    if parts.order == "groups":
        turned = type(projection).__name__ == "Conv1D"
        stored = projection.weight.T if turned else projection.weight
        rows = torch.arange(stored.shape[0], device=stored.device).view(kv, -1, size)
        order = torch.cat([part.flatten() for part in (rows[:, :-2], rows[:, -2], rows[:, -1])])
        weight = stored[order]
        projection.weight.data = (weight.T if turned else weight).contiguous()
        if projection.bias is not None:
            projection.bias.data = projection.bias[order]
    extend(projection, _Rows)
    projection.width = parts.heads * size


def rotated(x: torch.Tensor, rotary: Rotary, *, turns: bool = False) -> torch.Tensor:
    """Rotary position embedding of [B, heads, T, d], of the first dimensions where cos and sin are
    shorter. `turns`: pairs of neighbours, not of halves."""
    cos, sin = (part.unsqueeze(1) for part in rotary)
    size = cos.shape[-1]
    rest = x[..., size:]
    x = x[..., :size] if rest.shape[-1] else x
    if turns:
        other = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    else:
        first, second = x.chunk(2, dim=-1)
        other = torch.cat((-second, first), dim=-1)
    x = x * cos + other * sin
    return torch.cat((x, rest), dim=-1) if rest.shape[-1] else x


def lower_right(num_queries: int, num_keys: int, *, like: torch.Tensor) -> torch.Tensor:
    """Additive causal mask [T, L] whose last query sees the last key."""
    mask = like.new_full((num_queries, num_keys), float("-inf"))
    return mask.triu(num_keys - num_queries + 1)


def past_length(cache: Any, layer_idx: int) -> int:
    """Tokens that a layer's cache holds; 0 without a cache."""
    if cache is None or layer_idx >= len(cache.layers):
        return 0
    return int(cache.get_seq_length(layer_idx))


def refuse_padding(attention_mask: Any, num_queries: int, past: int) -> None:
    """Raises PrunescopeError on the mask that transformers only makes of a padded batch."""
    if attention_mask is not None and (num_queries == 1 or past == 0):
        raise PrunescopeError(
            "this pruned model was given a batch with padding",
            hint="dynamic families run sequences of one length: leave attention_mask out",
        )


class CountedLayer(DynamicLayer):
    """A cache layer that holds fewer keys than the tokens it has seen; positions go by `seen`.

    `window`: keys that a query sees, of which the cache holds the last window − 1. With `tracked`
    it knows where its keys stood in the sequence, [1 or B, held], for masks that are given.
    """

    is_croppable = False  # what was evicted or skipped cannot come back

    def __init__(self, window: int | None = None, *, tracked: bool = False) -> None:
        super().__init__()
        self.seen, self.window, self.tracked = 0, window, tracked
        self.places: torch.Tensor | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append, and count the tokens as seen."""
        self.seen += key_states.shape[-2]
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        if self.window is not None and keys.shape[2] >= self.window:
            self.keys = keys[:, :, 1 - self.window :]
            self.values = values[:, :, 1 - self.window :]
        return keys, values

    def mask_of(
        self, mask: torch.Tensor | None, num: int, at: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """Of a mask [.., T, seen + T] over all tokens what `num` new ones see, of the keys held and
        their own. `at` [B, num]: which of the T tokens they are, all where it is None."""
        if not self.tracked:
            return last_rows(mask, self.held + num)
        new = at
        if new is None:
            device = None if mask is None else mask.device
            new = torch.arange(self.seen, self.seen + num, device=device).unsqueeze(0)
        places = new
        if self.places is not None:
            held = self.places.expand(max(new.shape[0], self.places.shape[0]), -1)
            places = torch.cat((held, new.expand(held.shape[0], -1)), dim=1)
        kept = len(places[0]) if self.window is None else self.window - 1
        self.places = places[:, max(0, places.shape[1] - kept) :]
        if mask is None:
            return None
        mask = mask.expand(places.shape[0], -1, -1, -1) if places.shape[0] > 1 else mask
        if at is not None:
            mask = mask.gather(2, _spread(at, mask, 3))
        return mask.gather(3, _spread(places, mask, 2))

    def get_seq_length(self) -> int:
        """Tokens seen, so that the next position is right."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As if every token seen were held."""
        return self.seen + query_length, 0

    @property
    def held(self) -> int:
        """Keys in the cache."""
        return self.keys.shape[-2] if self.is_initialized and self.keys is not None else 0

    def reset(self) -> None:
        """Empty, and nothing seen."""
        super().reset()
        self.seen, self.places = 0, None


def _spread(places: torch.Tensor, mask: torch.Tensor, other: int) -> torch.Tensor:
    """Places [1 or B, n] as an index into a mask [B, H, T, L] along its axis beside `other`."""
    shape = [mask.shape[0], mask.shape[1], -1, -1]
    shape[other] = mask.shape[other]
    return places[:, None].unsqueeze(other).expand(shape)


def last_rows(mask: torch.Tensor | None, num_keys: int) -> torch.Tensor | None:
    """Of a causal mask [.., T, L] what the last `num_keys` keys, the newest with them, show: every
    key before them is seen by all."""
    return None if mask is None else mask[..., -num_keys:]


def counted_layer(
    cache: Any, layer_idx: int, window: int | None = None, *, tracked: bool = False
) -> CountedLayer:
    """The layer of a cache as a CountedLayer; an empty layer of another kind is replaced."""
    while len(cache.layers) <= layer_idx:
        cache.layers.append(CountedLayer())
    layer = cache.layers[layer_idx]
    if not isinstance(layer, CountedLayer) or (layer.tracked != tracked and not layer.seen):
        if layer.get_seq_length():
            raise PrunescopeError(
                "the cache was filled by another model",
                hint="prefill with the pruned model, on an empty DynamicCache",
            )
        layer = cache.layers[layer_idx] = CountedLayer(window, tracked=tracked)
    return layer
