"""Predictions of an encoder-decoder: what runs on which tokens, and what each family cuts of it.

The model is T5 of one layer each, d_model 32, 4 heads of 8, 64 channels, 100 tokens of vocabulary.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from msgspec.structs import replace

from prunescope.analysis.predict.predict_request import PredictRequest
from prunescope.analysis.predict.request_points import sized_for_model
from prunescope.taxonomy.applies import NO, PARTLY
from prunescope.taxonomy.architecture_traits import traits_of
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import families, family
from prunescope.taxonomy.plan import Op, Workload
from prunescope.taxonomy.shape import ModelPart, ModelShape
from prunescope.taxonomy.theory import kv_cache_bytes

PROMPT, OWN = 40, 6
SIZES: dict[str, Any] = {
    "model_type": "t5", "hidden": 32, "layers": 4, "heads": 4, "kv_heads": 4, "head_dim": 8,
    "value_dim": 8, "intermediate": 64, "gated": False, "tied": True, "layout": "ffff",
}  # fmt: skip
ENCODER = ModelShape.from_fields(**SIZES, vocab=0, encoder=True)
CROSS = {"cross_heads": 4, "cross_kv_heads": 4, "cross_head_dim": 8, "cross_width": 32}
SHAPE = replace(
    ModelShape.from_fields(**SIZES, **CROSS, vocab=100, norms=3),
    parts=(ModelPart(name="encoder", shape=ENCODER),),
)
PREFILL = Workload(phase="prefill", prompt_len=PROMPT)
DECODE = Workload(phase="decode", prompt_len=PROMPT, context=PROMPT + OWN)


def ops_at(name: str, sparsity: float, work: Workload, **knobs: Any) -> dict[str, Op]:
    chosen = family(name)
    return {op.name: op for op in chosen.theory(SHAPE, work, chosen.point(sparsity, knobs))}


def parameters(ops: dict[str, Op]) -> float:
    return sum(op.layers * op.parameters for op in ops.values())


def test_a_prompt_goes_to_the_encoder_and_one_token_to_the_decoder() -> None:
    ops = ops_at("dense", 0.0, PREFILL)
    rows = {name: op.gemms[0].m for name, op in ops.items() if op.cls == "matmul"}
    of_prompt = {name for name, count in rows.items() if count == PROMPT}
    assert of_prompt == {
        *(f"encoder.{role}" for role in ("q", "k", "v", "o", "up", "down")), "cross_k", "cross_v",
    }  # fmt: skip
    assert {rows[name] for name in rows.keys() - of_prompt} == {1}
    assert ops["encoder.attention.full"].flop == 4 * 32 * PROMPT**2  # not causal
    assert ops["attention.cross"].flop == 4 * 32 * PROMPT
    assert ops["attention.cross"].kv_write == 2 * 2 * 32 * PROMPT


def test_a_decode_step_reads_both_caches_and_runs_no_encoder() -> None:
    ops = ops_at("dense", 0.0, DECODE)
    resting = {name for name, op in ops.items() if op.cls == "matmul" and not op.bounded}
    assert resting == {name for name in ops if name.startswith("encoder.")} & resting | {
        "cross_k", "cross_v",
    }  # fmt: skip
    assert not any(op.flop or op.bytes for name, op in ops.items() if name.startswith("encoder."))
    assert ops["attention.cross"].kv_read == 2 * 2 * 32 * PROMPT
    assert ops["attention.full"].kv_read == 2 * 2 * 32 * OWN
    plans = family("dense").plans_of_model(SHAPE, DECODE, family("dense").point(0.0))
    assert kv_cache_bytes(plans) == 4 * 2 * 2 * 32 * (PROMPT + OWN)  # layers, bytes, k and v


@pytest.mark.parametrize("work", [PREFILL, DECODE], ids=["prefill", "decode"])
def test_weights_lie_in_memory_in_both_phases(work: Workload) -> None:
    assert parameters(ops_at("dense", 0.0, work)) == SHAPE.parameters()


def test_heads_and_channels_go_in_every_attention_and_both_mlps() -> None:
    dense, half = ops_at("dense", 0.0, PREFILL), ops_at("static-nk", 0.5, PREFILL)
    for role in ("q", "k", "v", "up", "cross_q", "cross_k", "cross_v"):
        for name in {role, f"encoder.{role}"} & dense.keys():
            assert half[name].gemms[0].n == dense[name].gemms[0].n / 2
    for role in ("o", "down", "cross_o"):
        assert half[role].gemms[0].k == dense[role].gemms[0].k / 2
    assert half["attention.cross"].flop == dense["attention.cross"].flop / 2


def test_a_narrow_stream_is_narrow_in_the_encoder_too() -> None:
    narrow = ops_at("static-nk-cross", 0.5, PREFILL, junctions="same")
    assert narrow["encoder.q"].gemms[0].k == narrow["cross_k"].gemms[0].k == 16
    assert narrow["cross_q"].gemms[0].k == narrow["cross_o"].gemms[0].n == 16


@pytest.mark.parametrize(
    ("name", "knobs", "left"),
    [
        ("static-m", {}, (2, 2)),
        ("static-m", {"layers": "3"}, (4, 3)),  # named ones are the decoder's
        ("dynamic-depth", {}, (4, 2)),
    ],
)
def test_layers_go_in_both_parts_or_in_the_decoder_alone(
    name: str, knobs: dict[str, Any], left: tuple[float, float]
) -> None:
    ops = ops_at(name, 0.5, PREFILL, **knobs)
    assert (ops["encoder.q"].layers, ops["q"].layers) == left
    assert ops["cross_q"].layers == left[1]


@pytest.mark.parametrize(
    ("name", "knobs"), [("static-k-24", {}), ("static-k-lowrank", {"align": "1"})]
)
def test_every_matrix_of_the_attention_to_the_encoder_is_pruned(
    name: str, knobs: dict[str, Any]
) -> None:
    before, after = Counter[str](), Counter[str]()
    for sums, chosen, point in (
        (before, family("dense"), family("dense").point(0.0)),
        (after, family(name), family(name).point(0.5, knobs)),
    ):
        for op in chosen.theory(SHAPE, PREFILL, point):  # a low rank is two ops of one name
            sums[op.name] += round(op.layers * op.flop)
    for role in ("cross_q", "cross_k", "cross_v", "cross_o", "encoder.q", "encoder.up"):
        assert 0 < after[role] <= before[role] / 2


def test_what_a_source_of_keys_allows_is_said() -> None:
    traits = traits_of(SHAPE)
    for name in ("kv-evict", "dynamic-nk"):
        answer, why = family(name).applies(traits)
        assert answer == PARTLY and "of the encoder" in why
    answer, why = family("token-drop").applies(traits)
    assert answer == NO and "of the encoder" in why


def test_only_the_keys_of_its_own_are_evicted() -> None:
    ops = ops_at("kv-evict", 0.5, DECODE, keep="recent")
    assert ops["attention.full"].kv_read == 2 * 2 * 32 * OWN / 2
    assert ops["attention.cross"].kv_read == 2 * 2 * 32 * PROMPT


@pytest.mark.parametrize("name", [each.id for each in families() if each.id != "token-drop"])
def test_no_family_adds_work_to_the_dense_model_without_sparsity(name: str) -> None:
    dense, same = ops_at("dense", 0.0, DECODE), ops_at(name, 0.0, DECODE)
    assert parameters(same) == parameters(dense)
    assert sum(op.layers * op.flop for op in same.values()) == sum(
        op.layers * op.flop for op in dense.values()
    )


def test_a_request_counts_the_keys_of_the_encoder() -> None:
    sized = sized_for_model(PredictRequest(prompt_len=PROMPT, phase="both"), SHAPE)
    assert sized.context == PROMPT + 1
    with pytest.raises(PrunescopeError, match="leaves the decoder no key"):
        sized_for_model(PredictRequest(prompt_len=PROMPT, context=PROMPT), SHAPE)
    fixed = replace(SHAPE, parts=(ModelPart(name="encoder", shape=ENCODER, tokens=9),))
    assert sized_for_model(PredictRequest(phase="prefill"), fixed).prompt_len == 9
    with pytest.raises(PrunescopeError, match="sees 9 tokens"):
        sized_for_model(PredictRequest(prompt_len=PROMPT), fixed)


@pytest.mark.parametrize("given", [{"chunk": 8}, {"draft_tokens": 4}, {"pp": 2}, {"ep": 2}])
def test_what_is_not_modelled_of_it_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(PrunescopeError, match="not modelled for an encoder"):
        sized_for_model(PredictRequest(**given), SHAPE)
