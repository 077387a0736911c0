"""What `doctor` finds wrong, and the fix that it names for each."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import prunescope
from tracer import doctor

Check = dict[str, Any]


def found(name: str) -> Check:
    return next(check for check in doctor.examine() if check["check"] == name)


def test_every_check_says_something_and_every_failure_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a machine where no library can be imported and no clock be read."""

    def missing(name: str, *_: object) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    monkeypatch.setattr(doctor.shutil, "which", lambda *_: None)
    monkeypatch.setattr(doctor, "_CPU_CLOCK", Path("/nowhere"))
    checks = list(doctor.examine())
    assert {c["check"] for c in checks} >= {"machine", "torch", "polars", "clocks", "hta", "demo"}
    for check in checks:
        assert set(check) >= {"check", "ok", "says", "hint"}
        assert check["says"]
        if check["ok"] is False:
            assert check["hint"], check["check"]
    failed = {c["check"] for c in checks if c["ok"] is False}
    assert failed >= {"torch", "transformers", "polars", "matplotlib", "hta", "demo"}


def test_a_busy_machine_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 99.0, 99.0))
    check = doctor._machine()
    assert check["ok"] is False
    assert "load 99.0" in check["says"]
    assert "valid" in check["hint"]


@pytest.mark.parametrize(("code", "ok"), [(0, True), (9, None)])
def test_clocks_of_a_gpu(code: int, ok: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], code, stdout="1980 MHz, 2619 MHz\n", stderr="")
    monkeypatch.setattr(doctor.shutil, "which", lambda *_: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_args, **_more: done)
    monkeypatch.setattr(doctor, "_CPU_CLOCK", Path("/nowhere"))
    check = doctor._clocks()
    assert check["ok"] is ok
    assert ("1980" in check["says"]) == (code == 0)


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
    check = doctor._profiler()
    assert check["ok"] is False
    assert "no op" in check["says"]


@pytest.mark.torch
def test_the_command_names_what_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert prunescope.main(["doctor"]) == 0
    out = capsys.readouterr().out
    for name in ("torch", "device", "profiler", "2:4", "clocks", "hta", "demo"):
        assert name in out
