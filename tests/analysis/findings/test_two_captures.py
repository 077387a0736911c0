"""Two runs of two captures: one set of peaks, and said that they did not take turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.inputs.options import Options
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Report
from tests.analysis.finding_cases import K, M, N, layers, mm
from tests.analysis.run_folder import PEAKS, write_run

LOW = {"dense_flop_per_s": {"bf16": 7e13}, "byte_per_s": 1.1e12}
TURNS = "not in turns"


def device(peaks: dict[str, Any], *, name: str = "NVIDIA H100 80GB HBM3", threads: int = 2) -> Any:
    return {"kind": "cuda", "name": name, "peaks": {**peaks, "threads": threads}}


def two(tmp_path: Path, dense: dict[str, Any], pruned: dict[str, Any], **options: Any) -> Report:
    """Analyse two pairs of runs, from which a quarter of N is gone.

    Each GEMM takes 100 µs, so that peaks alone decide every bound.
    """
    work = ("mlp.up_proj", mm()), ("mlp.up_proj", mm(n=3 * N // 4))
    fields = {"samples_ns": [1_000_000, 1_001_000, 999_000]}
    sides = [
        write_run(tmp_path / name / "dense", layers(modules), device=own, phase_fields=fields)
        for name, modules, own in zip(("a", "b"), work, (dense, pruned), strict=True)
    ]
    return analyze(sides[1], baseline=sides[0], options=Options(**options)).report


def test_the_higher_of_two_measurements_bounds_both(tmp_path: Path) -> None:
    """A peak of 70 % beside equal work was a roofline shift of −30 % of it."""
    report = two(tmp_path, device(LOW), device(PEAKS))
    (phase,) = report.phases.values()
    shift = next(row for row in phase.ledger or [] if row.row == "roofline_shift")
    assert shift.ns == pytest.approx(0.0)
    assert phase.ladder is not None
    assert phase.ladder.roofline == phase.ladder.coverage
    peaks = report.device["peaks"]
    assert peaks is not None
    assert peaks["dense_flop_per_s"] == PEAKS["dense_flop_per_s"]
    assert peaks["byte_per_s"] == 1.1e12
    ideal = 2 * M * (3 * N // 4) * K / 1e14 * 1e9
    assert phase.gemms[0].ideal_ns == pytest.approx(2 * ideal)
    assert "of both runs, the higher" in str(report.device["source"])
    said = [w for w in report.warnings if "around the dense run" in w]
    assert said == [
        "the bf16 peak was measured as 70 TFLOP/s around the dense run and 100 TFLOP/s around the "
        "pruned one: something else ran, or the clock fell; bounds of both use the higher one"
    ]


@pytest.mark.parametrize("changed", [{"name": "NVIDIA A100-SXM4-80GB"}, {"threads": 1}])
def test_peaks_of_another_device_or_number_of_threads_stay(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    report = two(tmp_path, device(LOW), device(PEAKS, **changed))
    assert report.device["peaks"] is not None
    assert report.device["peaks"]["byte_per_s"] == PEAKS["byte_per_s"]
    assert not any("around the dense run" in w for w in report.warnings)


def test_given_peaks_are_those_of_both(tmp_path: Path) -> None:
    report = two(tmp_path, device(LOW), device(PEAKS), peaks={"bf16": 50.0}, bandwidth=900.0)
    assert report.device["peaks"] is not None
    assert report.device["peaks"]["dense_flop_per_s"]["bf16"] == 5e13
    assert not any("around the dense run" in w for w in report.warnings)


def test_samples_that_did_not_take_turns(tmp_path: Path) -> None:
    (phase,) = two(tmp_path, device(PEAKS), device(PEAKS)).phases.values()
    assert [TURNS in note for note in phase.notes].count(True) == 1
