"""Standard output alone for the JSON, and progress where standard error is a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prunescope import output

_COMMAND = """
import atexit, ctypes, os, subprocess, sys
from prunescope.output import kept_for_json, write_json
with kept_for_json():
    atexit.register(print, "at the end")
    sys.__stdout__.write("another name\\n")
    ctypes.CDLL(None).puts(b"of C")
    subprocess.run(["echo", "of a child"])
    write_json({"a": 1}, "-")
"""


@pytest.mark.parametrize("is_command", [True, False])
def test_standard_output_holds_the_json_alone(tmp_path: Path, *, is_command: bool) -> None:
    """In a command nothing else is printed there later; elsewhere the stream is given back."""
    script = tmp_path / ("prunescope" if is_command else "other")
    script.write_text(_COMMAND)
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=True, env={**os.environ}
    )
    printed, _, after = done.stdout.partition("}\n")
    assert json.loads(printed + "}") == {"a": 1}
    assert bool(after) != is_command
    texts = ("another name", "of a child", *(["of C", "at the end"] if is_command else []))
    assert all(text in done.stderr for text in texts)


def test_a_file_gets_a_line_of_progress_at_a_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """None in the first ten seconds, nor of a single thing."""
    with output.progress_bar("runs") as on_done:
        on_done(1, 3)
        monkeypatch.setattr(output, "QUIET_S", -1.0)
        on_done(1, 1)
        on_done(2, 3)
    assert capsys.readouterr().err == "runs: 2 of 3, about 1 s left\n"
