"""A result of a sweep beside which something else ran is timed again, once."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prunescope.taxonomy.formats import changed, read
from prunescope.taxonomy.runs.run import read_run
from prunescope.taxonomy.runs.run_blocks import MeasuredPeaks, MeasuredRates
from prunescope.tracer.sweep.request import SweepRequest
from prunescope.tracer.sweep.sweep import sweep
from tests.small_capture import PEAKS, SMALL_SWEEP, same_peaks

SMALL = SMALL_SWEEP.replace("[static-m, static-nk-mlp]", "[static-m]")
TWO = SMALL.replace("[0.25, 0.5]", "[0.5]")  # results: one sparsity in two phases


@dataclass(frozen=True)
class Noise:
    """What disturbs the first `captures` of a result, on which side, samples or profiled steps."""

    captures: int
    why: str = "other processes"
    side: str = "dense"
    steps: bool = False


NOISY = {
    "static-m-s0.25-prefill-b1-p16-d0": Noise(0),
    "static-m-s0.25-decode-b1-p16-d0": Noise(1, "waits", "pruned", steps=True),
    "static-m-s0.5-prefill-b1-p16-d0": Noise(9),
    "static-m-s0.5-decode-b1-p16-d0": Noise(9, "clocks held down"),  # no second capture helps
}
TAKEN = dict(zip(NOISY, (1, 2, 2, 1), strict=True))


def small_sweep(tmp_path: Path, patch: pytest.MonkeyPatch, text: str = SMALL) -> Path:
    """Four results of static-m, judged on few tokens; again the same call goes on."""
    from prunescope.tracer.sweep import job

    patch.setattr(job, "TOKENS", 128)
    config = tmp_path / "sweep.yaml"
    config.write_text(text, encoding="utf-8")
    return sweep(SweepRequest(config=config, out=tmp_path / "s"))


@pytest.mark.torch
def test_a_result_that_was_disturbed_is_captured_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunescope.tracer.sweep import job

    trace, taken = job.trace, Counter[str]()

    def beside_other_work(request: Any, **options: Any) -> Path:
        folder = trace(request, **options)
        taken[folder.name] += 1
        for side in ("dense", "pruned"):
            disturb(folder / side, NOISY[folder.name], taken[folder.name])
        return folder

    same_peaks(monkeypatch)
    monkeypatch.setattr(job, "trace", beside_other_work)
    out = small_sweep(tmp_path, monkeypatch)
    assert taken == TAKEN
    for name, noise in NOISY.items():
        runs = [read_run(out / "runs" / name / side) for side in ("dense", "pruned")]
        assert any(run.is_disturbed for run in runs) == (noise.captures == 9)


def disturb(folder: Path, noise: Noise, capture: int) -> None:
    """Write into a run that `noise` ran beside it, and nothing else."""
    run = read_run(folder)
    noisy = folder.name == noise.side and capture <= noise.captures
    for phase in run.phases.values():
        for placement in phase.placements:
            placement.disturbed = placement.samples if noisy and not noise.steps else 0
            placement.reasons = [noise.why] if noisy and not noise.steps else []
            placement.steps_disturbed = [noise.why] if noisy and noise.steps else []
    (folder / "run.json").write_text(run.to_json(), encoding="utf-8")


@pytest.mark.torch
def test_peaks_that_were_disturbed_are_measured_again_before_the_next_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of two results, whose capture measures before and after, keeps 1e11 FLOP/s; a
    quiet measurement of 2e11 ends the search. A later call measures nothing."""
    from prunescope.tracer.capture import device_state
    from prunescope.tracer.sweep import job

    low, high = (changed(PEAKS, dense_flop_per_s={"fp32": rate}) for rate in (1e11, 2e11))
    noisy = changed(low, disturbed=["waits"])
    taken = iter([noisy, noisy, high])
    for module in (device_state, job):
        monkeypatch.setattr(module, "measure_peaks", lambda *_: next(taken))
    out = small_sweep(tmp_path, monkeypatch, TWO)
    kept = [read_run(path).device.peaks for path in sorted(out.glob("runs/*/dense"))]
    assert Counter(one.dense_flop_per_s["fp32"] for one in kept if one) == {1e11: 1, 2e11: 1}
    assert sorted(len(one.disturbed) for one in kept if one) == [0, 1]
    (path,) = out.glob("peaks-*.json")
    said = read(MeasuredPeaks, json.loads(path.read_bytes()))
    assert (said.dense_flop_per_s["fp32"], said.disturbed) == (2e11, [])
    each = [(one.dense_flop_per_s["fp32"], one.disturbed) for one in said.measurements]
    assert each == [(1e11, ["waits"]), (1e11, ["waits"]), (2e11, [])]
    shutil.rmtree(out / "runs" / "static-m-s0.5-decode-b1-p16-d0")
    small_sweep(tmp_path, monkeypatch, TWO)
    assert next(taken, None) is None


@pytest.mark.torch
def test_peaks_of_a_sweep_are_the_better_of_before_and_after_its_first_capture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two measurements, no third; every result has the better one, and both beside it."""
    from prunescope.tracer.capture import device_state

    taken = iter([changed(PEAKS, dense_flop_per_s={"fp32": rate}) for rate in (1e11, 2e11)])
    monkeypatch.setattr(device_state, "measure_peaks", lambda *_: next(taken))
    out = small_sweep(tmp_path, monkeypatch, TWO)
    kept = [read_run(path).device.peaks for path in sorted(out.glob("runs/*/dense"))]
    assert len(kept) == 2
    for one in kept:
        assert one is not None and one.before is not None and one.after is not None
        rates = (one.dense_flop_per_s, one.before.dense_flop_per_s, one.after.dense_flop_per_s)
        assert [rate["fp32"] for rate in rates] == [2e11, 1e11, 2e11]
        assert one.reached is not None


def test_peaks_that_are_never_quiet_are_taken_as_they_are() -> None:
    from prunescope.tracer.sweep import job

    noisy = changed(PEAKS, disturbed=["waits"])
    assert job._should_remeasure(noisy)
    assert not job._should_remeasure(changed(noisy, measurements=[MeasuredRates()] * 5))
    assert not job._should_remeasure(PEAKS)
