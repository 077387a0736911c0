"""`calibrate --out FILE`, then `predict --device FILE` and a run that holds the calibration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from prunescope.cli import app
from prunescope.taxonomy.runs.run_blocks import MeasuredPeaks
from tests.together.test_cli import quick_peaks

pytestmark = pytest.mark.torch
POINT = ("--method", "static-nk", "--sparsity", 0.5)
SIZES = ("--prompt-len", 16)


def run(*words: object) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A calibration of this machine with few sizes, in a cache of its own."""
    from prunescope.tracer.machine import calibrate, times_by_size

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(calibrate, "PASSES", 1)
    monkeypatch.setattr(times_by_size, "_WIDTHS", (64, 192))
    monkeypatch.setattr(times_by_size, "_STREAM_BYTES", (3 << 10, 3 << 18))
    monkeypatch.setattr(
        calibrate,
        "measure_peaks",
        lambda *_, **__: MeasuredPeaks(
            dense_flop_per_s={"fp32": 1e11, "bf16": 1e11}, byte_per_s=1e10, threads=1
        ),
    )
    target = tmp_path / "cpu.json"
    run("calibrate", "--device", "cpu", "--out", target)
    return target


def test_a_calibration_predicts_and_a_run_holds_it(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ("predict", "--model", "tiny-llama", *POINT, *SIZES, "--attn", "sdpa", "--json", "-")
    of_file, kept = (
        json.loads(run(*words, "--device", name).stdout)["points"] for name in (file, "cpu")
    )
    assert of_file == kept
    for phase in of_file[0]["phases"].values():
        execution = phase["predicted"]["execution"]
        assert execution["launch"] == "eager"
        low, high = execution["range"]
        assert low < execution["speedup"] < high

    quick_peaks(monkeypatch)
    folder = tmp_path / "run"
    run("trace", "--model", "tiny-llama", *POINT, *SIZES, "--decode-steps", 2, "--repeats", 2,
        "--steps", 2, "--placements", 2, "--threads", 1, "--out", folder)  # fmt: skip
    held = json.loads((folder / "dense" / "run.json").read_text())["device"]["calibration"]
    assert held == json.loads(file.read_text())
    words = ("predict", "--from-run", folder, *POINT, "--json", "-")
    phases = json.loads(run(*words).stdout)["phases"]
    for phase in phases.values():
        (row,) = phase["families"]
        assert row["range"][0] < row["expected"] < row["range"][1]
        assert any("measured on its device" in note for note in phase["notes"])
