"""A shape a layer: lists and blocks in configs, by hand and as published; headers of weights."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from prunescope.taxonomy.architectures import described, read_architecture
from prunescope.taxonomy.configs.stored_tensors import stored_tensors
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import family, pruning_families
from prunescope.taxonomy.formats import read as entry
from prunescope.taxonomy.plan import Workload
from prunescope.taxonomy.presets import preset_config
from prunescope.taxonomy.runs.run_blocks import ModelEntry
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.stored_layers import differing_layers, shape_of_weights
from prunescope.taxonomy.theory import dense_plan, flop, forward, kv_cache_bytes

PLAIN: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96, "vocab_size": 512,
}  # fmt: skip
WIDTHS = [96, 48, 96, 32]
PREFILL = Workload(phase="prefill", batch=2, prompt_len=6)  # T = 12, 21 causal pairs
T = 2 * 12  # FLOPs a number of weight
ATTENTION = T * (64 + 2 * 32 + 64) * 64 + 2 * 2 * 4 * 32 * 21
HEAD = 2 * 2 * 512 * 64


def plain_shape(**changes: Any) -> ModelShape:
    return ModelShape.from_config({**PLAIN, **changes})


def work_of(shape: ModelShape) -> float:
    return flop(forward([dense_plan(shape, PREFILL)]))


def block(groups: int | None = 2, width: int | None = 96, **ffn: Any) -> dict[str, Any]:
    """Make a block of block_configs.

    Without `groups` it has no attention, without `width` no MLP.
    """
    attention = {"n_heads_in_group": groups, "no_op": groups is None, "replace_with_linear": False}
    ffn_part = {"ffn_mult": None, "intermediate_size": width, "no_op": width is None and not ffn}
    return {"attention": attention, "ffn": {**ffn_part, "replace_with_linear": False, **ffn}}


def nas(*blocks: dict[str, Any], **changes: Any) -> ModelShape:
    config = {**PLAIN, "model_type": "nemotron-nas", "num_hidden_layers": len(blocks), **changes}
    config |= {"intermediate_size": None, "num_key_value_heads": None}
    return ModelShape.from_config({**config, "block_configs": list(blocks)})


def test_lists_of_widths_and_heads_count_by_hand() -> None:
    mlp = T * 3 * 64 * sum(WIDTHS)
    assert work_of(plain_shape(intermediate_size=WIDTHS)) == 4 * ATTENTION + mlp + HEAD
    heads = plain_shape(num_attention_heads=[4, 2, 4, 4], num_key_value_heads=[2, 1, 2, 2])
    assert work_of(heads) == 3.5 * ATTENTION + T * 3 * 64 * 4 * 96 + HEAD
    assert heads.spread("heads") == (2, 4) and heads.attention.group == 2
    # 2 sequences of 6 tokens, 2 bytes, keys and values of 2 or 1 heads of 16
    assert kv_cache_bytes([dense_plan(heads, PREFILL)]) == 2 * 6 * 2 * 2 * 16 * 7


def test_absent_sublayers_count_nothing() -> None:
    without = plain_shape(num_attention_heads=[4, 0, 4, 4], intermediate_size=[96, 96, 0, 96])
    assert work_of(without) == 3 * ATTENTION + T * 3 * 64 * 3 * 96 + HEAD
    dense = plain_shape()
    attention, mlp = (64 + 32 + 32 + 64) * 64 + 64, 3 * 96 * 64 + 64  # each with its norm
    assert without.parameters() == dense.parameters() - attention - mlp
    assert differing_layers(without) == (
        "1 of 4 layers without attention, 1 of 4 layers without an MLP"
    )


def test_equal_lists_are_a_plain_shape() -> None:
    listed = plain_shape(intermediate_size=[96] * 4, num_key_value_heads=[2] * 4)
    assert listed == plain_shape() and not listed.layer_shapes
    assert listed.to_dict() == plain_shape().to_dict() and "layer_shapes" not in listed.to_dict()


@pytest.mark.parametrize("pruning", pruning_families(), ids=lambda pruning: pruning.id)
def test_layers_that_are_told_one_by_one_and_agree_are_priced_as_one(pruning: Any) -> None:
    """Equal layers written as unequal ones: the theory gives the same sums."""
    shape = plain_shape()
    listed = shape.with_layers([shape.layer(i) for i in range(4)])
    assert listed == shape
    # Layers differ in a size that no family of these touches: the head size of a layer's values.
    point = pruning.point(pruning.only or 0.25)
    try:
        ops = pruning.theory(shape, PREFILL, point)
    except PrunescopeError:
        return  # no experts here, or no rank that saves
    uneven = plain_shape(intermediate_size=[96, 96, 96, 80])
    pruned = pruning.theory(uneven, PREFILL, point)
    even, less = flop(ops), flop(pruned)
    assert less < even
    assert flop(pruning.theory(listed, PREFILL, point)) == even


def test_families_prune_each_layer_by_its_own_sizes() -> None:
    shape = plain_shape(intermediate_size=WIDTHS, num_attention_heads=[4, 2, 4, 4],
               num_key_value_heads=[2, 1, 2, 2])  # fmt: skip
    pruning = family("static-nk")
    (plan,) = pruning.plans(shape, PREFILL, pruning.point(0.5))
    assert [layer.intermediate for layer in plan.shape.layer_shapes] == [48, 32, 48, 16]
    assert [layer.heads for layer in plan.shape.layer_shapes] == [2, 2, 2, 2]
    gone = family("static-m")
    ops = gone.theory(shape, PREFILL, gone.point(0.25, {"layers": "3"}))
    assert flop(ops) == work_of(shape) - ATTENTION - T * 3 * 64 * 32


def test_blocks_of_puzzle() -> None:
    shape = nas(block(), block(groups=None), block(groups=4, width=48), block(width=None))
    kinds = [layer.attention_kind for layer in shape.layer_shapes]
    assert kinds == ["usual", "none", "usual", "usual"]
    assert [layer.kv_heads for layer in shape.layer_shapes] == [2, 0, 1, 2]
    assert [layer.intermediate for layer in shape.layer_shapes] == [96, 96, 48, 0]
    linear = nas(block(), block(replace_with_linear=True), block(), block())
    assert linear.layer(1).mlp_kind == "linear"
    saved = 3 * 96 * 64 - 64 * 64
    assert linear.parameters() == plain_shape().parameters() - saved
    # int(2 * 3 * 64 / 3) = 128, up to a multiple of 256
    wide = nas(block(width=None, ffn_mult=3.0), block(), block(), block())
    assert wide.layer(0).intermediate == 256


# (n_heads_in_group, ffn_mult) of each block, as huggingface.co/nvidia/
# Llama-3_3-Nemotron-Super-49B-v1 has them: 49 layers with attention.
_NARROW = (1.3125, 1, 1, 1.3125, 1, 1, 1, 1.3125, 1.3125, 0.5, 0.5, 1, 1, 0.5, 0.5, 1, 0.5, 0.5)
SUPER_49B = [
    (8, 2.625), *[(8, 5.25)] * 5, *[(None, 2.625)] * 2, *[(8, 5.25)] * 3, (None, 3.28125),
    *[(8, 5.25)] * 30,
    *((None, m) for m in (1.3125, 2.625, 2.625, 1.3125, 5.25, 1.3125, 2.625, *[1.3125] * 3)),
    (8, 5.25), *((None, m) for m in _NARROW), *[(8, 5.25)] * 9,
]  # fmt: skip


def test_a_published_config_has_the_published_number_of_parameters() -> None:
    blocks = [block(groups, None, ffn_mult=mult) for groups, mult in SUPER_49B]
    shape = nas(*blocks, hidden_size=8192, num_attention_heads=64, head_dim=None, vocab_size=128256)
    assert shape.parameters() == 49_867_145_216  # the total of its safetensors
    assert shape.spread("intermediate") == (2816, 28672)
    assert shape.count_layers("attention_kind", "none") == 31
    ops = forward([dense_plan(shape, PREFILL)])
    assert sum(op.layers * op.parameters for op in ops) == shape.parameters()
    assert len(ops) < 45  # equal sublayers once
    assert ModelShape.from_run(json.loads(json.dumps(shape.to_dict()))) == shape


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"intermediate_size": [96, 48]}, "lists 2 sizes of intermediate for 4 layers"),
        ({"intermediate_size": [96, "x", 96, 96]}, "'x', not a positive whole number"),
        ({"num_key_value_heads": [2, 3, 2, 2]}, "4 query heads are not a multiple of 3 KV heads"),
        ({"block_configs": [{}] * 4}, "has no attention in block 0"),
        ({"block_configs": [block(ffn_mult=1e9, width=None)] * 4}, "ffn_mult of block 0"),
        ({"vocab_size": [512, 256]}, "vocab_size of the config is"),
    ],
)
def test_lists_that_make_no_sense_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(PrunescopeError, match=said):
        plain_shape(**changes)


def matrices(number: int, width: int, heads: int = 4, kv: int = 2) -> dict[str, tuple[int, ...]]:
    at, d = f"model.layers.{number}", 16
    return {
        f"{at}.input_layernorm.weight": (64,),
        f"{at}.self_attn.q_proj.weight": (heads * d, 64),
        f"{at}.self_attn.k_proj.weight": (kv * d, 64),
        f"{at}.self_attn.v_proj.weight": (kv * d, 64),
        f"{at}.self_attn.o_proj.weight": (64, heads * d),
        f"{at}.mlp.gate_proj.weight": (width, 64),
        f"{at}.mlp.up_proj.weight": (width, 64),
        f"{at}.mlp.down_proj.weight": (64, width),
    }


def model(widths: list[int] = WIDTHS) -> dict[str, tuple[int, ...]]:
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (512, 64)}
    for number, width in enumerate(widths):
        tensors |= matrices(number, width)
    return tensors


def folder_of(
    folder: Path, shapes: dict[str, tuple[int, ...]], *, dtype: str = "BF16", **changes: Any
) -> Path:
    """Write a checkpoint of zeros without its numbers, as long as its header says."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        size = 2
        for n in shape:
            size *= n
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    (folder / "config.json").write_text(json.dumps({**PLAIN, **changes}))
    return folder


