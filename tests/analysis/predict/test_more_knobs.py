"""Knobs of single families: schedules of token-drop, heads that read all keys, sets of channels a
token, Marlin kernels."""

from __future__ import annotations

from typing import Any

import pytest

from prunescope.analysis.predict.costs import estimate_costs
from prunescope.analysis.predict.predict_request import PredictRequest
from prunescope.analysis.predict.setting import resolve, workloads
from prunescope.analysis.predict.side import predicted_side
from prunescope.analysis.predict_from import refuse_marlin
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import family
from prunescope.taxonomy.presets import preset_named
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.pruners import family_point
from tests.analysis.predict.plain import predict


def ask(method: str, **options: Any) -> dict[str, Any]:
    defaults = {"model": "llama-2-7b", "device": "a100-80gb-sxm", "phase": "prefill",
                "break_even": False, "prompt_len": 4096}  # fmt: skip
    return predict(PredictRequest(method=method, **{**defaults, **options}))


def phase(found: dict[str, Any]) -> dict[str, Any]:
    (only,) = found["phases"].values()
    return dict(only)


def test_tokens_leave_in_steps_by_hand() -> None:
    """7/8 gone in three steps of 32 layers: each eight layers see half of those before."""
    knobs = {"schedule": "8,16,24"}
    found = phase(ask("token-drop", sparsity=0.875, knobs=knobs))
    gates = [(row["m"], row["count"]) for row in found["gemms"] if row["role"] == "gate"]
    assert gates == [(4096, 8), (2048, 8), (1024, 8), (512, 8)]


def test_a_schedule_lies_between_its_ends() -> None:
    """Later steps compute more than a drop at the first layer, less than one at the last."""
    options = {"sparsity": 0.75, "phase": "prefill"}
    early = phase(ask("token-drop", knobs={"after": 4}, **options))["flop"]
    steps = phase(ask("token-drop", knobs={"schedule": "4,12,20"}, **options))["flop"]
    late = phase(ask("token-drop", knobs={"after": 20}, **options))["flop"]
    assert early < steps < late
    single = phase(ask("token-drop", knobs={"schedule": "4"}, **options))["flop"]
    assert single == early


@pytest.mark.parametrize("schedule", ["8,4", "8,x", "8,8", "0,4", "8,99"])
def test_a_schedule_is_ascending_layers_behind_an_attention(schedule: str) -> None:
    with pytest.raises(PrunescopeError):
        ask("token-drop", sparsity=0.5, knobs={"schedule": schedule})


@pytest.mark.parametrize("method", ["kv-evict", "dynamic-nk"])
def test_heads_that_read_every_key_by_hand(method: str) -> None:
    """Half of the heads at sparsity 0.5 read as much as all of them at 0.25."""
    options = {"phase": "decode", "context": 4096}
    half = phase(ask(method, sparsity=0.5, knobs={"full_heads": 0.5}, **options))
    quarter = phase(ask(method, sparsity=0.25, **options))
    assert half["bytes"] == pytest.approx(quarter["bytes"])
    assert half["kv_bytes"] == quarter["kv_bytes"]
    with pytest.raises(PrunescopeError, match="full_heads"):
        ask(method, sparsity=0.5, knobs={"full_heads": 1.0}, **options)


def added_ms(keep: str, **options: Any) -> float:
    found = phase(ask("kv-evict", sparsity=0.5, knobs={"keep": keep}, **options))
    terms = found["predicted"]["execution"]["terms"]
    (added,) = (row["pruned_ns"] for row in terms if row["name"] == "added")
    return float(added) / 1e6


def test_scores_that_rank_keys_are_added_work_by_hand() -> None:
    """32 layers of 32 heads rank by the scores of all 4,096 queries, 4,096 x 4,097 / 2 = 8.39 M
    each, or of the last 32, 130,576; a score of 16 bits is 6 x 2 + 8 bytes of traffic beside the
    fused kernel, 2 where attention writes its scores anyway; the A100 moves 2,039 GB/s at most. The
    10,336 kernels of all pieces (next test) start in 3 to 8 us each."""
    at_peak, starts = 1024 * 8_390_656 * 20 / 2039e6, 10_336 / 1e3  # 84 ms, and 10 for each us
    assert at_peak + 3 * starts < added_ms("accumulated") < 1.5 * at_peak + 8 * starts
    at_end = 1024 * 130_576 * 20 / 2039e6
    assert at_end < added_ms("attention") < 4 * at_end
    assert added_ms("recent") == added_ms("sinks") == 0
    eager = {"launch": "eager", "attn": "eager"}
    assert added_ms("accumulated", **eager) < added_ms("accumulated") - 0.8 * at_peak
    decode = {"phase": "decode", "context": 4096}
    assert added_ms("accumulated", **decode) > added_ms("attention", **decode) == 0


