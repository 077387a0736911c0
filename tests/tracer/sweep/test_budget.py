"""A sweep within hours: what comes first, what is left out, and the preset that it scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.presets import preset_config
from prunescope.taxonomy.runs.run_blocks import MeasuredPeaks
from prunescope.taxonomy.runs.sweep_files import Planned
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.words import rough_time
from prunescope.tracer.sweep import sweep as sweep_module
from prunescope.tracer.sweep.budget import decisive_first, fit_budget
from prunescope.tracer.sweep.config import presets, read_configs
from prunescope.tracer.sweep.limits import check_possible, limits_here, limits_of_fixed_steps
from prunescope.tracer.sweep.plan import SweepConfig, SweepPlan, make_plan
from prunescope.tracer.sweep.request import SweepRequest
from prunescope.tracer.sweep.sweep import plan_of, summary

HOUR = 3600.0
SMALL = {"model": "tiny-llama", "mode": ["eager"], "batches": [1, 2], "prompt_lens": [8, 16]}


def each_an_hour(results: Sequence[Planned]) -> float:
    return HOUR * len(results)


def plan(**options: object) -> SweepPlan:
    config = SweepConfig(
        model="m", families=("static-m", "dynamic-m"), batches=(1, 8), draws=2, **options
    )  # type: ignore[arg-type]
    return make_plan([config], None)


def test_a_cell_is_whole_before_the_next_and_samples_come_last() -> None:
    """4 sparsities × 2 families, in 2 phases of 2 batches, drawn twice: 64 results."""
    results = plan().results
    fitted = fit_budget(results, 19.5, each_an_hour)
    assert (len(fitted.kept), len(fitted.left_out)) == (18, 46)
    assert {(one.batch, one.draw) for one in fitted.kept[:16]} == {(1, 0)}
    assert {one.phase for one in fitted.kept[:8]} == {"prefill"}
    # The ends of the sparsities first, and all families at each.
    assert [(one.sparsity, one.family) for one in fitted.kept[:4]] == [
        (0.5, "static-m"), (0.5, "dynamic-m"), (0.125, "static-m"), (0.125, "dynamic-m")
    ]  # fmt: skip
    assert {(one.batch, one.sparsity) for one in fitted.kept[16:]} == {(8, 0.5)}
    assert all(one.draw == 1 for one in fitted.left_out[-32:])
    first, second = fitted.lines()
    assert first.startswith("--budget 19.5: 18 of 64 results, about 18 h: batch 1, 512 tokens pre")
    assert "about 46 h more would not fit" in second and "random sample 2 (32)" in second


def test_models_at_the_ends_of_the_sparsities_are_measured_first(tmp_path: Path) -> None:
    """A sweep that is stopped has every family, not all of one. A model's cells stay together."""
    whole = plan()
    request = SweepRequest(tmp_path / "sweep.yaml", out=tmp_path / "swept")
    jobs = sweep_module._jobs(request, whole, decisive_first(whole.results))
    models = [(job.results[0].sparsity, job.results[0].family) for job in jobs]
    shares = (0.5, 0.125, 0.25, 0.375)
    first = [(share, family) for share in shares for family in ("static-m", "dynamic-m")]
    assert models[:8] == first
    assert all(job.results[0].draw == 1 for job in jobs[8:])
    assert {len(job.results) for job in jobs} == {4}


def test_layers_come_after_whole_models_and_all_may_fit() -> None:
    results = plan(only=("layer", "model")).results
    assert [result.only for result in fit_budget(results, 64, each_an_hour).kept] == [
        "model"
    ] * 32 + ["layer"] * 32
    whole = fit_budget(results, 1e3, each_an_hour)
    assert len(whole.kept) == 128 and not whole.left_out and len(whole.lines()) == 1
    with pytest.raises(PrunescopeError, match="too little for the first step") as caught:
        fit_budget(results, 0.5, each_an_hour)
    assert "--budget 2.2" in str(caught.value.hint)
    assert fit_budget([], 1, each_an_hour).kept == ()


def test_what_an_option_is_worth_comes_after_the_families_without_it() -> None:
    """Alignments of two families that stand there themselves; in a sweep of alignments alone they
    are its points, in their cells."""
    usual = SweepConfig(model="m", families=("static-nk", "dynamic-m"), batches=(1, 8))
    aligned = SweepConfig(model="m", families=("static-nk",), set={"align": ("1", "16")})
    whole = fit_budget(make_plan([aligned, usual], None).results, 99, each_an_hour)
    assert [bool(one.set) for one in whole.kept] == [False] * 32 + [True] * 16
    assert "prefill by align (8)" in whole.lines()[0]
    alone = make_plan([SweepConfig(**{**vars(usual), "set": {"align": ("1", "16")}})], None)
    first = fit_budget(alone.results, 3, each_an_hour).kept
    assert {(one.family, one.sparsity, one.batch) for one in first} == {
        ("static-nk", 0.5, 1), ("dynamic-m", 0.5, 1),
    }  # fmt: skip


