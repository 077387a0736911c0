"""Ctrl-C and SIGTERM at the edges of a command: while it is imported, and when all is done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
KILL = "import os, signal, time\nos.kill(os.getpid(), {})\ntime.sleep(9)\n"
both = pytest.mark.parametrize("number", CODES)


def run(folder: Path, *words: str, ignoring: bool = False) -> subprocess.CompletedProcess[str]:
    """The command, with the modules of a folder before those of the environment."""
    return subprocess.run(
        [sys.executable, "-m", "prunescope", *words], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(folder)}, timeout=120, check=False,
        preexec_fn=(lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if ignoring else None,
    )  # fmt: skip


@both
@pytest.mark.parametrize("words", [["devices"], ["devices", "--json"], ["verify", "gone.zip"]])
def test_while_the_command_is_imported(
    number: signal.Signals, words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "typer.py").write_text(KILL.format(int(number)))
    done = run(tmp_path, *words)
    assert done.returncode == CODES[number]
    problem, hint, *more = done.stderr.splitlines()
    assert problem == "error: interrupted"
    assert hint.startswith("  hint: ")
    assert len(more) == ("--json" in words)
    if more:
        assert json.loads(more[0])["error"]["problem"] == "interrupted"


@both
def test_in_code_that_is_run_from_a_string(number: signal.Signals, tmp_path: Path) -> None:
    """As dataclasses and named tuples of a library are while it is imported."""
    (tmp_path / "rich").mkdir()
    (tmp_path / "rich" / "__init__.py").write_text(f"exec({KILL.format(int(number))!r})\n")
    done = run(tmp_path, "verify", "gone.zip", "--json", "-")
    assert done.returncode == CODES[number]
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: interrupted\n")
    assert json.loads(done.stderr.splitlines()[-1])["error"]["problem"] == "interrupted"


@both
def test_when_all_is_done(number: signal.Signals, tmp_path: Path) -> None:
    """The exit code is that of what was done."""
    kill = f"import atexit, os\natexit.register(lambda: os.kill(os.getpid(), {int(number)}))\n"
    (tmp_path / "sitecustomize.py").write_text(kill)
    for words, code in ((["devices"], 0), (["analyze", "gone"], 2)):
        done = run(tmp_path, *words)
        assert done.returncode == code, done.stderr
        assert "interrupted" not in done.stderr


def test_what_ignores_ctrl_c_goes_on(tmp_path: Path) -> None:
    """Started in the background of a shell, or with nohup."""
    (tmp_path / "sitecustomize.py").write_text("import os\nos.kill(os.getpid(), 2)\n")
    assert run(tmp_path, "devices", ignoring=True).returncode == 0


def test_a_program_that_imports_prunescope_keeps_its_handlers() -> None:
    code = (
        "import signal; before = [signal.getsignal(n) for n in (2, 15)]; import prunescope\n"
        "prunescope.main(['devices'])\n"
        "assert before == [signal.getsignal(n) for n in (2, 15)]\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60, stdout=subprocess.DEVNULL
    )
