"""FlexAttention over chosen key/value blocks: a block mask from the choice, and the kernel.

In: scores of key blocks for each query block, [B, n_kv, blocks, blocks]. Out: a BlockMask, and
attention by torch's compiled kernel, without gathering keys and values. For prompts only; query
block i attends to its own block (causally) and the best earlier ones, as `tracer.attention.blocks`
says.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from prunescope.tracer.attention.blocks import budget
from prunescope.tracer.machine.backends import backend_of

LEAST_BLOCK = 16  # of the kernel
_TILE = 64


def missing(device: torch.device) -> str:
    """Why a device cannot run the kernel; empty if it can."""
    if not backend_of(device).has_flex:
        return f"FlexAttention needs a kernel compiled for a GPU, and this is {device.type}"
    return ""


def refused_block(block: int) -> str:
    """Why the kernel cannot take blocks of this length; empty if it can. 0: by prompt."""
    if block and (block < LEAST_BLOCK or block & (block - 1)):
        return f"the kernel takes blocks of a power of two from {LEAST_BLOCK} on, not {block}"
    return ""


def block_mask(
    scores: torch.Tensor, *, block: int, length: int, sparsity: float, groups: int
) -> BlockMask:
    """The blocks that each query block of a prompt attends to, for n_kv · `groups` heads.

    Earlier blocks are full blocks, in which the kernel masks nothing.
    """
    batch, heads, num, _ = scores.shape  # a shorter last block has no mean of its keys
    own = torch.arange(num, device=scores.device)
    before = torch.arange(scores.shape[-1], device=scores.device) < own.unsqueeze(-1)
    scores = scores.masked_fill(~before, float("-inf"))
    best = scores.topk(budget(num - 1, sparsity) - 1, dim=-1).indices
    # In double precision, to round halves as `budget` does.
    count = ((own.double() + 1) * (1 - sparsity)).round().clamp(min=1) - 1
    whole = torch.zeros(batch, heads, num, num, dtype=torch.int32, device=scores.device)
    whole[..., : best.shape[-1]] = best
    mine = torch.zeros_like(whole)
    mine[..., 0] = own
    shape = (batch, heads * groups, num)
    return BlockMask.from_kv_blocks(
        torch.ones(shape, dtype=torch.int32, device=scores.device),
        mine.repeat_interleave(groups, dim=1),
        count.int().expand(shape).contiguous(),
        whole.repeat_interleave(groups, dim=1),
        BLOCK_SIZE=block,
        mask_mod=_causal,
        seq_lengths=(length, length),
        compute_q_blocks=False,  # for a backward pass alone
    )


def num_blocks_read(num_blocks: int, sparsity: float) -> int:
    """Number of blocks that all query blocks of a prompt attend to, summed."""
    return sum(budget(index, sparsity) for index in range(num_blocks))


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: BlockMask, *, scaling: float
) -> torch.Tensor:
    """[B, n_q, T, d] over [B, n_kv, T, d] to [B, n_q, T, d]."""
    size = mask.BLOCK_SIZE[0]
    options = {"BLOCK_M": size, "BLOCK_N": size} if size <= _TILE else None
    out: torch.Tensor = _kernel()(
        q,
        k,
        v,
        block_mask=mask,
        scale=scaling,
        enable_gqa=q.shape[1] != k.shape[1],
        kernel_options=options,
    )
    return out


@cache
def _kernel() -> Any:
    """Compiled once; without compilation it would compute every score."""
    return torch.compile(flex_attention)


def _causal(
    _batch: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
) -> torch.Tensor:
    return query >= key
