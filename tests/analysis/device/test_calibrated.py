"""A device that was calibrated: its name, its file, and the times of an op between sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.device import calibrated
from prunescope.analysis.device.calibrated import calibrated_device, named_device, times_by_size
from prunescope.analysis.device.hardware import MeasuredTimes, find_device
from prunescope.analysis.predict.constants import DEFAULT, defaults_on
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import read
from prunescope.taxonomy.kept_calibrations import calibration_path
from prunescope.taxonomy.runs.run_blocks import CalibratedDevice

# GEMMs of 1 and 100 rows, N of 10 and 1,000, K of 10 and 1,000; K changes fastest.
GRID = {
    "m": [1, 100], "n": [10, 1000], "k": [10, 1000],
    "ns": [1100, 1100, 1100, 10100, 2000, 20000, 20000, 2000000],
}  # fmt: skip
ENTRY: dict[str, Any] = {
    "name": "made-up", "aliases": ["Made Up"], "vendor": "made",
    "dense_flop_per_s": {"fp32": 1e11}, "byte_per_s": 1e10, "l2_bytes": 1 << 20,
    "source": "measured by prunescope calibrate", "verified": False,
    "measured": {
        "threads": 1, "dispatch_ns": 1000, "op_ns": 5000, "forward_ns": 300000,
        "gemms": {"fp32": GRID},
        "streams": {"bytes": [1000, 2000, 10000], "ns": [1500, 1700, 3300]},
    },
}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file of a calibration."""
    path = tmp_path / "made-up.json"
    path.write_text(json.dumps(ENTRY), encoding="utf-8")
    return path


def times() -> MeasuredTimes:
    """The times of the made-up calibration."""
    known = times_by_size(read(CalibratedDevice, ENTRY))
    assert known is not None
    return known


@pytest.mark.parametrize(
    ("size", "ns"),
    [
        ((1, 10, 10), 100),  # 1,100 less the call of 1,000
        ((100, 1000, 1000), 1999000),
        ((100, 100, 10), (2000 * 20000) ** 0.5 - 1000),  # midway in log N: the geometric mean
        ((10, 10, 10), (1100 * 2000) ** 0.5 - 1000),  # midway in log M
        ((100, 4000, 1000), 4 * 2000000 - 1000),  # beyond the last N its rate stays
        ((1, 1, 1), 100),  # below the first size its time stays
    ],
)
def test_the_time_of_a_gemm_follows_from_measured_sizes(
    size: tuple[int, int, int], ns: float
) -> None:
    m, n, k = size
    assert times().gemm_ns("fp32", m=m, n=n, k=k) == pytest.approx(ns)
    assert times().gemm_ns("bf16", m=m, n=n, k=k) is None


def test_a_weight_from_memory_has_the_rate_of_the_largest() -> None:
    assert times().cold_weight_ns("fp32") == pytest.approx(10100 / 1e6)  # of 1,000 x 1,000
    assert times().cold_weight_ns("bf16") == 0


def test_an_element_wise_op_takes_what_its_bytes_add() -> None:
    assert times().stream_ns(10) == 0  # all of it is the call
    assert times().stream_ns(1500) == pytest.approx(100)  # midway from 1,500 to 1,700
    assert times().stream_ns(20000) == pytest.approx(2 * 3300 - 1500)


def test_a_file_is_a_device(file: Path) -> None:
    device = named_device(str(file))
    assert (device.name, device.is_cpu, device.llc_bytes) == ("made-up", True, 1 << 20)
    assert (device.peak("fp32"), device.byte_per_s, device.sparse_24) == (1e11, 1e10, False)
    c = defaults_on(device)
    assert c.ramp_ns(device) == pytest.approx(1000)  # a bare call
    assert c.dispatch_ns == 4000  # an op in a model less its bare call
    assert defaults_on(find_device("h100-sxm")) is DEFAULT


def test_cpu_is_the_kept_calibration_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(calibrated, "cpu_name", lambda: "Made Up")
    with pytest.raises(PrunescopeError, match="no calibration of this machine") as error:
        named_device("cpu")
    assert "prunescope calibrate" in error.value.hint
    path = calibration_path("made-up")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(ENTRY), encoding="utf-8")
    assert named_device("CPU").name == "made-up"


def test_other_names_are_those_of_the_table(tmp_path: Path) -> None:
    assert named_device("h100-sxm") is find_device("h100-sxm")
    with pytest.raises(PrunescopeError, match="no file none.json") as error:
        named_device(str(tmp_path / "none.json"))
    assert "prunescope calibrate" in error.value.hint
    (tmp_path / "empty.json").write_text("{}", encoding="utf-8")
    with pytest.raises(PrunescopeError, match="no peaks"):
        named_device(str(tmp_path / "empty.json"))


def test_a_calibration_without_times_by_size_is_a_device_with_peaks() -> None:
    """Of a GPU, or written before there were any: no CPU's costs are made up."""
    device = calibrated_device(read(CalibratedDevice, {**ENTRY, "measured": None}))
    assert device.times is None and not device.is_cpu
    assert device.peak("fp32") == 1e11


@pytest.mark.parametrize(
    ("block", "wrong"),
    [
        ({"gemms": {"fp32": {**GRID, "ns": [1, 2, 3]}}}, "3 times of 2 x 2 x 2 sizes"),
        ({"gemms": {"fp32": {**GRID, "n": [1000, 10]}}}, "the sizes n do not grow"),
        ({"streams": {"bytes": [10, 20], "ns": [1]}}, "1 times of 2 sizes"),
    ],
)
def test_a_grid_that_contradicts_itself_is_refused(
    file: Path, block: dict[str, Any], wrong: str
) -> None:
    measured = {**ENTRY["measured"], **block}
    file.write_text(json.dumps({**ENTRY, "measured": measured}), encoding="utf-8")
    with pytest.raises(PrunescopeError, match=wrong):
        named_device(str(file))
