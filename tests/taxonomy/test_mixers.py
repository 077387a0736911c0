"""Mixers by kind: matrices, recurrences token by token and in chunks, and caches, by hand."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import family
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.mixers import KINDS, MixerShape
from prunescope.taxonomy.mixers.sizes import MixerName
from prunescope.taxonomy.plan import Op, Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plan, forward

PLAIN: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "intermediate_size": 96, "vocab_size": 512,
}  # fmt: skip
NEMOTRON = {
    **PLAIN, "model_type": "nemotron_h", "layers_block_type": ["mamba", "mlp", "attention", "mlp"],
    "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 16,
    "chunk_size": 32,
}  # fmt: skip
INDEXED = {
    **PLAIN, "model_type": "deepseek_v32", "num_key_value_heads": 4, "q_lora_rank": 24,
    "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16,
    "index_n_heads": 4, "index_head_dim": 16, "index_topk": 8,
}  # fmt: skip
PREFILL = Workload(phase="prefill", batch=2, prompt_len=64)  # T = 128
DECODE = Workload(phase="decode", batch=2, context=100)


def dense(shape: ModelShape, work: Workload) -> dict[str, Op]:
    return {op.name: op for op in forward([dense_plan(shape, work)])}


def with_mixer(**sizes: Any) -> ModelShape:
    """Make two layers, of which the first has a mixer of these sizes."""
    config = {**PLAIN, "num_hidden_layers": 2, "layer_types": ["linear_attention", "attention"]}
    shape = ModelShape.from_config(config)
    named = {f"mixer_{key}": size for key, size in sizes.items() if key != "kind"}
    return shape.change(mixer=sizes["kind"], mixer_layers=1, **named)


def test_each_name_of_a_mixer_has_a_kind() -> None:
    assert list(KINDS) and set(KINDS) == set(get_args(MixerName))


# kind, sizes, FLOPs of 128 tokens in 2 sequences, FLOPs of a decode step of 2
SCANS: list[tuple[dict[str, Any], float, float]] = [
    # 4 heads of 16 x 16, chunks of 32: 6 products of keys and queries, 4 of values, a triangle, and
    # three products with the state, which decays once a chunk. A step takes 7 a number of state.
    ({"kind": "kda", "width": 64, "heads": 4, "keys": 64, "state": 16, "chunk": 32, "rank": 16},
     128 * 4 * (32 * 160 + 2 / 3 * 1024 + 6 * 256 + 256 / 32), 2 * 7 * 1024),
    # scores of 64 keys and 64 values in chunks of 32; 4 a number of state, and 2 a chunk
    ({"kind": "lightning", "width": 64, "heads": 4, "keys": 64, "state": 16, "chunk": 32},
     128 * (2 * 32 * 128 + 4 * 1024 + 2 * 1024 / 32), 2 * 5 * 1024),
    # keys half as wide as values; the sum of the keys is state too
    ({"kind": "mlstm", "width": 64, "heads": 4, "keys": 32, "state": 8, "chunk": 32},
     128 * (2 * 32 * 96 + 4 * 512 + 2 * 512 / 32 + 4 * 32), 2 * (5 * 512 + 5 * 32)),
    # B and C of 2 groups of 16
    ({"kind": "ssm", "width": 128, "heads": 8, "keys": 32, "state": 16, "chunk": 32},
     128 * (2 * 32 * 160 + 4 * 2048 + 2 * 2048 / 32), 2 * 5 * 2048),
    # token by token: decay and its product with the step, x·B and its sum, the read by C
    ({"kind": "mamba-1", "width": 128, "keys": 8, "state": 8, "rank": 4},
     128 * 6 * 1024, 2 * 6 * 1024),
    ({"kind": "rg-lru", "width": 64, "heads": 4, "state": 1}, 128 * 4 * 64, 2 * 4 * 64),
    ({"kind": "rwkv", "width": 64, "state": 3}, 128 * 17 * 64, 2 * 17 * 64),
]  # fmt: skip


@pytest.mark.parametrize(("sizes", "prefill", "decode"), SCANS, ids=lambda x: str(x)[:18])
def test_a_recurrence_by_hand(sizes: dict[str, Any], prefill: float, decode: float) -> None:
    shape = with_mixer(**sizes)
    assert dense(shape, PREFILL)["scan"].flop == pytest.approx(prefill)
    step = dense(shape, DECODE)["scan"]
    assert step.flop == pytest.approx(decode)
    state = 4 * 2 * sizes["width"] * sizes["state"]  # of two sequences, in 4 bytes
    assert (step.kv_read, step.kv_write) == (state, state)
    # A prompt shorter than a chunk fills a part of one.
    if sizes.get("chunk"):
        short = MixerShape(**{**sizes, "chunk": 8}).scan_flop(8, at_once=True)
        assert MixerShape(**sizes).scan_flop(8, at_once=True) == short
    whole = sum(op.layers * op.parameters for op in forward([dense_plan(shape, PREFILL)]))
    assert whole == pytest.approx(shape.parameters())


def test_gates_in_blocks_are_one_batched_gemm() -> None:
    ops = dense(with_mixer(kind="rg-lru", width=64, heads=4, state=1, taps=4), PREFILL)
    assert ops["mixer_in.input_gate"].gemms == (Gemm(128, 16, 16, 4),)
    assert ops["mixer_in.input_gate"].flop == 2 * 128 * 64 * 16
    assert ops["mixer_in.recurrent_gate"].parameters == 4 * 16 * 16


def test_layers_of_one_sublayer_each() -> None:
    shape = ModelShape.from_config(NEMOTRON)
    assert (shape.layout, shape.attention_layers, shape.full_layers) == ("mfff", 1, 1)
    ops = dense(shape, PREFILL)
    assert {name: ops[name].layers for name in ("q", "o", "scan", "up", "down", "mixer_in")} == {
        "q": 1, "o": 1, "scan": 1, "up": 2, "down": 2, "mixer_in": 1,
    }  # fmt: skip
    assert "gate" not in ops
    # 100 tokens of one layer, keys and values of 2 heads of 16, in 2 bytes; 128 channels with 16
    # numbers in 4 bytes, 4 inputs of 128 + 2*32 channels in 2
    assert shape.kv_bytes(batch=1, context=100) == 100 * 64 * 2 + 128 * 16 * 4 + 192 * 4 * 2


CUTS = [
    # 4 of 8 heads: 64 channels; B and C stay
    ("heads", {"heads": 4, "width": 64, "state": 16, "keys": 32}),
    ("channels", {"heads": 8, "width": 64, "state": 16, "keys": 32}),
    ("state", {"heads": 8, "width": 128, "state": 8, "keys": 16}),
]


@pytest.mark.parametrize(("what", "left"), CUTS)
def test_a_mixer_is_cut_by_role(what: str, left: dict[str, int]) -> None:
    shape, pruning = ModelShape.from_config(NEMOTRON), family("static-nk")
    ops = {
        op.name: op for op in pruning.theory(shape, PREFILL, pruning.point(0.5, {"mixers": what}))
    }
    # x and its gate, B and C, and a step for each head
    rows = 2 * left["width"] + 2 * left["keys"] + left["heads"]
    assert ops["mixer_in"].gemms == (Gemm(128, rows, 64),)
    assert ops["mixer_out"].gemms == (Gemm(128, 64, left["width"]),)
    assert ops["scan"].kv_write == 4 * 2 * left["width"] * left["state"]


def test_a_part_that_a_mixer_lacks_is_refused() -> None:
    pruning = family("static-nk")
    shape = with_mixer(kind="conv", width=64, taps=3)
    with pytest.raises(PrunescopeError, match="heads of a short convolution") as raised:
        pruning.theory(shape, PREFILL, pruning.point(0.5, {"mixers": "heads"}))
    assert "channels" in raised.value.hint


def test_an_indexer_by_hand() -> None:
    shape = ModelShape.from_config(INDEXED)
    ops = dense(shape, Workload(phase="prefill", batch=1, prompt_len=32))
    # 4 heads of 16 from a query of rank 24, one key of 16, a weight a head
    assert [ops[f"indexer.{n}"].gemms[0] for n in ("q", "k", "weights")] == [
        Gemm(32, 64, 24), Gemm(32, 16, 64), Gemm(32, 4, 64),
    ]  # fmt: skip
    pairs = 32 * 33 / 2
    assert ops["indexer.scores"].flop == pairs * (2 * 4 * 16 + 2 * 4)
    # queries 1 to 8 see as many keys, the other 24 see 8 each: 36 + 192; 24 and 16 a head
    assert ops["attention.full"].flop == 2 * 4 * (24 + 16) * (36 + 24 * 8)
    step = dense(shape, Workload(phase="decode", context=100, absorbed=True))
    assert step["attention.full"].kv_read == 2 * 8 * (16 + 8)  # of 8 latents, not of 100
    assert step["indexer.scores"].kv_read == 2 * 100 * 16  # of every key of the indexer
    # The cache keeps all latents, and a key of the indexer for each token.
    assert shape.kv_bytes(batch=1, context=100) == 4 * 100 * (24 + 16) * 2


@pytest.mark.parametrize(
    ("attends", "pooled"),
    [(False, 1), (True, 2)],  # MoBA scores a pooled key a block; NSA attends to its values too
)
def test_blocks_of_keys_are_chosen_by_pooled_keys(*, attends: bool, pooled: int) -> None:
    plain = ModelShape.from_config({**PLAIN, "model_type": "llama"})
    shape = plain.change(
        index_heads=4, index_dim=16, index_keys=32, index_block=16, index_attends=attends,
        index_window=8,
    )  # fmt: skip
    ops = dense(shape, Workload(phase="decode", context=160))
    assert ops["indexer.scores"].flop == pooled * 2 * 4 * 16 * 160 / 16
    # two blocks of 16 and a window of 8, of 2 KV heads with keys and values of 16
    assert ops["attention.full"].kv_read == 2 * 40 * 64
    assert shape.parameters() == plain.parameters()


def test_layers_that_share_keys_store_and_cache_none() -> None:
    config = {
        **PLAIN, "model_type": "gemma3n_text", "num_kv_shared_layers": 2, "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2, "laurel_rank": 8,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 512, "altup_num_inputs": 2,
    }  # fmt: skip
    shape = ModelShape.from_config(config)
    by_layer = [part for part in shape.attention_parts() if part.attention.shares_kv]
    assert sum(part.layers for part in by_layer) == 2
    # One layer keeps 8 tokens and one 100, with keys and values of 2 heads of 16.
    assert shape.kv_bytes(batch=1, context=100) == (8 + 100) * 64 * 2
    reads = [op for op in forward([dense_plan(shape, DECODE)]) if op.role == "attention"]
    # All four read keys and values: two of a window of 8, two of 100 tokens, of 2 sequences.
    assert sum(op.layers * op.kv_read for op in reads) == 2 * 2 * (8 + 100) * 64 * 2
    written = json.loads(json.dumps(shape.to_dict()))
    assert ModelShape.from_run(written) == shape


def test_blocks_that_layers_share_are_stored_once() -> None:
    config = {
        **PLAIN, "model_type": "zamba2", "layers_block_type": ["mamba", "hybrid"] * 3,
        "num_mem_blocks": 2, "adapter_rank": 8, "n_mamba_heads": 8, "head_dim": None,
    }  # fmt: skip
    shape = ModelShape.from_config(config)
    assert (shape.layout, shape.attention_layers, shape.repeated_layers) == ("mmfmmfmmfm"[1:], 3, 1)
    ops = dense(shape, PREFILL)
    assert ops["q"].gemms == (Gemm(128, 128, 128),)  # the stream and the embedding side by side
    assert ops["q"].layers * ops["q"].parameters == pytest.approx(2 * 128 * 128)
    assert ops["layer.linear"].layers == 3


def test_an_own_size_of_a_layer_that_nobody_reads_is_refused() -> None:
    llama = {**PLAIN, "model_type": "llama"}
    own = ModelShape.from_config({**llama, "per_layer_config": {"1": {"intermediate_size": 32}}})
    assert [layer.intermediate for layer in own.layer_shapes] == [96, 32, 96, 96]
    with pytest.raises(PrunescopeError, match="gives layers kernel of their own"):
        ModelShape.from_config({**llama, "per_layer_config": {"1": {"kernel": 32}}})


@pytest.mark.torch
def test_chunks_of_a_delta_net_as_torch_counts_them() -> None:
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    from torch.utils.flop_counter import FlopCounterMode

    heads, d_k, d_v, tokens = 2, 8, 16, 128
    q, k = torch.rand(2, 1, tokens, heads, d_k).unbind(0)
    v, g = torch.rand(1, tokens, heads, d_v), -torch.rand(1, tokens, heads)
    with FlopCounterMode(display=False) as counter:
        module.torch_chunk_gated_delta_rule(q, k, v, g, torch.rand(1, tokens, heads), chunk_size=64)
    sizes = {"width": heads * d_v, "heads": heads, "keys": heads * d_k, "state": d_k, "chunk": 64}
    ours = MixerShape(kind="linear", **sizes).scan_flop(tokens, at_once=True)
    # It counts no triangular solver, which stands for the inverse and its products with keys and
    # values, and no element-wise work, as the decay of the state.
    solver = 2 / 3 * 64 * 64 + 2 * 64 * (d_k + d_v)
    uncounted = tokens * heads * (solver + d_k * d_v / 64)
    assert counter.get_total_flops() == pytest.approx(ours - uncounted)


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("nemotron_h", {}),
    ("nemotron_h", {"layers_block_type": ["mamba", "mlp", "attention"], "use_bias": True}),
    ("jamba", {"num_hidden_layers": 8}),
    ("jamba", {"num_hidden_layers": 8, "num_experts": 1, "mamba_proj_bias": True}),
    ("zamba2", {"num_mem_blocks": 2, "use_shared_attention_adapter": True}),
    ("kimi_linear", {}),
    ("minimax", {}),
    ("recurrent_gemma", {}),
    ("deepseek_v32", {}),
    ("glm_moe_dsa", {}),
    ("gemma3n_text", {}),
    ("gemma4_text", {"num_kv_shared_layers": 12, "use_double_wide_mlp": True}),
    ("gemma4_text", {
        "enable_moe_block": True, "num_experts": 16, "top_k_experts": 2, "attention_k_eq_v": True,
        "moe_intermediate_size": 128, "num_global_key_value_heads": 2,
        "hidden_size_per_layer_input": 0}),
]  # fmt: skip


@pytest.mark.torch
@pytest.mark.parametrize(("model_type", "fields"), VARIANTS)
def test_parameters_equal_those_of_transformers(model_type: str, fields: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(model_type, **fields)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    shape = ModelShape.from_config(json.loads(config.to_json_string(use_diff=False)))
    assert shape.parameters() == sum(p.numel() for p in model.parameters())
    ops = forward([dense_plan(shape, PREFILL)])
    assert sum(op.layers * op.parameters for op in ops) == pytest.approx(shape.parameters())