def read(folder: Path) -> tuple[ModelShape, list[str]]:
    stored = stored_tensors(folder / "config.json")
    assert stored is not None
    config = json.loads((folder / "config.json").read_text())
    return shape_of_weights(ModelShape.from_config(config), stored)


def test_weights_win_over_their_config_and_it_is_said(tmp_path: Path) -> None:
    shape, notes = read(folder_of(tmp_path, model()))
    assert shape == plain_shape(intermediate_size=WIDTHS)
    assert notes == [
        "the weights differ from their config, and count: 32–96 MLP channels (config: 96)"
    ]
    told = read_architecture(str(tmp_path))
    assert told.notes == notes and [entry["intermediate"] for entry in told.layers] == WIDTHS
    assert any(entry.text == "32–96 MLP channels" for entry in told.mechanisms)
    rows = {row.role: (row.n, row.k) for row in told.gemms}
    assert rows["gate"] == ("32–96", 64) and rows["down"] == (64, "32–96")


def test_weights_that_agree_say_nothing(tmp_path: Path) -> None:
    assert read(folder_of(tmp_path, model([96] * 4))) == (plain_shape(), [])
    assert read(folder_of(tmp_path, model(), intermediate_size=WIDTHS))[1] == []
    assert described(PLAIN).layers == [] == described(PLAIN).notes


