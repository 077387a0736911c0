"""Recovery in a sweep: one training a model, a dense control, two texts, kills, and the bundle of
it: its record and losses, and the table that verify rebuilds."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.bundle import bundle as bundling
from prunescope.analysis.bundle import verify as verifying
from prunescope.analysis.bundle.archive import zip_bytes
from prunescope.analysis.bundle.bundle import SUMS, sums_text
from prunescope.analysis.bundle.verify import verify
from prunescope.analysis.pareto.pareto import judge
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report.listings import sweep_state
from prunescope.results.pareto import Pareto
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.runs.run import read_run
from prunescope.taxonomy.runs.run_blocks import Recovered
from prunescope.taxonomy.runs.sweep_files import read_sweep
from prunescope.tracer.recovery import examples, training
from prunescope.tracer.sweep import control, job, point_saving
from prunescope.tracer.sweep.request import SweepRequest
from prunescope.tracer.sweep.sweep import plan_of, summary, sweep
from tests.hostile.case import TEXT_FORMATS
from tests.small_capture import same_peaks
from tests.tracer.recovery.test_recover import Killed, Killer

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    """Few tokens judge; what is measured is the same for all, whatever runs beside the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "TOKENS", 256)
        patch.setattr(job, "_was_disturbed", lambda _out: False)
        patch.setattr(examples, "HELD_OUT", 256)
        same_peaks(patch)
        yield


def request_of(reader: Path, folder: Path, **keys: Any) -> SweepRequest:
    """The request of a small sweep on the model that reads bytes."""
    plain = {
        "model": str(reader / "model"), "families": ["static-m"], "sparsities": [0.5],
        "phases": ["prefill"], "prompt_lens": [16], "decode_steps": 2, "repeats": 2,
        "steps": 1, "placements": 1, "threads": 1, "text": str(reader / "words.txt"),
        "other_text": str(reader / "other.txt"),
        "recover": {"steps": 8, "rank": 4, "length": 32, "lr": 0.01}, **keys,
    }  # fmt: skip
    folder.with_suffix(".yaml").write_text(json.dumps(plain))
    return SweepRequest(config=folder.with_suffix(".yaml"), out=folder)


@pytest.fixture
def asked(reader: Path, tmp_path: Path) -> Any:
    return lambda name, **keys: request_of(reader, tmp_path / name, **keys)


