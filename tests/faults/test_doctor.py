"""What `doctor` finds wrong, and the fix that it names for each."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import prunescope
from prunescope.taxonomy.formats import plain
from prunescope.taxonomy.machine_check import MachineCheck
from prunescope.tracer.machine import doctor, gpu_tools


def found(name: str) -> MachineCheck:
    return next(check for check in doctor.examine() if check.check == name)


def test_every_check_says_something_and_every_failure_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a machine where no library can be imported and no clock be read."""

    def missing(name: str, *_: object) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    checks = list(doctor.examine())
    assert {c.check for c in checks} >= {"machine", "torch", "polars", "hta", "ray", "demo"}
    for check in checks:
        assert check.says
        if check.ok is False:
            assert check.hint, check.check
    failed = {c.check for c in checks if c.ok is False}
    assert failed >= {"torch", "transformers", "polars", "matplotlib", "hta", "ray", "demo"}
    assert not doctor.works(checks)


def test_a_busy_machine_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 99.0, 99.0))
    check = doctor._check_machine()
    assert check.ok is False
    assert "load 99.0" in check.says
    assert "valid" in (check.hint or "")


@pytest.mark.torch
@pytest.mark.parametrize("clocks", [None, {"core_hz": 1.98e9, "memory_hz": 2.619e9}])
def test_clocks(clocks: dict[str, float] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunescope.tracer.machine import device as clock

    monkeypatch.setattr(clock, "read_clocks", lambda _device: clocks)
    check = doctor._check_clocks()
    assert check.ok is (None if clocks is None else True)
    assert ("core 1980 MHz, memory 2619 MHz" in check.says) == (clocks is not None)
    assert (check.hint is None) == (clocks is not None)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("cuda", "fix"), [(None, "install a torch build"), ("12.8", "driver does not suit")]
)
def test_a_gpu_that_torch_does_not_use_is_a_finding(
    cuda: str | None, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build for CPUs, or one that the driver is too old for, beside a driver that names a GPU."""
    import torch

    from prunescope.tracer.machine import device as machine

    done = subprocess.CompletedProcess([], 0, stdout="NVIDIA H100\n", stderr="")
    monkeypatch.setattr(machine, "pick_device", lambda _name: torch.device("cpu"))
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(gpu_tools.shutil, "which", lambda *_: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(gpu_tools.subprocess, "run", lambda *_args, **_more: done)
    check = doctor._check_device()
    assert check.ok is False
    assert "not used: NVIDIA H100" in check.says
    assert fix in (check.hint or "")


@pytest.mark.parametrize("error", [OSError("no lib"), subprocess.TimeoutExpired("x", 20)])
def test_a_driver_that_does_not_answer_is_no_error(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_more: object) -> None:
        raise error

    monkeypatch.setattr(gpu_tools.shutil, "which", lambda *_: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(gpu_tools.subprocess, "run", fail)
    assert gpu_tools.nvidia_smi("name") is None


@pytest.mark.torch
def test_a_device_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver says no in the middle of a check: said in one line, and the others go on."""

    def fail() -> MachineCheck:
        raise RuntimeError("CUDA error: unknown error\nCUDA kernel errors might be reported")

    monkeypatch.setattr(doctor, "_check_device", fail)
    check = found("device")
    assert (check.ok, check.needed) == (False, True)
    assert check.says == "RuntimeError: CUDA error: unknown error"
    assert check.hint
    assert found("profiler").ok is True


@pytest.mark.torch
def test_a_profiler_that_records_nothing_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.profiler

    class Blind:
        def __init__(self, **_options: object) -> None:
            pass

        def __enter__(self) -> Blind:
            return self

        def __exit__(self, *_error: object) -> None:
            pass

        def events(self) -> list[Any]:
            return []

    monkeypatch.setattr(torch.profiler, "profile", Blind)
    check = doctor._check_profiler()
    assert check.ok is False
    assert "no op" in check.says


@pytest.mark.torch
def test_the_command_names_what_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert prunescope.main(["doctor"]) == 0
    out = capsys.readouterr().out
    for name in ("torch", "device", "profiler", "2:4", "clocks", "hta", "ray", "demo"):
        assert name in out


@pytest.mark.torch
@pytest.mark.parametrize(("ok", "code"), [(True, 0), (None, 0), (False, 3)])
def test_as_json_and_its_exit_code(
    ok: bool | None,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checks = [
        doctor._check("device", ok=ok, says="x", hint="y", needed=True),
        doctor._check("hta", ok=False, says="x", hint="y"),
    ]
    monkeypatch.setattr(doctor, "examine", lambda: iter(checks))
    assert prunescope.main(["doctor", "--json"]) == code
    out, err = capsys.readouterr()
    assert json.loads(out) == {"works": code == 0, "checks": plain(checks)}
    assert (err == "") == (code == 0)
    if code:
        assert json.loads(err)["error"]["exit_code"] == 3


@pytest.mark.parametrize("words", [["--json"], ["--json", "-"], ["--json", "v.json"]])
def test_json_goes_where_that_of_the_other_commands_goes(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    checks = [doctor._check("device", ok=True, says="x", hint="y", needed=True)]
    monkeypatch.setattr(doctor, "examine", lambda: iter(checks))
    assert prunescope.main(["doctor", *words]) == 0
    out, _ = capsys.readouterr()
    written = Path("v.json").read_text() if "v.json" in words else out
    assert json.loads(written) == {"works": True, "checks": plain(checks)}
    assert ("device" in out) or "v.json" in words


@pytest.mark.torch
def test_timing_is_asked_for_where_everything_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is a check that nothing needs: its failure is said and no error."""
    from prunescope.tracer.capture import timing_check

    made = timing_check.TimingCheck(
        check="timing", ok=False, says="8 (12 s): ±9.0 %", hint="taskset -c 1-3", placements=5,
        bias=0.0, half_width={"8": 0.09}, seconds={"8": 12.0}, disturbed=0.5, switches=1.5,
        reasons={"waits": 4},
    )  # fmt: skip
    asked: list[int] = []

    def check_timing() -> MachineCheck:
        asked.append(1)
        return made

    monkeypatch.setattr(timing_check, "check_timing", check_timing)

    def command(*words: str, works: bool = True) -> tuple[int, str]:
        checks = [doctor._check("device", ok=works, says="x", hint="y", needed=True)]
        monkeypatch.setattr(doctor, "examine", lambda: iter(checks))
        return prunescope.main(["doctor", *words]), capsys.readouterr().out

    code, out = command("--timing", "--json")
    assert (code, asked) == (0, [1])
    shown = json.loads(out)["checks"][-1]
    assert (shown["half_width"], shown["seconds"]) == ({"8": 0.09}, {"8": 12.0})
    assert (shown["disturbed"], shown["reasons"]) == (0.5, {"waits": 4})
    code, out = command("--timing")
    assert (code, asked) == (0, [1, 1])
    assert "8 (12 s): ±9.0 %" in out and "taskset -c 1-3" in out
    assert command("--json")[0] == 0
    assert command("--timing", "--json", works=False)[0] == 3
    assert asked == [1, 1], "timed without being asked, or on a machine where it cannot be"