def test_absent_sublayers_and_layers_in_the_weights(tmp_path: Path) -> None:
    shapes = {n: s for n, s in model([96] * 4).items() if ".1.self_attn" not in n}
    shape, notes = read(folder_of(tmp_path, shapes))
    assert (
        shape.layer(1).attention_kind == "none"
        and shape.count_layers("attention_kind", "none") == 1
    )
    assert "1 of 4 layers without attention" in notes[0]
    shape, notes = read(folder_of(tmp_path, model([96] * 3)))
    assert shape.layers == 3 and not shape.layer_shapes
    assert "3 layers (config: 4)" in notes[0]


def test_low_rank_matrices_in_the_weights(tmp_path: Path) -> None:
    shapes = model([96] * 4)
    for name, first, second in (("q_proj.0", 8, 64), ("q_proj.1", 64, 8)):
        shapes[f"model.layers.2.self_attn.{name}.weight"] = (first, second)
    del shapes["model.layers.2.self_attn.q_proj.weight"]
    for name, size in (("up_u_proj", (96, 16)), ("up_v_proj", (16, 64))):  # as SVD-LLM has them
        shapes[f"model.layers.2.mlp.{name}.weight"] = size
    del shapes["model.layers.2.mlp.up_proj.weight"]
    shape, notes = read(folder_of(tmp_path, shapes))
    assert shape.layer(2).ranks == (("q", 8), ("up", 16))
    saved = 64 * 64 - 8 * 128 + 96 * 64 - 16 * 160
    assert shape.parameters() == plain_shape().parameters() - saved
    assert work_of(shape) == work_of(plain_shape()) - T * saved
    assert "matrices of a low rank" in notes[0]
    assert ModelShape.from_run(json.loads(json.dumps(shape.to_dict()))) == shape


