"""Recovery in a sweep: one training a model, a dense control, two texts, and kills."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pareto.pareto import judge
from prunescope.analysis.report.listings import sweep_state
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.run import read_run
from prunescope.taxonomy.run_blocks import Recovered
from prunescope.taxonomy.sweep_files import read_sweep
from prunescope.tracer.recovery import training
from prunescope.tracer.sweep import control, job
from prunescope.tracer.sweep.request import SweepRequest
from prunescope.tracer.sweep.sweep import plan_of, summary, sweep
from tests.small_capture import same_peaks
from tests.tracer.recovery.test_recover import Killed, Killer

pytestmark = [pytest.mark.torch, pytest.mark.four_layers]


@pytest.fixture
def asked(reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The request of a small sweep on the model that reads bytes."""
    monkeypatch.setattr(job, "TOKENS", 256)
    same_peaks(monkeypatch)
    monkeypatch.setattr(job, "_was_disturbed", lambda _out: False)  # whatever runs beside tests

    def make(name: str, **keys: Any) -> SweepRequest:
        plain = {
            "model": str(reader / "model"), "families": ["static-m"], "sparsities": [0.5],
            "phases": ["prefill", "decode"], "prompt_lens": [16], "decode_steps": 2, "repeats": 2,
            "steps": 1, "placements": 1, "threads": 1, "text": str(reader / "words.txt"),
            "other_text": str(reader / "other.txt"),
            "recover": {"steps": 8, "rank": 4, "length": 32, "lr": 0.01}, **keys,
        }  # fmt: skip
        (tmp_path / f"{name}.yaml").write_text(json.dumps(plain))
        return SweepRequest(config=tmp_path / f"{name}.yaml", out=tmp_path / name)

    return make


def records(out: Path) -> list[Recovered]:
    runs = [read_run(path) for path in sorted(out.glob("runs/*/pruned"))]
    return [r.pruning.recovery for r in runs if r.pruning and r.pruning.recovery]


