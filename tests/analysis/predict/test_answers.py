"""A prompt with its answer: the sum of its forwards, memory, and what pruning frees as batch."""

from __future__ import annotations

from typing import Any

import pytest

from prunescope.analysis.predict.predict_request import PredictRequest
from prunescope.taxonomy.errors import PrunescopeError
from tests.analysis.predict.plain import predict


def ask(**options: Any) -> dict[str, Any]:
    defaults = {"model": "llama-3.1-8b", "device": "h100-sxm", "method": "static-m",
                "sparsity": 0.5, "prompt_len": 1024, "break_even": False}  # fmt: skip
    return predict(PredictRequest(**{**defaults, **options}))


def expected(phase: str, side: str, **options: Any) -> float:
    found = ask(phase=phase, **options)["phases"][phase]["predicted"]["execution"]
    return float(found[side])


def test_an_answer_is_a_prefill_and_its_steps() -> None:
    found = ask(new_tokens=201, batch=4)["answer"]
    first = expected("prefill", "dense_ns", batch=4)
    # a step's time is linear in its context here, so the mean is that of the middle one
    step = expected("decode", "dense_ns", batch=4, context=(1025 + 1224) // 2)
    assert found["dense"]["ttft_ns"] == pytest.approx(first)
    assert found["dense"]["tpot_ns"] == pytest.approx(step, rel=1e-3)
    assert found["dense"]["total_ns"] == pytest.approx(first + 200 * found["dense"]["tpot_ns"])
    assert found["dense"]["tokens_per_s"] == pytest.approx(4 * 201e9 / found["dense"]["total_ns"])
    gain = found["dense"]["total_ns"] / found["pruned"]["total_ns"]
    assert found["time"]["speedup"] == pytest.approx(gain)
    assert found["time"]["range"][0] < gain < found["time"]["range"][1]
    assert ask()["answer"] is None


def test_batches_may_differ() -> None:
    found = ask(new_tokens=64, batch=4, pruned_batch=8)["answer"]
    assert (found["dense"]["batch"], found["pruned"]["batch"]) == (4, 8)
    rates = found["pruned"]["tokens_per_s"] / found["dense"]["tokens_per_s"]
    assert found["throughput"]["speedup"] == pytest.approx(rates)
    assert found["throughput"]["speedup"] > found["time"]["speedup"]


def test_memory_by_hand() -> None:
    found = ask(new_tokens=1, batch=2, model="llama-3.1-8b")["answer"]["dense_memory"]
    assert found["weight_bytes"] == 8_030_261_248 * 2
    assert found["kv_bytes"] == 2 * 32 * 1024 * 2048 * 2
    # 2,048 rows: hidden twice, gate's input and output, logits of two sequences
    assert found["step_bytes"] == 2 * (2048 * (2 * 4096 + 4096 + 14336) + 2 * 128_256)
    left = 80 * 2**30 - 1e9 - found["weight_bytes"]
    each = (found["kv_bytes"] + found["step_bytes"]) / 2
    assert found["max_batch"] == int(left // each)
    assert found["fits"] is True


def test_a_model_that_does_not_fit() -> None:
    dense = ask(model="llama-3.1-70b", new_tokens=16)["answer"]
    assert dense["dense_memory"]["fits"] is False and dense["dense_memory"]["max_batch"] == 0
    assert dense["pruned_memory"]["fits"] is True  # half of the layers
    assert dense["at_max_batch"] is None
    unknown = ask(device=None, peaks={"bf16": 989}, bandwidth=3350.0, new_tokens=16)["answer"]
    assert unknown["dense_memory"]["fits"] is None and unknown["dense_memory"]["max_batch"] is None


def test_a_forward_that_does_not_fit_is_a_warning_without_an_answer_too() -> None:
    def warnings(**options: Any) -> list[str]:
        return list(ask(**{"model": "llama-3.1-70b", "method": "static-m", **options})["warnings"])

    assert warnings(sparsity=0.25) == [
        "dense does not fit into the 85.90 GB of h100-sxm: it needs 141.44 GB",
        "static-m at 0.25 does not fit into the 85.90 GB of h100-sxm: it needs 107.13 GB",
    ]
    assert warnings(sparsity="0.25,0.375,0.75")[1:] == [
        "static-m at 0.25, 0.375 does not fit into the 85.90 GB of h100-sxm: it needs 89.98 GB or "
        "more"
    ]
    assert warnings(tp=2) == [] and warnings(model="llama-3.1-8b") == []


def test_what_pruning_frees_buys_batch() -> None:
    found = ask(method="static-nk", new_tokens=128, prompt_len=4096)["answer"]
    assert found["pruned_memory"]["max_batch"] > 1.9 * found["dense_memory"]["max_batch"]
    assert found["at_max_batch"]["speedup"] > 1


def test_chunks_cost_kernels_and_nothing_else() -> None:
    whole = ask(new_tokens=2, prompt_len=8192)["answer"]["dense"]["ttft_ns"]
    one = ask(new_tokens=2, prompt_len=8192, chunk=8192)["answer"]["dense"]["ttft_ns"]
    chunked = ask(new_tokens=2, prompt_len=8192, chunk=1024)["answer"]["dense"]["ttft_ns"]
    small = ask(new_tokens=2, prompt_len=8192, chunk=128)["answer"]["dense"]["ttft_ns"]
    assert one == whole
    assert whole < chunked < 1.2 * whole < small


@pytest.mark.parametrize(
    ("name", "family", "knobs"),
    [("shortgpt", "static-m", {"unit": "layer"}), ("SliceGPT", "static-nk-cross", {}),
     ("mixture-of-depths", "dynamic-m", {"unit": "layer"}), ("BLASST", "dynamic-nk",
     {"blocks": "value"}), ("h2o", "kv-evict", {"keep": "accumulated"})],
)  # fmt: skip
def test_methods_by_the_names_that_people_type(
    name: str, family: str, knobs: dict[str, str]
) -> None:
    point = ask(method=name)["points"][0]
    assert point["method"] == family
    assert knobs.items() <= point["knobs"].items()
    assert ask(method="wanda-2:4")["points"][0]["method"] == "static-k-24"


def test_methods_of_one_family_are_one_row_and_quantisation_is_refused() -> None:
    found = ask(method="llm-pruner,flap,shortgpt")
    assert [p["method"] for p in found["points"]] == ["static-nk", "static-m"]
    assert any("flap and llm-pruner are static-nk" in text for text in found["warnings"])
    with pytest.raises(PrunescopeError, match="fewer bits"):
        ask(method="awq")


def test_a_knob_overrides_that_of_a_method() -> None:
    assert ask(method="shortgpt", knobs={"unit": "mlp"})["points"][0]["knobs"]["unit"] == "mlp"


@pytest.mark.parametrize(
    ("name", "preset"),
    [("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
     ("meta-llama/Meta-Llama-3.1-8B", "llama-3.1-8b"), ("Qwen/Qwen3-8B-Base", "qwen3-8b"),
     ("meta-llama/Meta-Llama-3-8B", "llama-3.1-8b"), ("Qwen/Qwen3-4B-Instruct-2507", "qwen3-4b"),
     ("meta-llama/Llama-3.3-70B-Instruct", "llama-3.1-70b"),
     ("deepseek-ai/DeepSeek-R1", "deepseek-v3"), ("deepseek-ai/DeepSeek-V3-0324", "deepseek-v3"),
     ("google/gemma-3-12b-it", "gemma-3-12b"), ("meta-llama/Llama-2-7b-chat-hf", "llama-2-7b")],
)  # fmt: skip
def test_a_hub_id_is_its_preset_without_a_network(name: str, preset: str) -> None:
    found, preset_model = (ask(model=m)["subject"]["model"] for m in (name, preset))
    assert found["shape"] == preset_model["shape"]


def test_a_different_version_is_no_preset() -> None:
    from prunescope.taxonomy.presets import preset_named

    assert preset_named("mistralai/Mistral-7B-v0.1") is None  # a window, another vocabulary
    assert preset_named("somebody/Llama-3.1-8B") is None


@pytest.mark.parametrize(
    ("printed", "device"),
    [("NVIDIA H100 80GB HBM3", "h100-sxm"), ("H100 80GB HBM3", "h100-sxm"),
     ("Tesla T4", "t4"), ("GeForce RTX 4090", "rtx-4090"), ("Instinct MI300X OAM", "mi300x"),
     ("AMD Instinct(TM) MI300X", "mi300x"), ("NVIDIA A100-SXM4-40GB", "a100-40gb-sxm"),
     ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "rtx-pro-6000-blackwell")],
)  # fmt: skip
def test_devices_as_smi_prints_them(printed: str, device: str) -> None:
    assert ask(device=printed)["subject"]["device"] == device
