"""benchmarks/gpu.py without a GPU: its commands on a CPU with tiny shapes, resumed and packed."""

from __future__ import annotations

import json
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu  # noqa: E402

from prunescope.taxonomy.families import pruning_families  # noqa: E402


def step(name: str, *words: str) -> gpu.Step:
    return gpu.Step(name, words)


def test_every_slice_has_commands_that_the_product_knows(tmp_path: Path) -> None:
    traced = {one.id for one in pruning_families() if not one.predicted_only}
    assert set(gpu.FAMILIES) <= traced and set(gpu.GRAPH_FAMILIES) <= set(gpu.FAMILIES)
    for name, slice_of in gpu.SLICES.items():
        steps = list(slice_of(gpu.Setting(tmp_path / name)))
        assert steps and len({one.name for one in steps}) == len(steps)
        assert {one.words[0] for one in steps} <= {"calibrate", "trace", "sweep"}


def test_a_step_is_run_once_and_a_failed_one_again(tmp_path: Path) -> None:
    steps = [step("good", "--version"), step("bad", "no-such-command")]
    later = time.monotonic() + 120
    assert gpu.run_slice(steps, tmp_path, deadline=later) == ["bad"]
    record = json.loads((tmp_path / "good" / "done.json").read_bytes())
    assert record["command"] == ["prunescope", "--version"] and record["exit_code"] == 0
    assert (tmp_path / "good" / "output.txt").read_text().startswith("prunescope ")
    (tmp_path / "good" / "output.txt").unlink()
    assert gpu.run_slice(steps, tmp_path, deadline=later) == ["bad"]
    assert not (tmp_path / "good" / "output.txt").exists()


def test_time_that_is_over_leaves_all_open(tmp_path: Path) -> None:
    steps = [step("one", "--version")]
    assert gpu.run_slice(steps, tmp_path, deadline=time.monotonic()) == ["one"]
    assert list(tmp_path.iterdir()) == []


def test_archives_are_small_and_name_what_they_leave_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of 60 bytes do not share an archive of 100; one of 120 fits in none."""
    monkeypatch.setattr(gpu, "ARCHIVE_BYTES", 100)
    folder = tmp_path / "slice"
    for name, size in (("a", 60), ("b", 60), ("c", 120), ("d", 30)):
        (folder / name).mkdir(parents=True)
        (folder / name / "f").write_bytes(b"x" * size)
    assert gpu.pack(folder, tmp_path, "slice") == ["c/f"]
    assert [zipfile.ZipFile(path).namelist() for path in sorted(tmp_path.glob("slice-*.zip"))] == [
        ["slice/a/f"],
        ["slice/b/f", "slice/d/f"],
    ]


def test_a_folder_without_runs_has_no_report(tmp_path: Path) -> None:
    assert gpu.main(["report", "--out", str(tmp_path)]) == 2


@pytest.mark.torch
@pytest.mark.slow
def test_a_slice_runs_on_a_cpu_and_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "PROMPTS", (64, 64))
    monkeypatch.setattr(gpu, "BATCHES", (1,))
    words = ["--device", "cpu", "--small", "tiny-llama", "--large", "tiny-llama"]
    assert gpu.main(["waves", "--out", str(tmp_path), *words]) == 0
    assert list(tmp_path.glob("waves-*.zip"))
    assert gpu.main(["report", "--out", str(tmp_path)]) == 0
