"""Which engines run a pruned checkpoint: the table, the layouts, and the sizes that are legal."""

from __future__ import annotations

import re
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from prunescope.taxonomy.engines import (
    ENGINES,
    LAYOUTS,
    TABLE,
    engine_answers,
    layouts_of,
    legal_sizes,
)
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import families, family
from prunescope.taxonomy.shape import ModelShape

CONFIG: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 128, "num_hidden_layers": 4, "vocab_size": 512,
    "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 384,
}  # fmt: skip
SHAPE = ModelShape.from_config(CONFIG)


def _uneven(**change: Any) -> ModelShape:
    layers = [SHAPE.layer(number) for number in range(SHAPE.layers)]
    layers[1] = replace(layers[1], **change)
    return SHAPE.with_layers(layers)


def test_every_layout_has_a_row_of_every_engine_with_its_source_and_day() -> None:
    assert set(TABLE) == set(LAYOUTS)
    for rows in TABLE.values():
        assert set(rows) == set(ENGINES)
        for row in rows.values():
            assert row.source.startswith("https://")
            assert row.version
            date.fromisoformat(row.checked)
            assert row.runs or row.reason  # a no has its reason
            assert row.faster or row.reason  # and so has a yes that is not faster


def test_a_family_leaves_what_its_traits_say() -> None:
    layouts = {f.id: layouts_of([f], SHAPE)[0] for f in families()}
    assert layouts["static-k-24"] == "2:4"
    assert layouts["static-k-mask"] == "zeros"
    assert layouts["static-k-lowrank"] == "low-rank"
    assert layouts["static-nk"] == layouts["static-m"] == "uniform"
    assert {layouts[f.id] for f in families() if f.is_dynamic} == {"run-time"}


@pytest.mark.parametrize(
    ("change", "layout"),
    [
        ({"intermediate": 192}, "per-layer"),
        ({"heads": 4, "kv_heads": 2}, "per-layer"),
        ({"attention_kind": "none", "heads": 0, "kv_heads": 0}, "missing"),
    ],
)
def test_layers_that_differ_are_seen_in_the_shape(change: dict[str, Any], layout: str) -> None:
    assert layouts_of([], _uneven(**change)) == (layout,)
    assert not any(a.runs for a in engine_answers((layout,), _uneven(**change)))


def test_what_the_dense_model_has_by_itself_is_no_work_of_pruning() -> None:
    """As a Nemotron-H, whose layers have one sublayer each: engines with its class run it."""
    dense = _uneven(attention_kind="none", heads=0, kv_heads=0)
    narrow = dense.map_layers(lambda layer: layer.change(intermediate=192))
    assert layouts_of([], narrow, dense=dense) == ("uniform",)
    assert layouts_of([], narrow, dense=SHAPE) == ("missing",)


def test_tensor_parallelism_divides_heads_and_replicates_few_kv_heads() -> None:
    # 8 query heads, 4 KV heads. 8 ranks: a query head each, and each KV head on two of them.
    eight = {a.engine: a for a in engine_answers(("uniform",), SHAPE, 8)}
    assert eight["vllm"].runs
    assert not eight["transformers"].runs  # it does not replicate KV heads
    # 16 ranks: 8 query heads cannot be divided.
    sixteen = {a.engine: a for a in engine_answers(("uniform",), SHAPE, 16)}
    assert not sixteen["vllm"].runs
    assert "8 query and 4 KV heads" in sixteen["vllm"].reason
    assert sixteen["llama.cpp"].runs  # it splits rows, not heads


def test_six_channels_of_a_rank_round_up() -> None:
    legal = legal_sizes("vllm", 8)
    assert legal.channels(345) == 352  # 43 · 8 = 344 < 345
    assert legal.kv_heads(3, 2) == 4  # 3 · 2 query heads are no multiple of 8, 4 · 2 are


@given(st.sampled_from(ENGINES), st.sampled_from([1, 2, 4, 8]), st.integers(1, 4096))
def test_a_legal_size_is_taken_and_is_the_least(engine: str, tp: int, wanted: int) -> None:
    legal = legal_sizes(engine, tp)
    size = legal.channels(wanted)
    assert wanted <= size < wanted + legal.channel_step
    assert size % legal.channel_step == 0


def test_the_blocks_of_gguf_are_those_of_its_library() -> None:
    gguf = pytest.importorskip("gguf")
    blocks = {size for size, _ in gguf.GGML_QUANT_SIZES.values() if size > 1}
    assert legal_sizes("llama.cpp").channel_multiple == min(blocks)


def test_transformers_reads_sizes_of_layers_in_few_classes() -> None:
    """The row of transformers holds while the class of Llama builds layers from one config."""
    import inspect

    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    assert not re.search(r"per_layer_config|intermediate_size\[", inspect.getsource(llama))
    assert not TABLE["per-layer"]["transformers"].runs


def test_an_unknown_engine_is_named_with_the_nearest() -> None:
    with pytest.raises(PrunescopeError, match="vlm"):
        legal_sizes("vlm")


def test_a_dynamic_family_and_zeros_run_nowhere_for_the_first_reason() -> None:
    both = layouts_of([family("static-k-mask"), family("dynamic-m")], SHAPE)
    assert both == ("zeros", "run-time")
    assert not any(answer.runs for answer in engine_answers(both, SHAPE))


def test_what_transformers_was_found_to_load_it_runs() -> None:
    """The table speaks of most classes; a checkpoint that was loaded is known better."""
    layouts = ("per-layer",)
    assert not engine_answers(layouts)[0].runs
    lists = {a.engine: a for a in engine_answers(layouts, held="lists")}
    assert lists["transformers"].runs and not lists["vllm"].runs
    coded = engine_answers(("low-rank",), held="code")[0]
    assert coded.runs and "trust_remote_code" in coded.reason
    # Tensor parallelism is another question.
    assert not engine_answers(layouts, SHAPE, 8, held="lists")[0].runs
