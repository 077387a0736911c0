"""Projections of an attention other than separate q, k and v: fused, from latents, or with a gate.

In: the AttentionParts of a `PlainAttention`. Out: mixins that replace its steps. Shapes: B batch, T
tokens, L keys, h hidden, n heads of d, r rank of a latent.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from prunescope.tracer.attention.attention_parts import AttentionParts
from prunescope.tracer.attention.rotation import Rotary, rotate, rotate_pairs
from prunescope.tracer.model.forwards import extend
from prunescope.tracer.model.weights import weight_of

KV = tuple[Tensor, Tensor]  # keys and values
QKV = tuple[Tensor, Tensor, Tensor]  # queries, keys and values


def projection_mixins(parts: AttentionParts) -> list[type]:
    """List the mixins for projections other than separate q, k and v."""
    mixins: list[type] = [_Gated] if parts.is_gated else []
    if "qkv" in parts.names:
        mixins.append(_Fused)
    if "kv_b" in parts.names:
        mixins.append(_Latent)
    return mixins


class _ProjectionMixin:
    """The attributes that the attention provides to a mixin."""

    parts: AttentionParts
    head_dim: int
    part: Any  # maps a role to its module
    normalise: Any  # maps a role and [.., r] to the normed [.., r]
    finish: Any  # maps a role, [B, T, n·d] and rotary to [B, n, T, d]


class _Fused(_ProjectionMixin):
    """One matrix for q, k and v: one GEMM if all three read the same tokens, otherwise two."""

    def project_queries(self, x: Tensor, rotary: Rotary | None) -> Tensor:
        """Project x [B, T, h] to rotated queries [B, n_q, T, d]."""
        return self.finish("q", self.part("qkv")(x, "q"), rotary)

    def project_keys_values(self, x: Tensor, rotary: Rotary | None) -> KV:
        """Project x [B, T, h] to rotated keys, and values, both [B, n_kv, T, d]."""
        k, v = self.part("qkv")(x, "kv").chunk(2, dim=-1)
        return self.finish("k", k, rotary), self.finish("v", v, None)

    def project(self, x: Tensor, rotary: Rotary | None) -> QKV:
        """Project the same tokens to queries, keys and values."""
        width, size = self.parts.heads * self.head_dim, self.parts.kv_heads * self.head_dim
        q, k, v = self.part("qkv")(x).split((width, size, size), dim=-1)
        return (
            self.finish("q", q, rotary),
            self.finish("k", k, rotary),
            self.finish("v", v, None),
        )


class _Latent(_ProjectionMixin):
    """Keys and values that are expanded from a latent; all heads share a rotated part of each key.

    The cache holds the latent and the rotated part, and every forward expands all of it.
    """

    def project_queries(self, x: Tensor, rotary: Rotary | None) -> Tensor:
        """Project x [B, T, h] to queries [B, n, T, d], rotated in their last dimensions."""
        if "q_a" in self.parts.names:
            q = self.part("q_b")(self.normalise("q", self.part("q_a")(x)))
        else:
            q = self.part("q")(x)
        q = q.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        if rotary is None or self.parts.is_interleaved is None:
            return q
        size = self.head_dim - self.parts.rope_dim
        return torch.cat((q[..., :size], self._rotated(q[..., size:], rotary)), dim=-1)

    def project_keys_values(self, x: Tensor, rotary: Rotary | None) -> KV:
        """Project x [B, T, h] to what is cached: latents, and the rotated parts of the keys.

        The latents are [B, 1, T, r], and the rotated parts [B, 1, T, d'].
        """
        both, size = self.part("kv_a")(x).unsqueeze(1), self.parts.rope_dim
        latents, turned = both.split((both.shape[-1] - size, size), dim=-1)
        if rotary is not None and self.parts.is_interleaved is not None:
            turned = self._rotated(turned, rotary)
        return self.normalise("k", latents), turned

    def expand(self, latents: Tensor, turned: Tensor) -> KV:
        """Expand the cached tensors of L tokens to keys [B, n, L, d] and values [B, n, L, d_v]."""
        size = self.head_dim - self.parts.rope_dim
        both = self.part("kv_b")(latents.squeeze(1))
        both = both.unflatten(-1, (self.parts.heads, -1)).transpose(1, 2)
        keys, values = both[..., :size], both[..., size:]
        return torch.cat((keys, turned.expand(-1, keys.shape[1], -1, -1)), dim=-1), values

    def _rotated(self, x: Tensor, rotary: Rotary) -> Tensor:
        if self.parts.is_interleaved and not isinstance(rotary, Tensor):
            return rotate_pairs(x, rotary)
        return rotate(x, rotary)


class _Gated(_ProjectionMixin):
    """A q projection with twice the outputs: queries, and a gate for the output of each head."""

    gate: Tensor  # that of the current queries, [B, T, n·d]

    def project_queries(self, x: Tensor, rotary: Rotary | None) -> Tensor:
        """Project x [B, T, h] to rotated queries [B, n_q, T, d], and keep their gate."""
        both = self.part("q")(x).unflatten(-1, (-1, 2 * self.head_dim))
        self.gate = both[..., self.head_dim :].flatten(-2)
        return self.finish("q", both[..., : self.head_dim].flatten(-2), rotary)

    def project_output(self, attended: Tensor) -> Tensor:
        """Gate and project the attended values [B, T, n_q·d] to [B, T, h]."""
        gate = self.gate.sigmoid().view_as(attended)
        return self.part("o")(attended * gate)


class _Rows:
    """A fused projection with rows in the order q, k, v, which can compute part of its outputs."""

    weight: Tensor
    bias: Tensor | None
    width: int  # the number of rows of the queries

    def forward(self, x: Tensor, part: str = "") -> Tensor:
        """Project x [B, T, h] to [B, T, n·d]: queries ("q"), keys, values ("kv"), or all ("")."""
        rows = {"q": slice(0, self.width), "kv": slice(self.width, None)}.get(part, slice(None))
        bias = None if self.bias is None else self.bias[rows]
        stored = self.weight.T if isinstance(self, Conv1D) else self.weight
        return linear(x, stored[rows], bias)


def split_rows(projection: Any, parts: AttentionParts) -> None:
    """Reorder the rows of a fused projection to q, k, v, and let it compute part of them."""
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