def test_keys_are_ranked_in_pieces_of_64_queries() -> None:
    """By all 4,096 queries in 64 pieces of five kernels, by the last 32 in one; three kernels more
    pick, in each of 32 layers."""

    def kernels(keep: str, **options: Any) -> float:
        request = PredictRequest(
            model="llama-3.1-8b", device="a100-80gb-sxm", prompt_len=4096,
            knobs={"keep": keep}, **{"phase": "prefill", **options},
        )  # fmt: skip
        setting, _ = resolve(request, "kv-evict", 0.5, [])
        side = predicted_side(setting, workloads(request, setting)[0], pruned=True)
        return estimate_costs(side).added_kernels

    assert kernels("accumulated") == 32 * (64 * 5 + 3)
    assert kernels("attention") == 32 * (5 + 3)
    assert kernels("recent") == 0


@pytest.mark.parametrize(
    ("method", "knob", "value"),
    [
        ("dynamic-width", "sets", "token"),
        ("dynamic-width", "attention", "queries"),
        ("kv-evict", "full_heads", 0.5),
    ],
)
def test_a_knob_that_is_only_predicted_cannot_be_traced(
    method: str, knob: str, value: object
) -> None:
    plain = family_point(method, Point(sparsity=0.5, knobs={}))
    assert knob not in plain.knobs  # nor stands in a record
    with pytest.raises(PrunescopeError, match="cannot be traced"):
        family_point(method, Point(sparsity=0.5, knobs={knob: value}))
    assert "in predict" in family(method).knobs[knob].text


def test_marlin_stores_four_bits_on_both_sides() -> None:
    options = {"phase": "decode", "sparsity": 0.5, "batch": 16}
    found = ask("static-k-24", knobs={"kernel": "marlin"}, **options)
    plain = ask("static-k-24", weights="int4", **options)
    weights = [phase(one)["baseline"]["weight_read_bytes"] for one in (found, plain)]
    assert weights[0] == weights[1]
    assert any("4 bits" in text and "Marlin" in text for text in found["assumed"])
    assert found["points"][0]["kernel"] == "marlin"
    eight = ask("static-k-24", knobs={"kernel": "marlin"}, weights="int8", **options)
    assert any("8 bits" in text for text in eight["assumed"])


def test_indices_of_24_weights_keep_their_bits() -> None:
    """A pair of four: 2 x 4 bits and 2 x 2 bits of index for 4 x 4 bits: 3/4, not 9/16."""
    shape = preset_named("llama-2-7b")
    assert shape is not None
    found = phase(ask("static-k-24", sparsity=0.5, knobs={"kernel": "marlin"}))
    head = 32_000 * 4096 * 2
    norms = (2 * 32 + 1) * 4096 * 2
    linears = found["weight_read_bytes"] - head
    dense = found["baseline"]["weight_read_bytes"] - head
    assert linears / dense == pytest.approx(0.75, abs=2 * norms / dense)


def test_marlin_prefill_by_hand() -> None:
    """Compute-bound: dense at 0.8 of 16 bits; 2:4 in half of that, of GEMMs alone."""
    fast = {"without": ["kernel", "launch", "elementwise", "tile_wave"], "sparsity": 0.5}
    found = phase(ask("static-k-24", knobs={"kernel": "marlin"}, **fast))
    other = phase(ask("static-k-24", weights="int4", **fast))
    both = [one["predicted"]["execution"] for one in (found, other)]
    assert both[0]["dense_ns"] > 1.15 * both[1]["dense_ns"]
    assert both[0]["speedup"] > both[1]["speedup"]


def test_marlin_with_another_family() -> None:
    found = ask("static-nk", sparsity=0.5, phase="decode", knobs={"kernel": "marlin"})
    assert phase(found)["baseline"]["weight_bytes"] < 5e9  # 13.5 GB in 16 bits


def test_a_measured_run_has_no_marlin() -> None:
    """The weights of a run are those that ran."""
    with pytest.raises(PrunescopeError, match="--from-run"):
        refuse_marlin("marlin")
    refuse_marlin("torch")
