"""Run folders appear whole or not at all."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from prunescope.taxonomy.atomic_write import clean_termination
from prunescope.tracer.capture.runs import write_whole


def fill(folder: Path) -> None:
    (folder / "dense").mkdir()
    (folder / "dense" / "run.json").write_text("{}")


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def half(folder: Path) -> None:
        fill(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "run", half)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_old_one(tmp_path: Path) -> None:
    write_whole(tmp_path / "run", fill)

    def half(folder: Path) -> None:
        (folder / "pruned").mkdir()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(tmp_path / "run", half)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["dense"]
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_the_new_one_replaces_the_old_one(tmp_path: Path) -> None:
    write_whole(tmp_path / "a" / "run", fill)
    write_whole(tmp_path / "a" / "run", lambda folder: (folder / "pruned").mkdir())
    assert [p.name for p in (tmp_path / "a" / "run").iterdir()] == ["pruned"]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["run"]


def test_sigterm_cleans_up(tmp_path: Path) -> None:
    def killed(folder: Path) -> None:
        fill(folder)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, clean_termination():
        write_whole(tmp_path / "run", killed)
    assert caught.value.code == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before
