"""The attention of a decoder layer taken apart, so that a dynamic family changes one step.

Shapes: B batch, T query tokens, L keys, h hidden, n_q and n_kv heads of d. All sequences of a batch
have one length: there is no padding. Everything is ordinary torch on any device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers.pytorch_utils import Conv1D

from taxonomy.errors import PrunescopeError
from tracer import compat
from tracer.attention_parts import AttentionParts, own_function
from tracer.inserted import extend
from tracer.matrices import weight_of

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
        q = self._part("qkv")(x, "q") if "qkv" in self.parts.names else self._part("q")(x)
        return self._finished("q", q, rotary)

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
        stored = self.weight.T if isinstance(self, Conv1D) else self.weight
        return linear(x, stored[rows], bias)


def split_rows(projection: Any, parts: AttentionParts) -> None:
    """Bring the rows of a fused projection into the order q, k, v, and let it run on a part."""
    kv, size = parts.kv_heads, parts.head_dim
    if parts.order == "groups":
        stored = weight_of(projection)
        rows = torch.arange(stored.shape[0], device=stored.device).view(kv, -1, size)
        order = torch.cat([part.flatten() for part in (rows[:, :-2], rows[:, -2], rows[:, -1])])
        stored.copy_(stored[order])
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


def taken_rotary(rotary: Rotary, places: torch.Tensor) -> Rotary:
    """Cos and sin [1 or B, T, d] of the tokens at `places` [B, k]."""
    cos, sin = rotary
    shape = (*places.shape, cos.shape[-1])
    return (
        cos[0].index_select(0, places.flatten()).view(shape),
        sin[0].index_select(0, places.flatten()).view(shape),
    )


def lower_right(num_queries: int, num_keys: int, *, like: torch.Tensor) -> torch.Tensor:
    """Additive causal mask [T, L] whose last query sees the last key."""
    mask = like.new_full((num_queries, num_keys), float("-inf"))
    return mask.triu(num_keys - num_queries + 1)


def refuse_padding(attention_mask: Any, num_queries: int, past: int) -> None:
    """Raises PrunescopeError on the mask that transformers only makes of a padded batch."""
    if attention_mask is not None and (num_queries == 1 or past == 0):
        raise PrunescopeError(
            "this pruned model was given a batch with padding",
            hint="dynamic families run sequences of one length: leave attention_mask out",
        )
