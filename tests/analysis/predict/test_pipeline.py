"""Pipeline parallelism: a request passes every stage, throughput follows the slowest one."""

from __future__ import annotations

from typing import Any

import pytest

from prunescope.analysis.predict.predict_request import PredictRequest
from prunescope.taxonomy.errors import PrunescopeError
from tests.analysis.predict.plain import predict


def ask(pp: int, **options: Any) -> dict[str, Any]:
    defaults = {"model": "llama-3.1-70b", "device": "h100-sxm", "method": "static-nk",
                "sparsity": 0.5, "phase": "decode", "break_even": False}  # fmt: skip
    return predict(PredictRequest(pp=pp, **{**defaults, **options}))


def execution(found: dict[str, Any], phase: str = "decode") -> dict[str, Any]:
    expected: dict[str, Any] = found["phases"][phase]["predicted"]["execution"]
    return expected


def test_a_request_passes_every_stage_and_the_transfers_between() -> None:
    one, four = execution(ask(1, batch=8)), execution(ask(4, batch=8))
    # three transfers of 8 rows of 8,192 in 16 bits at 450 GB/s
    transfers = 3 * (10_000 + 8 * 8192 * 2 / 450e9 * 1e9)
    assert four["dense_ns"] - one["dense_ns"] == pytest.approx(transfers)
    assert four["pruned_ns"] - one["pruned_ns"] == pytest.approx(transfers)
    assert one["pipeline"] is None


def test_throughput_follows_the_slowest_stage() -> None:
    whole, pipeline = execution(ask(1)), execution(ask(4))["pipeline"]
    assert pipeline["stages"] == 4
    transfer = 10_000 + 8192 * 2 / 450e9 * 1e9
    # Work of 80 equal layers, and lm_head on the last stage: more than a quarter.
    stage = pipeline["dense_ns"] - transfer
    assert whole["dense_ns"] / 4 < stage < whole["dense_ns"] / 4 * 1.05
    low, high = pipeline["range"]
    assert low < pipeline["speedup"] < high
    # lm_head is not pruned, and it is a larger part of the slowest stage than of the whole.
    assert pipeline["speedup"] < whole["speedup"]


def test_layers_that_do_not_divide_leave_a_longer_stage() -> None:
    """7 of 28 layers go: 21 on 4 stages are 6, 5, 5, 5, of 7 each."""
    point = {"model": "llama-3.2-3b", "method": "static-m", "sparsity": 0.25,
             "phase": "prefill", "batch": 8, "prompt_len": 2048}  # fmt: skip
    pipeline = execution(ask(4, **point), "prefill")["pipeline"]
    whole = execution(ask(1, **point), "prefill")
    assert whole["speedup"] == pytest.approx(28 / 21, rel=0.02)
    assert pipeline["speedup"] == pytest.approx(7 / 6, rel=0.02)


def test_memory_is_that_of_a_stage_with_every_batch_in_flight() -> None:
    one, four = (ask(pp, batch=4, new_tokens=16)["answer"]["dense_memory"] for pp in (1, 4))
    # a fifth of a per cent is embedding or lm_head, which stand on one stage
    assert four["weight_bytes"] == pytest.approx(one["weight_bytes"] / 4, rel=0.05)
    assert four["weight_bytes"] > one["weight_bytes"] / 4
    assert four["kv_bytes"] == one["kv_bytes"]
    assert (one["fits"], four["fits"]) == (False, True)


def test_tokens_a_second_count_the_batches_in_flight() -> None:
    one, four = (ask(pp, new_tokens=16)["answer"]["dense"] for pp in (1, 4))
    assert four["total_ns"] > one["total_ns"]
    assert 3.5 < four["tokens_per_s"] / one["tokens_per_s"] < 4


def test_devices_of_a_stage_share_its_layers() -> None:
    found = ask(2, tp=2)
    alone = ask(1, tp=2)
    assert execution(found)["dense_ns"] > execution(alone)["dense_ns"]
    weights = [x["phases"]["decode"]["baseline"]["weight_bytes"] for x in (found, alone)]
    assert weights[0] == pytest.approx(weights[1] / 2, rel=0.05)


def test_a_tied_head_is_copied_to_the_last_stage() -> None:
    """llama-3.2-1b: an embedding of 128,256 x 2,048, in 16 layers of four stages."""
    whole, split = (
        ask(pp, model="llama-3.2-1b")["phases"]["decode"]["baseline"]["weight_bytes"]
        for pp in (1, 4)
    )
    embedding = 128_256 * 2048 * 2
    # either end has the layers of one stage and the embedding; the last also the final norm
    assert split == pytest.approx((whole - embedding) / 4 + embedding, rel=1e-4)


@pytest.mark.parametrize("pp", [0, 81])
def test_more_stages_than_layers_are_refused(pp: int) -> None:
    with pytest.raises(PrunescopeError, match="stages"):
        ask(pp)


def test_the_answer_says_what_it_assumed() -> None:
    found = ask(4)
    assert "--pp 4" in found["command"]
    assert found["options"]["pp"] == 4
    assert any("4 stages" in text for text in found["assumed"])
    assert any("4 stages full" in text for text in execution(found)["notes"])
