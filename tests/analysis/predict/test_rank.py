"""Which family, here? Equal shares, order, ties, and what is left out with its reason."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from prunescope.analysis.predict.loss_curves import read_losses
from prunescope.analysis.predict.predict_request import PredictRequest
from prunescope.analysis.predict.rank import WORKLOADS, rank
from prunescope.analysis.report.predict_tables import prediction
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.runs.run import Run
from prunescope.taxonomy.runs.run_blocks import DeviceEntry, ModelEntry, Pruning
from prunescope.taxonomy.runs.run_quality import Quality


@cache
def ranked(workload: str = "chat", device: str = "h100-sxm") -> dict[str, Any]:
    request = PredictRequest(model="llama-3.2-1b", device=device, workload=workload, sparsity=0.25)
    return dict(msgspec.to_builtins(rank(request)))


def test_all_remove_the_same_share_as_near_as_their_units_allow() -> None:
    for by, rows in ranked()["by"].items():
        assert len(rows) >= 4
        for row in rows:
            if row["family"] != "static-k-24":  # one sparsity
                assert row["removed"][by] == pytest.approx(0.25, abs=0.04), row["family"]


def test_the_fastest_first_and_ties_by_range() -> None:
    for rows in ranked()["by"].values():
        gains = [row["speedup"] for row in rows]
        assert gains == sorted(gains, reverse=True)
        assert rows[0]["ties"] is True
        for row in rows:
            assert row["range"][0] < row["speedup"] < row["range"][1]
            assert row["ties"] == (row["range"][1] >= rows[0]["range"][0])


def test_what_nobody_tried_does_not_lead() -> None:
    """Of small models the layers are a small share: 60 % of SmolLM2 needs 21 of its 30 layers.

    Half of the layers are the most that a publication timed.
    """
    load: Any = {"workload": "chat", "sparsity": 0.6}
    found = rank(PredictRequest(model="smollm2-135m", device="h100-sxm", **load))
    rows = {row.family: row for row in found.by["flop"]}
    depth, order = rows["static-m"], list(rows)
    assert (depth.sparsity, depth.tried, depth.ties) == (0.7, 0.5, False)
    assert order.index("static-m") > order.index("dynamic-k")
    assert depth.speedup > rows[order[0]].speedup
    assert "> 50 % tried" in shown_ranking(found)


def test_every_family_is_ranked_or_left_out_with_a_reason() -> None:
    from prunescope.taxonomy.families import families

    found = ranked()
    named = {row["family"] for row in found["by"]["flop"]} | set(found["left_out"])
    assert named == {one.id for one in families()} - {"dense"}
    assert all(found["left_out"].values())


def test_long_prompts_and_many_sequences_rank_differently() -> None:
    chat, rag = (
        {row["family"]: row["speedup"] for row in ranked(name)["by"]["flop"]}
        for name in ("chat", "rag")
    )
    # routed tokens save work in a prompt; a step of several sequences reads all weights anyway
    assert rag["dynamic-m"] > chat["dynamic-m"] + 0.02
    assert set(WORKLOADS) == {"chat", "rag", "batch", "long", "agent"}


def test_knobs_are_those_of_the_families_that_have_them() -> None:
    def gains(**knobs: str) -> dict[str, float]:
        request = PredictRequest(model="llama-3.2-1b", device="h100-sxm", workload="rag",
                                 sparsity=0.25, knobs=knobs)  # fmt: skip
        return {row.family: row.speedup for row in rank(request).by["flop"]}

    plain, library, unit = gains(), gains(kernel="cusparselt"), gains(unit="layer")
    assert library["static-k-24"] > plain["static-k-24"]  # no layout copies
    assert library["static-nk"] == plain["static-nk"]
    assert unit["dynamic-m"] != plain["dynamic-m"] and unit["static-nk"] == plain["static-nk"]


def test_a_table_of_it() -> None:
    out = io.StringIO()
    Console(file=out, width=80, highlight=False).print(prediction(ranked()))
    assert "at equal FLOPs" in out.getvalue() and "ties" in out.getvalue()
    assert "not equal quality" in " ".join(out.getvalue().split())
    lines = out.getvalue().splitlines()
    for row in ranked()["by"]["flop"]:  # a name and a range are never broken
        ends = f"{row['range'][0]:.2f}–{row['range'][1]:.2f}"
        assert any(line.startswith(f" {row['family']} ") and ends in line for line in lines)


def test_given_sizes_and_mistakes() -> None:
    own = PredictRequest(model="llama-3.2-1b", device="h100-sxm", batch=2, prompt_len=64,
                         new_tokens=8, sparsity=0.5)  # fmt: skip
    assert rank(own).workload["prompt_len"] == 64
    with pytest.raises(PrunescopeError, match="chat"):
        rank(PredictRequest(model="llama-3.2-1b", device="h100-sxm", workload="picnic"))
    with pytest.raises(PrunescopeError, match="one sparsity"):
        rank(PredictRequest(model="llama-3.2-1b", device="h100-sxm", sparsity="0.1,0.2"))


def evaluated(
    folder: Path, method: str, losses: dict[float, tuple[float, float, float]], draw: int = 0
) -> None:
    """Pruned runs with their quality, as a sweep leaves them."""
    for sparsity, (loss, low, high) in losses.items():
        manifest = Run(
            variant="pruned", model=ModelEntry(id="llama-3.2-1b"), phases={}, dtype="bf16",
            device=DeviceEntry(kind="cpu", name="cpu"), versions={}, seeds={}, argv=[],
            pruning=Pruning(method=method, sparsity=sparsity),
            quality=Quality(perplexity_rel=loss, perplexity_rel_ci95=[low, high]),
        )  # fmt: skip
        place = folder / "runs" / f"{method}-{sparsity}-{draw}" / "pruned"
        place.mkdir(parents=True)
        (place / "run.json").write_text(manifest.to_json(), encoding="utf-8")


@pytest.fixture
def sweep_folder(tmp_path: Path) -> Path:
    evaluated(tmp_path, "static-m", {0.25: (0.2, 0.18, 0.22), 0.5: (1.0, 0.9, 1.1)})
    evaluated(tmp_path, "static-nk", {0.25: (0.4, 0.4, 0.4), 0.5: (1.5, 1.5, 1.5)}, 0)
    evaluated(tmp_path, "static-nk", {0.25: (0.2, 0.2, 0.2)}, 1)  # the median of two draws is 0.3
    evaluated(tmp_path, "my.package:prune", {0.25: (0.1, 0.1, 0.1)})  # no family
    return tmp_path


def test_at_equal_loss_each_family_stands_at_the_sparsity_that_loses_it(sweep_folder: Path) -> None:
    request = PredictRequest(
        model="llama-3.2-1b", device="h100-sxm", workload="chat", losses=sweep_folder, loss=0.2
    )
    found = rank(request)
    rows = {row.family: row for row in found.by["loss"]}
    assert (found.loss, set(rows), found.warnings) == (0.2, {"static-m", "static-nk"}, [])
    assert rows["static-m"].sparsity == pytest.approx(0.25)
    # log 1.2 of log 1.3 on the way from 0 to 0.25
    assert rows["static-nk"].sparsity == pytest.approx(0.25 * math.log(1.2) / math.log(1.3))
    # no interval of the loss, so the range is that of the model alone; draws of 0.2 and 0.4 have
    flops = {row.family: row for row in found.by["flop"]}
    spread = {name: math.log(row.range[1] / row.range[0]) for name, row in rows.items()}
    assert spread["static-nk"] > math.log(flops["static-nk"].range[1] / flops["static-nk"].range[0])


def test_the_loss_that_all_reach_is_the_one_where_none_is_asked(sweep_folder: Path) -> None:
    curves = read_losses(sweep_folder)
    assert curves.common() == pytest.approx(1.0)
    assert curves.models == ("llama-3.2-1b",)
    known = {curve.family: curve for curve in curves.curves}
    assert known["static-m"].sparsities_at(1.0) == pytest.approx(
        (0.5, 0.25 + 0.25 * math.log(2 / 1.22) / math.log(2.1 / 1.22), 0.5)
    )
    assert known["static-m"].sparsities_at(1.01) is None


def test_losses_of_another_model_and_losses_that_are_missing(
    sweep_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    request = PredictRequest(
        model="tiny-llama", device="h100-sxm", prompt_len=64, losses=sweep_folder, loss=1.2
    )
    found = rank(request)
    assert [row.family for row in found.by["loss"]] == ["static-nk"]
    assert "the largest measured loss of static-m is 100.0 %" in found.left_out["static-m"]
    assert found.warnings == ["the losses were measured on llama-3.2-1b"]
    text = shown_ranking(found)
    assert "at equal loss: perplexity +120.0 %" in text
    for bad, problem in (
        ({"losses": tmp_path_factory.mktemp("none")}, "records its loss"),
        ({"losses": sweep_folder / "absent"}, "there is no folder"),
        ({"losses": sweep_folder, "loss": -1.0}, "invalid --loss"),
        ({"loss": 0.1}, "--loss needs --losses"),
    ):
        with pytest.raises(PrunescopeError, match=problem):
            rank(PredictRequest(model="tiny-llama", device="h100-sxm", prompt_len=64, **bad))


def test_losses_too_large_for_any_use_rank_nothing(tmp_path: Path) -> None:
    """Of static-m no point is below 4× the perplexity, of static-nk one of two."""
    far = (17369.3, 17000.0, 18000.0)
    evaluated(tmp_path, "static-m", {0.5: far})
    request = PredictRequest(
        model="llama-3.2-1b", device="h100-sxm", prompt_len=64, losses=tmp_path
    )
    with pytest.raises(
        PrunescopeError, match=r"at most 4× that of .* lowest here is 17,400×"
    ) as raised:
        rank(request)
    assert "lower sparsities" in raised.value.hint
    evaluated(tmp_path, "static-nk", {0.25: (0.4, 0.4, 0.4), 0.5: far})
    found = rank(request)
    assert (found.loss, [row.family for row in found.by["loss"]]) == (0.4, ["static-nk"])
    assert "is too large for any use" in found.left_out["static-m"]
    assert found.warnings == [
        "static-nk: only one run each below 4× the dense perplexity, so equal loss lies on a line "
        "from dense to it: evaluate more sparsities"
    ]
    with pytest.raises(PrunescopeError, match="too large for any use"):
        rank(replace(request, loss=3.5))


def shown_ranking(found: Any) -> str:
    console = Console(width=120, file=io.StringIO())
    console.print(prediction(dict(msgspec.to_builtins(found))))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_what_does_not_fit_is_marked() -> None:
    request = PredictRequest(model="llama-3.1-70b", device="h100-sxm", prompt_len=64, sparsity=0.5)
    found = rank(request)
    rows = {row.family: row.fits for row in found.by["param"]}
    assert rows["static-nk"] is True  # 71 of 80 GB
    assert {row.family: row.fits for row in found.by["flop"]}["dynamic-depth"] is False
    assert found.warnings == ["the dense model does not fit into the memory of h100-sxm"]
    assert "no fit" in shown_ranking(found)


def test_a_family_that_cannot_be_applied_is_left_out_with_the_reason() -> None:
    found = rank(PredictRequest(model="gemma-3-1b", device="h100-sxm", prompt_len=64))
    why = "one KV head serves all query heads, so that no group can go"
    assert found.left_out["static-nk-heads"] == (
        f"static-nk-heads cannot be applied to this model: {why}"
    )
