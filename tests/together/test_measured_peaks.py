"""Peaks that cannot be too low: taken twice, disturbed ones again, never below what was reached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from prunescope.analysis.inputs.options import Options
from prunescope.analysis.kernels.peaks import run_peaks
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report import titles
from prunescope.analysis.schema.report import Report
from prunescope.analysis.wording.sentence import sentence
from prunescope.taxonomy.formats import changed
from prunescope.taxonomy.runs.run_blocks import (
    CalibratedDevice,
    CalibrationPasses,
    DeviceEntry,
    GemmTime,
    MeasuredPeaks,
    MeasuredRates,
)
from prunescope.tracer.capture import device_state
from prunescope.tracer.capture.device_state import AchievedRates, DeviceState
from prunescope.tracer.machine import peaks
from tests.analysis.finding_cases import mm
from tests.analysis.run_folder import write_run
from tests.chrome import chrome, step

pytestmark = pytest.mark.torch
CPU = torch.device("cpu")


def measured(bf16: float, byte: float = 30e9, floor: int = 900) -> MeasuredPeaks:
    rates = {"bf16": bf16, "fp32": bf16 / 2}
    return MeasuredPeaks(dense_flop_per_s=rates, byte_per_s=byte, kernel_floor_ns=floor, threads=2)


def test_the_better_of_two_counts() -> None:
    best = peaks.better_peaks(measured(0.36e12, 31e9, 900), measured(2.2e12, 30e9, 800))
    assert best.dense_flop_per_s == {"bf16": 2.2e12, "fp32": 1.1e12}
    assert (best.byte_per_s, best.kernel_floor_ns) == (31e9, 800)


@pytest.mark.parametrize(
    ("told", "calls", "said"),
    [([[]], 1, None), ([["waits"], []], 2, None), ([["waits"], ["steal"]], 2, ["steal"])],
)
def test_a_disturbed_measurement_is_taken_again(
    told: list[list[str]], calls: int, said: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watched(*_: Any) -> tuple[MeasuredPeaks, list[str]]:
        seen.append(1)
        return measured(len(seen) * 1e12), told[len(seen) - 1]

    monkeypatch.setattr(peaks, "_watched", watched)
    found = peaks.measure_peaks(CPU, "bf16")
    assert len(seen) == calls
    assert found.dense_flop_per_s["bf16"] == calls * 1e12
    assert (found.disturbed or None) == said


@pytest.mark.parametrize(
    ("one", "other", "kept"),
    [
        (([], 1), (["waits"], 2), []),  # no lower than a quiet one
        ((["waits"], 2), ([], 1), []),
        ((["waits"], 2), (["steal"], 1), ["waits"]),
        ((["waits"], 1), (["steal"], 2), ["steal"]),
        ((["waits"], 1), (["steal"], 1), ["waits"]),
    ],
)
def test_the_better_peaks_are_disturbed_where_none_was_quiet(
    one: tuple[list[str], int], other: tuple[list[str], int], kept: list[str]
) -> None:
    first, second = (changed(measured(n * 1e12), disturbed=why) for why, n in (one, other))
    assert peaks.better_peaks(first, second).disturbed == kept


def test_rates_of_two_disturbed_measurements_name_both() -> None:
    first = changed(measured(1e12, byte=31e9), disturbed=["waits"])
    second = changed(measured(2e12, byte=30e9), disturbed=["steal"])
    assert peaks.better_peaks(first, second).disturbed == ["waits", "steal"]


def product(us: float, *, dims: list[list[int]], name: str = "aten::mm") -> dict[str, Any]:
    args = {"Input Dims": dims, "Input type": ["c10::BFloat16"] * len(dims)}
    return {"ph": "X", "cat": "cpu_op", "name": name, "ts": 0, "dur": us, "args": args}


def reached_rates(traces: list[dict[str, Any]]) -> dict[str, float]:
    found = AchievedRates()
    for trace in traces:
        found.add(trace)
    return found.rates()


def test_what_products_reached_is_a_median() -> None:
    """2·100·200·50 = 2 MFLOP in 1, 2 and 4 us: a median of 1 TFLOP/s, whatever the best was."""
    mm = [product(us, dims=[[100, 50], [50, 200]]) for us in (1, 2, 4)]
    bmm = [product(10, dims=[[3, 10, 20], [3, 20, 10]], name="aten::bmm")] * 3  # 12 kFLOP in 10 us
    once = [product(0.001, dims=[[64, 64], [64, 64]])] * 2
    add = [product(1, dims=[[7], [100, 50], [50, 200]], name="aten::addmm")] * 3  # 2 TFLOP/s
    assert reached_rates([{"traceEvents": mm + bmm + once}]) == {"bf16": pytest.approx(1e12)}
    assert reached_rates([{"traceEvents": mm}, {"traceEvents": add}])["bf16"] == pytest.approx(2e12)
    assert reached_rates([{"traceEvents": [product(1, dims=[[], []])] * 5}]) == {}


def test_on_a_device_the_kernels_of_an_op_are_its_time() -> None:
    events = []
    for i in range(3):
        op = product(90, dims=[[100, 50], [50, 200]])
        op["args"]["External id"] = i + 1
        kernel = {"ph": "X", "cat": "kernel", "name": "k", "ts": 0, "dur": 1}
        events += [op, kernel | {"args": {"External id": i + 1}}, kernel | {"args": {}}]
    assert reached_rates([{"traceEvents": events}]) == {"bf16": pytest.approx(2e12)}


def test_both_measurements_and_what_was_reached_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter([measured(0.36e12), measured(2.2e12)])
    monkeypatch.setattr(device_state, "measure_peaks", lambda *_: next(taken))
    state = DeviceState(CPU)
    state.open("bf16")
    state.achieved.add({"traceEvents": [product(1, dims=[[100, 50], [50, 200]])] * 3})
    state.close()
    assert state.entry is not None
    kept = state.entry.peaks
    assert kept is not None and kept.before is not None and kept.after is not None
    assert kept.dense_flop_per_s["bf16"] == 2.2e12
    assert kept.before.dense_flop_per_s["bf16"] == 0.36e12
    assert kept.after.dense_flop_per_s["bf16"] == 2.2e12
    assert kept.reached == {"bf16": pytest.approx(2e12)}
    found = run_peaks(DeviceEntry(name="a CPU", peaks=kept), None)
    assert found is not None
    assert found.flop_per_s["bf16"] == 2.2e12
    assert found.taken["bf16"]["used"] == "after"
    (note,) = map(sentence, found.caveats())  # bf16 and fp32 are six times apart, bandwidth is not
    assert "the bf16 peak was measured as 0.36 TFLOP/s" in note and "the fp32 peak" in note
    assert "bandwidth" not in note
    assert found.as_json()["taken"]["bf16"]["before"] == 0.36e12


def test_a_quiet_measurement_after_a_disturbed_one_leaves_no_caveat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noisy = changed(measured(2.1e12), disturbed=["waits"])
    taken = iter([noisy, measured(2.2e12)])
    monkeypatch.setattr(device_state, "measure_peaks", lambda *_: next(taken))
    state = DeviceState(CPU)
    state.open("bf16")
    state.close()
    assert state.entry is not None
    kept = state.entry.peaks
    assert kept is not None and kept.before is not None and kept.after is not None
    assert (kept.disturbed, kept.before.disturbed, kept.after.disturbed) == ([], ["waits"], [])
    found = run_peaks(DeviceEntry(name="a CPU", peaks=kept), None)
    assert found is not None and found.caveats() == []


def test_a_second_measurement_takes_the_best_shape_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "_read_byte_per_s", lambda *_, **__: 1.0)
    rows = [
        GemmTime(dtype="fp32", m=m, n=64, k=64, median_ns=1, repeats=1, flop_per_s=rate)
        for m, rate in ((64, 1.0), (128, 3.0), (256, 2.0))
    ]
    known = changed(measured(1.0), gemm_sweep=rows)
    found = peaks.measure_peaks(CPU, "fp32", known, budget_s=0.05)
    assert {(row.m, row.n, row.k) for row in found.gemm_sweep} == {(128, 64, 64)}


@pytest.mark.parametrize("disturbed", [[], ["waits"]])
def test_a_disturbed_measurement_chooses_no_shape(
    disturbed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = changed(measured(1e12), disturbed=disturbed)
    given: list[tuple[Any, ...]] = []

    def measure(*arguments: Any) -> MeasuredPeaks:
        given.append(arguments)
        return before

    monkeypatch.setattr(device_state, "measure_peaks", measure)
    state = DeviceState(CPU)
    state.open("bf16")
    state.close()
    assert given == [(CPU, "bf16"), (CPU, "bf16", None if disturbed else before)]


def rates(bf16: float, *disturbed: str) -> dict[str, Any]:
    """One measurement, as a manifest has it."""
    fast = {"bf16": bf16, "fp32": bf16 / 2}
    found = {"dense_flop_per_s": fast, "byte_per_s": 30e9}
    return {**found, "disturbed": list(disturbed)} if disturbed else found


def report_of(folder: Path, seen: dict[str, Any], **options: Any) -> Report:
    """The report of a run on a processor with these peaks."""
    trace = chrome(step(0, mm(512, 512, 512)))
    device = {"kind": "cpu", "name": "a processor", "peaks": {**seen, "kernel_floor_ns": 900}}
    return analyze(
        write_run(folder / "dense", trace, device=device), options=Options(**options)
    ).report


def test_a_report_says_both_measurements_and_which_is_used(tmp_path: Path) -> None:
    """The doubt stands in the warnings, the measurements in the sentence of the device."""
    seen = {**rates(2.2e12), "before": rates(0.36e12, "waits"), "after": rates(2.2e12)}
    found = report_of(tmp_path / "apart", seen)
    (note,) = found.warnings
    assert note.partition(":")[0].split("; ") == [
        f"the {name} peak was measured as {one} TFLOP/s before the capture and {other} TFLOP/s "
        "after it (bounds use the higher one)"
        for name, one, other in (("bf16", "0.36", "2.2"), ("fp32", "0.18", "1.1"))
    ]
    said = titles.device(found)
    assert "; bf16 before 360 GFLOP/s, after 2.2 TFLOP/s (used)" in said
    reached = {**seen, "reached": {"bf16": 2.5e12}}
    said = titles.device(report_of(tmp_path / "reached", reached))
    assert "after 2.2 TFLOP/s, reached 2.5 TFLOP/s (used)" in said
    given = report_of(tmp_path / "given", seen, peaks={"bf16": 3.0})
    assert "after 2.2 TFLOP/s, used: the one that was given" in titles.device(given)
    bf16, fp32 = given.warnings[0].split("; ")
    assert "bounds use the one that was given" in bf16 and "bounds use the higher one" in fp32


@pytest.mark.parametrize(
    ("before", "after", "doubted"),
    [((), (), False), (("waits",), (), False), ((), ("steal",), False),
     (("waits",), ("steal",), True)],
)  # fmt: skip
def test_peaks_that_stayed_disturbed_are_a_warning(
    before: tuple[str, ...], after: tuple[str, ...], doubted: Any, tmp_path: Path
) -> None:
    """Both low and alike, as beside a loop that runs throughout: their distance says nothing."""
    seen = {"before": rates(0.36e12, *before), "after": rates(0.37e12, *after)}
    # What an older version kept of the first measurement is not believed.
    found = report_of(tmp_path / "run", {**rates(0.37e12, *before), **seen})
    said = "every measurement of the peaks was disturbed (waits, steal): they may be too low"
    assert [one.partition(", and shares")[0] for one in found.warnings] == [said] * doubted
    known = report_of(tmp_path / "known", {**rates(0.37e12, *before), **seen},
                      peaks={"bf16": 3.0, "fp32": 1.5}, bandwidth=30.0)  # fmt: skip
    assert known.warnings == []


def test_peaks_of_a_sweep_that_were_disturbed_are_a_warning_of_each_result(tmp_path: Path) -> None:
    found = report_of(tmp_path / "run", rates(0.37e12, "waits"))
    assert [said.partition(" (")[0] for said in found.warnings] == [
        "every measurement of the peaks was disturbed"
    ]
    assert report_of(tmp_path / "quiet", rates(0.37e12)).warnings == []


def test_no_peak_is_below_what_a_product_reached() -> None:
    low = measured(0.36e12)
    once = MeasuredRates(dense_flop_per_s=low.dense_flop_per_s, byte_per_s=low.byte_per_s)
    peaks = changed(low, before=once, after=once, reached={"bf16": 1.6e12})
    found = run_peaks(DeviceEntry(name="a CPU", peaks=peaks), None)
    assert found is not None
    assert found.flop_per_s == {"bf16": 1.6e12, "fp32": 0.18e12}
    assert found.byte_per_s == 30e9  # a cache is faster than memory: that is no evidence
    assert found.taken["bf16"]["used"] == "reached"
    assert "raised" in found.source
    assert found.caveats() == []


def test_an_older_run_says_nothing_of_it() -> None:
    found = run_peaks(DeviceEntry(name="a CPU", peaks=measured(1e12)), None)
    assert found is not None
    assert found.taken == {}
    assert "taken" not in found.as_json()


def test_a_higher_calibration_is_what_bounds_use_and_says_so() -> None:
    low, later = measured(1e12), measured(1.5e12)
    before, after = (
        MeasuredRates(dense_flop_per_s=notice.dense_flop_per_s, byte_per_s=notice.byte_per_s)
        for notice in (low, later)
    )
    calibrated = CalibratedDevice(
        name="a CPU",
        dense_flop_per_s={"bf16": 2e12, "fp32": 0.1e12},
        byte_per_s=31e9,
        measured=CalibrationPasses(threads=2),
    )
    taken = changed(later, before=before, after=after)
    device = DeviceEntry(name="a CPU", peaks=taken, calibration=calibrated)
    found = run_peaks(device, None)
    assert found is not None
    assert found.flop_per_s == {"bf16": 2e12, "fp32": 0.75e12}
    assert found.byte_per_s == 31e9
    used = {name: seen["used"] for name, seen in found.taken.items()}
    assert used == {"bf16": "calibrated", "fp32": "after", "bandwidth": "calibrated"}
    moved, far = map(sentence, found.caveats())  # a note of each kind, whatever the number of peaks
    assert "the higher one" in moved and "bf16" not in moved  # which the other one names
    assert far.startswith("by `prunescope calibrate` the bf16 peak is 2 TFLOP/s, and was at most")
    assert "1.5 TFLOP/s around this capture" in far
    near = changed(calibrated, dense_flop_per_s={"bf16": 1.7e12}, byte_per_s=None)
    found = run_peaks(changed(device, calibration=near), None)
    assert found is not None
    assert not any("around this capture" in sentence(notice) for notice in found.caveats())
