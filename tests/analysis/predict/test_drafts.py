"""Speculative decoding: a pruned model drafts, the dense one verifies several tokens in a step."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunescope.analysis.predict.claim import judge_claim
from prunescope.analysis.predict.constants import NAMES
from prunescope.analysis.predict.drafts import expected_tokens, least_paying_acceptance
from prunescope.analysis.predict.predict_request import PredictRequest
from prunescope.results.prediction import Prediction
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.plan import Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plan, forward
from tests.analysis.predict.plain import predict

DRAFTS = {"draft_tokens": 4, "acceptance": "0.6:0.8"}


def request(**options: Any) -> PredictRequest:
    defaults = {"model": "llama-3.1-8b", "device": "h100-sxm", "phase": "decode",
                "sparsity": 0.5, "break_even": False, **DRAFTS}  # fmt: skip
    return PredictRequest(**{**defaults, **options})


def ask(**options: Any) -> dict[str, Any]:
    found = predict(request(**{"method": "static-nk", **options}))
    return dict(found["points"][0]["drafting"])


@pytest.mark.parametrize(
    ("acceptance", "drafted", "tokens"),
    [(0.6, 2, 1.96), (0.7, 3, 2.53), (0.8, 2, 2.44), (0.8, 5, 3.69), (0.9, 2, 2.71),
     (0.9, 10, 6.86)],
)  # fmt: skip
def test_tokens_of_a_cycle_are_those_of_the_paper(
    acceptance: float, drafted: int, tokens: float
) -> None:
    """Leviathan et al. 2023 (arXiv 2211.17192), table 1: the speeds of a draft without cost."""
    assert expected_tokens(acceptance, drafted) == pytest.approx(tokens, abs=0.005)
    # A cycle gives one token for sure, and the i-th drafted one where all before it are accepted.
    assert expected_tokens(acceptance, drafted) == pytest.approx(
        sum(acceptance**i for i in range(drafted + 1))
    )
    assert least_paying_acceptance(tokens, drafted) == pytest.approx(acceptance, abs=0.005)


def test_drafts_never_pay_where_a_cycle_takes_longer_than_all_of_its_tokens() -> None:
    assert least_paying_acceptance(5.0, 4) is None
    assert least_paying_acceptance(0.9, 4) == pytest.approx(0, abs=1e-9)


def test_theorem_3_8_holds_where_a_verification_costs_one_step() -> None:
    """Without costs and with one sequence the weights bind: five tokens read what one reads."""
    found = ask(without=NAMES, context=1)
    assert found["verify_ns"] == pytest.approx(found["dense_ns"], rel=0.005)
    c = found["draft_ns"] / found["dense_ns"]
    for gain in found["at"]:
        alpha = gain["acceptance"]
        paper = (1 - alpha**5) / ((1 - alpha) * (4 * c + 1))
        assert gain["one_step_speedup"] == pytest.approx(paper)
        assert gain["speedup"] == pytest.approx(paper, rel=0.005)


def test_a_verification_is_priced_by_its_tokens() -> None:
    """256 sequences of five tokens are 1,280 rows, which FLOPs bind: 2 · 7.5 G · 1,280 of the
    matrices at 989.4 TFLOP/s are 19.4 ms, where a plain step reads 15 GB at 3,350 GB/s, 4.5 ms.
    Norms, rope and activations move 8 · 4,096 + 2 · 5,120 + 3 · 14,336 numbers a row and layer:
    7.0 GB, 2.1 ms."""
    found = ask(without=NAMES, context=1, batch=256)
    matrices = 8_030_261_248 - 128_256 * 4096  # the look-up of tokens multiplies nothing
    numbers = 1280 * 32 * (8 * 4096 + 2 * 5120 + 3 * 14_336)
    by_hand = 2 * matrices * 1280 / 989.4e3 + 2 * numbers / 3350
    assert found["verify_ns"] == pytest.approx(by_hand, rel=0.02)
    assert found["verify_ns"] > 3 * found["dense_ns"]
    for gain in found["at"]:
        assert gain["speedup"] < 0.7 * gain["one_step_speedup"]


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 9),
    context=st.integers(1, 300),
    window=st.integers(1, 400),
    sliding=st.sampled_from((0, 2, 4)),
    batch=st.integers(1, 5),
)
def test_a_verification_has_the_flops_of_its_steps(
    tokens: int, context: int, window: int, sliding: int, batch: int
) -> None:
    """Each token sees as many keys as in a step of its own; weights are read once for all."""
    shape = ModelShape.from_fields(
        model_type="llama", hidden=256, layers=4, heads=4, kv_heads=2, head_dim=64, value_dim=64,
        intermediate=512, gated=True, vocab=1000, window=window, sliding_layers=sliding,
    )  # fmt: skip

    def work(keys: int, step_tokens: int = 1) -> list[Any]:
        sizes = {"batch": batch, "context": keys, "step_tokens": step_tokens, "logits": "all"}
        return forward([dense_plan(shape, Workload(phase="decode", **sizes))])

    def total(field: str, ops: list[Any]) -> float:
        return float(sum(op.layers * getattr(op, field) for op in ops))

    together = work(context + tokens - 1, tokens)
    steps = [work(context + i) for i in range(tokens)]
    assert total("flop", together) == pytest.approx(sum(total("flop", step) for step in steps))
    assert total("weight_bytes", together) == total("weight_bytes", steps[0])
    last = total("kv_read", steps[-1])
    assert last <= total("kv_read", together) <= sum(total("kv_read", step) for step in steps)


def test_all_keys_verified_at_once_are_a_prompt() -> None:
    """Of 100 tokens the first sees one key, the last 100: the pairs of a causal prefill."""
    shape = ModelShape.from_fields(
        model_type="llama", hidden=256, layers=4, heads=4, kv_heads=2, head_dim=64, value_dim=64,
        intermediate=512, gated=True, vocab=1000, window=30, sliding_layers=2,
    )  # fmt: skip
    flops = [
        sum(op.layers * op.flop for op in forward([dense_plan(shape, work)]))
        for work in (
            Workload(phase="prefill", prompt_len=100, logits="all"),
            Workload(phase="decode", context=100, step_tokens=100, logits="all"),
        )
    ]
    assert flops[0] == pytest.approx(flops[1])


def test_a_draft_of_another_model_is_that_model_pruned() -> None:
    """Its step costs what it costs where the small model is the one that is pruned."""
    found = ask(draft_model="llama-3.2-1b", sparsity=0.25)
    alone = predict(request(model="llama-3.2-1b", method="static-nk", sparsity=0.25))
    target = predict(request(method="static-nk"))
    assert found["draft_ns"] == pytest.approx(
        alone["phases"]["decode"]["predicted"]["execution"]["pruned_ns"]
    )
    assert found["dense_ns"] == target["phases"]["decode"]["predicted"]["execution"]["dense_ns"]
    whole = ask(draft_model="llama-3.2-1b", method=None)
    assert whole["draft_ns"] > found["draft_ns"]
    assert found["cycle_ns"] == pytest.approx(4 * found["draft_ns"] + found["verify_ns"])
    weights = target["phases"]["decode"]["baseline"]["memory_bytes"]
    assert found["memory_bytes"] > weights + 1e9


def test_a_range_of_acceptances_gives_one_of_speedups() -> None:
    found, single = ask(), ask(acceptance=0.7)
    low, high = found["at"]
    assert [gain["acceptance"] for gain in found["at"]] == [0.6, 0.8]
    assert low["speedup"] < single["at"][0]["speedup"] < high["speedup"]
    assert len(single["at"]) == 1
    for gain in found["at"]:
        assert gain["range"][0] < gain["speedup"] < gain["range"][1]
        paced = gain["tokens"] * found["dense_ns"] / found["cycle_ns"]
        assert gain["speedup"] == pytest.approx(paced)
    # At the acceptance from which it pays, the speedup is one.
    even = ask(acceptance=found["pays_from"])["at"][0]
    assert even["speedup"] == pytest.approx(1, rel=1e-6)
    assert ask(acceptance=(0.8, 0.6))["at"] == found["at"]


def test_nothing_measured_stands_behind_drafts() -> None:
    found = ask()
    assert found["evidence"]["measurements"] == 0
    assert found["evidence"]["text"].startswith("no measurement of this kind: tokens drafted")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"phase": "prefill"}, "--phase prefill cannot be combined with --draft-tokens"),
        ({"acceptance": None}, "--draft-tokens needs --acceptance"),
        ({"acceptance": 1.0}, "no share of drafted tokens"),
        ({"acceptance": 0.0}, "no share of drafted tokens"),
        ({"acceptance": "0.6:1.2"}, "no share of drafted tokens"),
        ({"acceptance": "0.6:x"}, "no share of drafted tokens"),
        ({"acceptance": "0.5:0.6:0.7"}, "no share of drafted tokens"),
        ({"acceptance": float("nan")}, "no share of drafted tokens"),
        ({"draft_tokens": 0}, "drafts nothing"),
        ({"draft_tokens": None}, "--acceptance needs --draft-tokens"),
        ({"draft_tokens": None, "acceptance": None, "draft_model": "llama-3.2-1b"},
         "--draft-model needs --draft-tokens"),
        ({"method": None}, "needs a pruned model that drafts"),
        ({"method": "dense"}, "needs a pruned model that drafts"),
        ({"new_tokens": 9}, "--new-tokens cannot be combined with --draft-tokens"),
        ({"draft_model": "llama-3.2-1b", "pruned_model": "llama-3.2-1b", "method": None},
         "cannot be combined with --draft-model"),
        ({"rank": True, "phase": "both", "method": None}, "--draft-tokens cannot be combined"),
    ],
)  # fmt: skip
def test_drafts_that_cannot_be_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(PrunescopeError, match=problem):
        Prediction.compute(request(**{"method": "static-nk", **options}))


def test_a_claim_is_not_about_drafts() -> None:
    with pytest.raises(PrunescopeError, match="not about drafts"):
        judge_claim(2.0, request(method="static-nk"))


def test_other_vocabularies_are_said() -> None:
    found = predict(request(draft_model="qwen3-0.6b", method=None))
    assert any("vocabulary of the draft has 151,936" in text for text in found["warnings"])
    same = predict(request(draft_model="llama-3.2-1b", method=None))
    assert not any("vocabulary" in text for text in same["warnings"])


def test_drafts_are_printed_and_are_rows() -> None:
    found = Prediction.compute(request(method=["static-nk", "dynamic-m"]))
    text = found._render(["md"])["prediction.md"].decode()
    assert "4 drafted tokens, verified in one step" in text
    assert "--draft-tokens 4 --acceptance 0.6:0.8" in text
    assert "acceptance is given, not predicted" in text
    rows = [row for row in found.table.rows if "drafted" in str(row["phase"])]
    assert len(rows) == 4  # two methods at two acceptances
    first = found["points"][0]["drafting"]["at"][0]
    assert rows[0]["expected"] == first["speedup"]
    assert rows[0]["dense_ns"] / rows[0]["pruned_ns"] == pytest.approx(first["speedup"])
    msgspec.json.encode(found)
