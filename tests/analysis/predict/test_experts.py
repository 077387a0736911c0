"""Experts in `predict`: fewer of them, fewer a token, uneven routers, and experts on devices."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import prunescope
from prunescope.analysis.predict.break_even import find_first_and_last
from prunescope.analysis.predict.routing_file import read_routing
from prunescope.analysis.report.predict_tables import prediction
from prunescope.taxonomy.configs.config import read_config
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.expert_routing import counted, fullest_expert
from prunescope.taxonomy.presets import preset_config

QWEN = {"model": "qwen3-30b-a3b", "device": "h100-sxm", "prompt_len": 1024}
DROPPED = {"method": "static-experts", "sparsity": 0.25}


def ask(phase: str = "decode", **options: Any) -> dict[str, Any]:
    answer = prunescope.predict(**{**QWEN, **DROPPED, "phase": phase, **options})
    found: dict[str, Any] = answer["points"][0]["phases"][phase]
    return found


def qwen_decode_bytes(experts: int, batch: int, keys: int) -> float:
    """Bytes of a decode step of Qwen3-30B-A3B in bf16, by hand: 48 layers of h = 2048, 32 heads and
    4 KV heads of 128, experts of 768, k = 8; a vocabulary of 151,936."""
    h, q, kv, f, k, vocab, b = 2048, 4096, 512, 768, 8, 151_936, 2
    distinct = experts * (1 - (1 - k / experts) ** batch)
    # (N, K) and rows; weights once, rows in and out.
    gemms = [(q, h, batch), (kv, h, batch), (kv, h, batch), (h, q, batch), (experts, h, batch)]
    layer = sum(n * k_ + m * (n + k_) for n, k_, m in gemms)
    layer += 3 * (distinct * f * h + batch * k * (f + h))  # gate, up and down
    layer += 3 * f * batch * k  # gate and up in, their product out
    layer += 2 * 4 * h * batch  # two norms with their residual: 4 a number of the stream
    layer += 2 * (q + kv) * batch  # rotation
    layer += 2 * q * batch + 2 * kv * batch * keys + 2 * kv * batch  # attention, and its new key
    head = vocab * h + batch * (vocab + h)
    return b * (48 * layer + head)


@pytest.mark.parametrize(("batch", "speedup"), [(1, 1.00), (64, 1.26)])
def test_a_quarter_of_the_experts_of_qwen_by_hand(batch: int, speedup: float) -> None:
    """All of it is bound by memory, so that the roofline's speedup is the ratio of the bytes."""
    found = ask(batch=batch)
    dense, pruned = (qwen_decode_bytes(e, batch, 1024) for e in (128, 96))
    assert found["baseline"]["bytes"] == pytest.approx(dense, rel=1e-3)
    assert found["bytes"] == pytest.approx(pruned, rel=1e-3)
    assert found["ladder"]["roofline"] == pytest.approx(dense / pruned, rel=1e-3)
    assert round(found["ladder"]["roofline"], 2) == speedup
    assert found["ladder"]["flop"] == pytest.approx(1.0, abs=0.01)  # the router alone is smaller
    assert found["bound"]["compute"] == 0
    # 48 layers lose 32 experts of 3 matrices, and 32 rows of the router.
    less = 48 * 32 * (3 * 768 + 1) * 2048 * 2
    assert found["baseline"]["weight_bytes"] - found["weight_bytes"] == less


def test_the_gemms_of_experts_have_fewer_groups() -> None:
    found = ask(batch=64)
    axes = {(row["role"], row["group"]): row for row in found["gemms"]}
    for group in ("gate_up", "down"):
        row = axes["experts", group]
        assert (row["axis"], row["batch"], row["m"], row["dense_m"]) == ("G", 96, 5, 4)
    assert axes["router", "router"]["axis"] == "N"
    fewer = ask(method="static-topk", sparsity=0.5, batch=64)
    axes = {(row["role"], row["group"]): row for row in fewer["gemms"]}
    assert axes["experts", "down"]["axis"] == "M"


