"""FlexAttention over chosen key/value blocks: a block mask from the choice, and the kernel.

In: scores [B, n_kv, blocks, blocks] of key blocks for each query block. Out: a BlockMask, and
attention by torch's compiled kernel, which does not gather keys and values. It runs prompts only;
query block i attends to its own block (causally) and to the best earlier ones, as in
`tracer.attention.blocks`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from prunescope.tracer.attention.blocks import budget
from prunescope.tracer.machine.backends import backend_of

LEAST_BLOCK = 16  # the shortest block that the kernel takes
_TILE = 64


def refused_device(device: torch.device) -> str:
    """Return why a device cannot run the kernel; an empty text if it can."""
    if not backend_of(device).has_flex:
        return f"FlexAttention needs a kernel compiled for a GPU, and this is {device.type}"
    return ""


def refused_block(block: int) -> str:
    """Return why the kernel cannot take blocks of this length; an empty text if it can.

    Length 0 means that the prompt decides.
    """
    if block and (block < LEAST_BLOCK or block & (block - 1)):
        return f"the kernel takes blocks of a power of two from {LEAST_BLOCK} on, not {block}"
    return ""


def block_mask(
    scores: Tensor, *, block: int, length: int, sparsity: float, groups: int
) -> BlockMask:
    """Choose the blocks that each query block of a prompt attends to, for n_kv · `groups` heads.

    Earlier blocks are full blocks, in which the kernel masks nothing.
    """
    batch, heads, num, _ = scores.shape  # a shorter last block has no mean of its keys
    own = torch.arange(num, device=scores.device)
    before = torch.arange(scores.shape[-1], device=scores.device) < own.unsqueeze(-1)
    scores = scores.masked_fill(~before, float("-inf"))
    best = scores.topk(budget(num - 1, sparsity) - 1, dim=-1).indices
    # Double precision rounds halves as `budget` does.
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
        compute_q_blocks=False,  # only a backward pass needs them
    )


def num_blocks_read(num_blocks: int, sparsity: float) -> int:
    """Add up the blocks that all query blocks of a prompt attend to."""
    return sum(budget(index, sparsity) for index in range(num_blocks))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, *, scaling: float) -> Tensor:
    """Attend with queries [B, n_q, T, d] to keys and values [B, n_kv, T, d]: [B, n_q, T, d]."""
    size = mask.BLOCK_SIZE[0]
    options = {"BLOCK_M": size, "BLOCK_N": size} if size <= _TILE else None
    return _kernel()(
        q,
        k,
        v,
        block_mask=mask,
        scale=scaling,
        enable_gqa=q.shape[1] != k.shape[1],
        kernel_options=options,
    )


@cache
def _kernel() -> Any:
    """Compile FlexAttention once; without compilation it would compute every score."""
    return torch.compile(flex_attention)


def _causal(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key
