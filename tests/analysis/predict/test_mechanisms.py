"""Mechanisms of attention, caches and hosts, each recomputed from its source."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunescope.analysis.device.hardware import find_device
from prunescope.analysis.predict.attention_rates import ATTENTION, attention_share
from prunescope.analysis.predict.constants import TABLE, defaults_on
from prunescope.analysis.predict.costs import estimate_costs
from prunescope.analysis.predict.predict import predict_phase
from prunescope.analysis.predict.predict_request import PredictRequest
from prunescope.analysis.predict.setting import resolve, workloads
from prunescope.analysis.predict.side import predicted_side
from prunescope.analysis.schema.prediction import Execution
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import pruning_families
from prunescope.taxonomy.presets import preset_named
from tests.analysis.predict.plain import predict

FASTER_HOSTS = 2.3  # a token on a server's CPU over a desktop's (llm-awq, issue 61)


def execution(phase: str, model: str = "llama-3.1-8b", **options: Any) -> dict[str, Any]:
    defaults = {"device": "h100-sxm", "dtype": "bf16", "phase": phase, "break_even": False}
    found = predict(PredictRequest(model, **{**defaults, **options}))
    return dict(found["phases"][phase]["predicted"]["execution"])


@pytest.mark.parametrize(
    ("device", "head", "measured"),
    [
        # TensorRT-LLM tech blog 16: TFLOP/s at 16k and 64k keys.
        ("h200-sxm", 128, {16_384: 594, 65_536: 610}),
        ("b200", 128, {16_384: 1029, 65_536: 1038}),
        # FlashAttention-3 (arXiv 2407.08608), causal, H100.
        ("h100-sxm", 128, {512: 292, 1024: 423, 2048: 521, 4096: 579, 8192: 602, 16_384: 616}),
        ("h100-sxm", 64, {16_384: 473}),
    ],
)
def test_attention_of_prompts_reaches_what_its_kernels_reached(
    device: str, head: int, measured: dict[int, int]
) -> None:
    known = find_device(device)
    assert known is not None
    peak = known.peak("bf16")
    assert peak is not None
    for keys, tflops in measured.items():
        share = attention_share(known, keys=keys, head=head)
        assert share * peak / 1e12 == pytest.approx(tflops, rel=0.07)


def test_attention_of_a_generation_that_nobody_measured_has_the_rate_of_gemms() -> None:
    known = find_device("l4")
    assert known is not None and known.architecture not in ATTENTION
    assert attention_share(known, keys=16_384, head=128) == 0


def test_faster_matrix_units_leave_attention_behind() -> None:
    """A B200 has 2.27 times the peak of an H200 and 1.73 times its attention (1,038 over 610)."""
    long = {"method": "static-m", "prompt_len": 131_072, "without": ["launch", "kernel"]}
    both = [
        execution("prefill", device=device, **long)["dense_ns"] for device in ("h200-sxm", "b200")
    ]
    assert 1.6 < both[0] / both[1] < 2.0


def test_a_prompt_of_130_000_tokens_is_mostly_attention() -> None:
    """Qwen3-30B-A3B: 48 layers of 32 heads of 128, S²/2 pairs of 4 · 128 FLOPs each: 6.65 PFLOP at
    610 TFLOP/s are 10.9 s of the time to the first token, of which 16.5 s were measured (H200,
    TensorRT-LLM tech blog 16); 9.5 s were told at the rate of GEMMs."""
    long = {"prompt_len": 130_000, "device": "h200-sxm", "runtime": "trtllm", "method": "blasst"}
    told = execution("prefill", "qwen3-30b-a3b", without=["added"], **long)["dense_ns"] / 1e9
    attention = 48 * 32 * 130_000**2 / 2 * 4 * 128 / 610e12
    assert attention < told < 16.5
    assert told > 1.2 * 9.5


@pytest.mark.parametrize(("batch", "new", "measured"), [(62, 8094, 849.13), (30, 16_286, 347.03)])
def test_long_caches_in_transformers_run_as_fast_as_measured(
    batch: int, new: int, measured: float
) -> None:
    """Llama-3-8B, A100, FlashAttention (R-KV, github.com/Zefan-Cai/R-KV): tokens/s of the dense
    model, of which 353 and 177 were told as long as its heads were expanded."""
    told = {}
    for attn in ("flash", "sdpa"):
        found = predict(PredictRequest(
            "llama-3.1-8b", device="a100-80gb-sxm", batch=batch, prompt_len=64, new_tokens=new,
            dtype="bf16", runtime="hf", attn=attn, break_even=False,
        ))  # fmt: skip
        told[attn] = found["answer"]["dense"]["tokens_per_s"]
    assert told["flash"] == pytest.approx(measured, rel=0.15)
    assert told["sdpa"] < measured / 2


def test_a_desktop_dispatches_faster_than_a_server() -> None:
    """RTX 4090: 47.36 tokens/s of dense Llama-2-7B measured (SliceGPT), 26 told on a server's."""
    step = {"method": "slicegpt", "sparsity": 0.25, "prompt_len": 64, "context": 256,
            "dtype": "fp16", "runtime": "hf"}  # fmt: skip
    told = 1e9 / execution("decode", "llama-2-7b", device="rtx-4090", **step)["dense_ns"]
    assert told == pytest.approx(47.36, rel=0.1)
    slow = TABLE["dispatch_ns"].high
    for name, of_desktop in (("rtx-4090", True), ("rtx-pro-6000-blackwell", False), ("l4", False)):
        device = find_device(name)
        assert device is not None
        assert (defaults_on(device).dispatch_ns == slow / FASTER_HOSTS) is of_desktop