def test_fewer_experts_a_token() -> None:
    """At batch 1 half as many are read; weights stay in memory."""
    found = ask(method="static-topk", sparsity=0.5, batch=1)
    assert found["experts"]["distinct"] == pytest.approx(4)
    assert found["baseline"]["experts"]["distinct"] == pytest.approx(8)
    assert found["weight_bytes"] == found["baseline"]["weight_bytes"]
    assert found["ladder"]["roofline"] > 1.3


def test_from_which_batch_on_it_gains() -> None:
    """Below it nearly as many experts are read, and the range of the speedup includes 1.

    Nobody measured such steps, so that the range is wide: a gain is sure at three quarters.
    """
    execution = ask(batch=1, sparsity=0.75)["predicted"]["execution"]
    gains = execution["gains"]
    assert any(f"gains from batch {gains['from']} on:" in note for note in execution["notes"])
    for batch, sure in ((gains["from"], True), (gains["from"] - 1, False)):
        low, _ = ask(batch=batch, sparsity=0.75)["predicted"]["execution"]["range"]
        assert (low > 1) == sure
    # Where a token goes to all of the few experts there are, none is left to gain.
    assert find_first_and_last(lambda n: 5 <= n <= 9, (1, 4, 8, 16)) == {"from": 5, "to": 9}
    assert find_first_and_last(lambda n: n >= 3, (1, 4, 8)) == {"from": 3, "to": 8}
    assert find_first_and_last(lambda _n: False, (1, 4, 8)) is None
    dense = ask(model="llama-3.1-8b", method="static-nk")["predicted"]["execution"]
    assert dense["gains"] is None


def test_an_uneven_router_reads_fewer_experts() -> None:
    uniform, uneven = ask(batch=64), ask(batch=64, routing="zipf:1")
    for side in ("baseline", None):
        even, skewed = (found[side] if side else found for found in (uniform, uneven))
        assert skewed["experts"]["distinct"] < even["experts"]["distinct"]
        assert skewed["experts"]["fullest"] > 2 * even["experts"]["fullest"]
    assert uneven["ladder"]["roofline"] < uniform["ladder"]["roofline"]
    # What is not known of the router widens the range; a router that is given does not.
    wide, narrow = (
        found["predicted"]["execution"]
        for found in (ask(batch=64), ask(batch=64, routing="zipf:0"))
    )
    assert wide["speedup"] == pytest.approx(narrow["speedup"])
    # Where no measurement is near, that lies wholly within the least width of a range.
    assert wide["range"][0] <= narrow["range"][0]
    assert wide["range"][1] >= narrow["range"][1]


def test_counts_of_a_file(tmp_path: Path) -> None:
    """One expert of each layer is never chosen: 127 are read by many tokens."""
    counts = {str(layer): [0, *[9] * 127] for layer in range(48)}
    file = tmp_path / "counts.json"
    for held in ({"decode": counts}, counts, {"routing": {"decode": counts}, "schema": 1}):
        file.write_text(json.dumps(held), encoding="utf-8")
        found = ask(batch=1024, routing=str(file))
        assert found["baseline"]["experts"]["distinct"] == pytest.approx(127, abs=0.01)
        assert found["experts"]["distinct"] == pytest.approx(96, abs=0.01)
    (tmp_path / "run.json").write_text(json.dumps({"routing": {"prefill": counts}}), "utf-8")
    assert read_routing(str(tmp_path)).phases["prefill"][0] == (0, *[9] * 127)
    (tmp_path / "run.json").write_text(json.dumps({"routing": {"training": counts}}), "utf-8")
    assert read_routing(str(tmp_path)).weights("decode", 128)[0] == (0, *[9] * 127)
    of_run = counted({"decode": counts, "prefill": {}}, source="the run")
    assert of_run is not None
    assert of_run.phases == {"decode": ((0, *[9] * 127),) * 48}
    assert counted({}, source="the run") is None
    (tmp_path / "run.json").write_text("{}", "utf-8")
    with pytest.raises(PrunescopeError, match="counts no experts"):
        read_routing(str(tmp_path))


