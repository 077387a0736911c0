"""The key/value blocks that each query block attends to in block-sparse attention.

Block i of b tokens holds the tokens from i·b on; the last block may be shorter. Query block i
attends to its own block and to the best earlier ones by score, max(1, round((i + 1)·p)) in all,
with p = 1 − s. Shapes: B batch, n_kv KV heads, d head_dim, L keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from prunescope.tracer.attention.plain_attention import lower_right

_USUAL_BLOCK, _LEAST_BLOCKS = 64, 8


@dataclass(frozen=True)
class Group:
    """Consecutive query blocks that attend to equally many key blocks.

    The g query blocks `first` … `end` − 1 of `own` tokens each attend to `count` blocks. `tokens`
    [B, n_kv, g, m] are the positions of their keys, the own block last; `flat` are the rows of
    these keys in [B·n_kv·L], in the order [B, g, n_kv, m]. `mask` [own, m] is additive, and None
    for a single query.
    """

    first: int
    end: int
    count: int
    own: int
    tokens: Tensor
    flat: Tensor
    mask: Tensor | None

    def gather(self, x: Tensor) -> Tensor:
        """Gather the keys or values [B, n_kv, L, d] of each query block: [B·g, n_kv, m, d]."""
        rows = x.reshape(-1, x.shape[-1]).index_select(0, self.flat)
        _, heads, num, length = self.tokens.shape
        return rows.view(x.shape[0] * num, heads, length, -1)

    def select_queries(self, x: Tensor, block: int) -> Tensor:
        """Return the rows of x [B, heads, S, d] in these query blocks: [B, heads, g, own, d]."""
        num = self.end - self.first
        return x.narrow(2, self.first * block, num * self.own).unflatten(2, (num, self.own))


def usual_block(length: int) -> int:
    """Choose a block length: 64 tokens, or less, so that a shorter prompt has at least 8 blocks.

    It is always a power of two.
    """
    return min(_USUAL_BLOCK, 1 << int(math.log2(max(1, length // _LEAST_BLOCKS))))


def budget(index: int, sparsity: float) -> int:
    """Return the number of blocks that query block `index` attends to, its own included."""
    return max(1, round((index + 1) * (1 - sparsity)))


def longest_block(length: int, sparsity: float) -> int:
    """Return the longest block length at which a prompt of `length` tokens skips a block.

    It is 0 if not even blocks of one token are skipped.
    """
    counts = (n for n in range(2, length + 1) if budget(n - 1, sparsity) < n)
    least = next(counts, None)
    return 0 if least is None else math.ceil(length / (least - 1)) - 1


def budget_runs(num_blocks: int, sparsity: float) -> list[tuple[int, int, int]]:
    """List (first, end, count) of consecutive query blocks with the same budget."""
    runs: list[tuple[int, int, int]] = []
    for index in range(num_blocks):
        count = budget(index, sparsity)
        if runs and runs[-1][2] == count:
            runs[-1] = (runs[-1][0], index + 1, count)
        else:
            runs.append((index, index + 1, count))
    return runs


def pool(x: Tensor, block: int) -> Tensor:
    """Average x [.., L, d] over blocks of tokens: [.., L/b, d], a shorter last block included."""
    whole = x.shape[-2] // block * block
    means = x[..., :whole, :].unflatten(-2, (-1, block)).mean(-2)
    if whole == x.shape[-2]:
        return means
    return torch.cat((means, x[..., whole:, :].mean(-2, keepdim=True)), dim=-2)


def pool_keys(layer: Any, keys: Tensor, block: int, past: int) -> Tensor:
    """Average a cache layer's keys over its whole blocks, and store the means in that layer.

    The means are [B, n_kv, L//b, d]. Only blocks that were completed after the first `past` tokens
    are read. `past` also reveals a cache that was cropped, whose newer means are dropped.
    """
    known = getattr(layer, "pooled", None) if getattr(layer, "block", None) == block else None
    valid = past // block if known is not None else 0
    num_blocks = keys.shape[2] // block
    if known is None or valid == 0 or known.shape[2] < valid:
        known, valid = keys[:, :, :0], 0
    fresh = keys[:, :, valid * block : num_blocks * block]
    if fresh.shape[2] or known.shape[2] != valid:
        known = torch.cat((known[:, :, :valid], pool(fresh, block)), dim=2)
    if layer is not None:
        layer.pooled, layer.block = known, block
    return known


def choose_groups(scores: Tensor, *, block: int, length: int, sparsity: float) -> list[Group]:
    """Choose the keys of each query block by scores [B, n_kv, query blocks, key blocks].

    The query blocks are the last ones of the L tokens: all of them in prefill, and one block of a
    single token in decode. Only earlier blocks compete, since a block's own is always included.
    """
    num_queries, num_keys = scores.shape[2], scores.shape[3]
    first = math.ceil(length / block) - num_queries
    own = torch.arange(first, first + num_queries, device=scores.device)
    later = torch.arange(num_keys, device=scores.device) >= own.unsqueeze(-1)
    scores = scores.masked_fill(later, float("-inf"))
    best = scores.topk(budget(first + num_queries - 1, sparsity) - 1, dim=-1).indices
    chosen_groups = []
    for start, end, count in _budget_runs_from(first, num_queries, block, length, sparsity):
        rows = slice(start - first, end - first)
        earlier = best[:, :, rows, : count - 1].sort(-1).values
        mine = own[rows].view(1, 1, -1, 1).expand(*earlier.shape[:3], 1)
        size = min(block, length - start * block)
        tokens = _key_positions(earlier, mine, block, size)
        flat = _flat_rows(tokens, length)
        chosen_groups.append(Group(start, end, count, size, tokens, flat, None))
    return chosen_groups


def static_group(earlier: Tensor, own: Tensor, *, block: int, length: int) -> Group:
    """Collect the keys of one token in block `own` [1] of a static cache of L places.

    These are the keys of the chosen earlier blocks [B, n_kv, 1, c] and of its own block. A key
    beyond the last place is replaced by the last place, and must be masked.
    """
    mine = own.view(1, 1, 1, 1).expand(*earlier.shape[:3], 1)
    tokens = _key_positions(earlier, mine, block, block).clamp(max=length - 1)
    return Group(0, 1, earlier.shape[-1] + 1, 1, tokens, _flat_rows(tokens, length), None)


def with_masks(groups: list[Group], *, like: Tensor) -> list[Group]:
    """Add to each group the causal mask of its own block, in the format of `like`."""
    return [replace(g, mask=lower_right(g.own, g.tokens.shape[-1], like=like)) for g in groups]


def num_blocks_seen(groups: list[Group]) -> int:
    """Add up the blocks that all query blocks attend to."""
    return sum(g.count * (g.end - g.first) for g in groups)


def _budget_runs_from(
    first: int, num: int, block: int, length: int, sparsity: float
) -> list[tuple[int, int, int]]:
    """List the `budget_runs` from block `first` on; a shorter last block is a run by itself."""
    cut = [r for r in budget_runs(first + num, sparsity) if r[1] > first]
    cut[0] = (max(first, cut[0][0]), cut[0][1], cut[0][2])
    start, end, count = cut[-1]
    if length % block and end - start > 1:
        cut[-1:] = [(start, end - 1, count), (end - 1, end, count)]
    return cut


def _key_positions(earlier: Tensor, own: Tensor, block: int, size: int) -> Tensor:
    """Return the positions of the keys in whole earlier blocks [.., c], then in the own block."""
    offsets = torch.arange(block, device=earlier.device)
    before = (earlier.unsqueeze(-1) * block + offsets).flatten(3)
    return torch.cat((before, own * block + offsets[:size]), dim=-1)


def _flat_rows(tokens: Tensor, length: int) -> Tensor:
    """Return positions [B, n_kv, g, m] as rows of [B·n_kv·L], in the order [B, g, n_kv, m]."""
    batch, heads = tokens.shape[:2]
    first = torch.arange(0, batch * heads * length, length, device=tokens.device)
    return (tokens + first.view(batch, heads, 1, 1)).transpose(1, 2).flatten()