def test_one_training_a_model_and_one_of_the_dense_control(
    asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    run = training.Training.run
    monkeypatch.setattr(training.Training, "run", lambda t: (names.append(t.name), run(t))[1])
    request = asked("s", families=["static-m", "static-nk-mlp"], phases=["prefill"])
    assert summary(request, plan_of(request), estimate=True)["plan"]["trainings"] == 3
    sweep(request)
    assert sorted(names) == [
        "dense control",
        "static-m 0.5 random seed 0",
        "static-nk-mlp 0.5 random seed 0",
    ]
    found = judge(request.out)
    for points in (phase.points for phase in found.phases.values()):
        assert len(points) == 2
        for point in points:
            loss = point.loss
            assert loss is not None and loss.other_text is not None
            # Trained alike, the dense model is better than as it came, and pruning costs more.
            own = loss.perplexity_rel_recovered or 0.0
            assert own > (loss.perplexity_rel or 0.0)
            low, high = loss.recovered_ci95 or (0.0, 0.0)
            assert low <= own <= high
            assert loss.other_text.perplexity_rel is not None
            assert loss.other_text.perplexity_rel_recovered is not None
    plan = json.loads((request.out / "plan.json").read_bytes())
    assert plan["config"]["recover"]["steps"] == 8
    assert plan["config"]["other_text"] == "other.txt"
    for entry in read_sweep(request.out).results:
        held_out = entry.held_out
        assert held_out is not None and held_out.tokens and held_out.before and held_out.after
        assert held_out.after < held_out.before and held_out.block_tokens == []
    assert all(p.recovery for phase in found.phases.values() for p in phase.points)


def test_every_selection_keeps_a_training_of_its_own(asked: Any) -> None:
    request = asked("s", select=["importance", "greedy"], phases=["prefill"])
    sweep(request)
    kept = sorted(path.stem for path in request.out.glob("recovery/*.safetensors"))
    chosen = [f"static-m-0.5-{how}-seed-0" for how in ("greedy", "importance")]
    assert kept == ["dense-control", *chosen]


def test_the_work_is_that_without_training(asked: Any) -> None:
    bounds = []
    for name, keys in (("plain", {"recover": None}), ("trained", {})):
        request = asked(name, phases=["prefill"], **keys)
        sweep(request)
        bounds.append(judge(request.out).phases["prefill"].points[0])
    assert bounds[0].bounds["flop"] == pytest.approx(bounds[1].bounds["flop"], rel=1e-9)
    before, after = bounds[0].loss, bounds[1].loss
    assert before is not None and before.other_text is not None and after is not None
    assert before.perplexity_rel_recovered is None
    assert before.other_text.perplexity_rel is not None
    assert (after.perplexity_rel or 0.0) < (before.perplexity_rel or 0.0)


def test_a_killed_sweep_goes_on_with_its_training(
    asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAVE_S", 0.0)
    whole, cut = (asked(name, phases=["prefill"]) for name in ("whole", "cut"))
    sweep(whole)

    def kill(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(
            training.Training, "_progress_text", lambda t, _: "" if t.state.step < 5 else kill()
        )
        with pytest.raises(Killed):
            sweep(cut)
    with monkeypatch.context() as patch:  # trained, and killed before the control was
        patch.setattr(control, "copy", type("Copy", (), {"deepcopy": kill}))
        with pytest.raises(Killed):
            sweep(cut)
    sweep(cut)
    before, after = records(whole.out), records(cut.out)
    assert [r.resumed_from for r in after] == [8]
    assert [r.weights_sha256 for r in after] == [r.weights_sha256 for r in before]
    losses = [json.loads((r.out / "quality/static-m-s0.5-d0.json").read_bytes())["pruned"]
              for r in (whole, cut)]  # fmt: skip
    assert losses[0]["perplexity_rel_recovered"] == losses[1]["perplexity_rel_recovered"]


def test_progress_is_told_in_a_sweep(asked: Any) -> None:
    progress = Killer(after=10**6)
    sweep(asked("s", phases=["prefill"]), progress)
    assert "1/1 static-m-s0.5-prefill-b1-p16-d0: train dense control: loss " in progress.said


def test_selections_are_points_of_their_own(asked: Any) -> None:
    request = asked(
        "s", select=["importance", "greedy"], families=["static-m", "static-nk-mlp"],
        phases=["prefill"], recover=None,
    )  # fmt: skip
    assert {r.id for r in plan_of(request).results} == {
        "static-m-s0.5-prefill-b1-p16-d0-importance", "static-m-s0.5-prefill-b1-p16-d0-greedy",
        "static-nk-mlp-s0.5-prefill-b1-p16-d0-importance",
    }  # fmt: skip
    sweep(request)
    found = judge(request.out).phases["prefill"].points
    assert sorted((p.family, p.select) for p in found) == [
        ("static-m", "greedy"), ("static-m", "importance"), ("static-nk-mlp", "importance"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "problem"),
    [({"recover": {"steps": 0}}, "recover steps=0 is invalid"), ({"recover": 3}, "not a training"),
     ({"recover": "rank=3"}, "how many steps"), ({"select": ["importance", "best"]}, "'best'")],
)  # fmt: skip
def test_a_mistake_is_found_before_any_work(asked: Any, keys: Any, problem: str) -> None:
    with pytest.raises(PrunescopeError, match=problem):
        plan_of(asked("s", **keys))


def test_the_other_text_is_another_one(asked: Any, reader: Path) -> None:
    with pytest.raises(PrunescopeError, match="is also used for training or calibration"):
        plan_of(asked("s", other_text=str(reader / "words.txt")))


def test_hours_are_told_with_and_without_training() -> None:
    from rich.console import Console

    plan = {"results": 4, "models": 2, "done": 0, "failed": 0, "pending": 4, "impossible": 0,
            "seconds": 4 * 3600.0, "recovery_seconds": 3.5 * 3600, "trainings": 3,
            "notes": []}  # fmt: skip
    console = Console(record=True, width=120)
    console.print(sweep_state({"plan": plan, "results": [], "out": "x"}))
    assert "about 4.0 h on this machine, roughly; 30 min without recovery (3 trainings" in (
        console.export_text()
    )
