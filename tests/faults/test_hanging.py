"""A result of a sweep that hangs or dies is named, the others are had, and nothing is lost."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from prunescope.taxonomy.runs.sweep_files import Planned
from prunescope.tracer.sweep import watch as watch
from prunescope.tracer.sweep.state import SweepFolder, timing_slot
from prunescope.tracer.sweep.watch import HangWatchdog, Hung
from tests import forked
from tests.faults.hanging import CONFIG, HANGS

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.torch


def swept(
    folder: Path, way: str, *more: str, engine: str = "local"
) -> subprocess.CompletedProcess[str]:
    (folder / "s.yaml").write_text(CONFIG)
    words = [str(folder / "s.yaml"), str(folder / "s"), way, engine, *more]
    return forked.run("tests.faults.hanging", words)


def results(folder: Path) -> dict[str, tuple[str, str | None]]:
    plain = json.loads((folder / "s" / "sweep.json").read_bytes())["results"]
    return {r["id"]: (r["state"], r["error"]) for r in plain}


def stamps(folder: Path) -> dict[str, int]:
    runs = (folder / "s" / "runs").rglob("run.json")
    return {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in runs}


def all_done(folder: Path, before: dict[str, int]) -> None:
    """The next call has the rest, and repeats nothing."""
    done = swept(folder, "none")
    assert done.returncode == 0, done.stderr
    assert {state for state, _ in results(folder).values()} == {"done"}
    after = stamps(folder)
    assert len(after) == 8
    assert {name: after[name] for name in before} == before
    assert list((folder / "s" / "failed").iterdir()) == []


def test_one_that_hangs_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    done = swept(tmp_path, "sleep", "--json", "-")
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    found = results(tmp_path)
    state, error = found.pop(HANGS)
    assert state == "failed"
    assert error is not None
    assert error.startswith("Hung: no progress for ")
    assert [s for s, _ in found.values()] == ["done"] * 3
    assert json.loads(done.stdout)["plan"]["failed"] == 1
    told = json.loads(done.stderr.splitlines()[-1])["error"]
    assert (told["problem"], told["exit_code"]) == ("results of the sweep are missing", 3)
    all_done(tmp_path, stamps(tmp_path))


@pytest.mark.slow
def test_one_that_no_signal_reaches_ends_the_process(tmp_path: Path) -> None:
    """It is recorded, the next call begins with the others, and says so on standard error."""
    done = swept(tmp_path, "deaf", "--json", "-")
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    *_, words, hint, last = done.stderr.splitlines()
    assert words.startswith(f"error: {HANGS} hangs: no progress for ")
    assert "the same command again" in hint
    assert json.loads(last)["error"]["problem"] == words.removeprefix("error: ")
    again = swept(tmp_path, "deaf")
    assert again.returncode == 3
    found = results(tmp_path)
    assert found.pop(HANGS)[0] == "failed"
    assert [s for s, _ in found.values()] == ["done"] * 3
    all_done(tmp_path, stamps(tmp_path))


@pytest.mark.slow
def test_one_in_which_the_process_dies_is_named_and_comes_last(tmp_path: Path) -> None:
    """Killed for its memory, say: it does not stand in the way of the others for ever."""
    assert swept(tmp_path, "kill").returncode == -signal.SIGKILL
    assert swept(tmp_path, "kill").returncode == -signal.SIGKILL
    found = results(tmp_path)
    state, error = found.pop(HANGS)
    assert state == "failed"
    assert error is not None
    assert "died there" in error
    assert [s for s, _ in found.values()] == ["done"] * 3
    all_done(tmp_path, stamps(tmp_path))


@pytest.mark.slow
def test_to_wait_for_another_timing_is_not_to_hang(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(CONFIG)
    words = [str(tmp_path / "s.yaml"), str(tmp_path / "s"), "none", "local"]
    with timing_slot("cpu"):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.hanging", *words], cwd=ROOT,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        while not (tmp_path / "s" / "failed").exists():
            assert process.poll() is None
            time.sleep(0.1)
        time.sleep(5.0)  # more than IDLE_S
        assert process.poll() is None
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert {state for state, _ in results(tmp_path).values()} == {"done"}


PLANNED = Planned(
    id="x", family="static-m", sparsity=0.5, sparsities=(0.5,), phase="decode", batch=1,
    prompt_len=8, draw=0,
)  # fmt: skip


def test_silent_work_hangs_after_hours_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that uses a core is not idle, and is given longer; a sign of life counts anew."""
    for name, value in {"IDLE_S": 0.2, "SILENT_S": 1.0, "POLL_S": 0.02}.items():
        monkeypatch.setattr(watch, name, value)
    seen = HangWatchdog(SweepFolder(tmp_path), "c")
    begin = time.monotonic()
    with seen.watching(), seen.working_on(PLANNED):
        while time.monotonic() - begin < 0.5:  # signs of life
            seen.advance()
        begin = time.monotonic()
        with pytest.raises(Hung, match="in stage 'prepare'"):
            while time.monotonic() - begin < 60:
                pass
    assert 0.7 < time.monotonic() - begin < 60
    with seen.watching():  # nothing is in hand
        time.sleep(0.3)


