"""Dynamic NK: each query block attends to a share p of the key/value blocks, chosen at run time.

`blocks=key_value` skips blocks of QKᵀ and PV by an estimator (pooled queries · pooled keys,
softmax, top-k); `blocks=value` computes all scores and skips blocks of PV. The cache is full, with
the means of its key blocks beside it. A chunk of prompt on a filled cache attends densely.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from taxonomy.errors import PrunescopeError
from tracer.blocks import (
    Group,
    groups,
    num_seen,
    pooled,
    pooled_keys,
    usual_block,
    with_masks,
)
from tracer.prenorm import prenorm_layers, rebuilt
from tracer.pruned_attention import (
    PlainAttention,
    Rotary,
    lower_right,
    past_length,
    refuse_padding,
)
from tracer.pruners import Applied, Point
from tracer.routing import Draws, Tally


def prune(model: PreTrainedModel, point: Point) -> Applied:
    """Give every attention a block estimator. No weight goes."""
    layers, block = prenorm_layers(model), int(point.knobs["block"])
    if block < 0:
        raise PrunescopeError(f"block={block} is no length", hint="0 chooses a block by the prompt")
    draws, sizes = Draws(point, "dynamic-nk"), BlockSizes(0)
    kind = _ValueAttention if point.knobs["blocks"] == "value" else _BlockAttention

    def rebuild(sparsity: float) -> None:
        for layer in layers:
            parts: Any = layer
            if not isinstance(parts.self_attn, kind):
                parts.self_attn = kind(parts.self_attn, point, draws, sizes)
            parts.self_attn.router.sparsity = sparsity

    rebuilt(model, rebuild, sparsity=point.sparsity)
    sizes.asked = block
    kept = {"blocks": 1 - point.sparsity, "block": block or "by prompt"}
    return Applied(model=model, record={"kept": kept})


class BlockSizes:
    """The block length of the forward at hand, the same for all layers."""

    def __init__(self, asked: int) -> None:
        self.asked, self._longest = asked, 0

    def of_prompt(self, length: int) -> int:
        """Raises PrunescopeError where the block that was asked for is longer than every prompt."""
        self._longest = max(self._longest, length) if self.asked else 0
        if self.asked > self._longest:
            raise PrunescopeError(
                f"block={self.asked} is longer than the prompt of {length} tokens",
                hint=f"the nearest that fits is --set block={length}",
            )
        return self.asked or usual_block(length)

    def of_cache(self, layer: Any, length: int) -> int:
        """The block of the prompt that the cache began with."""
        return getattr(layer, "block", None) or self.asked or usual_block(length)


class BlockRouter(nn.Module):
    """Estimates which key blocks matter to a query block, and builds their indices."""

    def __init__(self, point: Point, draws: Draws, what: str) -> None:
        super().__init__()
        self.sparsity, self.draws = point.sparsity, draws.own(point, what)

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
        scores = self.draws.instead_of(scores)
        found = groups(scores, block=block, length=length, sparsity=self.sparsity)
        return with_masks(found, like=like) if like.shape[2] > 1 else found


class ValueRouter(BlockRouter):
    """Ranks value blocks by the attention that a query block pays to them."""

    def forward(  # type: ignore[override]
        self, weights: torch.Tensor, *, block: int
    ) -> list[Group]:
        """Attention weights [B, n_kv, T, L], means over the heads of a group, to blocks."""
        rows = pooled(weights, block)
        mass = pooled(rows.transpose(-1, -2), block).transpose(-1, -2)
        return self.decided(mass, block=block, length=weights.shape[3], like=weights[:, :, :1])


class _BlockAttention(PlainAttention):
    """Attention of each query block over its chosen key/value blocks."""

    router_kind: type[BlockRouter] = BlockRouter

    def __init__(self, original: nn.Module, point: Point, draws: Draws, sizes: BlockSizes) -> None:
        super().__init__(original)
        self.router = self.router_kind(point, draws, f"layer {self.layer_idx}")
        self.sizes, self.tally = sizes, Tally("blocks")

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: Rotary,
        attention_mask: Any = None,
        cache: Any = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """[B, T, h] to [B, T, h]."""
        past, tokens = past_length(cache, self.layer_idx), hidden_states.shape[1]
        refuse_padding(attention_mask, tokens, past)
        q = self.queries(hidden_states, position_embeddings)
        k, v = self.keys_values(hidden_states, position_embeddings)
        k, v = self.appended(cache, k, v)
        if past and tokens > 1:
            return self.o_proj(self.attend_causally(q, k, v)), None
        layer = None if cache is None else cache.layers[self.layer_idx]
        sizes, length = self.sizes, k.shape[2]
        block = sizes.of_cache(layer, length) if past else sizes.of_prompt(length)
        if layer is not None:
            layer.block = block if past == 0 else getattr(layer, "block", block)
        out, found = self.attend_blocks((q, k, v), layer=layer, past=past, block=block)
        whole = -(-length // block)
        total = whole if past else whole * (whole + 1) // 2
        self.tally.add(num_seen(found), total)
        return self.o_proj(out), None

    def attend_blocks(
        self,
        qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        *,
        layer: Any,
        past: int,
        block: int,
    ) -> tuple[torch.Tensor, list[Group]]:
        """[B, T, n_q·d], and the blocks that were seen."""
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
        return (torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]), found

    def prunescope_stats(self) -> dict[str, Any]:
        """Blocks seen, see `tracer.pruners.Counting`."""
        return self.tally.take()


class _ValueAttention(_BlockAttention):
    """All scores; of the values only the chosen blocks."""

    router_kind = ValueRouter

    def attend_blocks(
        self,
        qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        *,
        layer: Any,  # noqa: ARG002
        past: int,
        block: int,
    ) -> tuple[torch.Tensor, list[Group]]:
        """[B, T, n_q·d], and the value blocks that were seen."""
        q, k, v = qkv
        heads, tokens = k.shape[1], q.shape[2]
        scores = q.unflatten(1, (heads, -1)).flatten(2, 3) @ k.transpose(-1, -2)
        scores = scores.mul_(self.scaling).unflatten(2, (-1, tokens))  # [B, n_kv, G, T, L]
        if tokens > 1:
            scores = scores.add_(lower_right(tokens, k.shape[2], like=q))
        weights = scores.softmax(-1)
        found = self.router(weights.mean(2), block=block)
        parts = [self._valued(weights, v, group, 0 if past else block) for group in found]
        return (torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]), found

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
