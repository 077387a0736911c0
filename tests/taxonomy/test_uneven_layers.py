"""Theory where layers differ: those that go count as what they are, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import family
from prunescope.taxonomy.formats import read
from prunescope.taxonomy.match import removed_shares
from prunescope.taxonomy.plan import Workload
from prunescope.taxonomy.runs.run_blocks import Pruning
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plan, flop, forward, kv_cache_bytes

PLAIN: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "intermediate_size": 96, "vocab_size": 512,
}  # fmt: skip
# Convolutions with an attention as the second of four layers.
HYBRID = ModelShape.from_config({
    **PLAIN, "model_type": "lfm2", "full_attn_idxs": [1], "conv_L_cache": 3,
    "block_multiple_of": 16,
})  # fmt: skip
# A plain MLP, then experts.
MOE = ModelShape.from_config({
    **PLAIN, "model_type": "qwen3_moe", "mlp_only_layers": [0], "num_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 32,
})  # fmt: skip
SLIDING = ModelShape.from_config({**PLAIN, "model_type": "gemma2", "sliding_window": 2})
PREFILL = Workload(phase="prefill", batch=2, prompt_len=6)  # T = 12, 21 causal pairs
T = 2 * 12  # FLOPs a number of weight
CONVOLUTION = T * (192 + 64) * 64 + T * 3 * 64  # in and out; 3 taps of 64 channels
ATTENTION = T * (64 + 2 * 32 + 64) * 64 + 2 * 2 * 4 * 32 * 21  # q, k and v, o; 4 heads of 16 + 16
MLP = T * 3 * 64 * 64  # int(2 * 96 / 3) = 64
PLAIN_MLP = T * 3 * 96 * 64
EXPERTS = T * (2 * 3 * 32 + 4) * 64  # two of four, and a row of the router for each of four


def gone(
    shape: ModelShape, s: float = 0.25, removed: dict[str, list[int]] | None = None, **knobs: str
) -> float:
    """FLOPs of dense less those of static-m."""
    dense = flop(forward([dense_plan(shape, PREFILL)]))
    shares = removed_shares(
        family("static-m"), s, shape=shape, work=PREFILL, knobs=knobs, removed=removed
    )
    return shares["flop"] * dense


@pytest.mark.parametrize(
    ("shape", "knobs", "count"),
    [
        (HYBRID, {"layers": "0"}, CONVOLUTION + MLP),
        (HYBRID, {"layers": "1"}, ATTENTION + MLP),
        (HYBRID, {"layers": "1,2", "unit": "attention"}, ATTENTION + CONVOLUTION),
        (HYBRID, {"layers": "0,2,3", "unit": "attention"}, 3 * CONVOLUTION),
        (HYBRID, {"layers": "1", "unit": "mlp"}, MLP),
        (MOE, {"layers": "0", "unit": "mlp"}, PLAIN_MLP),
        (MOE, {"layers": "1,2,3", "unit": "mlp"}, 3 * EXPERTS),
        (MOE, {"layers": "3", "unit": "sublayers"}, ATTENTION + EXPERTS),
        # of 21 pairs a window of 2 keys sees 1 + 5 * 2
        (SLIDING, {"layers": "0"}, ATTENTION - 2 * 2 * 4 * 32 * 10 + PLAIN_MLP),
        (SLIDING, {"layers": "1"}, ATTENTION + PLAIN_MLP),
    ],
)
def test_named_layers_by_hand(shape: ModelShape, knobs: dict[str, str], count: float) -> None:
    assert gone(shape, **knobs) == pytest.approx(count)


def test_layers_that_a_run_drew() -> None:
    assert gone(HYBRID, removed={"layer": [1]}) == pytest.approx(ATTENTION + MLP)
    drawn = {"attention": [1], "mlp": [0]}
    assert gone(MOE, removed=drawn, unit="sublayers") == pytest.approx(ATTENTION + PLAIN_MLP)
    with pytest.raises(PrunescopeError, match="no attention is left"):
        gone(MOE, removed={"attention": [0, 1, 2, 3]}, unit="sublayers")
    assert read(Pruning, {"removed": drawn}).removed == drawn
    with pytest.raises(PrunescopeError, match="removed.mlp.0: expected `int`, got `str`"):
        read(Pruning, {"removed": {"mlp": ["0"]}})


@pytest.mark.parametrize("unit", ["layer", "attention", "mlp", "sublayers"])
@pytest.mark.parametrize("shape", [HYBRID, MOE, SLIDING])
def test_of_layers_yet_to_be_drawn_the_mean(shape: ModelShape, unit: str) -> None:
    each = [gone(shape, layers=str(i), unit=unit) for i in range(4)]
    assert gone(shape, unit=unit) == pytest.approx(sum(each) / 4)


def test_the_cache_of_the_layers_that_are_left() -> None:
    pruning = family("static-m")

    def cache(**knobs: str) -> float:
        return kv_cache_bytes(pruning.plans(HYBRID, PREFILL, pruning.point(0.25, knobs)))

    state = 2 * 64 * 3 * 2  # of two sequences: 64 channels, 3 inputs, 2 bytes
    tokens = 2 * 6 * 64 * 2  # of two sequences of 6: keys and values 2 * 32, 2 bytes
    assert cache(layers="1") == 3 * state
    assert cache(layers="0") == 2 * state + tokens
    assert cache(layers="0", unit="mlp") == 3 * state + tokens


def test_an_early_exit_skips_the_last_layers() -> None:
    pruning = family("dynamic-depth")
    left = pruning.theory(MOE, PREFILL, pruning.point(0.75, {"exit": "early"}))
    assert {op.name for op in left if op.role in ("gate", "experts", "router")} == {"gate"}
    ops = pruning.theory(MOE, PREFILL, pruning.point(0.75))
    assert {op.layers for op in ops if op.role == "router"} == {3 / 4}


def test_which_shapes_have_layers_that_differ() -> None:
    assert [shape.is_uneven for shape in (HYBRID, MOE, SLIDING)] == [True] * 3
    assert not ModelShape.from_config({**PLAIN, "model_type": "llama"}).is_uneven
    assert not HYBRID.select_layers([0, 2]).is_uneven
