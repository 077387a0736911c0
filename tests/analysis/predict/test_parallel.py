"""Tensor parallelism: one device's part of the work, and what the devices exchange."""

from __future__ import annotations

from typing import Any

import pytest

from prunescope.analysis.predict.predict_request import PredictRequest
from prunescope.taxonomy.errors import PrunescopeError
from tests.analysis.predict.plain import predict


def ask(tp: int, **options: Any) -> dict[str, Any]:
    defaults = {"model": "llama-3.1-70b", "device": "h100-sxm", "method": "static-nk",
                "sparsity": 0.5, "phase": "decode", "break_even": False}  # fmt: skip
    return predict(PredictRequest(tp=tp, **{**defaults, **options}))


def terms(found: dict[str, Any], phase: str = "decode") -> dict[str, float]:
    rows = found["phases"][phase]["predicted"]["execution"]["terms"]
    return {row["name"]: row["dense_ns"] for row in rows}


def test_two_devices_do_half_of_the_gemms_each() -> None:
    one, two = ask(1), ask(2)
    sides = [found["phases"]["decode"]["baseline"] for found in (one, two)]
    assert sides[1]["flop"] == pytest.approx(sides[0]["flop"] / 2)
    assert sides[1]["kv_bytes"] == sides[0]["kv_bytes"] // 2
    # all but norms and the table of the embedding
    assert sides[1]["weight_bytes"] == pytest.approx(sides[0]["weight_bytes"] / 2, rel=0.02)
    assert [row["n"] for row in two["phases"]["decode"]["gemms"] if row["role"] == "gate"] == [7168]
    assert [row["k"] for row in two["phases"]["decode"]["gemms"] if row["role"] == "down"] == [7168]


def test_what_is_exchanged_by_hand() -> None:
    assert terms(ask(1))["exchange"] == 0
    # 80 layers of two sublayers; one row of 8,192 in 16 bit, 2(n-1)/n of it at 450 GB/s
    each = 10_000 + 2 * 3 / 4 * 8192 * 2 / 450e9 * 1e9
    assert terms(ask(4))["exchange"] == pytest.approx(160 * each)


def test_fewer_heads_than_devices_stand_on_several() -> None:
    eight, sixteen = ask(8), ask(16)
    cache = [found["phases"]["decode"]["baseline"]["kv_bytes"] for found in (eight, sixteen)]
    assert cache[0] == cache[1]  # 8 key/value heads


def test_it_fits_on_two() -> None:
    fits = [ask(tp, new_tokens=16)["answer"]["dense_memory"]["fits"] for tp in (1, 2)]
    assert fits == [False, True]


def test_parallel_devices_do_not_gain_from_a_low_rank_as_one_does() -> None:
    gains = [
        ask(tp, method="static-k-lowrank")["phases"]["decode"]["predicted"]["execution"]["speedup"]
        for tp in (1, 8)
    ]
    assert gains[0] > gains[1]
    with pytest.raises(PrunescopeError, match="--tp"):
        ask(0)


def test_every_stack_of_layers_is_split_and_exchanged() -> None:
    """Layers on fewer tokens are a second stack, not the second factor of one matrix."""
    options = {"method": "token-drop", "batch": 4, "prompt_len": 2048}
    one, four = (ask(tp, **options)["phases"]["decode"] for tp in (1, 4))
    assert four["flop"] == pytest.approx(one["flop"] / 4)
    assert four["ladder"]["flop"] == pytest.approx(one["ladder"]["flop"])
    rows = four["predicted"]["execution"]["terms"]
    exchanged = next(row for row in rows if row["name"] == "exchange")
    assert exchanged["pruned_ns"] == pytest.approx(exchanged["dense_ns"])  # as many sublayers


@pytest.mark.parametrize("method", ["dynamic-depth", "dynamic-m", "token-drop"])
def test_weights_that_stay_are_the_dense_models_on_each_device(method: str) -> None:
    sides = ask(4, method=method, prompt_len=2048)["phases"]["decode"]
    kept, dense = sides["weight_bytes"], sides["baseline"]["weight_bytes"]
    assert dense <= kept <= dense * 1.001  # routers may be added
