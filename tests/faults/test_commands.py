"""Faults in the middle of a command: what it says, its exit code, and what it leaves on disk."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import prunescope
from prunescope import deliver
from prunescope.analysis import pipeline
from prunescope.analysis.bundle import bundle as bundling
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report import write
from prunescope.taxonomy.runs.run_blocks import MeasuredPeaks
from tests import forked
from tests.chrome import chrome, k, op, step
from tests.faults.driver import everything, write_both
from tests.hostile.case import TEXT_FORMATS
from tests.hostile.material import write_pair
from tests.small_capture import small_trace

ROOT = Path(__file__).resolve().parents[2]


def _signal(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def _raise(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


# How a command is stopped, and its exit code.
FAULTS: dict[str, tuple[Callable[[], None], int]] = {
    "Ctrl-C": (_signal(signal.SIGINT), 130),
    "SIGTERM": (_signal(signal.SIGTERM), 143),
    "full disk": (_raise(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))), 2),
    "read-only": (_raise(OSError(errno.EROFS, os.strerror(errno.EROFS))), 2),
    "out of memory": (_raise(MemoryError()), 2),
}

AGAIN = "Ctrl-C"  # after this one the same command is given again; the others leave the same
KILLS = ("file 1", "filled", "placed")
MODULES = {"pipeline": pipeline, "write": write, "deliver": deliver}
each_fault = pytest.mark.parametrize("fault", FAULTS)
halved = partial(
    small_trace, method="static-m", sparsity=0.5, phase="prefill", prompt_len=8, steps=1
)


def stopped(args: list[str], capsys: pytest.CaptureFixture[str], *, code: int) -> dict[str, str]:
    """The error object of a command that is stopped with an exit code."""
    assert prunescope.main(args) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    told: dict[str, str] = json.loads(err.splitlines()[-1])["error"]
    assert told["problem"] and told["hint"]
    return told


@each_fault
@pytest.mark.parametrize("point", ["pipeline.analyze", "write.write_report", "deliver.write_json"])
def test_analyze(
    fault: str,
    point: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before, in and after the writing of the report: the folder is as before, or has it whole."""
    fail, code = FAULTS[fault]
    run = write_pair(tmp_path / "run")
    before = everything(run)
    args = ["analyze", str(run), "--format", "md,json", "--json", "-"]
    with monkeypatch.context() as patch:
        module, name = point.split(".")
        patch.setattr(MODULES[module], name, lambda *_args, **_more: fail())
        stopped(args, capsys, code=code)
    after = everything(run)
    if point == "deliver.write_json":
        assert set(after) - set(before) == {"report/report.md", "report/report.json"}
        json.loads(after["report/report.json"])
    else:
        assert after == before
    if fault == AGAIN:
        assert prunescope.main(args) == 0
        told = json.loads(capsys.readouterr().out)
        assert told == json.loads((run / "report" / "report.json").read_bytes())


