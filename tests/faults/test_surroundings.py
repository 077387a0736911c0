"""What lies around a command: a clock that is set, a repository with a remote, odd folders."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import prunescope
from prunescope.taxonomy.scrub import scrub
from tests.hostile.material import write_pair

ROOT = Path(__file__).resolve().parents[2]
SECRET = "glpat-" + "Nanosecond0Wire1Token2"


@pytest.mark.torch
def test_no_sample_is_taken_by_a_clock_that_can_be_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of the day goes an hour ahead and back at every look: no sample takes an hour."""
    from tests.small_capture import small_trace

    hours = itertools.cycle((3600.0, -3600.0))
    today, nanoseconds = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: today() + next(hours))
    monkeypatch.setattr(time, "time_ns", lambda: nanoseconds() + int(next(hours) * 1e9))
    run = tmp_path / "run"
    small_trace(run, method="static-m", sparsity=0.5, phase="prefill", prompt_len=8)
    for side in ("dense", "pruned"):
        told = json.loads((run / side / "run.json").read_bytes())
        assert all(0 < ns < 100e9 for ns in told["phases"]["prefill"]["samples_ns"])
    assert list(prunescope.analyze(run).to_dict()["phases"]) == ["prefill"]


def test_what_a_repository_says_of_its_remote_is_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A remote with a token, an author, a branch, and commands that git would run."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    write_pair(tmp_path / "run")
    ran = tmp_path / "ran"
    who = ["-c", "user.name=Ada Lovelace", "-c", "user.email=ada@heartofgold.example"]
    for words in (
        ["init", "-q", "-b", "zaphod-branch"], ["remote", "add", "origin", f"https://ada:{SECRET}@h/x"],
        [*who, "commit", "-q", "--allow-empty", "-m", f"a token {SECRET}"],
        ["config", "core.fsmonitor", f"touch {ran}"], ["config", "core.pager", f"touch {ran}"],
        ["config", "core.sshCommand", f"touch {ran}"],
        ["config", "alias.rev-parse", f"!touch {ran}"],
    ):  # fmt: skip
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("GITHUB_", "CI_", "GIT_"))]:
        monkeypatch.delenv(name)
    assert prunescope.main(["check", "run", "-r", "prefill.realised >= 0.1", "--allow-undecided",
                            "--history", "history.jsonl", "--json", "check.json"]) == 0  # fmt: skip
    assert prunescope.main(["analyze", "run", "--format", "md,html,json,csv,tex"]) == 0
    written = [p for p in tmp_path.rglob("*") if p.is_file() and ".git" not in p.parts]
    assert "history.jsonl" in {path.name for path in written}
    said = "".join(capsys.readouterr())
    for text in [said, *(path.read_text("utf-8", "replace") for path in written
                         if path.suffix != ".gz")]:  # fmt: skip
        for word in (SECRET, "ada", "heartofgold", "zaphod-branch"):
            assert word not in text.lower().split() and (word == "ada" or word not in text)
    assert not ran.exists()


def test_a_cell_of_a_notebook_names_no_process() -> None:
    frame = "/tmp/ipykernel_4711/2094583.py(3): <cell line: 1>"
    assert scrub(frame) == "2094583.py(3): <cell line: 1>"


@pytest.mark.parametrize("name", ["mit Leerzeichen und ü", "it's (1) & more", "-x"])
def test_the_tests_run_in_a_folder_of_any_name(name: str, tmp_path: Path) -> None:
    """Of the targets of make: no word of theirs names the folder, and tests of ours run there."""
    folder = tmp_path / name
    folder.mkdir()
    for part in ("analysis", "prunescope", "taxonomy", "tests", "tracer", "pyproject.toml"):
        (folder / part).symlink_to(ROOT / part)
    shutil.copy(ROOT / "Makefile", folder)
    (folder / ".venv").mkdir()
    (folder / ".venv" / ".installed").touch()
    if shutil.which("make"):
        told = subprocess.run(
            ["make", "--no-print-directory", "-n", "test", "docs", "package", "audit"],
            cwd=folder, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        assert name not in told and "-m pytest" in told
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
         "tests/taxonomy/test_words.py"],
        cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
