"""The predicted ladder beside the realised one: what it is, its terms, and when it is null."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.predict.predict_request import PredictRequest
from prunescope.analysis.predict.predicted_run import add_miss
from prunescope.analysis.report import sentences
from prunescope.analysis.schema.report import Ladder, Phase, Row
from prunescope.analysis.schema.sides import PredictedRun
from tests.analysis.predict.plain import predict
from tests.analysis.run_folder import PEAKS, write_pair
from tests.chrome import chrome, gap, k, module, op, step

BF16 = "c10::BFloat16"
SAMPLES = {"dense": [150_000, 152_000, 149_000], "pruned": [140_000, 139_000, 141_000]}


def trace(width: int, us: float) -> dict[str, Any]:
    """Two steps of one layer of tiny-llama: hidden 256, intermediate 704."""
    wide = op("aten::mm", [512, 256], [256, width], dtype=BF16, kernels=[k(us=us)])
    back = op("aten::mm", [512, width], [width, 256], dtype=BF16, kernels=[k(us=us)])
    body = [module("model.layers.0.mlp.up_proj", wide), gap(us=20),
            module("model.layers.0.mlp.down_proj", back)]  # fmt: skip
    return chrome(step(0, *body), step(1, *body))


def phase(tmp_path: Path, **runs: Any) -> Phase:
    pruned = {"pruning": {"method": "static-nk-mlp", "sparsity": 0.5, "knobs": {}}}
    pruned["phase_fields"] = {"samples_ns": SAMPLES["pruned"]}
    pruned.update(runs.pop("pruned_run", {}))
    dense = {"phase_fields": {"samples_ns": SAMPLES["dense"]}, **runs.pop("dense_run", {})}
    folder = write_pair(tmp_path, trace(704, 50), trace(352, 40), dense_run=dense,
                        pruned_run=pruned, **runs)  # fmt: skip
    (only,) = analyze(folder).report.phases.values()
    return only


def test_it_is_the_prediction_of_the_command_on_the_runs_own_peaks(tmp_path: Path) -> None:
    told = phase(tmp_path).predicted
    assert told is not None
    asked = predict(
        PredictRequest(
            model="tiny-llama", method="static-nk-mlp", sparsity=0.5, phase="prefill",
            prompt_len=512, dtype="bf16", peaks={"bf16": PEAKS["dense_flop_per_s"]["bf16"] / 1e12},
            bandwidth=PEAKS["byte_per_s"] / 1e9,
        )
    )["phases"]["prefill"]  # fmt: skip
    for bound in ("nominal", "flop", "coverage", "roofline"):
        assert told["ladder"][bound] == pytest.approx(asked["ladder"][bound])
    assert told["family"] == "static-nk-mlp"
    assert told["source"] == "measured on this device by `prunescope trace`"


def test_the_terms_multiply_to_the_miss(tmp_path: Path) -> None:
    one = phase(tmp_path)
    assert one.predicted is not None and one.ladder is not None
    miss = one.predicted["miss"]
    assert miss["ratio"] == pytest.approx(one.ladder.realised / one.predicted["ladder"]["roofline"])
    assert math.prod(t["ratio"] for t in miss["terms"]) == pytest.approx(miss["ratio"])
    names = [t["name"] for t in miss["terms"]]
    assert names == ["flop", "coverage", "roofline", "shape", "kernel_efficiency", "added_work",
                     "launch_idle"]  # fmt: skip


def test_the_miss_is_named_after_the_row_that_loses(tmp_path: Path) -> None:
    """Half the FLOPs in 40 of 50 us: the kernels, and the sentence says so."""
    one = phase(tmp_path)
    assert one.predicted is not None
    assert one.predicted["miss"]["largest"] == "kernel_efficiency"
    said = sentences.predicted(one)
    assert said.startswith("predicted for static-nk-mlp on these peaks: FLOPs ")
    assert "mostly by kernel efficiency" in said
    assert said in sentences.opening(one)


@pytest.mark.parametrize(
    ("kernels", "named"),
    [
        ({}, True), ({"noise_ns": 6.0}, True), ({"noise_ns": 7.0}, False),
        ({"ci95": [1.0, 24.0]}, True), ({"ci95": [-1.0, 26.0]}, False),
    ],
)  # fmt: skip
def test_a_loss_within_noise_is_not_named(kernels: dict[str, Any], *, named: bool) -> None:
    """62.5 of 100 ns where 50 were promised: 12.5 are of the kernels, by the rule of findings."""
    bounds = dict.fromkeys(("nominal", "flop", "coverage", "roofline"), 2.0)
    ladder = Ladder(**bounds, busy=None, realised=1.6, realised_ci95=None, share_of_bound=0.8)
    theory = PredictedRun(
        family="static-nk", sparsity=0.5, source=None, ladder=bounds, break_even={}
    )
    rows = {
        "dense": 100.0, "promised": 50.0, "coverage": 0.0, "roofline_shift": 0.0, "shape": 0.0,
        "kernel_efficiency": 12.5, "added_work": 0.0, "launch_idle": 0.0, "pruned": 62.5,
    }  # fmt: skip
    ledger = [
        Row(row=name, ns=ns, **(kernels if name == "kernel_efficiency" else {}))
        for name, ns in rows.items()
    ]
    miss = add_miss(theory, ladder, ledger)["miss"]
    assert miss["ratio"] == pytest.approx(0.8)
    assert miss["largest"] == ("kernel_efficiency" if named else None)


@pytest.mark.parametrize(
    ("ci95", "row", "named"),
    [
        (None, {}, True), ([1.5, 1.7], {}, True), ([1.2, 2.1], {}, False),
        # The row of that name is a time, and its noise says nothing of the bound.
        ([1.5, 1.7], {"noise_ns": 90.0}, True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("bound", ["coverage", "roofline"])
def test_a_bound_whose_interval_holds_the_theory_is_not_named(
    bound: str, ci95: list[float] | None, row: dict[str, Any], *, named: bool
) -> None:
    """1.6 times where 2 were predicted; the bounds before it are as predicted."""
    theory = dict.fromkeys(("nominal", "flop", "coverage", "roofline"), 2.0)
    after = ("coverage", "roofline") if bound == "coverage" else ("roofline",)
    ladder = Ladder(
        **(theory | dict.fromkeys(after, 1.6)), busy=None, realised=1.6, realised_ci95=None,
        share_of_bound=1.0, **{f"{bound}_ci95": ci95},
    )  # fmt: skip
    told = PredictedRun(family="static-nk", sparsity=0.5, source=None, ladder=theory, break_even={})
    ns = dict.fromkeys(
        ("coverage", "roofline_shift", "shape", "kernel_efficiency", "added_work", "launch_idle"),
        0.0,
    ) | {"dense": 100.0, "promised": 50.0, "pruned": 62.5}  # fmt: skip
    ledger = [Row(row=n, ns=t, **(row if n == "coverage" else {})) for n, t in ns.items()]
    assert add_miss(told, ladder, ledger)["miss"]["largest"] == (bound if named else None)


@pytest.mark.parametrize(
    "change",
    [
        {"pruned_run": {"pruning": {"method": "mine:prune", "sparsity": 0.0, "knobs": {}}}},
        {"dense_run": {"model": {"id": "x", "shape": None}}},
        {"dense_run": {"model": {"id": "x", "shape": {"colour": 3}}}},
        {"pruned_run": {"dtype": "fp8"}},
        {"phase": "warm"},
    ],
)
def test_it_is_null_where_something_is_not_known(tmp_path: Path, change: dict[str, Any]) -> None:
    one = phase(tmp_path, **change)
    assert one.predicted is None
    assert sentences.predicted(one) == ""


def test_24_on_a_device_without_sparse_units_is_a_mask(tmp_path: Path) -> None:
    method = {"pruning": {"method": "static-k-24", "sparsity": 0.5, "knobs": {}},
              "device": {"kind": "cpu", "name": "a processor", "peaks": PEAKS}}  # fmt: skip
    one = phase(tmp_path, pruned_run=method)
    assert one.predicted is not None
    assert one.predicted["family"] == "static-k-mask"
    assert one.predicted["ladder"]["roofline"] == pytest.approx(1)


def test_no_forward_of_the_predicted_ladder_is_worked_out_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunescope.analysis.predict import side

    asked: Counter[tuple[Any, float]] = Counter()
    pruned_forward = side.pruned_forward

    def counted(shape: Any, work: Any, family: Any, point: Any, *others: Any) -> Any:
        asked[work, point.sparsity] += 1
        return pruned_forward(shape, work, family, point, *others)

    monkeypatch.setattr(side, "pruned_forward", counted)
    found = phase(tmp_path).predicted
    assert found is not None and found["break_even"]["sparsity"] is not None
    assert len(asked) > 10  # the range of sparsities, of batches and of contexts
    assert set(asked.values()) == {1}
