"""KV eviction: after the prompt, and with every new token, a cache of L tokens holds int(L·p) keys.

`keep=recent` keeps the latest keys (a window); `keep=attention` keeps the last prompt tokens and
the keys that they attend to most, for each KV head (as SnapKV), or for all heads that share a
latent. Kept keys are ordered with the first to be evicted in front, so that decode evicts by
slicing. Prefill attends to the whole prompt; a forward of prompt and answer together would see keys
that decode has evicted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from prunescope.taxonomy.keep import kept_count
from prunescope.tracer.attention.counted_cache import CountedKeys, counted_layer
from prunescope.tracer.attention.parts import AttentionParts
from prunescope.tracer.attention.pruned import PlainAttention, lower_right, refuse_padding
from prunescope.tracer.attention.rotation import Rotary
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.pruners import Applied
from prunescope.tracer.routing.decisions import Counted, Sampler, Tally, taken, token_rows
from prunescope.tracer.routing.learning import NothingTrained
from prunescope.tracer.routing.prenorm import rebuilt, whole_attentions

_WINDOW = 32  # last prompt tokens, whose attention ranks the keys (SnapKV's observation window)


def prune(model: PreTrainedModel, point: Point) -> Applied:
    """Give every attention an eviction policy. No weights are removed."""
    attentions = whole_attentions(model)
    sampler = Sampler(point, "kv-evict") if point.knobs["keep"] == "attention" else None

    def build() -> list[_EvictingAttention]:
        found = [_EvictingAttention(parts, point, sampler) for parts in attentions]
        for attention in found:
            model.set_submodule(attention.parts.path, attention)
        return found

    rebuilt(model, build, sparsity=point.sparsity)
    trained = NothingTrained("trained on forwards without a cache, which evict nothing")
    record = {"kept": {"keys": 1 - point.sparsity}}
    return Applied(model=model, record=record, learners=[trained])


class KeyRanker(nn.Module):
    """Ranks the keys of a prompt by the attention of its last tokens, for each KV head."""

    def __init__(self, sampler: Sampler) -> None:
        super().__init__()
        self.sampler = sampler

    def forward(
        self, q: torch.Tensor, keys: torch.Tensor, *, count: int, scaling: float, sets: int
    ) -> torch.Tensor:
        """Last queries [B, n_q, w, d] and keys [B, n_kv, S, d] to the rows of `count` keys in each
        of the cache's `sets` (one for each KV head, or one of latents), the least attended first.
        The newest min(w, count // 2) keys always stay: few queries can attend to them."""
        batch, heads, _, width = keys.shape
        grouped = q.reshape(batch, heads, -1, width)  # [B, n_kv, G·w, d]
        scores = grouped @ keys.transpose(-1, -2) * scaling
        mask = lower_right(q.shape[2], keys.shape[2], like=q)
        scores = scores.unflatten(2, (-1, q.shape[2])) + mask
        mass = scores.softmax(-1).mean((2, 3))  # [B, n_kv, S]
        if sets < heads:
            mass = mass.unflatten(1, (sets, -1)).mean(2)
        mass = self.sampler.replace(mass)
        mass[..., keys.shape[2] - min(q.shape[2], count // 2) :] = float("inf")
        return token_rows(mass.topk(count).indices.flip(-1), keys.shape[2])


class _EvictingAttention(PlainAttention, Counted):
    """Dense attention over a cache that holds some of the keys."""

    def __init__(self, parts: AttentionParts, point: Point, sampler: Sampler | None) -> None:
        super().__init__(parts)
        self.sparsity, self.tally = point.sparsity, Tally("keys")
        if sampler is not None:
            self.router = KeyRanker(sampler.stream_for(point, f"layer {self.layer_idx}"))

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: Rotary | None = None,
        attention_mask: Any = None,
        cache: Any = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """[B, T, h] to [B, T, h]."""
        q, k, v = self.projected(hidden_states, position_embeddings)
        if cache is None:
            k, v = self.expanded(k, v)
            return self.output(self.attend_causally(q, k, v, attention_mask)), None
        held = counted_layer(cache, self.layer_idx)
        if not self.masked:
            refuse_padding(attention_mask, q.shape[2], held.seen)
        budget = kept_count(held.seen + q.shape[2], self.sparsity)
        if held.held:
            self._drop_front(held, held.held + q.shape[2] - budget)
        first = not held.held
        k, v = self.expanded(*held.update(k, v))
        out = self.attend_causally(q, k, v, attention_mask if first else None)
        if first and budget < k.shape[2]:
            self._evict(held, q, k, budget)
        self.tally.add(held.held, held.seen)
        return self.output(out), None

    def _drop_front(self, held: CountedKeys, count: int) -> None:
        """Drop the first `count` keys, but never all; the next update copies the rest."""
        count = min(count, held.held - 1)
        if count > 0:
            held.keys, held.values = held.keys[:, :, count:], held.values[:, :, count:]

    def _evict(self, held: CountedKeys, q: torch.Tensor, k: torch.Tensor, budget: int) -> None:
        """After the prompt: reduce the cache to `budget` keys, copied so that memory is freed."""
        if not hasattr(self, "router"):
            held.keys = held.keys[:, :, -budget:].contiguous()
            held.values = held.values[:, :, -budget:].contiguous()
            return
        queries, sets = q[:, :, -_WINDOW:], held.keys.shape[1]
        rows = self.router(queries, k, count=budget, scaling=self.scaling, sets=sets)
        held.keys, held.values = taken(held.keys, rows), taken(held.values, rows)
