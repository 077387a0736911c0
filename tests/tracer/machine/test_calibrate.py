"""What `calibrate` makes of its passes: the best of each peak, and what disturbed them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import plain, read
from prunescope.taxonomy.runs.run_blocks import (
    CalibratedDevice,
    GemmGrid,
    MeasuredPeaks,
    StreamTimes,
)
from prunescope.tracer.machine import calibrate as calibration
from prunescope.tracer.machine.memory_rates import MemoryRates
from prunescope.tracer.machine.op_cost import CallCost
from prunescope.tracer.machine.times_by_size import PassTimes

pytestmark = pytest.mark.torch


def rates(copy: float, cache: float = 9e10, dispatch: float = 800) -> MemoryRates:
    return MemoryRates(copy_byte_per_s=copy, cache_byte_per_s=cache, dispatch_ns=dispatch)


def sizes_of(gemm_ns: int, op_ns: float) -> PassTimes:
    """The times of one pass: of one GEMM, one stream of 100 ns, and an op."""
    return PassTimes(
        gemms={"fp32": GemmGrid(m=[1], n=[64], k=[64], ns=[gemm_ns])},
        streams=StreamTimes(bytes=[3072], ns=[100]),
        cost=CallCost(op_ns=op_ns, forward_ns=op_ns / 2),
    )


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Callable[..., CalibratedDevice]:
    """Three passes: bf16 of 1, 3 and 2 TFLOP/s, 30, 20 and 40 GB/s, a floor of 900, 700, 800 ns.
    `told`: what disturbed each measurement of memory; `memory`: what each gave."""

    def calibrated(
        told: list[list[str]], memory: list[MemoryRates], by: list[str] | None = None
    ) -> CalibratedDevice:
        peaks = iter(
            MeasuredPeaks(
                dense_flop_per_s={"bf16": flop},
                byte_per_s=byte,
                kernel_floor_ns=floor,
                repeats=7,
                threads=2,
                disturbed=by or [],
            )
            for flop, byte, floor in ((1e12, 3e10, 900), (3e12, 2e10, 700), (2e12, 4e10, 800))
        )
        reasons: Iterator[list[str]] = iter(told)
        left = iter(memory)
        sizes = iter([sizes_of(900, 4000), sizes_of(700, 5000), sizes_of(800, 6000)])

        def watched(run: Callable[[], Any], _device: Any) -> tuple[Any, list[str]]:
            return run(), next(reasons)

        monkeypatch.setattr(calibration, "measure_peaks", lambda *_, **__: next(peaks))
        monkeypatch.setattr(calibration, "measure_memory", lambda _device: next(left))
        monkeypatch.setattr(calibration, "watched", watched)
        monkeypatch.setattr(calibration, "measure_times", lambda _device: next(sizes))
        found = calibration.calibrate("cpu")
        assert next(left, None) is None, "not every measurement was taken"
        return found

    return calibrated


def test_a_peak_is_the_best_of_the_passes(made_up: Callable[..., CalibratedDevice]) -> None:
    found = made_up([[]] * 3, [rates(c) for c in (2e10, 4e10, 3e10)])
    assert found.dense_flop_per_s == {"bf16": 3e12}
    assert found.byte_per_s == 4e10
    measured = found.measured
    assert measured is not None and measured.spread is not None
    assert measured.kernel_floor_ns == 700
    assert measured.copy_byte_per_s == 3e10  # what is no peak is a median
    assert measured.gemms["fp32"].ns == [700]  # of a time the least
    assert (measured.op_ns, measured.forward_ns) == (4000, 2000)
    assert measured.spread.dense_flop_per_s == {"bf16": 1.0}  # (3 - 1) / 2
    assert measured.spread.byte_per_s == pytest.approx(2 / 3)
    assert (measured.statistic or "").startswith("best of 3 passes")
    assert measured.disturbed == []
    assert "disturbed" not in plain(found)["measured"]


def test_a_disturbed_measurement_of_memory_is_taken_again(
    made_up: Callable[..., CalibratedDevice],
) -> None:
    """The second pass gives 1 and then 3 GB/s of copy, 800 and then 700 ns a call."""
    memory = [rates(2e10), rates(1e10, dispatch=800), rates(3e10, dispatch=700), rates(2e10)]
    found = made_up([[], ["waits"], [], []], memory)
    assert found.measured is not None and found.measured.spread is not None
    assert found.measured.disturbed == []
    assert found.measured.spread.copy_byte_per_s == pytest.approx(0.5)  # (3 - 2) / 2
    assert found.measured.spread.dispatch_ns == pytest.approx(100 / 800)


def test_what_stays_disturbed_is_kept_and_said(made_up: Callable[..., CalibratedDevice]) -> None:
    from rich.console import Console

    from prunescope.analysis.report.listings import devices

    told = [["waits"], ["steal"], [], ["waits"], ["waits"]]
    found = made_up(told, [rates(2e10)] * 5, by=["other processes"])
    assert found.measured is not None
    assert found.measured.disturbed == ["other processes", "steal", "waits"]
    written = plain(found)
    assert written["measured"]["disturbed"] == found.measured.disturbed
    assert read(CalibratedDevice, written) == found
    written["measured"]["disturbed"] = "waits"
    with pytest.raises(PrunescopeError, match="measured.disturbed: expected `array`"):
        read(CalibratedDevice, written)
    console = Console(width=400)
    with console.capture() as shown:
        console.print(devices([found], found.measured))
    assert "during them (other processes, steal, waits)" in shown.get()
