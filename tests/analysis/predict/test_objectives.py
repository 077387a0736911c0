"""`predict --rank` by objectives: the largest batch, the rate there, and what an engine runs."""

from __future__ import annotations

from typing import Any

import pytest

import prunescope
from prunescope.analysis.predict.engine_formats import engine_runs
from prunescope.analysis.predict.predict_request import PredictRequest
from prunescope.analysis.predict.setting import resolve
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import cutting, families

H100: dict[str, Any] = {"model": "llama-3.1-8b", "device": "h100-sxm", "rank": True,
                        "prompt_len": 1024, "new_tokens": 128}  # fmt: skip


def ranked(**options: Any) -> list[dict[str, Any]]:
    return list(prunescope.predict(**{**H100, **options})["rank"])


def test_the_batch_is_the_largest_that_meets_them() -> None:
    """One sequence more takes longer than allowed, or does not fit."""
    (dense, *_) = [row for row in ranked(tpot_ms=20, arrivals="once", method="static-m")
                   if row["method"] == "dense"]  # fmt: skip
    at = {"model": "llama-3.1-8b", "device": "h100-sxm", "prompt_len": 1024, "new_tokens": 128}
    times = [
        prunescope.predict(**at, batch=dense["batch"] + more)["answer"]["dense"]["tpot_ns"]
        for more in (0, 1)
    ]
    assert times[0] == pytest.approx(dense["tpot_ms"] * 1e6) and times[0] <= 20e6 < times[1]


def test_prompts_at_a_rate_take_turns_with_steps() -> None:
    """A step of B sequences is as long as alone, plus B ÷ 128 of a prompt; a first token waits for
    a step and its prompt."""
    rows = {row["method"]: row for row in ranked(tpot_ms=20, method="static-m", sparsity=0.5)}
    dense = rows["dense"]
    at = {"model": "llama-3.1-8b", "device": "h100-sxm", "prompt_len": 1024, "new_tokens": 128}
    alone = prunescope.predict(**at, batch=1)["answer"]["dense"]["ttft_ns"]
    step = prunescope.predict(**at, batch=dense["batch"])["answer"]["dense"]["tpot_ns"]
    assert dense["tpot_ms"] * 1e6 == pytest.approx(step + dense["batch"] / 128 * alone)
    assert dense["ttft_ms"] * 1e6 == pytest.approx(step + alone)
    # B tokens in each step
    assert dense["tokens_per_s_per_device"] == pytest.approx(
        dense["batch"] / dense["tpot_ms"] * 1e3
    )
    half = rows[cutting("layers")]
    assert half["speedup"] == pytest.approx(
        half["tokens_per_s_per_device"] / dense["tokens_per_s_per_device"]
    )
    assert half["range"][0] < half["speedup"] < half["range"][1]


def test_times_without_a_batch_are_those_of_one_sequence() -> None:
    """A rate that is too low even at the largest batch: its times of hundreds of sequences were
    said to be of one, and others were compared with a batch that no row showed."""
    (one,) = [row for row in ranked(ttft_ms=1e-3, method="static-m") if row["method"] == "dense"]
    rows = ranked(throughput=5000, method="static-m", sparsity=0.5)
    (dense,) = [row for row in rows if row["method"] == "dense"]
    assert one["batch"] is None and dense["batch"] is None
    for name in ("ttft_ms", "tpot_ms", "kv_bytes", "memory_bytes"):
        assert dense[name] == one[name]
    (half,) = [row for row in rows if row["method"] == cutting("layers")]
    assert half["tokens_per_s_per_device"] >= 5000
    assert half["speedup"] is None and half["range"] is None  # dense meets nothing to compare with


def test_what_the_engine_runs_comes_first() -> None:
    rows = ranked(ttft_ms=500, tpot_ms=30, runtime="vllm")
    order = [row["runs"] for row in rows if row["batch"]]
    assert order[0] is True and order == sorted(order, key=(True, None, False).index)
    for group in (True, None, False):
        rates = [
            row["tokens_per_s_per_device"] for row in rows if row["runs"] is group and row["batch"]
        ]
        assert rates == sorted(rates, reverse=True)
    runs = {(row["method"], row["runs"]) for row in rows}
    assert (cutting("weights"), True) in runs or (cutting("layers"), True) in runs
    assert (cutting("layers", dynamics="dynamic"), False) in runs
    assert all(row["runs"] is None for row in ranked(tpot_ms=30, method="static-m"))


def test_a_pruned_model_is_divided_as_it_is_left() -> None:
    """A quarter of 8 KV heads leaves 48 query and 6 KV heads, which 8 devices cannot share; a half
    leaves 4, each of which is on two of them."""
    rows = ranked(
        model="llama-3.3-70b", tp=8, runtime="vllm", tpot_ms=50, method=cutting("heads", "channels")
    )
    runs = {row["sparsity"]: (row["runs"], row["why"]) for row in rows if row["sparsity"]}
    assert runs[0.5][0] is True
    assert runs[0.25][0] is False and "6 KV heads cannot be divided" in runs[0.25][1]


