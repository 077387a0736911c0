"""Dynamic NK: each query block attends to a share p of the key/value blocks, chosen at run time.

`blocks=key_value` skips blocks of QKᵀ and PV by an estimator (pooled queries · pooled keys,
softmax, top-k); `blocks=value` computes all scores and skips blocks of PV. The cache is full, and
also stores the means of its key blocks. A chunk of prompt on a filled cache attends densely.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.tracer.attention import flex
from prunescope.tracer.attention.attention_parts import AttentionParts
from prunescope.tracer.attention.blocks import (
    Group,
    budget,
    choose_groups,
    longest_block,
    num_blocks_seen,
    pool,
    pool_keys,
    static_group,
    usual_block,
    with_masks,
)
from prunescope.tracer.attention.counted_cache import past_length
from prunescope.tracer.attention.plain_attention import PlainAttention, lower_right, refuse_padding
from prunescope.tracer.attention.projections import KV, QKV
from prunescope.tracer.attention.rotation import Rotary
from prunescope.tracer.attention.static_layers import BlockLayer
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.model import compat
from prunescope.tracer.model.static_step import static_step
from prunescope.tracer.pruners import Applied
from prunescope.tracer.routing.decisions import Counted, Sampler, Tally
from prunescope.tracer.routing.rebuild import rebuild, whole_attentions


def prune(model: PreTrainedModel, point: Point) -> Applied:
    """Give every attention a block estimator; no weights are removed."""
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
        built = [kind(parts, point, sampler, sizes) for parts in attentions]
        for attention in built:
            model.set_submodule(attention.parts.path, attention)
        return [attention.router for attention in built]

    rebuild(model, build, sparsity=point.sparsity)
    numbers = [parts.layer_idx for parts in attentions]
    compat.set_static_layers(model, lambda s, more: {i: BlockLayer(s + more) for i in numbers})
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
    """Refuse `backend=flex` if FlexAttention cannot run here."""
    reason = flex.refused_device(model.device) or flex.refused_block(block)
    if point.knobs["blocks"] == "value":
        reason = "blocks=value computes every score, and a block mask skips scores"
    if reason:
        raise PrunescopeError(
            f"backend=flex cannot be used: {reason}",
            hint="remove backend: ordinary torch ops run on any device",
        )


def _join(parts: list[Tensor]) -> Tensor:
    """Join the outputs of consecutive query blocks to [B, T, n_q·d]; a single one is not copied."""
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


class BlockSizes:
    """The block length of the current forward, the same for all layers."""

    def __init__(self, requested: int, least: int = 1) -> None:
        self.requested, self.least, self.sparsity, self._longest = requested, least, 0.0, 0

    def choose_for_prompt(self, length: int) -> int:
        """Return the block length for a prompt: the requested one, else one that suits the prompt.

        Raises:
            PrunescopeError: The requested block is longer than every prompt so far, or so long
                that no block of them can be skipped.
        """
        if self.requested and length > self._longest:
            self._check(length)
            self._longest = length
        return self.requested or max(self.least, usual_block(length))

    def _check(self, length: int) -> None:
        """Refuse a requested block that is too long for a prompt of `length` tokens."""
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

    def read_from_cache(self, layer: Any, length: int) -> int:
        """Return the block length with which the prompt in the cache was read."""
        known: int | None = getattr(layer, "block", None)
        return known or self.requested or max(self.least, usual_block(length))


class BlockRouter(nn.Module):
    """A router that estimates the most important key blocks of each query block."""

    def __init__(self, point: Point, sampler: Sampler, purpose: str) -> None:
        super().__init__()
        self.sparsity, self.sampler = point.sparsity, sampler.stream_for(point, purpose)

    def forward(self, q: Tensor, keys: Tensor, *, layer: Any, past: int, block: int) -> list[Group]:
        """Choose blocks by queries [B, n_q, T, d] and keys [B, n_kv, L, d]."""
        heads = keys.shape[1]
        mean_q = pool(q.unflatten(1, (heads, -1)).mean(2), block)  # [B, n_kv, blocks, d]
        mean_k = pool_keys(layer, keys, block, past)
        scores = (mean_q @ mean_k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        return self.choose(scores, block=block, length=keys.shape[2], like=q)

    def choose(self, scores: Tensor, *, block: int, length: int, like: Tensor) -> list[Group]:
        """Choose the blocks by scores [B, n_kv, query blocks, key blocks]."""
        scores = self.sampler.replace(scores)
        chosen = choose_groups(scores, block=block, length=length, sparsity=self.sparsity)
        return with_masks(chosen, like=like) if like.shape[2] > 1 else chosen

    def choose_static(self, scores: Tensor, layer: Any, own: Tensor) -> tuple[Group, Tensor]:
        """Choose the blocks of one token by scores [B, n_kv, 1, blocks] of a static cache.

        As many blocks are chosen as any token attends to. The second result is a mask [m] of those
        of their keys that this token, in block `own` [1], sees.
        """
        block, length, most = layer.block, layer.max_cache_len, layer.most
        places = torch.arange(scores.shape[-1], device=scores.device)
        scores = self.sampler.replace(scores).masked_fill(places >= own, float("-inf"))
        chosen = scores.topk(most, dim=-1).indices  # in descending order of their scores
        group = static_group(chosen, own, block=block, length=length)
        earlier = torch.arange(most, device=own.device) < layer.num_earlier(own)
        offsets = torch.arange(block, device=own.device)
        newest = own * block + offsets < layer.cumulative_length
        return group, torch.cat((earlier.repeat_interleave(block), newest))


class ValueRouter(BlockRouter):
    """A router that ranks value blocks by the attention of a query block to them."""

    def forward(  # type: ignore[override]
        self, weights: Tensor, *, block: int
    ) -> list[Group]:
        """Choose blocks by attention weights [B, n_kv, T, L], means over the heads of a group."""
        rows = pool(weights, block)
        mass = pool(rows.transpose(-1, -2), block).transpose(-1, -2)
        return self.choose(mass, block=block, length=weights.shape[3], like=weights[:, :, :1])


class _BlockAttention(PlainAttention, Counted):
    """Attention of each query block to its chosen key/value blocks."""

    router_kind: type[BlockRouter] = BlockRouter

    def __init__(
        self, parts: AttentionParts, point: Point, sampler: Sampler, sizes: BlockSizes
    ) -> None:
        super().__init__(parts)
        self.router = self.router_kind(point, sampler, f"layer {self.layer_idx}")
        self.sizes, self.tally = sizes, Tally("blocks")

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Rotary | None = None,
        attention_mask: Any = None,
        cache: Any = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """Attend to the chosen blocks, and count them: [B, T, h] to [B, T, h]."""
        step = static_step()
        if step is not None:
            q, k, v = self.project(hidden_states, position_embeddings)
            layer = cache.layers[self.layer_idx]
            act = self._static_prompt if step.prompt else self._static_token
            attended = act(layer, q, self.expand(*self.append_to(cache, k, v)))
            return self.project_output(attended), None
        past, tokens = past_length(cache, self.layer_idx), hidden_states.shape[1]
        if not self.is_masked:
            refuse_padding(attention_mask, tokens, past)
        q, k, v = self.project(hidden_states, position_embeddings)
        k, v = self.expand(*self.append_to(cache, k, v))
        if past and tokens > 1:
            return self.project_output(self.attend_causally(q, k, v)), None
        layer = None if cache is None else cache.layers[self.layer_idx]
        sizes, length = self.sizes, k.shape[2]
        block = sizes.read_from_cache(layer, length) if past else sizes.choose_for_prompt(length)
        if layer is not None:
            layer.block = block if past == 0 else getattr(layer, "block", block)
        attended, read = self.attend_blocks((q, k, v), layer=layer, past=past, block=block)
        whole = -(-length // block)
        total = whole if past else whole * (whole + 1) // 2
        self.tally.add(read, total)
        return self.project_output(attended), None

    def _static_prompt(self, layer: Any, q: Tensor, kv: KV) -> Tensor:
        """Attend with a prompt on an empty static cache: [B, T, n_q·d]."""
        tokens = q.shape[2]
        block = self.sizes.choose_for_prompt(tokens)
        attended, read = self.attend_blocks((q, *kv), layer=None, past=0, block=block)
        layer.fill_sums(kv[0], block, self.router.sparsity)
        whole = -(-tokens // block)
        self._count_blocks(layer, tokens, read, whole * (whole + 1) // 2)
        return attended

    def _static_token(self, layer: Any, q: Tensor, kv: KV) -> Tensor:
        """Attend with one token on a filled static cache: [B, 1, n_q·d]."""
        own = layer.add_newest(kv[0])
        attended = self.attend_static(q, kv, layer, own)
        if not torch.compiler.is_compiling():
            length = layer.tokens + 1
            number = -(-length // layer.block)
            read = budget(number - 1, self.router.sparsity)
            self._count_blocks(layer, length, read, number)
        return attended

    def _count_blocks(self, layer: Any, tokens: int, read: int, total: int) -> None:
        """Count the blocks read, and the tokens, which a static cache does not tell the host."""
        if not torch.compiler.is_compiling():
            layer.tokens = tokens
            self.tally.add(read, total)

    def attend_static(self, q: Tensor, kv: KV, layer: Any, own: Tensor) -> Tensor:
        """Attend with one token in block `own` [1] to a static cache: [B, 1, n_q·d]."""
        k, v = kv
        grouped = q.unflatten(1, (k.shape[1], -1)).mean(2)  # [B, n_kv, 1, d]
        means = layer.means().to(k.dtype)
        scores = grouped @ means.transpose(-1, -2) * q.shape[-1] ** -0.5
        scores = scores.masked_fill(~layer.complete(), float("-inf")).softmax(-1)
        group, valid = self.router.choose_static(scores, layer, own)
        mask = torch.where(valid, 0.0, float("-inf")).to(q.dtype).view(1, 1, 1, -1)
        return self.attend(q, group.gather(k), group.gather(v), mask)

    def attend_blocks(self, qkv: QKV, *, layer: Any, past: int, block: int) -> tuple[Tensor, int]:
        """Attend to the chosen blocks: [B, T, n_q·d], and the number of blocks read."""
        q, k, v = qkv
        groups = self.router(q, k, layer=layer, past=past, block=block)
        parts = []
        for group in groups:
            x = q.unsqueeze(2) if past else group.select_queries(q, block)
            x = x.transpose(1, 2).flatten(0, 1)  # [B·g, n_q, own, d]
            own, mask = x.shape[2], group.mask
            causal = group.count == 1 and own > 1
            attended = self.attend(
                x, group.gather(k), group.gather(v), None if causal else mask, causal=causal
            )
            parts.append(attended.view(q.shape[0], -1, attended.shape[-1]))
        return _join(parts), num_blocks_seen(groups)


class FlexRouter(BlockRouter):
    """A router that chooses a block mask for a prompt, and as a BlockRouter for a single token."""

    def choose(self, scores: Tensor, *, block: int, length: int, like: Tensor) -> Any:
        """Choose by scores [B, n_kv, query blocks, key blocks]."""
        if like.shape[2] == 1:
            return super().choose(scores, block=block, length=length, like=like)
        return flex.block_mask(
            self.sampler.replace(scores),
            block=block,
            length=length,
            sparsity=self.sparsity,
            groups=like.shape[1] // scores.shape[1],
        )


class _FlexAttention(_BlockAttention):
    """Attention that runs prompts by FlexAttention, without gathering keys and values."""

    router_kind = FlexRouter

    def attend_blocks(self, qkv: QKV, *, layer: Any, past: int, block: int) -> tuple[Tensor, int]:
        """Attend to the chosen blocks: [B, T, n_q·d], and the number of blocks read."""
        q, k, v = qkv
        if q.shape[2] == 1:
            return super().attend_blocks(qkv, layer=layer, past=past, block=block)
        mask = self.router(q, k, layer=layer, past=past, block=block)
        attended = flex.attend(q, k, v, mask, scaling=self.scaling).transpose(1, 2).flatten(2)
        return attended, flex.num_blocks_read(-(-q.shape[2] // block), self.router.sparsity)


class _ValueAttention(_BlockAttention):
    """Attention that computes all scores, and reads only the chosen blocks of the values."""

    router_kind = ValueRouter

    def attend_blocks(
        self,
        qkv: QKV,
        *,
        layer: Any,  # noqa: ARG002
        past: int,
        block: int,
    ) -> tuple[Tensor, int]:
        """Attend to the chosen value blocks: [B, T, n_q·d], and the number of blocks read."""
        q, k, v = qkv
        heads, tokens = k.shape[1], q.shape[2]
        scores = q.unflatten(1, (heads, -1)).flatten(2, 3) @ k.transpose(-1, -2)
        scores = scores.mul_(self.scaling).unflatten(2, (-1, tokens))  # [B, n_kv, G, T, L]
        if tokens > 1:
            scores = scores.add_(lower_right(tokens, k.shape[2], like=q))
        weights = scores.softmax(-1)
        groups = self.router(weights.mean(2), block=block)
        parts = [self._multiply_values(weights, v, group, 0 if past else block) for group in groups]
        return _join(parts), num_blocks_seen(groups)

    def attend_static(self, q: Tensor, kv: KV, layer: Any, own: Tensor) -> Tensor:
        """Attend with one token to all places of a static cache, with all scores: [B, 1, n_q·d]."""
        k, v = kv
        heads, length = k.shape[1], k.shape[2]
        scores = q.unflatten(1, (heads, -1)).flatten(2, 3) @ k.transpose(-1, -2) * self.scaling
        seen = torch.arange(length, device=q.device) < layer.cumulative_length
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)  # [B, n_kv, G, L]
        missing = layer.sums.shape[2] * layer.block - length
        mass = pad(weights.mean(2), (0, missing)).unflatten(-1, (-1, layer.block)).mean(-1)
        group, valid = self.router.choose_static(mass.unsqueeze(2), layer, own)
        places = group.tokens.expand(-1, -1, weights.shape[2], -1)
        chosen = weights.gather(-1, places) * valid.to(weights.dtype)
        return (chosen @ group.gather(v)).flatten(1).unsqueeze(1)

    def _multiply_values(self, weights: Tensor, v: Tensor, group: Group, block: int) -> Tensor:
        """Multiply weights [B, n_kv, G, T, L] by the chosen values: [B, rows, n_q·d].

        `block` is 0 in decode.
        """
        batch, heads, num_grouped = weights.shape[:3]
        rows, own = group.end - group.first, group.own if block else 1
        x = weights.narrow(3, group.first * block, rows * own).unflatten(3, (rows, own))
        places = group.tokens[:, :, None, :, None]  # [B, n_kv, 1, g, 1, m]
        x = x.gather(-1, places.expand(*x.shape[:-1], -1))
        x = x.permute(0, 3, 1, 2, 4, 5).reshape(batch * rows, heads, num_grouped * own, -1)
        attended = (x @ group.gather(v)).unflatten(2, (num_grouped, own))
        attended = attended.permute(0, 3, 1, 2, 4)  # [B·g, own, n_kv, G, d]
        return attended.reshape(batch, rows * own, -1)
