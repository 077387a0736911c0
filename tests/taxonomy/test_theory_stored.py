"""The theory of matrices that are stored as one, and of experts, which the K families leave."""

from __future__ import annotations

from typing import Any

import pytest

from prunescope.taxonomy.families import family
from prunescope.taxonomy.plan import Workload
from prunescope.taxonomy.shape import ModelShape

T = 8
CONFIG: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 512,
}  # fmt: skip


def flop(name: str, *roles: str, **fields: Any) -> float:
    pruning, shape = family(name), ModelShape.from_config({**CONFIG, **fields})
    ops = pruning.theory(shape, Workload(phase="prefill", prompt_len=T), pruning.point(0.5))
    return sum(op.flop for op in ops if op.role in roles)


def numbers(name: str, *roles: str, **fields: Any) -> float:
    pruning, shape = family(name), ModelShape.from_config({**CONFIG, **fields})
    ops = pruning.theory(shape, Workload(phase="prefill", prompt_len=T), pruning.point(0.5))
    return sum(op.parameters for op in ops if op.role in roles)


def test_a_fused_matrix_has_one_rank() -> None:
    # q [64, 64] at s = .5: int(64*64/2/128) = 16; k and v [32, 64]: int(10.7) = 10, up to 16
    apart = 16 * (64 + 64) + 2 * 16 * (64 + 32)
    assert flop("static-k-lowrank", "q", "k", "v") == 2 * T * apart
    # qkv [128, 64]: int(128*64/2/192) = 21, up to 32; gate_up [192, 64]: int(24), up to 32
    qkv, gate_up = 32 * (64 + 128), 32 * (64 + 192)
    for count, at in ((flop, 2 * T), (numbers, 1)):
        assert count("static-k-lowrank", "q", "k", "v", model_type="phi3") == at * qkv
        assert count("static-k-lowrank", "gate", "up", model_type="phi3") == at * gate_up


@pytest.mark.parametrize("name", ["static-k-24", "static-k-lowrank"])
def test_routed_experts_stay_dense(name: str) -> None:
    fields = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    # two experts a token, each of three matrices of 96 x 64
    assert flop(name, "experts", **fields) == 2 * (2 * T) * 3 * 96 * 64
    assert flop(name, "o", **fields) == flop(name, "o")