def test_objectives_that_no_batch_meets() -> None:
    rows = ranked(tpot_ms=0.5, method="static-m")
    assert all(row["batch"] is None and row["tokens_per_s_per_device"] is None for row in rows)
    assert all(row["tpot_ms"] > 0.5 for row in rows)  # of one sequence
    fast = ranked(throughput=1e7, method="static-m")
    assert all(row["batch"] is None for row in fast)


def test_memory_bounds_the_batch() -> None:
    """80 GiB less weights of 16.06 GB and 1 GB of overhead; 1,151 tokens of 131,072 bytes each."""
    rows = {row["method"]: row for row in ranked(latency_ms=1e6, method="static-m", sparsity=0.5)}
    dense = rows["dense"]
    assert dense["batch"] == pytest.approx((80 * 2**30 - 17.06e9) / (1151 * 131072), rel=0.02)
    assert rows[cutting("layers")]["batch"] > 2 * dense["batch"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ttft_ms": 0}, "no limit"),
        ({"tpot_ms": float("nan")}, "not a finite"),
        ({"tpot_ms": 20, "batch": 8}, "--batch"),
        ({"tpot_ms": 20, "new_tokens": None}, "length of an answer"),
        ({"tpot_ms": 20, "rank": False}, "needs --rank"),
        ({"arrivals": "once"}, "needs an objective"),
        ({"method": "static-m"}, "--method cannot"),
    ],
)
def test_options_that_contradict(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PrunescopeError, match=message):
        ranked(**options)


@pytest.mark.parametrize("arrivals", ["rate", "once"])
def test_the_memory_of_a_batch_fits_and_that_of_one_more_does_not(arrivals: str) -> None:
    """141 GB were shown at the largest batch of a device of 80 GiB: all prompts at once."""
    for row in ranked(latency_ms=1e6, method="static-m,static-nk", arrivals=arrivals):
        assert row["batch"] < 4096
        assert 0 <= 80 * 2**30 - row["memory_bytes"] < 1.5e9  # 1,151 tokens, and a prompt


def test_a_named_workload_gives_the_lengths() -> None:
    choice = prunescope.predict(
        "llama-3.1-8b", device="h100-sxm", rank=True, workload="chat", tpot_ms=30, method="static-m"
    )
    assert choice["workload"] == {"prompt_len": 1024, "new_tokens": 256, "arrivals": "rate"}
    assert len(choice.table) == len(choice["rank"]) and "TTFT" in choice.to_json().decode() + "TTFT"


def test_an_engine_runs_what_it_runs_as_predicted() -> None:
    """vLLM takes 2:4 weights, but runs their zeros: not as predicted with sparse kernels. A mask is
    predicted as dense, and so it runs. Sublayers that are missing, factors, and maps between bases
    it has no class for."""

    def runs(engine: str | None, *cuts: str, dynamics: str = "static", **knobs: Any) -> bool | None:
        name = cutting(*cuts, dynamics=dynamics) if cuts else None
        return of_family(engine, name, knobs)

    def of_family(engine: str | None, name: str | None, knobs: dict[str, Any]) -> bool | None:
        asked = PredictRequest("llama-3.1-8b", device="h100-sxm", method=name, knobs=knobs)
        return engine_runs(engine, resolve(asked, name, None, [])[0]).runs

    sparse, mask = (
        next(family for family in families() if bool(family.without_sparse_units) is is_sparse
             and family.zeroes_weights) for is_sparse in (True, False)
    )  # fmt: skip
    assert of_family("vllm", sparse.id, {}) is False
    assert of_family("sglang", sparse.id, {}) is None  # was not checked
    assert of_family("vllm", mask.id, {}) is True
    assert runs("vllm") is True and runs(None) is None
    assert runs("vllm", "layers") is True and runs("vllm", "layers", unit="attention") is False
    assert runs("trtllm", "heads", "channels") is True and runs("hf", "ranks") is False
    assert runs("vllm", "layers", dynamics="dynamic") is False
    assert runs("vllm", "stream") is False and runs("vllm", "stream", junctions="same") is True


def test_a_prediction_names_the_engines_that_run_the_point_and_their_sources() -> None:
    """8 KV heads at 0.5 are 4, of 16 query heads: 32 ranks divide neither."""
    asked = {"model": "llama-3.1-8b", "device": "h100-sxm", "phase": "prefill"}
    point = prunescope.predict(**asked, method="static-nk", sparsity=0.5)["points"][0]
    assert {answer["engine"]: answer["runs"] for answer in point["engines"]}["vllm"] is True
    wide = prunescope.predict(**asked, method="static-nk", sparsity=0.5, tp=32)["points"][0]
    answers = {answer["engine"]: answer for answer in wide["engines"]}
    assert answers["vllm"]["runs"] is False and "16 query" in answers["vllm"]["reason"]
    assert answers["vllm"]["source"].startswith("https://") and answers["vllm"]["checked"]
    grid = prunescope.predict(**asked, method="static-k-lowrank,static-m", runtime="vllm")
    assert any("vLLM does not run static-k-lowrank" in text for text in grid["warnings"])
    assert [len(point["engines"]) for point in grid["points"]] == [1, 1]


