"""Hybrids: what a config says of the mixers beside attention, and their ops, by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import families, family
from prunescope.taxonomy.formats import read
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.plan import Op, Workload
from prunescope.taxonomy.presets import preset_config
from prunescope.taxonomy.roles import locate
from prunescope.taxonomy.runs.run_blocks import ModelEntry
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plan, forward, kv_cache_bytes
from tests.described import describe

PLAIN: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "intermediate_size": 96, "vocab_size": 512,
}  # fmt: skip
# 4 value heads of 16, 2 key heads of 16; the last of four layers has attention.
DELTA = {
    **PLAIN, "model_type": "qwen3_next", "full_attention_interval": 4, "linear_num_value_heads": 4,
    "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
    "linear_conv_kernel_dim": 4,
}  # fmt: skip
# 8 heads of 16 channels with a state of 32 each, B and C in 2 groups.
MAMBA = {
    "mamba_n_heads": 8, "mamba_d_head": "auto", "mamba_n_groups": 2, "mamba_d_state": 32,
    "mamba_d_conv": 4, "mamba_expand": 2,
}  # fmt: skip
FALCON = {**PLAIN, **MAMBA, "model_type": "falcon_h1", "mamba_d_ssm": 128}
GRANITE = {
    **PLAIN, **MAMBA, "model_type": "granitemoehybrid", "layer_types": ["mamba", "attention"] * 2,
}  # fmt: skip
LFM2 = {
    **PLAIN, "model_type": "lfm2", "full_attn_idxs": [1], "conv_L_cache": 3,
    "block_multiple_of": 16,
}  # fmt: skip
PREFILL = Workload(phase="prefill", batch=2, prompt_len=6)  # T = 12
DECODE = Workload(phase="decode", batch=2, context=10)


def dense(config: dict[str, Any], work: Workload) -> dict[str, Op]:
    return {op.name: op for op in forward([dense_plan(ModelShape.from_config(config), work)])}


def pruned(name: str, config: dict[str, Any], work: Workload) -> list[Op]:
    pruning, shape = family(name), ModelShape.from_config(config)
    return pruning.theory(shape, work, pruning.point(0.5))


def test_a_delta_net_by_hand() -> None:
    shape = ModelShape.from_config(DELTA)
    assert (shape.mixer.kind, shape.mixer_layers, shape.other_layers) == ("linear", 3, 3)
    ops = dense(DELTA, PREFILL)
    # values and their gate 2*64, keys and queries 2*32; a step and a decay for 4 heads
    assert ops["mixer_in"].gemms == (Gemm(12, 192, 64),)
    assert ops["mixer_in.gates"].gemms == (Gemm(12, 8, 64),)
    assert ops["mixer_out"].gemms == (Gemm(12, 64, 64),)
    assert ops["conv"].flop == 2 * 4 * 128 * 12  # taps, channels 64 + 2*32, tokens
    # In chunks of 64, of which a sequence of 6 fills one in part. A head of 16 and 16: 6 products
    # of 6 keys or queries, 4 of values; a triangle of 6 rows; keys, queries and update against the
    # state, and its decay. 4 heads, 12 tokens.
    head = 6 * (6 * 16 + 4 * 16) + 2 / 3 * 36 + 6 * 256 + 256 / 6
    assert ops["scan"].flop == pytest.approx(4 * head * 12)
    # v, z and out 3*64, q and k 2*32, steps and decays 8 in 2 bytes; the state once in 4
    assert ops["scan"].bytes == 2 * 12 * 264 + 2 * 4 * 1024
    assert {ops[n].layers for n in ("mixer_in", "conv", "scan", "mixer_out")} == {3}
    assert ops["q"].gemms == (Gemm(12, 128, 64),)  # as many rows again gate the outputs
    assert ops["o"].gemms == (Gemm(12, 64, 64),)
    assert {ops[n].layers for n in ("q", "attention.full", "attention.gate", "o")} == {1}
    assert ops["attn_norm"].layers == ops["gate"].layers == 4


def test_a_decode_step_reads_and_writes_the_state() -> None:
    ops = dense(DELTA, DECODE)
    assert ops["scan"].kv_read == ops["scan"].kv_write == 2 * 4 * 1024
    assert ops["scan"].bytes == 2 * 2 * 264 + 2 * 2 * 4 * 1024
    assert ops["scan"].flop == 7 * 64 * 16 * 2
    # in and out of 128 channels and 4 taps a channel; 3 earlier inputs are read, 1 is written
    assert ops["conv"].bytes == 2 * (2 * 2 * 128 + 4 * 128) + 2 * 2 * 128 * 3 + 2 * 2 * 128


def test_mamba_beside_attention_by_hand() -> None:
    shape = ModelShape.from_config(FALCON)
    assert (shape.mixer.kind, shape.mixer_layers, shape.other_layers) == ("ssm", 4, 0)
    ops = dense(FALCON, PREFILL)
    # x and its gate 2*128, B and C 2*64, a step for each of 8 heads
    assert ops["mixer_in"].gemms == (Gemm(12, 392, 64),)
    # A chunk of 6 tokens: scores of 2 groups of 32, times 128 channels; the state is written and
    # read by each token, and decays once.
    token = 2 * 6 * (64 + 128) + 4 * 128 * 32 + 2 * 128 * 32 / 6
    assert ops["scan"].flop == pytest.approx(token * 12)
    assert ops["scan"].bytes == 2 * 12 * (3 * 128 + 2 * 64 + 8) + 2 * 4 * 128 * 32
    assert ops["conv"].flop == 2 * 4 * 256 * 12
    assert ops["scan"].layers == ops["q"].layers == ops["attn_norm"].layers == 4


def test_a_short_convolution_by_hand() -> None:
    shape = ModelShape.from_config(LFM2)
    # int(2 * 96 / 3) = 64, a multiple of 16
    assert (shape.mixer.kind, shape.mixer_layers, shape.mlp.intermediate) == ("conv", 3, 64)
    ops = dense(LFM2, PREFILL)
    assert ops["mixer_in"].gemms == (Gemm(12, 192, 64),)
    assert ops["conv"].flop == 2 * 3 * 64 * 12
    # two gates and the input read, the output written; 2 earlier inputs of each sequence are kept
    assert ops["conv"].bytes == 2 * (12 * 4 * 64 + 3 * 64) + 2 * 2 * 64 * 2
    assert "scan" not in ops


def test_a_state_does_not_grow() -> None:
    shape = ModelShape.from_config(DELTA)
    # a token: 1 layer, keys and values 2*32, 2 bytes; a mixer: 1024 numbers in 4 bytes, 4 inputs
    # of 128 channels in 2
    assert shape.kv_bytes(batch=2, context=10) == 2 * (10 * 64 * 2 + 3 * (4096 + 1024))
    more = shape.kv_bytes(batch=1, context=1001) - shape.kv_bytes(batch=1, context=1000)
    assert more == 64 * 2
    assert ModelShape.from_config(LFM2).mixer.state_bytes() == 3 * 64 * 2


SAME = [
    (DELTA, {"full_attention_interval": None, "layer_types": ["linear_attention"] * 3
             + ["full_attention"]}),
    (GRANITE, {"layer_types": ["linear_attention", "full_attention"] * 2}),
    (GRANITE, {"layer_types": None, "layers_block_type": ["mamba", "attention"] * 2}),
    (LFM2, {"full_attn_idxs": None, "layer_types": ["conv", "full_attention", "conv", "conv"]}),
    (LFM2, {"block_ff_dim": 96, "intermediate_size": 5}),
    (FALCON, {"mamba_d_ssm": None}),
    (FALCON, {"layers_block_type": ["hybrid"] * 4}),
]  # fmt: skip


@pytest.mark.parametrize(("config", "change"), SAME)
def test_configs_that_say_the_same(config: dict[str, Any], change: dict[str, Any]) -> None:
    assert ModelShape.from_config({**config, **change}) == ModelShape.from_config(config)


@pytest.mark.parametrize(
    "config",
    [
        {**PLAIN, "model_type": "other", "layer_types": ["linear_attention", "attention"] * 2},
        {**PLAIN, **MAMBA, "model_type": "zamba", "layers_block_type": ["mamba", "attention"] * 2},
        {**PLAIN, "model_type": "jamba", "attn_layer_period": 2, "mamba_d_state": 16},
        {**DELTA, "linear_key_head_dim": None},
    ],
)
def test_a_mixer_that_is_not_known_is_refused(config: dict[str, Any]) -> None:
    shape = ModelShape.from_config(config)
    assert shape.other_layers
    assert not shape.mixer.kind
    with pytest.raises(PrunescopeError, match="no attention"):
        dense_plan(shape, PREFILL)


@pytest.mark.parametrize("config", [DELTA, FALCON, GRANITE, LFM2])
def test_the_ops_hold_all_parameters_and_a_run_reads_the_shape(config: dict[str, Any]) -> None:
    shape = ModelShape.from_config(config)
    ops = forward([dense_plan(shape, PREFILL)])
    assert sum(op.layers * op.parameters for op in ops) == shape.parameters()
    written = json.loads(json.dumps(shape.to_dict()))
    assert ModelShape.from_fields(**written) == shape
    assert read(ModelEntry, {"shape": written}).shape == written
    with pytest.raises(PrunescopeError, match="shape.mixer: invalid enum value 'lstm'"):
        read(ModelEntry, {"shape": {**written, "mixer": "lstm"}})


@pytest.mark.parametrize("config", [DELTA, FALCON, GRANITE, LFM2])
@pytest.mark.parametrize("work", [PREFILL, DECODE])
def test_ops_are_sound_and_s_0_is_dense(config: dict[str, Any], work: Workload) -> None:
    plain = dense(config, work)
    for op in plain.values():
        assert op.bytes > 0
        assert op.weight_bytes + op.kv_read <= op.bytes
        assert bool(op.gemms) == (op.cls in ("matmul", "attention"))
    for pruning in families():
        shape = ModelShape.from_config(config)
        same = pruning.theory(shape, work, pruning.point(0.0))
        for key in ("flop", "bytes", "parameters"):
            want = sum(op.layers * getattr(op, key) for op in plain.values())
            total = sum(op.layers * getattr(op, key) for op in same)
            assert total == pytest.approx(want), (pruning.id, key)


MIXER = ("mixer_in", "conv", "scan", "mixer_out")


@pytest.mark.parametrize(
    "name",
    ["static-k-24", "static-k-lowrank", "static-nk", "static-nk-heads", "static-nk-mlp",
     "dynamic-m", "dynamic-nk", "dynamic-width", "kv-evict"],
)  # fmt: skip
@pytest.mark.parametrize("config", [DELTA, FALCON, LFM2])
def test_these_families_leave_the_mixers(name: str, config: dict[str, Any]) -> None:
    plain = dense(config, DECODE)
    left = [op for op in pruned(name, config, DECODE) if op.role in MIXER]
    assert {op.name: op for op in left} == {n: op for n, op in plain.items() if op.role in MIXER}


def test_static_m_takes_mixers_and_attention_in_equal_shares() -> None:
    plain, left = dense(DELTA, DECODE), pruned("static-m", DELTA, DECODE)
    for op in left:  # which layers is not known: an average layer
        if op.role not in ("embedding", "final_norm", "lm_head"):
            assert op.layers == plain[op.name].layers / 2
    pruning, shape = family("static-m"), ModelShape.from_config(DELTA)
    plans = pruning.plans(shape, DECODE, pruning.point(0.5))
    assert kv_cache_bytes(plans) == shape.kv_bytes(batch=2, context=10) / 2


def test_a_narrower_stream_narrows_the_projections() -> None:
    ops = {op.name: op for op in pruned("static-nk-cross", LFM2, PREFILL)}
    assert ops["mixer_in"].gemms == (Gemm(12, 192, 32),)
    assert ops["mixer_out"].gemms == (Gemm(12, 32, 64),)
    assert ops["added.attention.residual"].layers == 4


def test_tokens_are_routed_past_attention_and_not_past_a_state() -> None:
    ops = {op.name: op for op in pruned("dynamic-m", DELTA, PREFILL)}
    assert (ops["added.attention.router"].layers, ops["added.mlp.router"].layers) == (1, 4)


def test_fewer_tokens_are_fewer_rows_of_the_mixers() -> None:
    kinds = ["linear_attention", "full_attention", "linear_attention", "linear_attention"]
    pruning, shape = family("token-drop"), ModelShape.from_config({**DELTA, "layer_types": kinds})
    ops = pruning.theory(shape, PREFILL, pruning.point(0.5, {"after": 2}))
    mixers = [(op.gemms[0].m, op.layers) for op in ops if op.name == "mixer_in"]
    assert mixers == [(12, 1), (6, 2)]
    assert [(op.gemms[0].m, op.layers) for op in ops if op.name == "o"] == [(12, 1)]
    # a token: keys and values 2*32 in 2 bytes; the states do not grow
    cache = kv_cache_bytes(pruning.plans(shape, PREFILL, pruning.point(0.5, {"after": 2})))
    assert cache == shape.kv_bytes(batch=2, context=6)
    for after in (1, 4):
        with pytest.raises(PrunescopeError, match=f"after={after}"):
            pruning.theory(shape, PREFILL, pruning.point(0.5, {"after": after}))
    last = ModelShape.from_config(DELTA)
    with pytest.raises(PrunescopeError) as raised:
        pruning.theory(last, PREFILL, pruning.point(0.5, {"after": 2}))
    assert "before the last layer" in raised.value.hint


@pytest.mark.parametrize(
    ("config", "layout"),
    [
        (DELTA, "mmmf"), (GRANITE, "mfmf"), (FALCON, "ffff"), (LFM2, "mfmm"),
        ({**PLAIN, "model_type": "gemma2", "sliding_window": 8}, "sfsf"),
        ({**DELTA, "num_experts": 4, "decoder_sparse_step": 2}, "mMmF"),
    ],
)  # fmt: skip
def test_the_order_of_the_layers(config: dict[str, Any], layout: str) -> None:
    shape = ModelShape.from_config(config)
    assert shape.layout == layout
    parts = [shape.select_layers([1]), shape.select_layers([0, 2, 3])]
    assert sum(part.parameters() - part.outside_parameters() for part in parts) == (
        shape.parameters() - shape.outside_parameters()
    )
    for field in ("layers", "full_layers", "sliding_layers", "other_layers", "moe_layers"):
        assert sum(getattr(part, field) for part in parts) == getattr(shape, field)


MAMBA_1 = {
    "model_type": "mamba", "hidden_size": 64, "num_hidden_layers": 4, "state_size": 16,
    "expand": 2, "time_step_rank": 5, "vocab_size": 512,
}  # fmt: skip
MAMBA_2 = {
    "model_type": "mamba2", "hidden_size": 64, "num_hidden_layers": 4, "state_size": 16,
    "expand": 2, "num_heads": 8, "head_dim": 16, "n_groups": 2, "vocab_size": 512,
}  # fmt: skip
MIXERS: list[tuple[dict[str, Any], dict[str, list[int]]]] = [
    # values and their gate 2*64, keys and queries 2*32; a step and a decay for each of 4 heads
    (DELTA, {"mixer_in": [192, 64], "mixer_in.gates": [8, 64], "mixer_out": [64, 64]}),
    # x and its gate 2*128, B and C 2*2*32, a step for each of 8 heads
    (FALCON, {"mixer_in": [392, 64], "mixer_out": [64, 128]}),
    (GRANITE, {"mixer_in": [392, 64], "mixer_out": [64, 128]}),
    (LFM2, {"mixer_in": [192, 64], "mixer_out": [64, 64]}),  # two gates and the input
    # x and its gate 2*128; a step of rank 5, B and C 2*16; the step to 128 channels
    (MAMBA_1, {"mixer_in": [256, 64], "mixer_in.x": [37, 128], "mixer_in.dt": [128, 5],
               "mixer_out": [64, 128]}),
    # rank 64/16
    ({**MAMBA_1, "time_step_rank": "auto"},
     {"mixer_in": [256, 64], "mixer_in.x": [36, 128], "mixer_in.dt": [128, 4],
      "mixer_out": [64, 128]}),
    # x and its gate 2*128, B and C 2*2*16, a step for each of 8 heads
    (MAMBA_2, {"mixer_in": [328, 64], "mixer_out": [64, 128]}),
]  # fmt: skip


@pytest.mark.parametrize(("config", "sizes"), MIXERS)
def test_families_show_the_products_of_a_mixer(
    config: dict[str, Any], sizes: dict[str, list[int]]
) -> None:
    description = describe(config)
    of_mixer = {r: size for r, size in description["matrices"].items() if r.startswith("mixer_")}
    assert of_mixer == sizes
    rows = [row for row in description["gemms"] if row["role"].startswith("mixer_")]
    assert rows == [
        {"role": role, "group": "other", "m": "T", "n": n, "k": k, "count": 1}
        for role, (n, k) in sizes.items()
    ]
    whole = next(row for row in description["families"] if row["id"] == "static-m")
    assert whole["gemms"]["other"] == {"axis": "M", "matrices": sizes}


@pytest.mark.torch
@pytest.mark.parametrize(
    "config", [config for config, _ in MIXERS], ids=lambda config: str(config["model_type"])
)
def test_the_products_of_a_mixer_are_those_of_transformers(config: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    built = transformers.AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(built)
    layer = model.get_submodule(next(n for n, _ in model.named_modules() if n.endswith("layers.0")))
    stored = sorted(
        list(module.weight.shape)
        for name, module in layer.named_modules()
        if isinstance(module, torch.nn.Linear) and locate(f"layers.0.{name}").scope == "mixer"
    )
    matrices = describe(config)["matrices"].items()
    assert stored == sorted(size for role, size in matrices if role.startswith("mixer_"))


def numel(config: Any) -> int:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    return sum(p.numel() for p in model.parameters())


_FEW = {"num_hidden_layers": 4, "layer_types": ["linear_attention", "full_attention"] * 2}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("qwen3_next", {}),
    ("qwen3_next", {"num_hidden_layers": 4, "mlp_only_layers": [1]}),
    ("qwen3_5_text", {}),
    ("qwen3_5_moe_text", {}),
    ("falcon_h1", {}),
    ("falcon_h1", {"mamba_rms_norm": True, "mamba_proj_bias": True, "mamba_conv_bias": False,
                   "mamba_n_groups": 2, "attention_bias": True, "mlp_bias": True}),
    ("falcon_h1", {"projectors_bias": True, "mamba_d_ssm": None}),
    ("granitemoehybrid", {}),
    ("granitemoehybrid", {**_FEW, "mamba_proj_bias": True}),
    ("granitemoehybrid", {**_FEW, "num_local_experts": 0, "tie_word_embeddings": True}),
    ("bamba", {"attn_layer_indices": [9, 18, 27]}),
    ("lfm2", {"full_attn_idxs": [2, 5], "conv_bias": True}),
    ("lfm2", {"full_attn_idxs": [2, 5], "block_ffn_dim_multiplier": 1.3}),
    ("lfm2", {"full_attn_idxs": [2, 5], "block_auto_adjust_ff_dim": False}),
    ("lfm2_moe", {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2}),
]  # fmt: skip


@pytest.mark.torch
@pytest.mark.parametrize(("model_type", "fields"), VARIANTS)
def test_parameters_equal_those_of_transformers(model_type: str, fields: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(model_type, **fields)
    plain = json.loads(config.to_json_string(use_diff=False))
    shape = ModelShape.from_config(plain)
    assert shape.mixer.kind
    assert shape.parameters() == numel(config)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["qwen3-next-80b-a3b", "lfm2-1.2b"])
def test_a_preset_has_the_parameters_of_its_model(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    plain = preset_config(name)
    assert ModelShape.from_config(plain).parameters() == numel(
        transformers.AutoConfig.for_model(**plain)
    )


@pytest.mark.torch
@pytest.mark.parametrize(
    "name",
    ["qwen3_next", "falcon_h1", "granite4", "lfm2", "nemotron_h", "jamba", "zamba2", "kimi_linear",
     "minimax", "deepseek_v32", "gemma3n", "gemma4"],
)  # fmt: skip
def test_a_cache_has_the_bytes_of_the_theory(name: str) -> None:
    torch = pytest.importorskip("torch")
    from prunescope.tracer.model import compat
    from tests.tracer.tiny_models import tiny_model

    # Beyond a window transformers keeps one token less than the theory: here all fit.
    model = tiny_model(name, **({"sliding_window": 64} if name.startswith("gemma") else {}))
    cache, ids = compat.new_cache(model), torch.arange(2, 14).unsqueeze(0)
    with torch.no_grad():
        for part in (ids[:, :10], ids[:, 10:11], ids[:, 11:]):
            compat.forward(model, part, cache=cache, logits="last")
    shape = ModelShape.from_config(model.config.to_dict())
    assert compat.cache_bytes(cache) == shape.kv_bytes(batch=1, context=12, itemsize=4)