def test_few_picks_are_an_estimate_and_say_so(tmp_path: Path) -> None:
    """Three tokens to 8 of 128 experts pick 24: an expert that was not picked may be chosen. Its
    share is 1 of 24 + 128, that of one picked three times 4 of them."""
    picked = [3] * 8 + [0] * 120
    run = tmp_path / "run.json"
    run.write_text(json.dumps({"routing": {"decode": {"0": picked}}}), "utf-8")
    few = {"batch": 64, "routing": str(tmp_path)}
    weights = read_routing(str(tmp_path)).weights("decode", 128)[0]
    assert weights == (*[4] * 8, *[1] * 120)
    found = ask(**few)
    shares = [8 * weight / 152 for weight in weights]
    distinct = sum(1 - (1 - share) ** 64 for share in shares)
    assert found["baseline"]["experts"]["distinct"] == pytest.approx(distinct)
    # The range counts an uneven router, as without any counts.
    low, high = found["predicted"]["execution"]["range"]
    wide = ask(batch=64)["predicted"]["execution"]["range"]
    assert high / low == pytest.approx(wide[1] / wide[0], rel=0.01)
    answer = prunescope.predict(**{**QWEN, **DROPPED, **few, "phase": "decode"})
    (caveat,) = answer["warnings"]
    assert "counts 24 picks a layer in decode, fewer than 8 an expert" in caveat
    assert any("as often as in run.json (24 picks a layer)" in t for t in answer["assumed"])
    # Shares that sum up to 1 are no counts: nothing says that they are few.
    run.write_text(json.dumps({"routing": {"decode": {"0": [1 / 128] * 128}}}), "utf-8")
    assert prunescope.predict(**{**QWEN, **DROPPED, **few, "phase": "decode"})["warnings"] == []