class Died(Exception):
    """A worker of the ray below."""


class FakeRay:
    """As much of ray as the engine uses; every job runs when it is asked for, four times."""

    exceptions = types.SimpleNamespace(WorkerCrashedError=Died, OutOfMemoryError=MemoryError)
    is_initialized = staticmethod(lambda: True)
    cluster_resources = staticmethod(dict)

    def remote(self, **options: Any) -> Any:
        self.tries = 1 + options["max_retries"]
        return lambda work: types.SimpleNamespace(remote=lambda job: (work, job))

    def wait(self, waiting: list[Any], num_returns: int) -> Any:
        return waiting[:num_returns], waiting[num_returns:]

    def get(self, task: Any) -> None:
        work, job = task
        for attempt in range(self.tries):
            try:
                return work(job)
            except Died:
                if attempt == self.tries - 1:
                    raise
        return None


def test_a_worker_that_dies_ends_neither_the_sweep_nor_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine for ray, without ray: the result in hand failed, what was not begun is pending."""
    from prunescope.tracer.sweep import engines
    from prunescope.tracer.sweep.request import SweepRequest
    from prunescope.tracer.sweep.sweep import plan_of, summary, sweep

    begun: list[str] = []

    def work(job: Any) -> None:
        folder = SweepFolder(job.folder)
        for result in job.results:
            begun.append(result.id)
            folder.begin(result)
            if result.family == "static-m":
                raise Died
            folder.fail(result, "no luck", job.call)

    monkeypatch.setattr(engines, "_work", work)
    monkeypatch.setitem(sys.modules, "ray", FakeRay())  # type: ignore[arg-type]
    (tmp_path / "s.yaml").write_text(CONFIG)
    request = SweepRequest(config=tmp_path / "s.yaml", out=tmp_path / "s", engine="ray")
    sweep(request)
    assert begun.count(HANGS.replace("decode", "prefill")) == 4
    found = results(tmp_path)
    state, error = found[HANGS.replace("decode", "prefill")]
    assert (state, str(error)[:24]) == ("failed", "its worker died 4 times ")
    assert found[HANGS] == ("pending", None)
    assert [found[x] for x in found if "nk-mlp" in x] == [("failed", "no luck")] * 2
    assert summary(request, plan_of(request))["plan"]["pending"] == 1


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
@pytest.mark.parametrize("way", ["sleep", "deaf", "kill"])
def test_workers_of_ray(way: str, tmp_path: Path) -> None:
    done = swept(tmp_path, way, engine="ray")
    assert done.returncode == 3, done.stderr
    found = results(tmp_path)
    state, error = found.pop(HANGS)
    assert state == "failed"
    assert ("worker died 4 times" if way == "kill" else "Hung: no progress") in str(error)
    assert [s for s, _ in found.values()] == ["done"] * 3
