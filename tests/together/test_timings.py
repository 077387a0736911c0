"""`--timings` of the long commands: what each writes, also where it fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import prunescope
from prunescope.taxonomy import timings
from prunescope.tracer.capture import timing
from prunescope.tracer.capture.timing import SamplePlan, take_samples
from prunescope.tracer.machine import peaks

RUN = Path(__file__).resolve().parents[2] / "traces" / "tiny-static-m"
FAILING = {
    "trace": ["--model", "no-such-folder/x"],
    "sweep": ["missing.yaml"],
    "allocate": ["--model", "no-such-folder/x", "--device", "h100-sxm", "--speedup", "1.2"],
    "gemm": ["missing"],
    "bundle": ["missing", "-o", "missing.zip"],
    "verify": ["missing.zip"],
    "analyze": ["missing"],
}


def checked(text: str) -> dict[str, Any]:
    """Timings, after their parts were added up."""
    told: dict[str, Any] = json.loads(text)
    assert set(told) == {"total_s", "forwards_s", "parts"}
    assert list(told["parts"]) == list(timings.PARTS)
    assert sum(told["parts"].values()) == pytest.approx(told["total_s"], rel=1e-6)
    assert 0 <= told["forwards_s"] <= told["total_s"]
    return told


@pytest.mark.parametrize("command", FAILING)
def test_a_command_that_fails_writes_them(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert prunescope.main([command, *FAILING[command], "--timings", "t.json"]) == 2
    assert checked(Path("t.json").read_text())["forwards_s"] == 0


def test_an_interrupted_demo_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_out: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("prunescope.demo.run", interrupt)
    monkeypatch.chdir(tmp_path)
    assert prunescope.main(["demo", "--timings", "t.json"]) == 130
    checked(Path("t.json").read_text())


def test_standard_output_holds_them_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert prunescope.main(["analyze", str(RUN / "pruned" / "missing"), "--timings", "-"]) == 2
    checked(capsys.readouterr().out)


def test_an_analysis_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["analyze", str(RUN), "--out", str(tmp_path), "--format", "md", "--timings", "-"]
    assert prunescope.main(words) in (0, 3)
    printed = capsys.readouterr()
    told = checked(printed.out)
    assert "Written to" in printed.err
    assert told["parts"]["analyze"] > 0
    assert told["parts"]["write"] > 0


@pytest.mark.parametrize("target", ["-", "both.json"])
def test_two_results_in_one_place_are_refused(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert prunescope.main(["analyze", str(RUN), "--json", target, "--timings", target]) == 2
    assert "--timings and --json both write to" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_refused_first(tmp_path: Path) -> None:
    target = tmp_path / "none" / "t.json"
    assert prunescope.main(["analyze", str(RUN), "--timings", str(target)]) == 2


def test_a_trace_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "_CPU_SHAPES", ((64, 64, 64),))
    monkeypatch.chdir(tmp_path)
    words = ["--model", "tiny-llama", "--method", "static-m", "--prompt-len", "16", "--phase"]
    few = ["--warmup", "1", "--repeats", "2", "--steps", "1", "--placements", "1", "--threads", "1"]
    words += ["prefill", *few, "--out", "run", "--timings", "t.json"]
    assert prunescope.main(["trace", *words]) == 0
    told = checked(Path("t.json").read_text())
    for name in ("load", "prune", "warm_up", "samples", "profile", "write", "analyze"):
        assert told["parts"][name] > 0, name
    # Two samples of each model are in forwards, and no forward is outside of these parts.
    run = json.loads((tmp_path / "run" / "dense" / "run.json").read_text())
    assert told["forwards_s"] * 1e9 > sum(run["phases"]["prefill"]["samples_ns"])
    assert told["forwards_s"] < sum(told["parts"][n] for n in ("warm_up", "samples", "profile"))


class _Noting:
    """A loop whose sample does nothing."""

    steps_per_sample = 1

    def prepare(self) -> None:
        """Prepare nothing."""

    def sample(self) -> None:
        """Take no time."""


@pytest.mark.parametrize("asked", [False, True])
def test_nothing_is_counted_while_the_clock_of_a_sample_runs(
    asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every part and forward asks for the stopwatch, also where there is none."""
    events: list[str] = []
    timed, watch_here = timing.timed, timings._watch_here

    @contextmanager
    def noted(device: torch.device) -> Iterator[timing.Timed]:
        events.append("clock on")
        with timed(device) as result:
            yield result
        events.append("clock off")

    def noted_watch() -> timings.Stopwatch | None:
        events.append("counted")
        return watch_here()

    monkeypatch.setattr(timing, "timed", noted)
    monkeypatch.setattr(timings, "_watch_here", noted_watch)
    plan = SamplePlan(warmup=1, repeats=2)
    loops: Any = {"dense": _Noting(), "pruned": _Noting()}

    def take() -> None:
        take_samples(loops, plan, device=torch.device("cpu"))

    if asked:
        with timings.recorded(0) as watch:
            take()
        assert watch.forwards_ns > 0
    else:
        take()
    pairs = list(zip(events, events[1:], strict=False))
    assert events.count("clock on") >= 6  # a warm-up and two rounds of two models
    assert events.count("counted") > events.count("clock on")
    assert all(after == "clock off" for event, after in pairs if event == "clock on")