def test_padding_to_the_sizes_of_an_engine_costs_time_and_bytes() -> None:
    """14,336 channels at 0.4 are 8,601, and GGUF's blocks take 8,608: 7 more, in 3 matrices of
    4,096 in 32 layers, 2 bytes each. 8 KV heads at 0.4 are 5, of 20 queries: 16 ranks divide 32
    queries of 8 KV heads next."""
    asked = {"model": "llama-3.1-8b", "device": "h100-sxm", "phase": "prefill", "sparsity": 0.4}
    options: dict[str, Any] = {"method": "static-nk-mlp", "legal": "llama.cpp"}
    point = prunescope.predict(**asked, **options, knobs={"align": "1"})
    padding = point["phases"]["prefill"]["padding"]
    assert padding["sizes"] == {"intermediate": [8601, 8608]}
    more = 7 * 3 * 4096 * 32 * 2
    assert padding["weight_bytes"][1] - padding["weight_bytes"][0] == more
    whole = prunescope.predict(**asked, **options)
    assert whole["phases"]["prefill"]["padding"]["sizes"] == {}
    heads = prunescope.predict(**asked, method="static-nk", legal="vllm", legal_tp=16)
    padding = heads["phases"]["prefill"]["padding"]
    assert padding["sizes"]["kv_heads"] == [5, 8] and padding["sizes"]["heads"] == [20, 32]
    # q and o: 12 heads of 128, k and v: 3 heads of 128, each by 4,096, in 32 layers, 2 bytes.
    more = 2 * (12 + 3) * 128 * 4096 * 32 * 2
    assert padding["weight_bytes"][1] - padding["weight_bytes"][0] == more
    assert padding["ns"][1] > padding["ns"][0]
    with pytest.raises(PrunescopeError, match="--legal needs --method"):
        prunescope.predict(model="llama-3.1-8b", device="h100-sxm", legal="vllm")


def test_exchanges_are_told_to_be_a_guess_and_stay_below_the_link() -> None:
    """64 all-reduces of [1, 4096] in bf16 over 2 devices: 64 · 10 us, and the bytes at 450 GB/s."""
    at = {"model": "llama-3.1-8b", "device": "h100-sxm", "phase": "prefill", "prompt_len": 4096}
    point = prunescope.predict(**at, tp=2, method="static-m", sparsity=0.5)
    execution = point["phases"]["prefill"]["predicted"]["execution"]
    assert any("exchange is a guess" in note and "450 GB/s" in note for note in execution["notes"])
    (term,) = [term for term in execution["terms"] if term["name"] == "exchange"]
    least = 64 * 4096 * 4096 * 2 / 450e9 * 1e9  # 2 · (2 - 1) / 2 of the bytes
    assert term["dense_ns"] == pytest.approx(least + 64 * 10_000, rel=0.01)


def test_a_replicated_factor_and_uneven_devices_are_told() -> None:
    at = {"model": "qwen3-30b-a3b", "device": "b200", "phase": "decode", "batch": 64}
    point = prunescope.predict(
        **at, dtype="nvfp4", tp=4, ep=4, method=cutting("ranks"), sparsity=0.5
    )
    assert any("one factor is replicated" in text for text in point["assumed"])
    assert point["phases"]["decode"]["experts"]["imbalance"] > 1
    assert prunescope.predict(**at)["phases"]["decode"]["experts"]["imbalance"] is None


def test_formats_of_four_bits_have_the_peaks_of_data_sheets() -> None:
    """B200: 9 PFLOP/s dense; a weight takes 4 bits and an eighth of an 8-bit scale for 16."""
    at = {"phase": "decode", "runtime": "vllm"}
    point = prunescope.predict("llama-3.1-8b", device="b200", dtype="nvfp4", **at)
    half = prunescope.predict("llama-3.1-8b", device="b200", dtype="fp8", **at)
    linears = 6_979_321_856  # parameters of 32 layers without norms
    saved = half["phases"]["decode"]["weight_bytes"] - point["phases"]["decode"]["weight_bytes"]
    assert saved == pytest.approx(linears * (1 - 4.5 / 8), rel=0.01)
    with pytest.raises(PrunescopeError, match="no nvfp4 peak"):
        prunescope.predict("llama-3.1-8b", device="h100-sxm", dtype="nvfp4")
    with pytest.raises(PrunescopeError, match="no nvfp4 peak"):
        prunescope.predict("llama-3.1-8b", device="mi355x", dtype="nvfp4")
    assert prunescope.predict("llama-3.1-8b", device="mi355x", dtype="mxfp4")
