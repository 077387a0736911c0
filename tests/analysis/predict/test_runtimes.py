"""Engines and hosts: what runs beside the kernels, in which formats, and what nobody knows."""

from __future__ import annotations

import math
from typing import Any

import pytest

from prunescope.analysis.predict.constants import DEFAULT, SPARSE, TABLE
from prunescope.analysis.predict.predict_request import PredictRequest
from prunescope.analysis.predict.setting import resolve, workloads
from prunescope.analysis.predict.side import PredictedSide, predicted_side
from prunescope.taxonomy.errors import PrunescopeError
from tests.analysis.predict.plain import predict

SHORT = {"method": "static-k-24", "sparsity": 0.5, "phase": "prefill", "prompt_len": 512}


def ask(**options: Any) -> dict[str, Any]:
    given = {"model": "llama-3.1-8b", "device": "h100-sxm", "break_even": False}
    return predict(PredictRequest(**{**given, **options}))


def execution(phase: str, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = ask(phase=phase, **options)["phases"][phase]["predicted"]["execution"]
    return found


def side(method: str | None = None, **options: Any) -> PredictedSide:
    request = PredictRequest(**{"device": "h100-sxm", "phase": "decode", **options})
    setting, _ = resolve(request, method, 0.5, [])
    return predicted_side(setting, workloads(request, setting)[0], pruned=method is not None)


def test_no_prefill_of_an_engine_is_shorter_than_its_host() -> None:
    short = execution("prefill", model="llama-3.2-1b", runtime="vllm", **_less(SHORT, "phase"))
    # 16 layers of 15 kernels and lm_head, each launched by the host; a step of one sequence
    floor = DEFAULT.prompt_ns + (15 * 16 + 1) * DEFAULT.uncaptured_ns
    step = DEFAULT.engine_step_ns + DEFAULT.engine_sequence_ns
    assert short["dense_ns"] == pytest.approx(floor + step)
    assert short["speedup"] == pytest.approx(1.0)
    (engine,) = [term for term in short["terms"] if term["name"] == "engine"]
    assert engine["dense_ns"] > 0.5 * short["dense_ns"]
    long = {**SHORT, "prompt_len": 32768}
    gain = execution("prefill", model="llama-3.2-1b", runtime="vllm", **_less(long, "phase"))
    assert gain["speedup"] > 1.05


def test_an_engine_schedules_and_samples_between_decode_steps() -> None:
    options = {"model": "llama-3.2-1b", "method": "static-m", "sparsity": 0.5, "batch": 64}
    alone, engine = (execution("decode", runtime=name, **options) for name in (None, "vllm"))
    step = DEFAULT.engine_step_ns + 64 * DEFAULT.engine_sequence_ns
    assert engine["dense_ns"] == pytest.approx(alone["dense_ns"] + step)
    assert engine["speedup"] < alone["speedup"]
    overlapped = execution("decode", runtime="sglang", **options)
    assert engine["speedup"] < overlapped["speedup"] < alone["speedup"]


def test_each_engine_says_what_is_assumed_of_it() -> None:
    found = ask(method="static-m", runtime="vllm", dtype="fp8")
    assert found["assumed"][0].startswith("vllm 0.8 to 0.13")
    assert "16 bits" in found["assumed"][1]
    assert ask(method="static-m")["assumed"] == []
    assert execution("decode", method="static-m", runtime="hf")["launch"] == "eager"
    assert execution("decode", method="static-m", runtime="hf", launch="graph")["launch"] == "graph"
    with pytest.raises(PrunescopeError, match="runtime"):
        ask(runtime="vlm")


def test_beside_8_bit_linear_layers_the_rest_stays_in_16_bits() -> None:
    plain = side(model="llama-3.1-8b", dtype="fp8")
    engine = side(model="llama-3.1-8b", dtype="fp8", runtime="vllm")
    wide = side(model="llama-3.1-8b", dtype="bf16")
    of_plain, of_engine, of_wide = (
        {op.name: op for op in one.bounded} for one in (plain, engine, wide)
    )
    for name in ("lm_head", "attention.full", "attn_norm"):
        assert of_engine[name].bytes == pytest.approx(of_wide[name].bytes)
    # B = 1: 4,096 bytes in and out of q in 8 bits; its output takes 16
    assert of_engine["q"].bytes - of_plain["q"].bytes == 4096
    # one kernel before each of qkv, o, gate and up, and down: read in 16 bits, written in 8
    extra = [op for op in engine.bounded if op.role == "quantise"]
    assert [op.bytes for op in extra] == [3 * 4096, 3 * 4096, 3 * 4096, 3 * 14336]
    assert engine.forward.kv_bytes == pytest.approx(wide.forward.kv_bytes)
    assert plain.forward.weight_bytes < engine.forward.weight_bytes < wide.forward.weight_bytes
    # attention multiplies at the peak of 16 bits
    assert engine.flop_per_s(of_engine["attention.full"]) == 989e12
    assert engine.flop_per_s(of_engine["gate"]) == 1979e12


def test_weights_that_are_stored_in_fewer_bits_are_read_as_stored() -> None:
    wide, narrow = (side(model="llama-3.1-8b", weights=name) for name in (None, "int4"))
    by_name = [{op.name: op for op in one.bounded} for one in (wide, narrow)]
    assert by_name[1]["gate"].weight_bytes == by_name[0]["gate"].weight_bytes / 4
    assert by_name[1]["gate"].flop == by_name[0]["gate"].flop
    assert by_name[1]["lm_head"].bytes == by_name[0]["lm_head"].bytes
    with pytest.raises(PrunescopeError, match="format"):
        side(model="llama-3.1-8b", weights="int3.5")


EAGER = {"model": "llama-2-7b", "device": "a100-40gb-sxm", "method": "static-nk",
         "sparsity": 0.524, "launch": "eager"}  # fmt: skip


def test_an_eager_range_holds_a_slow_host_and_a_device_that_sets_the_pace() -> None:
    found = execution("decode", **EAGER)
    low, high = found["range"]
    assert found["speedup"] == pytest.approx(1.0)
    assert low < 1.0
    assert high > 1.58  # as FLAP's Table 4 has it
    (text,) = [note for note in found["notes"] if note.startswith("two modes")]
    assert "--host-us-per-op" in text


def test_a_host_that_is_known_has_one_mode() -> None:
    slow, fast = (execution("decode", host_us_per_op=us, **EAGER) for us in (25.0, 3.0))
    assert slow["speedup"] == pytest.approx(1.0)
    assert slow["range"][1] < 1.5  # no measurement is near; both modes reach beyond 1.58
    assert fast["speedup"] > 1.3
    assert not [note for one in (slow, fast) for note in one["notes"] if "two modes" in note]
    with pytest.raises(PrunescopeError, match="host"):
        execution("decode", **EAGER, host_us_per_op=-1.0)


def test_where_the_device_sets_the_pace_on_all_hosts_there_are_no_two_modes() -> None:
    """A prompt of 16,384 tokens takes 290 us an op on the device, more than any host needs."""
    long = {"model": "llama-3.1-8b", "device": "h100-sxm", "method": "H2O", "sparsity": 0.5,
            "prompt_len": 16_384, "launch": "eager", "attn": "sdpa"}  # fmt: skip
    assert not [note for note in execution("prefill", **long)["notes"] if "two modes" in note]


def test_time_beside_the_model_is_the_same_on_both_sides() -> None:
    plain, more = (execution("prefill", method="static-m", sparsity=0.5, extra_ms=ms)
                   for ms in (0.0, 20.0))  # fmt: skip
    for name in ("dense_ns", "pruned_ns"):
        assert more[name] == pytest.approx(plain[name] + 20e6)
    assert more["speedup"] < plain["speedup"]


def test_depth_and_width_in_one_model() -> None:
    """Half of the layers of a model of three quarters of the channels: by hand, the time of a
    decode step less lm_head is that of the narrower one, halved."""
    options = {"model": "llama-3.1-8b", "phase": "decode", "method": "static-nk", "sparsity": 0.25}
    whole, half = (ask(depth=depth, **options) for depth in (0.0, 0.5))
    roles = [found["phases"]["decode"]["roles"] for found in (whole, half)]
    for role in ("q", "gate", "down", "attention"):
        assert roles[1][role] == pytest.approx(roles[0][role] / 2)
    assert roles[1]["lm_head"] == roles[0]["lm_head"]
    assert half["phases"]["decode"]["kv_bytes"] == whole["phases"]["decode"]["kv_bytes"] / 2
    assert half["assumed"] == ["the pruned model has 16 of 32 layers"]
    assert ask(depth=0.0, method=None)["assumed"] == []
    for bad in ({"depth": 1.0}, {"depth": 0.5, "method": None}):
        with pytest.raises(PrunescopeError):
            ask(**{**options, **bad})


def test_fused_attention_in_eager_modules_keeps_no_scores() -> None:
    options = {"method": "static-m", "launch": "eager", "prompt_len": 8192}
    eager, fused = (execution("prefill", attn=name, **options)["dense_ns"]
                    for name in ("eager", "sdpa"))  # fmt: skip
    assert fused < 0.9 * eager


def test_a_prompt_of_a_few_more_tokens_costs_a_few_more() -> None:
    """Libraries even out the last wave: 640 to 650 tokens were 79 to 115 ms."""
    options = {"model": "llama-2-13b", "device": "a100-80gb-sxm", "method": "static-m"}
    before = execution("prefill", prompt_len=640, **options)["dense_ns"]
    for length in range(641, 780, 7):
        here = execution("prefill", prompt_len=length, **options)["dense_ns"]
        assert before <= here <= before * 1.03
        before = here


def test_24_rates_are_of_a_chip_a_library_and_a_format() -> None:
    options = {"method": "static-k-24", "sparsity": 0.5, "prompt_len": 8192,
               "device": "a100-80gb-sxm", "peaks": {"int8": 624},
               "knobs": {"kernel": "cusparselt"}}  # fmt: skip
    gains = [execution("prefill", dtype=name, **options)["speedup"] for name in ("bf16", "int8")]
    assert gains[1] > gains[0] + 0.2
    assert all(row.figure and 0.9 < row.value < 2 for row in SPARSE)
    assert (
        ask(method="static-k-24", sparsity=0.5, runtime="vllm")["points"][0]["kernel"] == "cutlass"
    )


def test_what_is_the_same_on_both_sides_differs_between_laboratories() -> None:
    """A model of fewer layers gains what its layers say, and no two measurements agree on it."""
    low, high = execution("decode", method="static-m", sparsity=0.25)["range"]
    assert math.log(high / low) > 0.12


def test_constants_of_hosts_are_never_narrowed_by_a_device() -> None:
    hosts = [name for name, row in TABLE.items() if row.term == "engine"] + ["dispatch_ns"]
    assert all(TABLE[name].devices == () for name in hosts)


def _less(options: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != name}