@pytest.fixture(scope="module")
def trained(
    reader_of: Callable[[int], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A sweep of one training, and the last text of its progress."""
    progress = Killer(after=10**6)
    request = request_of(reader_of(2), tmp_path_factory.mktemp("trained") / "s")
    sweep(request, progress)
    return request.out, progress.said


@pytest.fixture(scope="module")
def of_two(
    reader_of: Callable[[int], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[SweepRequest, list[str]]:
    """A sweep of two families, and the names of its trainings."""
    names: list[str] = []
    run = training.Training.run
    request = request_of(
        reader_of(2), tmp_path_factory.mktemp("two") / "s", families=["static-m", "static-nk-mlp"]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Training, "run", lambda t: (names.append(t.name), run(t))[1])
        assert summary(request, plan_of(request), estimate=True)["plan"]["trainings"] == 3
        sweep(request)
    return request, names


def records(out: Path) -> list[Recovered]:
    runs = [read_run(path) for path in sorted(out.glob("runs/*/pruned"))]
    return [r.pruning.recovery for r in runs if r.pruning and r.pruning.recovery]


def test_one_training_a_model_and_one_of_the_dense_control(
    of_two: tuple[SweepRequest, list[str]],
) -> None:
    request, names = of_two
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


def test_selections_are_points_and_trainings_of_their_own(asked: Any) -> None:
    request = asked("s", select=["importance", "greedy"], families=["static-m", "static-nk-mlp"])
    assert {r.id for r in plan_of(request).results} == {
        "static-m-s0.5-prefill-b1-p16-d0-importance", "static-m-s0.5-prefill-b1-p16-d0-greedy",
        "static-nk-mlp-s0.5-prefill-b1-p16-d0-importance",
    }  # fmt: skip
    sweep(request)
    kept = sorted(path.stem for path in request.out.glob("recovery/*.safetensors"))
    chosen = [f"static-m-0.5-{how}-seed-0" for how in ("greedy", "importance")]
    assert kept == ["dense-control", *chosen, "static-nk-mlp-0.5-importance-seed-0"]
    found = judge(request.out).phases["prefill"].points
    assert sorted((p.family, p.select) for p in found) == [
        ("static-m", "greedy"), ("static-m", "importance"), ("static-nk-mlp", "importance"),
    ]  # fmt: skip


def test_the_work_is_that_without_training(asked: Any, trained: tuple[Path, str]) -> None:
    request = asked("plain", recover=None)
    sweep(request)
    bounds = [judge(out).phases["prefill"].points[0] for out in (request.out, trained[0])]
    assert bounds[0].bounds["flop"] == pytest.approx(bounds[1].bounds["flop"], rel=1e-9)
    before, after = bounds[0].loss, bounds[1].loss
    assert before is not None and before.other_text is not None and after is not None
    assert before.perplexity_rel_recovered is None
    assert before.other_text.perplexity_rel is not None
    assert (after.perplexity_rel or 0.0) < (before.perplexity_rel or 0.0)


def test_a_killed_sweep_goes_on_with_its_training(
    asked: Any, trained: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAVE_S", 0.0)
    whole, cut = trained[0], asked("cut")

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
    before, after = records(whole), records(cut.out)
    assert [r.resumed_from for r in after] == [8]
    assert [r.weights_sha256 for r in after] == [r.weights_sha256 for r in before]
    losses = [json.loads((out / "quality/static-m-s0.5-d0.json").read_bytes())["pruned"]
              for out in (whole, cut.out)]  # fmt: skip
    assert losses[0]["perplexity_rel_recovered"] == losses[1]["perplexity_rel_recovered"]


def test_progress_is_told_in_a_sweep(trained: tuple[Path, str]) -> None:
    assert "1/1 static-m-s0.5-prefill-b1-p16-d0: train dense control: loss " in trained[1]


@pytest.mark.parametrize(
    ("keys", "problem"),
    [({"recover": {"steps": 0}}, "recover steps=0 is invalid"), ({"recover": 3}, "not a training"),
     ({"recover": "rank=3"}, "no number of steps"), ({"select": ["importance", "best"]}, "'best'")],
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


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


_analyzed: dict[str, Any] = {}


def analyzed_once(folder: Path, **_options: Any) -> Any:
    """Bundles and forgeries hold the same runs: each is analysed once, told by its bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in files]
    key = hashlib.sha256(repr([names, [path.read_bytes() for path in files]]).encode()).hexdigest()
    if key not in _analyzed:
        _analyzed[key] = analyze(folder)
    return _analyzed[key]


def test_the_frontier_is_rebuilt_from_the_bundle(
    of_two: tuple[SweepRequest, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundling, "FORMATS", TEXT_FORMATS)  # figures take seconds
    for module in (bundling, verifying):
        monkeypatch.setattr(module, "analyze", analyzed_once)
    swept = of_two[0].out
    for anonymous in (True, False):
        out = bundling.bundle([swept], tmp_path / f"b{anonymous}.zip", anonymous=anonymous)
        assert verify(out)["ok"]
        files = members(out)
        assert_table(swept, files)
    assert_forgeries_are_seen(files, tmp_path / "forged.zip")


def assert_table(swept: Path, files: dict[str, bytes]) -> None:
    rows = list(csv.DictReader(io.StringIO(files["frontier.csv"].decode())))
    points = {p.family: p for p in judge(swept).phases["prefill"].points}
    assert {row["family"] for row in rows} == set(points)
    for row in rows:
        loss = points[row["family"]].loss
        assert loss is not None and loss.other_text is not None
        assert float(row["perplexity_rel_recovered"]) == loss.perplexity_rel_recovered
        assert float(row["other_text"]) == loss.other_text.perplexity_rel
        assert float(row["speedup"]) == pytest.approx(points[row["family"]].realised, rel=1e-6)
        assert row["timing_valid"] == ("yes" if points[row["family"]].timing_valid else "no")
        assert row["on_frontier"] == ("yes" if points[row["family"]].on_frontier else "no")
        assert row["steps"] == "8"
    manifests = [n for n in files if n.endswith("pruned/run.json")]
    record = json.loads(files[manifests[0]])["pruning"]["recovery"]
    assert len(record["weights_sha256"]) == len(record["train_sha256"]) == 64
    assert record["losses"]["held_out"]["after"] < record["losses"]["held_out"]["before"]


def assert_forgeries_are_seen(files: dict[str, bytes], forged: Path) -> None:
    # No number of the table may be another one, whatever version bundle.json names.
    older = {
        **files,
        "bundle.json": files["bundle.json"].replace(b'"prunescope ', b'"prunescope 9'),
    }
    # Times that something disturbed are not valid in the table.
    verdict = (b",yes\n", b",no\n") if b",yes\n" in files["frontier.csv"] else (b",no\n", b",yes\n")
    for change in (verdict, (b",8,", b",9,")):
        moved = {**older, "frontier.csv": files["frontier.csv"].replace(*change)}
        moved[SUMS] = sums_text(moved).encode()
        forged.write_bytes(zip_bytes(moved))
        assert not verify(forged)["ok"]
    # A number of the table that is changed, and the sums with it, is seen.
    files["frontier.csv"] = files["frontier.csv"].replace(b",8,", b",9,")
    files[SUMS] = sums_text(files).encode()
    forged.write_bytes(zip_bytes(files))
    assert "frontier.csv" in {f["file"] for f in verify(forged)["failed"]}


def test_a_point_is_saved_with_the_weights_that_were_timed(
    trained: tuple[Path, str],
    reader_of: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, reader = trained[0], reader_of(2)
    point = read_sweep(folder).results[0].id
    model, text = str(reader / "model"), reader / "words.txt"
    pareto = Pareto.compute(folder)
    record = pareto.pruned_model(point, model, text=text).save(tmp_path / "saved")
    assert record["kind"] == "plain"
    card = (tmp_path / "saved" / "README.md").read_text()
    run = read_run(folder / "runs" / point / "pruned")
    assert run.quality is not None
    assert f"{run.quality.perplexity:.4g}" in card
    assert "prefill: " in card
    with pytest.raises(PrunescopeError, match=r"read the text words\.txt"):
        pareto.pruned_model(point, model).save(tmp_path / "no text")
    with pytest.raises(PrunescopeError, match=r"other\.txt is not the text"):
        pareto.pruned_model(point, model, text=reader / "other.txt").save(tmp_path / "text")
    monkeypatch.setattr(point_saving, "weights_fingerprint", lambda _model: "another")
    with pytest.raises(PrunescopeError, match="has other weights now"):
        pareto.pruned_model(point, model, text=text).save(tmp_path / "other")
    with pytest.raises(PrunescopeError, match="no point of s is called 'x'"):
        pareto.pruned_model("x", model, text=text).save(tmp_path / "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved"]
