"""The attention of a decoder layer as separate steps, of which a dynamic family changes one.

Shapes: B batch, T query tokens, L keys, h hidden, n_q and n_kv heads of d. All sequences of a batch
have one length: there is no padding. The steps are plain torch ops and run on any device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.tracer.attention.attention_parts import AttentionParts
from prunescope.tracer.attention.projections import KV, QKV, projection_mixins, split_rows
from prunescope.tracer.attention.rotation import Rotary, rotate, source_function
from prunescope.tracer.model import compat
from prunescope.tracer.model.forwards import extend
from prunescope.tracer.model.static_step import static_step


class PlainAttention(compat.TakesCache):
    """The attention of a layer with the original projections, under their own names.

    `forward` computes dense attention. A family overrides it, and uses the steps.

    Args:
        parts: The parts of the attention that is replaced.
    """

    def __init__(self, parts: AttentionParts) -> None:
        super().__init__()
        self.parts = parts
        self.layer_idx, self.head_dim = parts.layer_idx, parts.head_dim
        self.scaling, self.is_masked = parts.scaling, parts.is_masked or parts.window is not None
        self.groups = parts.heads // (parts.kv_heads * parts.repeats)
        for name, child in parts.module.named_children():
            setattr(self, name, child)
        for name, parameter in parts.module.named_parameters(recurse=False):
            setattr(self, name, parameter)  # attention sinks
        for mixin in projection_mixins(parts):
            extend(self, mixin)
        if "qkv" in parts.names:
            split_rows(self.part("qkv"), parts)

    def project_queries(self, x: Tensor, rotary: Rotary | None) -> Tensor:
        """Project x [B, T, h] to rotated queries [B, n_q, T, d]."""
        return self.finish("q", self.part("q")(x), rotary)

    def project_keys_values(self, x: Tensor, rotary: Rotary | None) -> KV:
        """Project x [B, T, h] to what is cached: rotated keys and values [B, n_kv, T, d]."""
        k, v = self.part("k")(x), self.part("v")(x)
        return self.finish("k", k, rotary), self.finish("v", v, None)

    def project(self, x: Tensor, rotary: Rotary | None) -> QKV:
        """Project x [B, T, h] to queries, keys and values."""
        return self.project_queries(x, rotary), *self.project_keys_values(x, rotary)

    def expand(self, k: Tensor, v: Tensor) -> KV:
        """Return the cached tensors as keys and values [B, n_kv, L, d], unchanged."""
        return k, v

    def project_output(self, attended: Tensor) -> Tensor:
        """Project the attended values [B, T, n_q·d] to [B, T, h]."""
        return self.part("o")(attended)

    def part(self, role: str) -> Any:
        """Return the projection of a role."""
        return getattr(self, self.parts.names[role])

    def normalise(self, role: str, x: Tensor) -> Tensor:
        """Apply the norm of q or k to x [.., n], if there is one."""
        name = self.parts.norms.get(role)
        return getattr(self, name)(x) if name else x

    def finish(self, role: str, x: Tensor, rotary: Rotary | None) -> Tensor:
        """Norm, scale, rotate and repeat a projection [B, T, n·d]: [B, n, T, d]."""
        spans = self.parts.spans
        x = self.normalise(role, x) if spans == "all" else x
        x = x.unflatten(-1, (-1, self.head_dim))
        x = self.normalise(role, x) if spans == "head" else x
        x = x.transpose(1, 2)
        x = self.normalise(role, x) if spans == "heads" else x
        if role == "k" and self.parts.key_scale != 1:
            x = x * self.parts.key_scale
        if rotary is not None and self.parts.is_interleaved is not None:
            if self.parts.has_short_rotary:
                rotary = (torch.cat((rotary[0],) * 2, -1), torch.cat((rotary[1],) * 2, -1))
            x = rotate(x, rotary, is_interleaved=self.parts.is_interleaved)
        if role != "q" and self.parts.repeats > 1:
            x = x.repeat_interleave(self.parts.repeats, dim=1)
        return x

    def append_to(self, cache: Any, k: Tensor, v: Tensor) -> KV:
        """Append to the cache, and return all that it holds.

        A static cache has room for more than a prompt: there, only the keys and values of the
        prompt are returned.
        """
        if cache is None:
            return k, v
        keys, values = cache.update(k, v, self.layer_idx)
        step = static_step()
        return (k, v) if step is not None and step.prompt else (keys, values)

    def mask_of(self, given: Any, num_queries: int, past: int) -> Any:
        """Return the mask to attend by, from the one `given` to the layer; None for a causal one.

        A static cache has empty places, which only the mask shows.

        Raises:
            PrunescopeError: The mask can only come from padding.
        """
        step = static_step()
        if step is not None:
            return given[..., :num_queries] if step.prompt and given is not None else given
        if self.is_masked:
            return given
        refuse_padding(given, num_queries, past)
        return None

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool = False
    ) -> Tensor:
        """Attend with queries [B, n_q, T, d] to keys and values [B, n_kv, L, d]: [B, T, n_q·d].

        `mask` [.., T, L] is additive. `causal` needs as many keys as queries.
        """
        if self.parts.is_eager:
            return self._attend_eagerly(q, k, v, mask, causal=causal)
        is_grouped = self.groups > 1
        if is_grouped and mask is not None and q.device.type == "cuda":
            # CUDA has no fused kernel for masked attention with grouped heads.
            k, v = (x.repeat_interleave(self.groups, dim=1) for x in (k, v))
            is_grouped = False
        attended = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=self.scaling, enable_gqa=is_grouped
        )
        return attended.transpose(1, 2).flatten(2)

    def _attend_eagerly(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool
    ) -> Tensor:
        """Attend by the model's own function, with its score caps and sinks."""
        module = self.parts.module
        if causal:
            mask = lower_right(q.shape[2], k.shape[2], like=q)
        cap = getattr(module, "attn_logit_softcapping", None)
        arguments = {} if cap is None else {"softcap": cap}
        function = source_function(module, "eager_attention_forward")
        attended, *_ = function(
            module, q, k, v, mask, scaling=self.scaling, dropout=0.0, **arguments
        )
        return attended.flatten(2)

    def attend_causally(
        self, q: Tensor, k: Tensor, v: Tensor, given: Tensor | None = None
    ) -> Tensor:
        """Let the T queries, the newest tokens, attend to the keys up to their own.

        A layer with a window attends by the mask `given` to it instead.
        """
        num_queries, num_keys = q.shape[2], k.shape[2]
        if given is not None and (self.is_masked or static_step() is not None):
            return self.attend(q, k, v, given[..., -num_keys:])
        if num_queries == 1 or num_queries == num_keys:
            return self.attend(q, k, v, causal=num_queries > 1)
        return self.attend(q, k, v, lower_right(num_queries, num_keys, like=q))

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Rotary | None = None,
        attention_mask: Any = None,
        cache: Any = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """Attend like the original: [B, T, h] to [B, T, h]."""
        q, k, v = self.project(hidden_states, position_embeddings)
        k, v = self.expand(*self.append_to(cache, k, v))
        if static_step() is not None:
            attention_mask = self.mask_of(attention_mask, q.shape[2], 0)
        return self.project_output(self.attend_causally(q, k, v, attention_mask)), None


def lower_right(num_queries: int, num_keys: int, *, like: Tensor) -> Tensor:
    """Make an additive causal mask [T, L] in which the last query attends to the last key."""
    mask = like.new_full((num_queries, num_keys), float("-inf"))
    return mask.triu(num_keys - num_queries + 1)


def refuse_padding(attention_mask: Any, num_queries: int, past: int) -> None:
    """Check that a mask is not one that transformers only makes for a padded batch.

    Raises:
        PrunescopeError: The batch is padded.
    """
    if attention_mask is not None and (num_queries == 1 or past == 0):
        raise PrunescopeError(
            "this pruned model was given a batch with padding",
            hint="dynamic families need sequences of one length: remove attention_mask",
        )