def test_experts_of_random_token_ids_have_a_caveat(tmp_path: Path) -> None:
    held = {"routing": {"decode": {"0": [99] * 128}}, "inputs": {"source": "random token ids"}}
    (tmp_path / "run.json").write_text(json.dumps(held), "utf-8")
    answer = prunescope.predict(**{**QWEN, **DROPPED}, phase="decode", routing=str(tmp_path))
    (caveat,) = answer["warnings"]
    assert "counts the experts of random token ids: your text chooses other ones" in caveat


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[", "not JSON"), ("[]", "not a JSON object"), ("{}", "counts no experts"),
        ('{"decode": {"a": [1, 2]}}', "no number"), ('{"0": [1]}', "without counts"),
        ('{"0": [1, -2]}', "without counts"), ('{"0": [1, true]}', "without counts"),
        ('{"0": [1, 2], "0": [2, 1]}', "has the key '0' twice"),
        ('{"0": [1, 2], "00": [2, 1]}', "no number"), ('{"decode": 1}', "no number"),
        ('{"0": [1, 2]}', "counts 2 experts"),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused(text: str, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "counts.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(PrunescopeError, match=problem):
        ask(routing=str(file))


def test_bad_options_are_refused(tmp_path: Path) -> None:
    for options, problem in (
        ({"routing": "zipf:x"}, "no exponent"),
        ({"routing": str(tmp_path / "absent.json")}, "no routing at absent.json"),
        ({"model": "llama-3.1-8b", "method": "static-nk", "routing": "zipf"}, "with experts"),
        ({"model": "llama-3.1-8b", "method": "static-nk", "ep": 2}, "with experts"),
        ({"ep": 256}, "cannot lie on 256"),
        ({"ep": 4, "tp": 2}, "not the same devices"),
        ({"method": "static-experts", "model": "llama-3.1-8b"}, "no layer has experts"),
    ):
        with pytest.raises(PrunescopeError, match=problem):
            ask(**options)


def test_experts_on_devices_of_their_own() -> None:
    """Each of 4 devices holds 32 of 128 experts, and 24 of 96, and all else."""
    one, four = ask(batch=64), ask(batch=64, ep=4)
    held = one["baseline"]["weight_bytes"] - four["baseline"]["weight_bytes"]
    assert held == pytest.approx(48 * 96 * 3 * 768 * 2048 * 2, rel=1e-6)
    # All 256 tokens of the four choose among all experts: a device reads a quarter of 128.
    assert four["baseline"]["experts"]["distinct"] == pytest.approx(128, abs=0.01)
    exchange = {row["name"]: row for row in four["predicted"]["execution"]["terms"]}["exchange"]
    assert exchange["dense_ns"] > 0
    shared = ask(batch=64, ep=4, tp=4)
    assert shared["baseline"]["weight_bytes"] == pytest.approx(
        ask(batch=64, tp=4)["baseline"]["weight_bytes"], rel=1e-6
    )


def test_experts_that_do_not_go_up_in_devices_cost_time() -> None:
    """96 experts on 64 devices: some hold two, where 128 gave two to each."""
    found = ask(batch=64, ep=64)
    router = 48 * 32 * 2048 * 2  # of 32 experts; no device holds fewer of them
    assert found["baseline"]["weight_bytes"] - found["weight_bytes"] == router
    assert found["predicted"]["execution"]["speedup"] < 1


def test_methods_of_experts_by_name() -> None:
    answer = prunescope.predict(**QWEN, method="REAP", sparsity=0.25)
    assert answer["points"][0]["method"] == "static-experts"
    assert answer["points"][0]["knobs"] == {"how": "drop"}
    assert any("chosen as often" in text for text in answer["assumed"])


def test_experts_are_ranked_with_the_other_families() -> None:
    ranking = prunescope.predict(
        model="qwen3-30b-a3b", device="h100-sxm", rank=True, workload="batch"
    )
    by = {name: [row["family"] for row in rows] for name, rows in ranking["by"].items()}
    assert "static-experts" in by["param"]
    assert "static-experts" not in by["flop"]
    assert "static-topk" in by["flop"]
    assert "0.3 % is the most" in ranking["left_out"]["static-experts"]


@pytest.mark.parametrize(
    ("counts", "problem"),
    [
        ({"warm": {"0": [1, 2, 3, 4]}}, "in no phase: 'warm'"),
        ({"decode": {"0": [0, 0, 0, 0]}}, "counts no experts"),
        ({"decode": {str(i): [1] * 128 for i in range(5)}}, "of 5 layers, and the model has 48"),
        ({str(i): [1] * (96 if i == 7 else 128) for i in range(48)}, "96 experts of layer 7"),
        ({"decode": {"0": [1] * 96}}, "counts 96 experts, and the model has 128"),
    ],
)
def test_counts_of_another_model_are_no_routing(
    tmp_path: Path, counts: dict[str, Any], problem: str
) -> None:
    (tmp_path / "routing.json").write_text(json.dumps(counts))
    with pytest.raises(PrunescopeError, match=problem):
        ask(routing=str(tmp_path / "routing.json"))


def test_a_router_cannot_choose_more_experts_than_there_are() -> None:
    plain = {**preset_config("qwen3-30b-a3b"), "num_experts": 4, "num_local_experts": 4}
    with pytest.raises(PrunescopeError, match="to 8 of 4 experts"):
        read_config(plain)


def test_what_a_router_needs_stays_and_is_said() -> None:
    """8 experts a token of 128: of 99 % fewer, 8 stay; half an expert a token fewer is none."""
    for asked, says in (
        ({"sparsity": 0.99}, "8 of 128 experts of a layer stay: 93.8% fewer; 99.0% were"),
        (
            {"method": "static-topk", "sparsity": 0.0625},
            "8 of 8 experts of each token stay: 0.0%",
        ),
    ):
        answer = prunescope.predict(**{**QWEN, **DROPPED, "phase": "decode", **asked})
        assert any(says in text for text in answer["assumed"])


def test_gains_name_the_batch_up_to_which_the_dense_model_fits() -> None:
    """80 GiB less the 61.1 GB of weights hold 24.8 GB of keys, 48 layers x 1,024 values of 2 bytes
    and 1,025 keys a sequence: 246."""
    notes = ask(batch=64, sparsity=0.75)["predicted"]["execution"]["notes"]
    assert any("fits into memory up to batch 246" in note for note in notes)


def test_the_fullest_expert_has_a_token_and_no_more_than_all() -> None:
    uneven = counted({"decode": {"0": [1000, *[1] * 7]}}, source="made up")
    for tokens in (1, 4, 64):
        found = fullest_expert(uneven, "decode", experts=8, per_token=2, tokens=tokens)
        assert 1 <= found <= tokens


def test_engines_read_latents_and_transformers_expands_them() -> None:
    """DeepSeek-V3 in bf16, 64 sequences of 1,024 keys on 4.8 TB/s: a layer reads 64 x 1,024 x 576
    numbers of the latents with queries and outputs of 128 heads, or 128 x (192 + 128) / 576 = 71
    times the latents, expanded anew."""
    v3 = {"model": "deepseek-v3", "device": "h200-sxm", "batch": 64, "prompt_len": 1024}
    own, served = (ask(**v3, runtime=name) for name in ("hf", "sglang"))
    cached, heads = 64 * 1024, 64 * 128
    absorbed = cached * 576 + heads * (576 + 512) + 64 * 576
    expanded = cached * 128 * 320 + heads * 320 + 64 * 128 * 320
    for found, numbers in ((own, expanded), (served, absorbed)):
        seconds = 61 * 2 * numbers / 4.8e12
        assert found["roles"]["attention"] / 1e9 == pytest.approx(seconds, rel=1e-3)
    assert served["ladder"]["roofline"] > own["ladder"]["roofline"] + 0.1
    answer = prunescope.predict(**{**QWEN, **DROPPED, **v3, "phase": "decode"})
    assert any("reads 71 times as many" in text for text in answer["assumed"])
    # Of eight devices each expands and reads keys of its own heads, and all of the latents.
    for runtime, share in (("hf", 8), ("sglang", 1)):
        one, eight = (ask(**v3, runtime=runtime, tp=tp)["roles"]["attention"] for tp in (1, 8))
        least = cached * (576 if share == 1 else 128 * 320 / 8) * 61 * 2 / 4.8e12
        assert eight / 1e9 == pytest.approx(least, rel=0.05)
        assert eight < one


def test_groups_of_experts_in_predict() -> None:
    """DeepSeek-V3 keeps as many experts of each of its 8 groups: 22 of 32, not 179 of 256."""
    answer = prunescope.predict(
        **{**QWEN, "model": "deepseek-v3"}, method="REAP", sparsity=0.3, phase="prefill"
    )
    (router,) = (
        row for row in answer["points"][0]["phases"]["prefill"]["gemms"] if row["role"] == "router"
    )
    assert (router["dense_n"], router["n"]) == (256, 176)
    assert any("176 of 256 experts of a layer stay" in text for text in answer["assumed"])


def test_layers_with_other_numbers_of_experts(tmp_path: Path) -> None:
    """Half of the layers have 128 experts and half 64: 64 tokens read 128 (1 − (15/16)^64) and
    64 (1 − (7/8)^64). 95 % fewer would be 6 and 3, and a token goes to 8."""
    plain = preset_config("qwen3-30b-a3b")
    (tmp_path / "config.json").write_text(json.dumps({**plain, "num_experts": [128, 64] * 24}))
    uneven = {"model": str(tmp_path / "config.json"), "batch": 64}
    experts = ask(**uneven)["baseline"]["experts"]
    assert (experts["fewest"], experts["count"], experts["layers"]) == (64, 128, 48)
    mean = (128 * (1 - (15 / 16) ** 64) + 64 * (1 - (7 / 8) ** 64)) / 2
    assert experts["distinct"] == pytest.approx(mean)
    answer = prunescope.predict(
        **{**QWEN, **DROPPED, **uneven, "phase": "decode", "sparsity": 0.95}
    )
    assert any("8 of 64–128 experts of a layer stay: 91.7% fewer" in t for t in answer["assumed"])
    # Counts of each layer's own experts are those of its kind of layer.
    counts = {str(i): [1] * (64 if i % 2 else 128) for i in range(48)}
    (tmp_path / "counts.json").write_text(json.dumps(counts))
    counted = ask(**uneven, routing=str(tmp_path / "counts.json"))["baseline"]["experts"]
    assert counted["distinct"] == pytest.approx(mean)


def test_the_table_of_gemms_says_how_many_experts() -> None:
    answer = prunescope.predict(**QWEN, **DROPPED, phase="decode", batch=64)
    file = io.StringIO()
    Console(width=100, file=file).print(prediction(answer, explain=True))
    text = file.getvalue()
    assert re.search(r"experts +48 +5 +768 +2048 +96 +G", text)
    assert "experts: how many get a token" in text
    assert "of 96" in text


def test_an_eager_host_calls_each_expert() -> None:
    """Qwen3-30B-A3B in transformers, 64 sequences: 128 (1 - (15/16)^64) = 125.9 experts are called
    in each of 48 layers, or 64 (1 - (7/8)^64) = 64.0. Each is three linear layers (1 op, 2 views,
    1 module), an activation of 2 ops, and 10 ops, 8 views and 2 modules in all beside: 15 ops and
    5 + 14 / 2 = 12 halves of calls."""
    hf = {"runtime": "hf", "host_us_per_op": 20, "sparsity": 0.5}
    fewer, one = ask(**hf, batch=64), ask(**hf, batch=1)
    found = fewer["predicted"]["execution"]
    calls = 48 * (125.9 - 64.0) * (15 + 0.5 * 12)
    assert found["dense_ns"] - found["pruned_ns"] == pytest.approx(calls * 20e3, rel=0.01)
    assert found["speedup"] > 1.5
    # One token goes to 8 experts on both sides, and an engine with grouped kernels calls none.
    assert one["predicted"]["execution"]["speedup"] == pytest.approx(1.0, abs=0.01)
    answer = prunescope.predict(**{**QWEN, **DROPPED, **hf, "phase": "decode"})
    assert any(
        "calls each expert that got a token on its own" in text for text in answer["assumed"]
    )
    answer = prunescope.predict(**{**QWEN, **DROPPED, "runtime": "vllm", "phase": "decode"})
    assert not any("calls each expert" in text for text in answer["assumed"])


def test_counts_that_stand_for_others_are_said(tmp_path: Path) -> None:
    """Of another phase, and of more experts than the model has (before its own were removed)."""
    file = tmp_path / "counts.json"
    file.write_text(json.dumps({"prefill": {"0": [1] * 160}}), encoding="utf-8")
    asked = {**QWEN, **DROPPED, "routing": str(file)}
    for phase, warned in (("decode", True), ("both", True), ("prefill", False)):
        answer = prunescope.predict(**asked, phase=phase)
        said = "counts.json counts no experts in decode: they are taken as chosen as often as in"
        assert any(said in text for text in answer["warnings"]) == warned
        assert any("counts 160 experts of a layer, and the model" in t for t in answer["assumed"])
    file.write_text(json.dumps({"0": [1] * 128}), encoding="utf-8")  # of no phase: of each
    answer = prunescope.predict(**asked, phase="both")
    assert not any("no experts in" in text for text in answer["warnings"])