@each_fault
@pytest.mark.parametrize("point", ["analyze", "zip_bytes", "write"])
def test_bundle(
    fault: str,
    point: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No zip, or the older one; the next call makes it."""
    fail, code = FAULTS[fault]
    monkeypatch.setattr(bundling, "FORMATS", TEXT_FORMATS)  # figures take seconds
    write_pair(tmp_path / "run")
    out = tmp_path / "b.zip"
    args = ["bundle", str(tmp_path / "run"), "-o", str(out)]
    before = everything(tmp_path)
    with monkeypatch.context() as patch:
        if point == "write":
            patch.setattr(Path, "replace", lambda *_: fail())
        else:
            patch.setattr(bundling, point, lambda *_args, **_more: fail())
        assert prunescope.main(args) == code
        assert "Traceback" not in capsys.readouterr().err
    assert everything(tmp_path) == before
    if fault == AGAIN:
        assert prunescope.main(args) == 0
        assert prunescope.main(["verify", str(out)]) == 0


def _half_of(name: str, fail: Callable[[], None], real: Callable[..., int]) -> Callable[..., int]:
    """A write that fails in the middle of the file whose name holds `name`."""

    def write(path: Path, content: Any, **more: Any) -> int:
        if name in path.name:
            real(path, content[: len(content) // 2], **more)
            fail()
        return real(path, content, **more)

    return write


@pytest.mark.parametrize("point", KILLS)
def test_a_killed_analyze(point: str, tmp_path: Path) -> None:
    """SIGKILL in a process of its own: no report, or all of it; the next call cleans up."""
    run = write_pair(tmp_path / "run")
    done = forked.run("tests.faults.driver", ["analyze", point, str(run), "kill"], timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert (run / "report").exists() == (point == "placed")
    analyze(run)
    assert prunescope.main(["analyze", str(run), "--format", "md,json"]) == 0
    assert {p.name for p in (run / "report").iterdir()} == {"report.md", "report.json"}
    assert [p.name for p in run.rglob(".*")] == []


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["analyze", "gone.json"], 2),  # an input that is not there
        (["analyze", "{cut}"], 2),  # one that is damaged
        (["analyze"], 2),  # a word that is missing
        (["analyze", "{run}", "--device", "h1000"], 2),  # a value that is unknown
        (["analyze", "{run}", "--format", "doc"], 2),
        (["analyze", "{run}", "--out", "/proc/report"], 2),  # a folder that cannot be written
        (["predict", "--model", "tiny-llama", "--device", "h1000"], 2),
        (["trace", "--model", "no-such-preset"], 2),
        (["trace", "--model", "tiny-llama", "--method", "static-q"], 2),
        (["verify", "{cut}"], 2),
        (["analyze", "{part}"], 3),  # a trace that was cut off
        (["sweep", "gone.yaml", "--out", "s"], 2),
        (["pareto", "gone"], 2),
    ],
)
def test_every_failure_is_json_too(
    words: list[str],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"{run}": write_pair(tmp_path / "run"), "{cut}": tmp_path / "cut.json"}
    places["{cut}"].write_text("[{")
    places["{part}"] = tmp_path / "part.json"
    mm = op("aten::mm", [4, 5], [5, 6], kernels=[k(us=7)])
    whole = json.dumps(chrome(*(step(i, mm) for i in range(4))))
    places["{part}"].write_text(whole[: 3 * len(whole) // 4])
    args = [str(places.get(word, word)) for word in words]
    if code == 3:
        assert prunescope.main([*args, "--json", "-"]) == 3
        out, err = capsys.readouterr()
        plain = json.loads(out)
        assert plain.get("ok") is False or plain["partial"] is True
        told = json.loads(err.splitlines()[-1])["error"]
        assert told["exit_code"] == 3
        assert told["problem"] and told["hint"]
        assert prunescope.main(args) == 3
        assert "{" not in capsys.readouterr().err
        return
    stopped([*args, "--json", "-"], capsys, code=code)


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is there already."""
    return halved(tmp_path_factory.mktemp("older") / "f")


@pytest.mark.torch
class TestTrace:
    """A capture that is stopped at any stage leaves nothing, and the next one is whole."""

    STAGES = ("load tiny-llama", "profile prefill")

    @each_fault
    @pytest.mark.parametrize("stage", STAGES)
    def test_a_stage(self, fault: str, stage: str, tmp_path: Path) -> None:
        from prunescope.taxonomy.errors import PrunescopeError
        from prunescope.tracer.capture.progress import Silent

        fail, code = FAULTS[fault]

        class Failing(Silent):
            def stage(self, name: str, total: int | None = None) -> None:  # noqa: ARG002
                if name == stage:
                    fail()

        expected = {130: KeyboardInterrupt, 143: SystemExit}.get(code, (OSError, PrunescopeError))
        with pytest.raises(expected):  # type: ignore[arg-type]
            halved(tmp_path / "out" / "f", Failing())
        assert not (tmp_path / "out").exists()

    def test_out_of_memory_of_the_device(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import torch

        from prunescope.taxonomy.errors import PrunescopeError
        from prunescope.tracer.capture import session

        def fail(*_args: object, **_more: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(session, "take_samples", fail)
        with pytest.raises(PrunescopeError, match="memory"):
            halved(tmp_path / "f")
        assert list(tmp_path.iterdir()) == []

    @each_fault
    def test_the_writing(
        self, fault: str, older: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An older run with --overwrite stays what it was."""
        fail, _ = FAULTS[fault]
        out = Path(shutil.copytree(older, tmp_path / "f"))
        old = everything(tmp_path)
        monkeypatch.setattr(Path, "write_text", _half_of("run.json", fail, Path.write_text))
        with pytest.raises((OSError, MemoryError, KeyboardInterrupt, SystemExit)):
            halved(out, overwrite=True)
        assert everything(tmp_path) == old

    def test_an_older_run_is_replaced_as_a_whole(self, older: Path, tmp_path: Path) -> None:
        out = Path(shutil.copytree(older, tmp_path / "f"))
        old = everything(tmp_path)
        halved(out, overwrite=True)
        new = everything(tmp_path)
        assert new.keys() == old.keys()
        assert new["f/pruned/run.json"] != old["f/pruned/run.json"]

    def test_a_second_process_is_told_at_once(self, tmp_path: Path) -> None:
        from prunescope.taxonomy.atomic_write import claimed
        from prunescope.taxonomy.errors import PrunescopeError

        with claimed(tmp_path / "f"), pytest.raises(PrunescopeError, match="another process"):
            halved(tmp_path / "f")


@pytest.mark.torch
@each_fault
def test_sweep(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in its second capture it keeps the first, and the same request does the rest alone.
    A result for which memory does not suffice is recorded, and does not end the sweep."""
    from prunescope.tracer.sweep import job as sweep_job
    from prunescope.tracer.sweep.request import SweepRequest
    from prunescope.tracer.sweep.sweep import sweep

    fail, code = FAULTS[fault]
    monkeypatch.setattr(sweep_job, "TOKENS", 64)
    monkeypatch.setattr(sweep_job, "measure_peaks", lambda *_: MeasuredPeaks(byte_per_s=1.0))
    calls: list[str] = []

    def traced(request: Any, **_more: Any) -> Path:
        calls.append(request.phase)
        if len(calls) == 2:
            fail()
        write_both(request.out)
        return Path(request.out)

    monkeypatch.setattr(sweep_job, "trace", traced)
    (tmp_path / "s.yaml").write_text(
        "model: tiny-llama\nfamilies: [static-m]\nsparsities: [0.5]\nprompt_lens: [8]\nthreads: 1\n"
        "placements: 1\n"
    )
    request = SweepRequest(config=tmp_path / "s.yaml", out=tmp_path / "s")
    ends = {130: KeyboardInterrupt, 143: SystemExit}.get(code, OSError)
    with contextlib.nullcontext() if fault == "out of memory" else pytest.raises(ends):
        sweep(request)
    first = everything(tmp_path / "s" / "runs")
    assert {name.split("/")[-1] for name in first} == {"run.json", "prefill.trace.json.gz"}
    assert len(first) == 4
    sweep(request)
    states = [
        r["state"] for r in json.loads((tmp_path / "s" / "sweep.json").read_bytes())["results"]
    ]
    assert states == ["done", "done"]
    assert len(calls) == 3
    assert first.items() <= everything(tmp_path / "s" / "runs").items()
