"""Dynamic NK: each query block attends to a share p of the key/value blocks, chosen at run time.

`blocks=key_value` skips blocks of QKᵀ and PV by an estimator (pooled queries · pooled keys,
softmax, top-k); `blocks=value` computes all scores and skips blocks of PV. The cache is full, and
also stores the means of its key blocks. A chunk of prompt on a filled cache attends densely.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.tracer.attention import flex
from prunescope.tracer.attention.blocks import (
    Group,
    groups,
    longest_block,
    num_seen,
    pooled,
    pooled_keys,
    usual_block,
    with_masks,
)
from prunescope.tracer.attention.counted_cache import past_length
from prunescope.tracer.attention.parts import AttentionParts
from prunescope.tracer.attention.pruned import PlainAttention, lower_right, refuse_padding
from prunescope.tracer.attention.rotation import Rotary
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.pruners import Applied
from prunescope.tracer.routing.decisions import Counted, Sampler, Tally
from prunescope.tracer.routing.prenorm import rebuilt, whole_attentions


def prune(model: PreTrainedModel, point: Point) -> Applied:
    """Give every attention a block estimator. No weights are removed."""
    attentions, block = whole_attentions(model), int(point.knobs["block"])
    if block < 0:
        raise PrunescopeError(
            f"block={block} is not a block length", hint="0 chooses a block by the prompt"
        )
    sampler = Sampler(point, "dynamic-nk")
    kind = _ValueAttention if point.knobs["blocks"] == "value" else _BlockAttention
    backend = str(point.knobs["backend"])
    if backend == "flex":
        _check_flex(model, point, block)
        kind = _FlexAttention
    sizes = BlockSizes(0, flex.LEAST_BLOCK if backend == "flex" else 1)

    def build() -> list[BlockRouter]:
        found = [kind(parts, point, sampler, sizes) for parts in attentions]
        for attention in found:
            model.set_submodule(attention.parts.path, attention)
        return [attention.router for attention in found]

    rebuilt(model, build, sparsity=point.sparsity)
    sizes.requested, sizes.sparsity = block, point.sparsity
    kept = {"blocks": 1 - point.sparsity, "block": block or "by prompt"}
    notes = []
    if backend == "flex":
        notes.append("prompts run on compiled FlexAttention, decode on ordinary ops")
    if attentions[0].rope_dim and kind is not _ValueAttention:
        notes.append("the cache also holds means of expanded keys, one for each head and block")
    record = {"kept": kept, "backend": backend, "notes": notes}
    return Applied(model=model, record=record)


def _check_flex(model: PreTrainedModel, point: Point, block: int) -> None:
    """Raises PrunescopeError if FlexAttention cannot run here."""
    reason = flex.missing(model.device) or flex.refused_block(block)
    if point.knobs["blocks"] == "value":
        reason = "blocks=value computes every score, and a block mask skips scores"
    if reason:
        raise PrunescopeError(
            f"backend=flex cannot be used: {reason}",
            hint="remove backend: ordinary torch ops run on any device",
        )


class BlockSizes:
    """The block length of the current forward, the same for all layers."""

    def __init__(self, requested: int, least: int = 1) -> None:
        self.requested, self.least, self.sparsity, self._longest = requested, least, 0.0, 0

    def of_prompt(self, length: int) -> int:
        """Raises PrunescopeError if the requested block is longer than every prompt so far, or so
        long that no block of them can be skipped."""
        if self.requested and length > self._longest:
            self._check(length)
            self._longest = length
        return self.requested or max(self.least, usual_block(length))

    def _check(self, length: int) -> None:
        most = longest_block(length, self.sparsity) if self.sparsity else length
        most -= most % self.least
        if self.requested <= most:
            return
        problem = f"block={self.requested} is longer than the prompt of {length} tokens"
        if self.requested <= length:
            problem = (
                f"block={self.requested} in a prompt of {length} tokens: no block can be skipped "
                f"at s = {self.sparsity:g}"
            )
        fits = f"the longest that fits is --set block={most}"
        longer = "use a longer prompt or a higher sparsity"
        raise PrunescopeError(problem, hint=fits if most else longer)

    def of_cache(self, layer: Any, length: int) -> int:
        """The block length of the prompt in the cache."""
        return (
            getattr(layer, "block", None) or self.requested or max(self.least, usual_block(length))
        )


class BlockRouter(nn.Module):
    """Estimates the most important key blocks of each query block, and builds their indices."""

    def __init__(self, point: Point, sampler: Sampler, what: str) -> None:
        super().__init__()
        self.sparsity, self.sampler = point.sparsity, sampler.stream_for(point, what)

    def forward(
        self, q: torch.Tensor, keys: torch.Tensor, *, layer: Any, past: int, block: int
    ) -> list[Group]:
        """Queries [B, n_q, T, d] and keys [B, n_kv, L, d] to the blocks of each query block."""
        heads = keys.shape[1]
        mean_q = pooled(q.unflatten(1, (heads, -1)).mean(2), block)  # [B, n_kv, blocks, d]
        mean_k = pooled_keys(layer, keys, block, past)
        scores = (mean_q @ mean_k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        return self.decided(scores, block=block, length=keys.shape[2], like=q)

    def decided(
        self, scores: torch.Tensor, *, block: int, length: int, like: torch.Tensor
    ) -> list[Group]:
        """The blocks by scores [B, n_kv, query blocks, key blocks]."""
        scores = self.sampler.replace(scores)
        found = groups(scores, block=block, length=length, sparsity=self.sparsity)
        return with_masks(found, like=like) if like.shape[2] > 1 else found


class ValueRouter(BlockRouter):
    """Ranks value blocks by the attention of a query block to them."""

    def forward(  # type: ignore[override]
        self, weights: torch.Tensor, *, block: int
    ) -> list[Group]:
        """Attention weights [B, n_kv, T, L], means over the heads of a group, to blocks."""
        rows = pooled(weights, block)
        mass = pooled(rows.transpose(-1, -2), block).transpose(-1, -2)
        return self.decided(mass, block=block, length=weights.shape[3], like=weights[:, :, :1])


class _BlockAttention(PlainAttention, Counted):
    """Attention of each query block over its chosen key/value blocks."""

    router_kind: type[BlockRouter] = BlockRouter

    def __init__(
        self, parts: AttentionParts, point: Point, sampler: Sampler, sizes: BlockSizes
    ) -> None:
        super().__init__(parts)
        self.router = self.router_kind(point, sampler, f"layer {self.layer_idx}")
        self.sizes, self.tally = sizes, Tally("blocks")

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: Rotary | None = None,
        attention_mask: Any = None,
        cache: Any = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """[B, T, h] to [B, T, h]."""
        past, tokens = past_length(cache, self.layer_idx), hidden_states.shape[1]
        if not self.masked:
            refuse_padding(attention_mask, tokens, past)
        q, k, v = self.projected(hidden_states, position_embeddings)
        k, v = self.expanded(*self.appended(cache, k, v))
        if past and tokens > 1:
            return self.output(self.attend_causally(q, k, v)), None
        layer = None if cache is None else cache.layers[self.layer_idx]
        sizes, length = self.sizes, k.shape[2]
        block = sizes.of_cache(layer, length) if past else sizes.of_prompt(length)
        if layer is not None:
            layer.block = block if past == 0 else getattr(layer, "block", block)
        out, seen = self.attend_blocks((q, k, v), layer=layer, past=past, block=block)
        whole = -(-length // block)
        total = whole if past else whole * (whole + 1) // 2
        self.tally.add(seen, total)
        return self.output(out), None

    def attend_blocks(
        self,
        qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        *,
        layer: Any,
        past: int,
        block: int,
    ) -> tuple[torch.Tensor, int]:
        """[B, T, n_q·d], and the number of blocks read."""
        q, k, v = qkv
        found = self.router(q, k, layer=layer, past=past, block=block)
        parts = []
        for group in found:
            x = q.unsqueeze(2) if past else group.queries_of(q, block)
            x = x.transpose(1, 2).flatten(0, 1)  # [B·g, n_q, own, d]
            own, mask = x.shape[2], group.mask
            causal = group.count == 1 and own > 1
            out = self.attend(
                x, group.gathered(k), group.gathered(v), None if causal else mask, causal=causal
            )
            parts.append(out.view(q.shape[0], -1, out.shape[-1]))
        return (torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]), num_seen(found)


class FlexRouter(BlockRouter):
    """Chooses blocks as a block mask for a prompt, as a BlockRouter for a single token."""

    def decided(self, scores: torch.Tensor, *, block: int, length: int, like: torch.Tensor) -> Any:
        """By scores [B, n_kv, query blocks, key blocks]."""
        if like.shape[2] == 1:
            return super().decided(scores, block=block, length=length, like=like)
        return flex.block_mask(
            self.sampler.replace(scores),
            block=block,
            length=length,
            sparsity=self.sparsity,
            groups=like.shape[1] // scores.shape[1],
        )


class _FlexAttention(_BlockAttention):
    """Runs prompts by FlexAttention, without gathering keys and values."""

    router_kind = FlexRouter

    def attend_blocks(
        self,
        qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        *,
        layer: Any,
        past: int,
        block: int,
    ) -> tuple[torch.Tensor, int]:
        """[B, T, n_q·d], and the number of blocks read."""
        q, k, v = qkv
        if q.shape[2] == 1:
            return super().attend_blocks(qkv, layer=layer, past=past, block=block)
        mask = self.router(q, k, layer=layer, past=past, block=block)
        out = flex.attend(q, k, v, mask, scaling=self.scaling).transpose(1, 2).flatten(2)
        return out, flex.num_blocks_read(-(-q.shape[2] // block), self.router.sparsity)


class _ValueAttention(_BlockAttention):
    """Computes all scores, and reads only the chosen blocks of the values."""

    router_kind = ValueRouter

    def attend_blocks(
        self,
        qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        *,
        layer: Any,  # noqa: ARG002
        past: int,
        block: int,
    ) -> tuple[torch.Tensor, int]:
        """[B, T, n_q·d], and the number of value blocks read."""
        q, k, v = qkv
        heads, tokens = k.shape[1], q.shape[2]
        scores = q.unflatten(1, (heads, -1)).flatten(2, 3) @ k.transpose(-1, -2)
        scores = scores.mul_(self.scaling).unflatten(2, (-1, tokens))  # [B, n_kv, G, T, L]
        if tokens > 1:
            scores = scores.add_(lower_right(tokens, k.shape[2], like=q))
        weights = scores.softmax(-1)
        found = self.router(weights.mean(2), block=block)
        parts = [self._valued(weights, v, group, 0 if past else block) for group in found]
        return (torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]), num_seen(found)

    def _valued(
        self, weights: torch.Tensor, v: torch.Tensor, group: Group, block: int
    ) -> torch.Tensor:
        """Weights [B, n_kv, G, T, L] times the chosen values: [B, rows, n_q·d]. Decode: block 0."""
        batch, heads, num_grouped = weights.shape[:3]
        rows, own = group.end - group.first, group.own if block else 1
        x = weights.narrow(3, group.first * block, rows * own).unflatten(3, (rows, own))
        places = group.tokens[:, :, None, :, None]  # [B, n_kv, 1, g, 1, m]
        x = x.gather(-1, places.expand(*x.shape[:-1], -1))
        x = x.permute(0, 3, 1, 2, 4, 5).reshape(batch * rows, heads, num_grouped * own, -1)
        out = (x @ group.gathered(v)).unflatten(2, (num_grouped, own))
        out = out.permute(0, 3, 1, 2, 4)  # [B·g, own, n_kv, G, d]
        return out.reshape(batch, rows * own, -1)
