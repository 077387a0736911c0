"""Where memory is short, and where a capture is cut off."""

from __future__ import annotations

import gzip
import os
import re
import signal
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.runs.run import read_run
from prunescope.taxonomy.runs.run_blocks import MeasuredPeaks
from prunescope.tracer.capture import session, variants
from prunescope.tracer.capture.progress import Bar, Silent
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.capture.trace import trace
from prunescope.tracer.machine.device import timing_note
from tests.small_capture import quick_peaks

pytestmark = pytest.mark.torch


@pytest.mark.four_layers
def test_blocks_where_both_do_not_fit(
    quick: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    make = session.make_variants

    def counted(*args: Any) -> Any:
        made = make(*args)
        loads.extend(v.name for v in made)
        return made

    monkeypatch.setattr(session, "make_variants", counted)
    monkeypatch.setattr(variants, "free_bytes", lambda _device: 0)
    folder = quick(method="static-m", sparsity=0.5, repeats=3)
    assert loads == ["dense", "pruned", "dense", "pruned"]
    for name in ("dense", "pruned"):
        run = read_run(folder / name)
        for phase in run.phases.values():
            assert phase.interleaved == "blocks"
            assert len(phase.samples_ns) == 3
            assert phase.peak_memory_bytes is not None
    assert len(read_run(folder / "pruned").layer_map or ()) == 2


@pytest.mark.four_layers
def test_blocks_measure_all_placements_whatever_interval_was_requested(
    quick: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variants, "free_bytes", lambda _device: 0)
    folder = quick(
        method="static-m", sparsity=0.5, placements=6, repeats=6, until=0.5, phase="prefill"
    )
    for name in ("dense", "pruned"):
        phase = read_run(folder / name).phases["prefill"]
        assert [len(own) for own in phase.samples_by_placement] == [1] * 6
        assert phase.until is not None and not phase.is_sequential
        assert (phase.until.asked, phase.until.of) == (0.5, "speedup")
        assert (phase.until.looks, phase.until.ended) == (0, "blocks")


def test_running_out_of_memory_twice_is_an_error(
    quick: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(session, "take_samples", full)
    with pytest.raises(PrunescopeError, match="do not fit in memory"):
        quick(method="static-m", out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


class KilledAt(Silent):
    def __init__(self, stage: str, number: int) -> None:
        self.at, self.number = stage, number

    def stage(self, name: str, total: int | None = None) -> None:  # noqa: ARG002
        if name == self.at:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("stage", ["time prefill", "profile decode", "write traces"])
@pytest.mark.parametrize(
    "number, expected", [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_kill_leaves_nothing(
    stage: str,
    number: int,
    expected: type[BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    # A shell that starts the tests in the background leaves SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request = TraceRequest(
        model="tiny-llama", method="static-nk", out=tmp_path / "out" / "run",
        prompt_len=8, decode_steps=2, warmup=0, repeats=1, steps=1,
    )  # fmt: skip
    quick_peaks(monkeypatch)
    peaks = MeasuredPeaks(dense_flop_per_s={}, byte_per_s=1.0, kernel_floor_ns=1)
    try:
        with pytest.raises(expected):
            trace(request, KilledAt(stage, number), peaks=peaks)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "temporary").glob("prunescope*")) == []  # torch leaves its own there


def test_threads_are_recorded_and_given_back(quick: Callable[..., Path]) -> None:
    before = torch.get_num_threads()
    run = read_run(quick(threads=2, phase="decode") / "dense")
    assert run.device.threads == 2
    assert torch.get_num_threads() == before


def test_a_busy_machine_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunescope.tracer.machine.device.num_cores", lambda: 2)
    monkeypatch.setattr("prunescope.tracer.machine.device.load_average", lambda: 1.5)
    assert timing_note(0.5).notes == []
    assert timing_note(4.0).notes == ["load average 4.0 on 2 cores before the capture"]
    monkeypatch.setattr("prunescope.tracer.machine.device.load_average", lambda: 9.0)
    assert timing_note(0.5).notes == ["load average 9.0 on 2 cores in the capture"]


def test_the_bar_writes_to_standard_error_only(capsys: pytest.CaptureFixture[str]) -> None:
    with Bar() as bar:
        bar.stage("time prefill", 2)
        bar.advance()
        bar.stage("profile")
    written = capsys.readouterr()
    assert written.out == ""
    assert [line[10:] for line in written.err.splitlines()] == ["time prefill (2)", "profile"]


def test_a_bar_that_is_interrupted_does_not_show_its_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two steps, on a terminal and then interrupted; the stage before it was done."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    with pytest.raises(KeyboardInterrupt), Bar() as bar:
        bar.stage("load", 3)
        bar.stage("time prefill", 2)
        bar.advance()
        raise KeyboardInterrupt
    written = capsys.readouterr().err
    assert "3/3" in written and "1/2" in written and "2/2" not in written


def test_a_line_longer_than_the_terminal_goes_on_below(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal
    with Bar() as bar:
        bar.stage("1/4 static-m-s0.25-decode-b1-p32-d0")
        bar.describe("1/4 static-m-s0.25-decode-b1-p32-d0: repeats: other work disturbed it")
    assert "…" not in (written := capsys.readouterr().err)
    assert "work disturbed it" in written


@pytest.mark.parametrize(
    ("told", "kept"), [([[]], []), ([["waits"], []], []), ([["waits"], ["waits"]], ["waits"])]
)
def test_disturbed_steps_are_profiled_again_once(
    told: list[list[str]],
    kept: list[str],
    quick: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The steps of the last pass are kept, and no others; what disturbed them too is recorded."""
    passes, reasons = [], iter(told)
    profiled = session._profile_loops

    def seen(*args: Any, **options: Any) -> Any:
        passes.append(options["steps"])
        return profiled(*args, **options)

    def what(*_readings: Any) -> Any:
        return SimpleNamespace(reasons=next(reasons))

    monkeypatch.setattr(session, "_profile_loops", seen)
    monkeypatch.setattr(session, "between", what)
    folder = quick(phase="prefill")
    assert passes == [range(2)] * len(told)
    entry = read_run(folder / "dense").phases["prefill"]
    assert (entry.steps, entry.placements[0].steps_disturbed) == (2, kept)
    text = (folder / "dense" / entry.trace).read_bytes()
    marks = Counter(re.findall(rb'"prunescope.step#[0-9]+"', gzip.decompress(text)))
    assert marks == {b'"prunescope.step#0"': 1, b'"prunescope.step#1"': 1}