def test_the_keys_of_a_file_replace_those_of_a_preset(tmp_path: Path) -> None:
    before, after = presets()["paper"], read_configs(SMALL, "paper")
    assert len(after) == len(before) - 1  # the sweeps of whole models have become the same one
    assert (after[0].model, after[0].mode) == ("tiny-llama", ("eager",))
    assert (after[0].families, after[0].warmup) == (before[0].families, (10,))
    assert [(one.only, one.set) for one in after[1:]] == [(one.only, one.set) for one in before[2:]]
    (named,), (without,) = (
        presets()["paper-recovery"],
        read_configs({"text": None}, "paper-recovery"),
    )
    assert str(named.text) == "wikitext2" and without == replace(named, text=None)
    # What a preset sets is not asked of families that do not have it; what a file sets is.
    by_layers = read_configs({**SMALL, "families": ["static-m"]}, "paper")
    assert not any(one.set for one in by_layers) and make_plan(by_layers, None)
    with pytest.raises(PrunescopeError, match="has an option 'align'"):
        own = {**SMALL, "families": ["static-m"], "set": {"align": [1]}}
        make_plan(read_configs(own, "paper"), None)
    two = tmp_path / "two.yaml"
    two.write_text("model: tiny-llama\n---\nmodel: tiny-gpt2\n")
    for config, says in (({"modle": "x"}, "unknown key"), (two, "takes the keys of one")):
        with pytest.raises(PrunescopeError, match=says):
            read_configs(config, "paper")  # type: ignore[arg-type]


def test_what_a_machine_without_a_gpu_cannot_do() -> None:
    shape = ModelShape.from_config(preset_config("llama-3.1-8b"))
    study = make_plan(presets()["paper"], shape)
    assert any("CUDA graphs" in line for line in limits_here(study))
    with pytest.raises(PrunescopeError, match="no GPU") as caught:
        check_possible(study.results)
    assert "--preset" in str(caught.value.hint)
    small = make_plan(read_configs({**SMALL, "prompt_lens": [8, 8192]}, "paper"), None)
    check_possible(small.results)
    assert not any("CUDA graphs" in line for line in limits_here(small))
    (too_long,) = [line for line in limits_here(small) if "was made for" in line]
    assert "8,192 tokens" in too_long and "4,096" in too_long
    assert "this machine" not in too_long  # no machine makes the model's positions more


def test_a_request_with_a_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = MeasuredPeaks(dense_flop_per_s={"fp32": 1e6}, byte_per_s=1e6)  # of a slow machine
    monkeypatch.setattr("prunescope.tracer.sweep.estimate.peaks_here", lambda *_: [peaks])
    request = SweepRequest({**SMALL, "dtype": "float32"}, out=tmp_path / "s", preset="paper")
    whole = summary(request, plan_of(request), estimate=True)["plan"]
    request.budget = (whole["seconds"] or 0) / HOUR / 2
    part = summary(request, found := plan_of(request), estimate=True)["plan"]
    assert found.budget is not None and 0 < len(found.budget.kept) < whole["pending"]
    assert part["left_out"] == len(found.budget.left_out)
    assert part["seconds"] == pytest.approx(found.budget.seconds)
    assert request.budget * HOUR >= found.budget.seconds > 0.3 * (whole["seconds"] or 0)
    assert any("left out" in line for line in part["notes"])
    monkeypatch.setattr(sweep_module, "shape_without_weights", lambda _: None)
    request.config = {**SMALL, "families": ["static-m"]}
    with pytest.raises(PrunescopeError, match="--budget needs an estimate"):
        plan_of(request)


def test_short_times_are_in_seconds() -> None:
    assert [rough_time(seconds) for seconds in (0.2, 36, 119, 150, 7200)] == [
        "1 s", "36 s", "119 s", "2 min", "2 h",
    ]  # fmt: skip


def test_what_steps_of_fixed_shapes_cannot_show() -> None:
    """dynamic-m in decode at s = 0.25 runs int(0.75) = 0, hence 1, of 1 row, and 6 of 8."""

    def lines(**how: Any) -> list[str]:
        own = SweepConfig(
            model="m",
            families=("dynamic-m", "static-nk"),
            sparsities=(0.25,),
            batches=(1, 8),
            **{"mode": ("compile",), **how},
        )
        return limits_of_fixed_steps(make_plan([own], None))

    (by_count,) = lines()
    assert by_count.startswith(
        "1 of 8 results decode dynamic-m in steps of fixed shapes, which run"
    )
    (by_threshold,) = lines(select="importance")
    assert by_threshold.startswith("2 of 8 results") and "never faster" in by_threshold
    assert not lines(mode=("eager",))
