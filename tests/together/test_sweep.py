"""A sweep end to end on a tiny model: plan, resume, kills, failures, shards, engines."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from prunescope.analysis.pareto.pareto import judge
from prunescope.analysis.report.listings import sweep_state
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import changed
from prunescope.taxonomy.runs.run import read_run
from prunescope.tracer.machine import peaks
from prunescope.tracer.sweep.request import SweepRequest
from prunescope.tracer.sweep.state import SweepFolder, timing_slot
from prunescope.tracer.sweep.sweep import plan_of, summary, sweep
from tests.small_capture import PEAKS, SMALL_SWEEP, same_peaks

ROOT = Path(__file__).resolve().parents[2]


def shorten(patch: pytest.MonkeyPatch) -> None:
    """A short text, peaks that need no measuring, and one capture, whatever runs beside tests."""
    from prunescope.tracer.sweep import job

    patch.setattr(job, "TOKENS", 128)
    same_peaks(patch)
    patch.setattr(job, "_was_disturbed", lambda _out: False)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `shorten` has it, for a test."""
    shorten(monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SweepRequest:
    """A sweep that ran through; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        sweep(request := SweepRequest(config=config(folder), out=folder / "s"))
    return request


def config(folder: Path, text: str = SMALL_SWEEP) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def results(folder: Path) -> list[dict[str, Any]]:
    plain = json.loads((folder / "sweep.json").read_bytes())
    assert plain["schema"] == 1
    found: list[dict[str, Any]] = plain["results"]
    return found


def states(folder: Path) -> dict[str, str]:
    return {r["id"]: r["state"] for r in results(folder)}


def stamps(folder: Path) -> dict[str, int]:
    whole = folder.glob("runs/[!.]*/pruned/*.json")  # not one that is being written
    return {p.parent.parent.name: p.stat().st_mtime_ns for p in whole}


@pytest.mark.torch
def test_every_result_is_a_run_with_its_baseline_and_its_quality(whole: SweepRequest) -> None:
    out = whole.out
    assert set(states(out).values()) == {"done"}
    assert len(states(out)) == 2 * 2 * 2
    marks: dict[Any, set[str]] = {}
    for result in results(out):
        run = read_run(out / result["run"])
        assert run.pruning is not None
        point = (result["family"], result["sparsity"])
        assert (run.pruning.method, run.pruning.sparsity) == point
        assert list(run.phases) == [result["phase"]]
        steps = [seat.steps for seat in run.phases[result["phase"]].placements]
        assert steps == [0, {"prefill": 1, "decode": 2}[result["phase"]]]  # not one a placement
        quality = run.quality
        assert quality is not None and quality.text is not None
        assert quality.text.source == "random token ids"
        assert quality.perplexity_rel is not None
        marks.setdefault(point, set()).add(quality.weights_fingerprint or "")
        assert run.twin is not None
        dense = read_run(out / result["run"] / ".." / "dense")
        assert dense.quality is not None
        assert dense.quality.perplexity == quality.dense_perplexity
    # The phases of a point were run by one object, those of two points by two.
    assert all(len(found) == 1 for found in marks.values())
    assert len(set.union(*marks.values())) == 4
    peaks = [read_run(out / r["run"]).device.peaks for r in results(out)]
    assert all(one is not None and one.reached for one in peaks)  # by the products of each run
    assert len({str(one and changed(one, reached=None)) for one in peaks}) == 1


@pytest.mark.torch
@pytest.mark.four_layers
@pytest.mark.usefixtures("short")
def test_a_loss_is_that_of_the_phase_that_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Token by token in decode where a model decides at run time, and in both phases where one of
    its families does nothing in one forward."""
    text = SMALL_SWEEP.replace("[static-m, static-nk-mlp]", "[dynamic-m, static-nk-mlp+token-drop]")
    request = SweepRequest(
        config=config(tmp_path, text.replace("[0.25, 0.5]", "[0.5]")), out=tmp_path / "s"
    )
    sweep(request)
    assert set(states(request.out).values()) == {"done"}
    found = {}
    for result in results(request.out):
        quality = read_run(request.out / result["run"]).quality
        assert quality is not None and quality.phase == result["phase"]
        found[result["family"], quality.phase] = quality
    ways = {key: (quality.scoring, quality.looks_ahead) for key, quality in found.items()}
    assert ways == {
        ("dynamic-m", "prefill"): ("prefill", False),  # random numbers know no tokens
        ("dynamic-m", "decode"): ("decode", False),
        ("static-nk-mlp+token-drop", "prefill"): ("decode", False),
        ("static-nk-mlp+token-drop", "decode"): ("decode", False),
    }
    assert found["dynamic-m", "prefill"].perplexity != found["dynamic-m", "decode"].perplexity
    kept = {path.name for path in (request.out / "quality").iterdir()}
    assert kept == {
        "dynamic-m-s0.5-d0-prefill.json", "dynamic-m-s0.5-d0-decode.json",
        "static-nk-mlp-token-drop-s0.5-d0.json",
    }  # fmt: skip
    assert (
        "Losses in prefill were scored so: static-nk-mlp+token-drop one token after another; "
        "dynamic-m in one forward, in which no prediction depends on later tokens."
    ) in judge(request.out).summary
    monkeypatch.setattr(peaks, "measure_peaks", lambda *_, **__: PEAKS)
    cost = summary(
        SweepRequest(config=request.config, out=tmp_path / "t"), plan_of(request), estimate=True
    )["plan"]
    assert 0 < (cost["decode_scoring_seconds"] or 0) < (cost["seconds"] or 0)


@pytest.mark.torch
@pytest.mark.usefixtures("short")
def test_a_second_run_repeats_nothing_and_a_lost_result_is_had_again(
    whole: SweepRequest, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(whole.out, tmp_path / "s"))
    request = SweepRequest(config=whole.config, out=out)
    before = stamps(out)
    sweep(request)
    assert stamps(out) == before
    lost = "static-m-s0.5-decode-b1-p16-d0"
    shutil.rmtree(out / "runs" / lost)
    (out / "runs" / f".{lost}.partial-x").mkdir()
    assert summary(request, plan_of(request))["plan"]["pending"] == 1
    sweep(request)
    after = stamps(out)
    assert set(states(out).values()) == {"done"}
    assert {name for name in before if before[name] != after[name]} == {lost}
    assert not list((out / "runs").glob(".*partial*"))


@pytest.mark.torch
@pytest.mark.usefixtures("short")
def test_a_failure_is_recorded_with_its_error_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = SMALL_SWEEP.replace("[static-m, static-nk-mlp]", "[static-k-24, static-m]")
    request = SweepRequest(config=config(tmp_path, text), out=tmp_path / "s")
    import prunescope.tracer.sweep.job

    trace = prunescope.tracer.sweep.job.trace

    def flaky(request: Any, **options: Any) -> Path:
        if request.method == "static-m" and request.phase == "decode":
            raise RuntimeError("no luck in /home/somebody/x")
        return trace(request, **options)

    monkeypatch.setattr(prunescope.tracer.sweep.job, "trace", flaky)
    out = sweep(request)
    found = {r["id"]: r for r in results(out)}
    for phase in ("prefill", "decode"):
        impossible = found[f"static-k-24-s0.25-{phase}-b1-p16-d0"]
        assert impossible["state"] == "failed"
        assert "2:4 sparsity is 0.5, not 0.25" in impossible["error"]
        assert impossible["run"] is None
        assert found[f"static-k-24-s0.5-{phase}-b1-p16-d0"]["state"] == "done"
    unlucky = found["static-m-s0.5-decode-b1-p16-d0"]
    assert unlucky["error"] == "RuntimeError: no luck in x"
    monkeypatch.setattr(prunescope.tracer.sweep.job, "trace", trace)
    sweep(request)
    found = {r["id"]: r for r in results(out)}
    assert found["static-m-s0.5-decode-b1-p16-d0"]["state"] == "done"
    assert found["static-m-s0.5-decode-b1-p16-d0"]["error"] is None
    assert sum(r["state"] == "failed" for r in results(out)) == 2


@pytest.mark.torch
@pytest.mark.usefixtures("short")
def test_the_dense_model_is_loaded_once_and_every_pruned_one_is_the_same(
    whole: SweepRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunescope.tracer.capture import variants
    from prunescope.tracer.sweep.job import JobRunner

    loads: list[str] = []
    load = variants.load_model

    def counted(name: str, **options: Any) -> Any:
        loads.append(name)
        return load(name, **options)

    monkeypatch.setattr(variants, "load_model", counted)
    text = SMALL_SWEEP.replace("[prefill, decode]", "[prefill]")
    again = SweepRequest(config=config(tmp_path, text), out=tmp_path / "kept")
    sweep(again)
    assert loads == ["tiny-llama"]
    monkeypatch.setattr(JobRunner, "_keep_dense", lambda *_, **__: None)
    sweep(alone := SweepRequest(config=config(tmp_path, text), out=tmp_path / "alone"))
    assert loads == ["tiny-llama"] * 5  # four models, each beside a dense one of its own
    judged = {
        name.name: [json.loads((request.folder / "quality" / name.name).read_bytes())
                    for request in (again, alone, whole)]
        for name in sorted((again.folder / "quality").iterdir())
    }  # fmt: skip
    assert len(judged) == 4
    for kept, loaded, other in judged.values():
        assert kept == loaded
        assert kept["weights"] == other["weights"]


@pytest.mark.usefixtures("short")
def test_shards_fill_one_folder_with_the_same_results(tmp_path: Path) -> None:
    path = config(tmp_path, SMALL_SWEEP.replace("[prefill, decode]", "[decode]"))
    planned = {r.id for r in plan_of(SweepRequest(config=path, out=tmp_path)).results}
    out = tmp_path / "s"
    sweep(SweepRequest(config=path, out=out, shard="1/2"))
    assert sorted(states(out).values()) == ["done"] * 2 + ["pending"] * 2
    sweep(SweepRequest(config=path, out=out, shard="0/2"))
    assert states(out) == dict.fromkeys(planned, "done")


@pytest.mark.torch
@pytest.mark.slow
def test_killed_ten_times_it_ends_with_the_same_results(tmp_path: Path) -> None:
    out = tmp_path / "s"
    code = (
        "import sys; sys.path.insert(0, sys.argv[3]); import prunescope.tracer.sweep.job as job; "
        "job.TOKENS = 256; from pathlib import Path; "
        "from prunescope.tracer.sweep.sweep import SweepRequest, sweep; "
        "sweep(SweepRequest(config=Path(sys.argv[1]), out=Path(sys.argv[2])))"
    )
    command = [sys.executable, "-c", code, str(config(tmp_path)), str(out), str(ROOT)]
    stream, kills, before = random.Random(5), 0, {}
    while kills < 10:
        process = subprocess.Popen(command, start_new_session=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(stream.uniform(2, 16))
        if process.returncode == 0:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        after = stamps(out)
        assert {name: after.get(name) for name in before} == before, "something done was lost"
        before = after
        if (out / "sweep.json").exists():
            assert len(results(out)) == 8
    subprocess.run(command, check=True, timeout=600)
    after = stamps(out)
    assert {name: after.get(name) for name in before} == before
    assert states(out) == dict.fromkeys(
        (r.id for r in plan_of(SweepRequest(config=config(tmp_path), out=out)).results), "done"
    )
    assert not list((out / "runs").glob(".*partial*"))


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_ray_gives_the_same_results(tmp_path: Path) -> None:
    path = config(tmp_path)
    out = sweep(SweepRequest(config=path, out=tmp_path / "s", engine="ray"))
    planned = plan_of(SweepRequest(config=path, out=out)).results
    assert states(out) == dict.fromkeys((r.id for r in planned), "done")


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_a_killed_worker_of_ray_loses_and_repeats_nothing(tmp_path: Path) -> None:
    """One of the workers dies after the first result: another goes on where it was."""
    path, out, killed = config(tmp_path), tmp_path / "s", []
    before: dict[str, int] = {}

    def kill_one() -> None:
        while not stamps(out):
            time.sleep(0.05)
        before.update(stamps(out))
        for child in psutil.Process().children(recursive=True):
            if not killed and child.cmdline()[:1] == ["ray::_work"]:
                child.kill()
                killed.append(child.pid)

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    sweep(SweepRequest(config=path, out=out, engine="ray"))
    thread.join(60)
    assert len(killed) == 1
    planned = plan_of(SweepRequest(config=path, out=out)).results
    assert states(out) == dict.fromkeys((r.id for r in planned), "done")
    after = stamps(out)
    assert {name: after[name] for name in before} == before
    assert not list((out / "runs").glob(".*partial*"))


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="ray is installed")
def test_without_ray_its_engine_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(PrunescopeError) as caught:
        sweep(SweepRequest(config=config(tmp_path), out=tmp_path / "s", engine="ray"))
    assert "prunescope[ray]" in caught.value.hint


def test_two_processes_cannot_work_on_one_part(tmp_path: Path) -> None:
    request = SweepRequest(config=config(tmp_path), out=tmp_path / "s")
    folder = SweepFolder(request.out)
    folder.start(plan_of(request))
    with (
        folder.claimed((0, 1)),
        pytest.raises(PrunescopeError, match="another sweep is at work"),
        folder.claimed((0, 1)),
    ):
        pass
    with folder.claimed((0, 2)), folder.claimed((1, 2)):
        pass


def test_one_timing_at_a_time_on_a_device() -> None:
    """A second process waits for the slot until the first gives it back."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from prunescope.tracer.sweep.state import timing_slot\n"
        "said = lambda: (sys.stdout.write('waits, '), sys.stdout.flush())\n"
        "with timing_slot('test-device', said):\n  sys.stdout.write('in'); sys.stdout.flush()\n"
    )
    with slot_taken():
        process = subprocess.Popen([sys.executable, "-c", code, str(ROOT)], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.read(7) == b"waits, "
        assert process.poll() is None
    out, _ = process.communicate(timeout=60)
    assert out == b"in"


@contextlib.contextmanager
def slot_taken() -> Iterator[None]:
    with timing_slot("test-device"):
        yield


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.tex").touch()
    with pytest.raises(PrunescopeError, match="is no sweep"):
        sweep(SweepRequest(config=config(tmp_path), out=tmp_path / "s"))
    assert [p.name for p in (tmp_path / "s").iterdir()] == ["thesis.tex"]


def test_another_configuration_does_not_mix_in(tmp_path: Path) -> None:
    request = SweepRequest(config=config(tmp_path), out=tmp_path / "s")
    SweepFolder(request.out).start(plan_of(request))
    more = SMALL_SWEEP.replace("[0.25, 0.5]", "[0.25, 0.5, 0.75]")
    SweepFolder(request.out).start(
        plan_of(SweepRequest(config=config(tmp_path, more), out=tmp_path))
    )
    assert len(states(request.out)) == 12
    other = plan_of(SweepRequest(config=config(tmp_path, SMALL_SWEEP + "seed: 1\n"), out=tmp_path))
    with pytest.raises(PrunescopeError, match="seed 0, this one has 1"):
        SweepFolder(request.out).start(other)


def test_a_dry_run_counts_and_writes_nothing(tmp_path: Path) -> None:
    text = SMALL_SWEEP.replace("static-nk-mlp", "static-k-24")
    request = SweepRequest(config=config(tmp_path, text), out=tmp_path / "s")
    found = summary(request, plan_of(request))
    counts = {k: found["plan"][k] for k in ("results", "models", "pending", "done", "impossible")}
    assert counts == {"results": 8, "models": 4, "pending": 6, "done": 0, "impossible": 2}
    assert Counter(r["state"] for r in found["results"]) == {"pending": 6, "failed": 2}
    assert not (tmp_path / "s").exists()


def test_a_listing_looks_at_each_of_two_thousand_runs_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One look at each run, one more at the failure of each that is not done, or into the run of
    each that is; both are read once."""
    text = SMALL_SWEEP.replace("[prefill, decode]", "[prefill]") + "draws: 500\n"
    request = SweepRequest(config=config(tmp_path, text), out=tmp_path / "s")
    plan = plan_of(request)
    folder = SweepFolder(request.out)
    folder.start(plan)
    (request.out / "failed").mkdir()
    for i, result in enumerate(plan.results):
        if i % 10 == 0:
            (folder.run(result) / "pruned").mkdir(parents=True)
            (folder.run(result) / "pruned" / "run.json").write_text("not read")
        elif i % 10 < 9:
            failure = {"id": result.id, "error": "too large", "call": ""}
            (request.out / "failed" / f"{result.id}.json").write_text(json.dumps(failure))
    looks: Counter[Path] = Counter()
    reads: Counter[Path] = Counter()
    is_file, read = Path.is_file, Path.read_bytes
    monkeypatch.setattr(Path, "is_file", lambda p: looks.update([p]) or is_file(p))  # type: ignore[func-returns-value]
    monkeypatch.setattr(Path, "read_bytes", lambda p: reads.update([p]) or read(p))  # type: ignore[func-returns-value]
    found = summary(request, plan_of(request))
    counts = {k: found["plan"][k] for k in ("results", "done", "failed", "pending")}
    assert counts == {"results": 2000, "done": 200, "failed": 1600, "pending": 200}
    assert [looks[folder.run(result) / "pruned" / "run.json"] for result in plan.results] == (
        [2, *[1] * 9] * 200
    )
    failures = Counter({p: n for p, n in looks.items() if p.parent.name == "failed"})
    assert (len(failures), failures.total()) == (1800, 1800)
    assert looks.total() < 4010  # and a few of the configuration
    assert max((n for p, n in reads.items() if p.name == "run.json"), default=0) <= 1
    failed = [n for p, n in reads.items() if p.parent.name == "failed"]
    assert failed == [1] * 1600


def test_a_dry_run_measures_nothing_where_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = SweepRequest(config=config(tmp_path, SMALL_SWEEP), out=tmp_path / "s")
    plan, folder = plan_of(request), SweepFolder(tmp_path / "s")
    measured: list[str] = []

    def measure(_device: object, dtype: str, **_: object) -> Any:
        measured.append(dtype)
        return PEAKS

    monkeypatch.setattr(peaks, "measure_peaks", measure)
    assert summary(request, plan_of(request), estimate=True)["plan"]["seconds"] > 0
    assert len(measured) == 1
    folder.start(plan)
    for result in plan.results:
        (folder.run(result) / "pruned").mkdir(parents=True)
        (folder.run(result) / "pruned" / "run.json").touch()
    found = summary(request, plan_of(request), estimate=True)
    assert (found["plan"]["pending"], found["plan"]["seconds"]) == (0, 0)
    assert len(measured) == 1
    (console := Console(file=io.StringIO(), width=100)).print(sweep_state(found))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "nothing is left to do" in shown
    assert " min " not in shown
