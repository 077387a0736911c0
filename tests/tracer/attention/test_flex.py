"""FlexAttention's block mask against the attention of our own over the same blocks.

Uncompiled, the kernel looks at no block: there the mask is a table of what the BlockMask lists.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.tracer.attention import flex
from prunescope.tracer.attention.blocks import choose_groups
from tests.tracer.dynamic_reference import prune, small, tokens

pytestmark = pytest.mark.torch


def uncompiled(q: Any, k: Any, v: Any, *, block_mask: BlockMask, **more: Any) -> Any:
    """Run the reference: a key counts where its block is listed, and none after the query."""
    listed = block_mask.to_dense().bool()
    size = block_mask.BLOCK_SIZE[0]

    def seen(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return listed[batch, head, query // size, key // size] & (query >= key)

    whole = BlockMask.from_kv_blocks(
        block_mask.kv_num_blocks, block_mask.kv_indices, block_mask.full_kv_num_blocks,
        block_mask.full_kv_indices, BLOCK_SIZE=size, mask_mod=seen,
        seq_lengths=block_mask.seq_lengths,
    )  # fmt: skip
    return flex_attention(q, k, v, block_mask=whole, **more)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend to have a device with the kernel, and a kernel that needs no compiler."""
    monkeypatch.setattr(flex, "refused_device", lambda _device: "")
    monkeypatch.setattr(flex, "_kernel", lambda: uncompiled)


@pytest.mark.parametrize("length", [128, 120, 16])
@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.9])
def test_the_mask_lists_the_blocks_of_our_own_choice(length: int, sparsity: float) -> None:
    block, num = 16, -(-length // 16)
    scores = torch.rand(2, 3, num, length // 16, generator=torch.Generator().manual_seed(0))
    mask = flex.block_mask(scores, block=block, length=length, sparsity=sparsity, groups=2)
    want = torch.zeros(2, 3, num, num, dtype=torch.bool)
    for group in choose_groups(scores, block=block, length=length, sparsity=sparsity):
        for index in range(group.first, group.end):
            for places, row in zip(group.tokens.flatten(0, 1), want.flatten(0, 1), strict=True):
                row[index, (places[index - group.first] // block).unique()] = True
    assert torch.equal(mask.to_dense().bool(), want.repeat_interleave(2, dim=1))
    assert flex.num_blocks_read(num, sparsity) * 6 == int(want.sum())
    assert mask.seq_lengths == (length, length)


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize("select", ["random", "importance"])
def test_logits_and_counts_are_those_of_ordinary_ops(select: str) -> None:
    model, ids = small("llama"), tokens(2, 72)
    plain = prune("dynamic-nk", model, 0.5, select=select, block=16)
    fast = prune("dynamic-nk", model, 0.5, select=select, block=16, backend="flex")
    assert fast.record["backend"] == "flex"
    assert plain.record["backend"] == "torch"
    assert plain.record["notes"] == []
    outs: list[Any] = []
    for applied in (plain, fast):
        with torch.no_grad():
            prompt = applied.model(input_ids=ids, use_cache=True)
            after = applied.model(input_ids=ids[:, :1], past_key_values=prompt.past_key_values)
        stats = next(m for m in applied.model.modules() if hasattr(m, "prunescope_stats"))
        outs.append((prompt.logits, after.logits, stats.prunescope_stats()))
    for mine, theirs in zip(outs[0][:2], outs[1][:2], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    assert outs[0][2] == outs[1][2]
    with torch.no_grad():
        dense = model(input_ids=ids).logits
    assert (dense - outs[1][0]).abs().max() > 1e-2  # the blocks that were left out mattered


def test_a_cpu_has_no_such_kernel(quick: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(PrunescopeError, match="backend=flex cannot be used.*this is cpu"):
        quick(method="dynamic-nk", knobs={"backend": "flex"}, out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize(
    ("knobs", "why"), [({"block": 24}, "power of two"), ({"blocks": "value"}, "every score")]
)
def test_what_a_block_mask_cannot_say(knobs: dict[str, Any], why: str) -> None:
    with pytest.raises(PrunescopeError, match=why):
        prune("dynamic-nk", small("llama"), 0.5, backend="flex", **knobs)