def evicting(every: int, keep: str = "attention", **options: Any) -> dict[str, Any]:
    knobs = {"keep": keep, "every": str(every)}
    return execution("decode", method="kv-evict", sparsity=0.5, batch=32, prompt_len=8192,
                     knobs=knobs, **{"runtime": "vllm", **options})  # fmt: skip


def added(step: dict[str, Any]) -> float:
    (ns,) = (row["pruned_ns"] for row in step["terms"] if row["name"] == "added")
    return float(ns)


def test_kept_keys_are_gathered_anew_at_each_eviction() -> None:
    """Half of 8,192 keys of 32 sequences are 17.2 GB: they are read and written once in `every`
    steps, by rows; a window slides, and moves none."""
    request = PredictRequest(
        "llama-3.1-8b", device="h100-sxm", dtype="bf16", phase="decode", batch=32,
        prompt_len=8192, knobs={"keep": "attention", "every": "1"},
    )  # fmt: skip
    setting, _ = resolve(request, "kv-evict", 0.5, [])
    side = predicted_side(setting, workloads(request, setting)[0])
    kept = 32 * 4096 * 2 * 8 * 128 * 2 * 32
    assert estimate_costs(side).added_bytes.gathered == 2 * kept
    assert added(evicting(1)) == pytest.approx(16 * added(evicting(16)))
    assert added(evicting(1, keep="recent")) == 0


def test_eviction_in_an_engine_may_cost_more_than_it_saves() -> None:
    """Measured at 0.88 of the dense speed, told 1.21 before compaction counted."""
    always, seldom = evicting(1), evicting(128)
    assert always["speedup"] < 0.88 < 1.2 < seldom["speedup"]
    # The step of an engine is the same on both sides.
    (engine,) = (row for row in seldom["terms"] if row["name"] == "engine")
    assert engine["dense_ns"] == engine["pruned_ns"] > 0


def test_time_outside_of_a_multimodal_model_takes_from_its_gain() -> None:
    """A vision encoder of 40 ms beside a prompt of p dense and q pruned ms: (p + 40) / (q + 40)."""
    sizes = {"method": "token-drop", "sparsity": 0.5, "prompt_len": 2048, "model": "llama-2-7b"}
    plain, beside = execution("prefill", **sizes), execution("prefill", extra_ms=40, **sizes)
    assert beside["dense_ns"] - plain["dense_ns"] == pytest.approx(40e6)
    by_hand = (plain["dense_ns"] + 40e6) / (plain["pruned_ns"] + 40e6)
    assert beside["speedup"] == pytest.approx(by_hand)
    assert 1 < by_hand < plain["speedup"]


@settings(max_examples=60, deadline=None)
@given(
    method=st.sampled_from([f.id for f in pruning_families()]),
    sparsity=st.sampled_from((0.25, 0.5, 0.75, 0.99)),
    model=st.sampled_from(("llama-3.1-8b", "qwen3-0.6b", "qwen3-30b-a3b", "gemma-2-9b")),
    device=st.sampled_from(("h100-sxm", "a100-80gb-sxm", "b200", "l4", "rtx-4090")),
    runtime=st.sampled_from((None, "hf", "vllm", "sglang", "trtllm")),
    attn=st.sampled_from(("eager", "sdpa", "flash")),
    batch=st.sampled_from((1, 16, 256)),
    context=st.sampled_from((1, 512, 8192, 131_072)),
)
def test_no_decode_step_is_told_above_its_roofline(**options: Any) -> None:
    """Whatever shrinks with a cache; a device may wait less for an eager host, and no more."""
    method, sparsity = options.pop("method"), options.pop("sparsity")
    assert preset_named(options["model"]) is not None
    request = PredictRequest(phase="decode", dtype="bf16", **options)
    try:
        setting, _ = resolve(request, method, sparsity, [])
        phase = predict_phase(setting, workloads(request, setting)[0])
    except PrunescopeError:
        return  # the point does not exist
    assert phase.predicted is not None and phase.ladder is not None
    step = phase.predicted.execution
    limit = (step.dense_ns - waits_less(step)) / step.pruned_ns
    assert limit <= phase.ladder.roofline * (1 + 1e-9)
    assert step.dense_ns + step.pruned_ns == pytest.approx(
        sum(row.dense_ns + row.pruned_ns for row in step.terms)
        + phase.ideal_ns + phase.ladder.roofline * phase.ideal_ns
    )  # fmt: skip


def waits_less(step: Execution) -> float:
    """The ns by which the device of a pruned eager forward waits less for its host."""
    if step.launch != "eager":
        return 0.0
    return max(0.0, sum(row.dense_ns - row.pruned_ns for row in step.terms if row.name == "launch"))
