"""Which peaks a run is judged by: what `trace` and `calibrate` measured, and what was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from prunescope.analysis.device.hardware import find_device
from prunescope.analysis.inputs.options import Options
from prunescope.analysis.kernels.peaks import override, run_peaks, sheet_peaks
from prunescope.analysis.kernels.roofline import add_bound
from prunescope.analysis.pipeline import analyze
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import read
from prunescope.taxonomy.runs.run_blocks import DeviceEntry
from tests.analysis.kernels.test_bound_property import SCHEMA
from tests.chrome import chrome, k, op, save


def device(calibration: Any = None, **peaks: Any) -> DeviceEntry:
    looked = {"dense_flop_per_s": {"bf16": 2e12, "fp32": 3e11}, "byte_per_s": 2e10,
              "kernel_floor_ns": 900, "threads": 2}  # fmt: skip
    return read(
        DeviceEntry, {"name": "cpu", "peaks": {**looked, **peaks}, "calibration": calibration}
    )


def calibrated(threads: int = 2, **more: Any) -> dict[str, Any]:
    rates = {"bf16": 1.5e12, "fp32": 4e11, "fp16": 1e12}
    measured = {"threads": threads}
    return {
        "name": "cpu",
        "dense_flop_per_s": rates,
        "byte_per_s": 3e10,
        "measured": measured,
    } | more


def test_each_peak_is_the_higher_of_the_two_measurements() -> None:
    found = run_peaks(device(calibrated()), None)
    assert found is not None
    assert found.flop_per_s == {"bf16": 2e12, "fp32": 4e11, "fp16": 1e12}
    assert (found.byte_per_s, found.floor_ns, found.measured) == (3e10, 900, True)
    assert "calibrate" in found.source


@pytest.mark.parametrize(
    "calibration",
    [None, {"name": "cpu"}, calibrated(threads=1), calibrated(measured=None)],
)
def test_a_calibration_that_is_none_or_of_other_threads_is_not_used(calibration: Any) -> None:
    found = run_peaks(device(calibration), None)
    assert found is not None
    assert found.flop_per_s == {"bf16": 2e12, "fp32": 3e11}
    assert found.byte_per_s == 2e10
    assert "calibrate" not in found.source


def test_numbers_of_a_calibration_that_are_none_are_left_out() -> None:
    bad = calibrated(dense_flop_per_s={"bf16": 0, "fp32": -1}, byte_per_s=-1)
    found = run_peaks(device(bad), None)
    assert found is not None
    assert found.flop_per_s == {"bf16": 2e12, "fp32": 3e11}
    assert found.byte_per_s == 2e10


@pytest.mark.parametrize(
    "calibration", [[], "x", {"dense_flop_per_s": 7}, {"dense_flop_per_s": {"bf16": "fast"}}]
)
def test_a_calibration_that_is_none_is_refused_when_the_run_is_read(calibration: Any) -> None:
    with pytest.raises(PrunescopeError, match="DeviceEntry: calibration"):
        device(calibration)


def test_the_command_line_goes_before_both() -> None:
    found = override(run_peaks(device(calibrated()), None), flop_per_s={"fp32": 1.0}, byte_per_s=2)
    assert found is not None
    assert (found.flop_per_s["fp32"], found.byte_per_s) == (1.0, 2)
    assert found.flop_per_s["bf16"] == 2e12


def test_the_data_sheet_is_kept_with_measured_peaks() -> None:
    found = run_peaks(device(), find_device("h100-sxm"))
    assert found is not None
    assert found.flop_per_s["bf16"] == 2e12
    assert found.sheet["dense_flop_per_s"]["bf16"] == 989e12


@pytest.mark.parametrize(
    ("nbytes", "us", "bound"),
    [
        (3074, 2, "latency"),  # 24 lines
        (132 * 128, 2, "memory"),  # a line for each unit
        (3074, 30, "memory"),  # longer than ten floors: whatever it does, it works
    ],
)
def test_blocks_without_a_line_of_memory_to_move_occupy_no_unit(
    nbytes: int, us: int, bound: str
) -> None:
    """496 blocks of 128 threads for a dot product of 768 elements: most have nothing to do."""
    row = {"flop": 1536.0, "bytes": float(nbytes), "dtype": "bf16", "busy": us * 1000,
           "duration": us * 1000, "blocks": 496, "tiles": None, "shape_loss": None,
           "class": "matmul", "category": 0, "crosses": False}  # fmt: skip
    h100 = find_device("h100-sxm")
    assert h100 is not None
    (found,) = add_bound(pl.DataFrame([row], schema=SCHEMA), sheet_peaks(h100)).to_dicts()
    assert found["bound"] == bound


def test_an_expert_without_tokens_has_no_bytes_and_no_bound(tmp_path: Path) -> None:
    """Its GEMM of no rows multiplies nothing and reads no weight; its time is the call's own."""
    path = save(chrome(op("aten::mm", [0, 64], [64, 768], kernels=[k(us=4)])), tmp_path / "t.json")
    phase = analyze(path, options=Options(device="h100-sxm")).report.phases["trace"]
    (row,) = phase.gemms
    assert (row.m, row.flop, row.bytes, row.bound) == (0, 0, 0, None)
    assert phase.bound["latency"] == phase.busy_ns == 4000
