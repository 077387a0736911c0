"""The attention of a pre-norm decoder layer taken apart, so that a dynamic family changes one step.

Shapes: B batch, T query tokens, L keys, h hidden, n_q and n_kv heads of d. All sequences of a batch
have one length: there is no padding. Everything is ordinary torch on any device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import DynamicLayer

from taxonomy.errors import PrunescopeError
from tracer import compat

Rotary = tuple[torch.Tensor, torch.Tensor]  # cos and sin, [1, T, d] or [B, T, d]


class PlainAttention(compat.TakesCache):
    """The attention of a layer with the projections of the original, under their names.

    `forward` is the dense one; a family overrides it and uses the steps.
    """

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear
    q_norm: nn.Module  # absent in most architectures
    k_norm: nn.Module

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        parts: Any = original
        self.layer_idx, self.head_dim = int(parts.layer_idx), int(parts.head_dim)
        self.scaling, self.groups = float(parts.scaling), int(parts.num_key_value_groups)
        for name, child in original.named_children():
            setattr(self, name, child)

    def queries(self, x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        """[B, T, h] to rotated queries [B, n_q, T, d]."""
        q = self._split(self.q_proj(x))
        q = self.q_norm(q) if hasattr(self, "q_norm") else q
        return rotated(q.transpose(1, 2), rotary)

    def keys_values(self, x: torch.Tensor, rotary: Rotary) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, T, h] to rotated keys and values [B, n_kv, T, d]."""
        k, v = self._split(self.k_proj(x)), self._split(self.v_proj(x))
        k = self.k_norm(k) if hasattr(self, "k_norm") else k
        return rotated(k.transpose(1, 2), rotary), v.transpose(1, 2)

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
        grouped = self.groups > 1
        if grouped and mask is not None and q.device.type == "cuda":
            # Masked attention with grouped heads has no fused kernel there.
            k, v = (x.repeat_interleave(self.groups, dim=1) for x in (k, v))
            grouped = False
        out = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=self.scaling, enable_gqa=grouped
        )
        return out.transpose(1, 2).flatten(2)

    def attend_causally(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Each of the T queries, the newest tokens, sees the keys up to its own."""
        num_queries, num_keys = q.shape[2], k.shape[2]
        if num_queries == 1 or num_queries == num_keys:
            return self.attend(q, k, v, causal=num_queries > 1)
        return self.attend(q, k, v, lower_right(num_queries, num_keys, like=q))

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: Rotary,
        attention_mask: Any = None,  # noqa: ARG002
        cache: Any = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """[B, T, h] to [B, T, h], as the original."""
        q = self.queries(hidden_states, position_embeddings)
        k, v = self.keys_values(hidden_states, position_embeddings)
        k, v = self.appended(cache, k, v)
        return self.o_proj(self.attend_causally(q, k, v)), None

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (-1, self.head_dim))


def rotated(x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Rotary position embedding of [B, heads, T, d]."""
    cos, sin = (part.unsqueeze(1) for part in rotary)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


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
    """A cache layer that holds fewer keys than the tokens it has seen; positions go by `seen`."""

    is_croppable = False  # what was evicted or skipped cannot come back

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append, and count the tokens as seen."""
        self.seen += key_states.shape[-2]
        return super().update(key_states, value_states, *args, **kwargs)

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
        self.seen = 0


def counted_layer(cache: Any, layer_idx: int) -> CountedLayer:
    """The layer of a cache as a CountedLayer; an empty layer of another kind is replaced."""
    while len(cache.layers) <= layer_idx:
        cache.layers.append(CountedLayer())
    layer = cache.layers[layer_idx]
    if not isinstance(layer, CountedLayer):
        if layer.get_seq_length():
            raise PrunescopeError(
                "the cache was filled by another model",
                hint="prefill with the pruned model, on an empty DynamicCache",
            )
        layer = cache.layers[layer_idx] = CountedLayer()
    return layer