def test_experts_that_were_dropped_in_some_layers(tmp_path: Path) -> None:
    config = {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2,
              "moe_intermediate_size": 32}  # fmt: skip
    shapes = {n: s for n, s in model().items() if "mlp" not in n}
    for layer, count in enumerate((4, 3, 4, 2)):
        shapes[f"model.layers.{layer}.mlp.gate.weight"] = (count, 64)
        for expert in range(count):
            at = f"model.layers.{layer}.mlp.experts.{expert}"
            shapes |= {f"{at}.gate_proj.weight": (32, 64), f"{at}.up_proj.weight": (32, 64),
                       f"{at}.down_proj.weight": (64, 32)}  # fmt: skip
    shape, notes = read(folder_of(tmp_path, shapes, **config))
    assert [row.experts for row in shape.layer_shapes] == [4, 3, 4, 2]
    assert "2–4 experts (config: 4)" in notes[0]
    whole = ModelShape.from_config({**PLAIN, **config})
    assert shape.parameters() == whole.parameters() - 3 * (3 * 32 * 64 + 64)


def test_a_manifest_keeps_layers_and_refuses_broken_ones() -> None:
    shape = plain_shape(num_attention_heads=[4, 0, 4, 4], intermediate_size=[96, 96, 0, 96])
    written = json.loads(json.dumps(shape.to_dict()))
    assert ModelShape.from_run(entry(ModelEntry, {"shape": written}).shape) == shape
    layers = written["layer_shapes"]
    for broken in (
        layers[:2], [5, 5, 5, 5], [{**layers[0], "kv_heads": 0}, *layers[1:]],
        [{**layers[0], "what": 1}, *layers[1:]],
    ):  # fmt: skip
        assert ModelShape.from_run({**written, "layer_shapes": broken}) is None
    assert ModelShape.from_run({**written, "layout": ""}) is None
    with pytest.raises(PrunescopeError, match="layer_shapes"):
        entry(ModelEntry, {"shape": {**written, "layer_shapes": [{"heads": "x"}]}})


def test_packed_weights_leave_the_sizes_of_the_config(tmp_path: Path) -> None:
    shapes = {n: s if len(s) == 1 else (s[0] * s[1] // 2, 1) for n, s in model().items()}
    assert read(folder_of(tmp_path, shapes, dtype="U8")) == (plain_shape(), [])


def test_matrices_that_do_not_fit_each_other_are_said(tmp_path: Path) -> None:
    shapes = model([96] * 4) | {"model.layers.1.mlp.down_proj.weight": (64, 90)}
    shape, notes = read(folder_of(tmp_path, shapes))
    assert shape == plain_shape() and "1 layers keep the sizes of the config" in notes[0]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 60) + b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 99]}}',
        struct.pack("<Q", 60) + b'{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0,1]}}',
    ],
)
def test_hostile_headers_leave_the_sizes_of_the_config(text: bytes, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {})
    (folder / "model.safetensors").write_bytes(text)
    shape, notes = read(folder)
    assert shape == plain_shape() and "unreadable (model.safetensors" in notes[0]


def test_a_pickle_beside_a_config_is_not_opened_and_it_is_said(tmp_path: Path) -> None:
    """Its layers may be narrower than the config says: what pruners of LLMs leave."""
    folder = folder_of(tmp_path, {})
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    shape, (note,) = read(folder)
    assert (
        shape == plain_shape()
        and "a pickle, which is never opened: convert it to safetensors" in note
    )


def test_shards_that_are_missing_say_nothing_of_their_layers(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {n: s for n, s in model().items() if ".0." in n or ".1." in n})
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    names = {"x": "a.safetensors", "y": "b.safetensors", "z": "../../etc/c.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    shape, _ = read(folder)
    assert [row.intermediate for row in shape.layer_shapes] == [96, 48, 96, 96]
    assert shape.count_layers("attention_kind", "none") == 0


def test_published_configs_are_as_they_were() -> None:
    for name in ("llama-3.1-8b", "qwen3-next-80b-a3b", "gpt-oss-20b"):
        written = ModelShape.from_config(preset_config(name)).to_dict()
        assert not {"layer_shapes", "attention_kind", "mlp_kind", "ranks"} & written.keys()
