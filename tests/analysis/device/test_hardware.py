from __future__ import annotations

import json
from typing import Any

import pytest

from prunescope.analysis.device.hardware import (
    DEVICES,
    Device,
    device_in_trace,
    device_of_capability,
    devices_json,
    find_device,
    with_overrides,
)
from prunescope.taxonomy.errors import PrunescopeError

# dense TFLOP/s, GB/s, SMs: the data sheets
SHEET = {
    "v100-sxm2": ("fp16", 125, 900, 80),
    "v100-pcie": ("fp16", 112, 900, 80),
    "v100-16gb-sxm2": ("fp16", 125, 900, 80),
    "v100-16gb-pcie": ("fp16", 112, 900, 80),
    "t4": ("fp16", 65, 320, 40),
    "a10": ("bf16", 125, 600, 72),
    "a10g": ("bf16", 70, 600, 80),
    "l4": ("bf16", 121, 300, 58),
    "l40s": ("bf16", 362, 864, 142),
    "a100-40gb-sxm": ("bf16", 312, 1555, 108),
    "a100-40gb-pcie": ("bf16", 312, 1555, 108),
    "a100-80gb-sxm": ("bf16", 312, 2039, 108),
    "a100-80gb-pcie": ("bf16", 312, 1935, 108),
    "a800-80gb-sxm": ("bf16", 312, 2039, 108),
    "h800-sxm": ("bf16", 989, 3350, 132),
    "a40": ("bf16", 149.7, 696, 84),
    "rtx-a6000": ("bf16", 154.8, 768, 84),
    "h20": ("bf16", 148, 4000, 78),
    "h100-pcie": ("bf16", 756, 2000, 114),
    "h100-sxm": ("bf16", 989, 3350, 132),
    "h100-nvl": ("bf16", 835, 3900, 132),
    "h200-sxm": ("bf16", 989, 4800, 132),
    "b200": ("bf16", 2250, 8000, 148),
    "gb200": ("bf16", 2500, 8000, 152),
    "b300": ("bf16", 2250, 8000, 148),
    "gb300": ("bf16", 2500, 8000, 152),
    "rtx-5070-ti": ("bf16", 87.9, 896, 70),
    "rtx-5070": ("bf16", 61.7, 672, 48),
    "rtx-2080-ti": ("fp16", 53.8, 616, 68),
    "rtx-3060": ("bf16", 25.5, 360, 28),
    "rtx-4080": ("bf16", 97.5, 716.8, 76),
    "gh200": ("bf16", 989, 4000, 132),
    "gh200-144gb": ("bf16", 989, 4900, 132),
    "rtx-3090": ("bf16", 71, 936, 82),
    "rtx-4090": ("bf16", 165.2, 1008, 128),
    "rtx-5090": ("bf16", 209.5, 1792, 170),
    "rtx-pro-6000-blackwell": ("bf16", 504, 1792, 188),
    "rtx-pro-6000-blackwell-server": ("bf16", 504, 1597, 188),
    "mi250x": ("bf16", 383, 3280, 220),
    "mi210": ("bf16", 181, 1638, 104),
    "mi300x": ("bf16", 1307.4, 5300, 304),
    "mi325x": ("bf16", 1307.4, 6000, 304),
    "a30": ("bf16", 165, 933, 56),
    "l40": ("bf16", 181.05, 864, 142),
    "l20": ("bf16", 119.5, 864, 92),
    "rtx-3080": ("bf16", 59.5, 760, 68),
    "rtx-4070": ("bf16", 58.3, 504, 46),
    "rtx-4070-super": ("bf16", 71, 504, 56),
    "rtx-4070-ti": ("bf16", 80.2, 504, 60),
    "rtx-4070-ti-super": ("bf16", 88.2, 672, 66),
    "rtx-5080": ("bf16", 112.6, 960, 84),
    "mi350x": ("bf16", 2306.9, 8000, 256),
    "mi355x": ("bf16", 2500, 8000, 256),
}
IN_TRACES = {
    "NVIDIA H100 80GB HBM3": "h100-sxm",
    "NVIDIA A100-SXM4-80GB": "a100-80gb-sxm",
    "NVIDIA A100-PG509-200": "a100-40gb-sxm",
    "NVIDIA PG509-210": "a100-80gb-sxm",
    "Tesla V100-DGXS-32GB": "v100-sxm2",
    "NVIDIA GH200 480GB": "gh200",
    "NVIDIA GH200 120GB": "gh200",
    "NVIDIA A30": "a30",
    "NVIDIA L40": "l40",
    "NVIDIA L20": "l20",
    "NVIDIA GeForce RTX 3080": "rtx-3080",
    "NVIDIA GeForce RTX 4070 Ti": "rtx-4070-ti",
    "NVIDIA GeForce RTX 5080": "rtx-5080",
    "AMD Instinct MI350X": "mi350x",
    "NVIDIA GeForce RTX 2080 Ti": "rtx-2080-ti",
    "NVIDIA GeForce RTX 3060": "rtx-3060",
    "NVIDIA GeForce RTX 4080": "rtx-4080",
    "NVIDIA GeForce RTX 4080 Laptop GPU": "rtx-4080-laptop",
    "NVIDIA RTX 6000 Ada Generation": "rtx-6000-ada",
    "AMD Instinct MI325X VF": "mi325x",
    "NVIDIA B200": "b200",
    "NVIDIA B300 SXM6 AC": "b300",
    "NVIDIA GB300": "gb300",
    "NVIDIA GeForce RTX 5070 Ti": "rtx-5070-ti",
    "Tesla V100-SXM2-16GB": "v100-16gb-sxm2",
    "AMD Instinct MI300X": "mi300x",
    "AMD Instinct MI210": "mi210",
    "AMD Instinct MI250X": "mi250x-gcd",  # a trace sees one die as a device
}


@pytest.mark.parametrize("name", SHEET)
def test_sheet(name: str) -> None:
    kind, peak, bandwidth, sm = SHEET[name]
    device = find_device(name)
    assert device.dense_flop_per_s[kind] == pytest.approx(peak * 1e12)
    assert device.byte_per_s == pytest.approx(bandwidth * 1e9)
    assert device.sm == sm
    assert device.source


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d.name)
def test_a_second_witness_gives_each_number(device: Device) -> None:
    witnessed = 0
    for kind, peak in device.dense_flop_per_s.items():
        again = device.witness_flop_per_s(kind)
        if again is not None:
            assert again == pytest.approx(peak, rel=0.05), kind
            witnessed += 1
    bandwidth = device.witness_byte_per_s()
    assert bandwidth == pytest.approx(device.byte_per_s, rel=0.05)
    assert witnessed or not device.verified
    if device.verified:
        assert witnessed == len(device.dense_flop_per_s)


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d.name)
def test_peaks_stand_in_the_ratios_of_matrix_units(device: Device) -> None:
    rates = device.dense_flop_per_s
    if not rates:
        assert device.note and "no peak" in device.note
        return
    if device.is_cpu:
        assert rates.get("fp16", 2 * rates["fp32"]) == pytest.approx(2 * rates["fp32"], rel=0.01)
        return
    assert rates.get("fp8", 2e30) >= 1.99 * rates["fp16"]
    assert rates.get("tf32", 0) <= 0.51 * rates["fp16"]
    if four := device.peak("mxfp4"):  # twice fp8; four times on GeForce, three times on Ultra
        assert round(four / rates["fp8"], 1) in (2.0, 3.0, 4.0)
    assert rates.get("bf16", rates["fp16"]) == rates["fp16"]


def test_names_are_unique_lower_case_and_hyphenated() -> None:
    names = [device.name for device in DEVICES]
    assert len(set(names)) == len(names)
    assert all(name == name.lower() and " " not in name and "_" not in name for name in names)


@pytest.mark.parametrize("name", IN_TRACES)
def test_names_of_traces(name: str) -> None:
    device = device_in_trace(name)
    assert device is not None
    assert device.name == IN_TRACES[name]
    assert find_device(name.upper()) is device


@pytest.mark.parametrize(
    ("name", "memory", "device"),
    [
        ("NVIDIA PG509-210", 85_198_045_184, "a100-80gb-sxm"),
        ("NVIDIA PG509-210", 42_505_273_344, "a100-40gb-sxm"),
        ("NVIDIA A100-PG509-200", 42_505_273_344, "a100-40gb-sxm"),
        ("NVIDIA A100-PG509-200", 85_198_045_184, "a100-80gb-sxm"),
        ("Tesla V100-SXM2-16GB", 16_945_512_448, "v100-16gb-sxm2"),
        ("NVIDIA H100 80GB HBM3", "80 GB", "h100-sxm"),
    ],
)
def test_boards_of_one_name_are_told_apart_by_their_memory(
    name: str, memory: Any, device: str
) -> None:
    found = device_in_trace(name, memory)
    assert found is not None and found.name == device


@pytest.mark.parametrize(
    ("name", "seen"),
    [  # totalGlobalMem of public traces, or the total that nvidia-smi, rocm-smi or torch print
        ("v100-sxm2", 34_079_899_648), ("a100-40gb-sxm", 42_481_549_312), ("b200", 191_503_138_816),
        ("a100-80gb-sxm", 85_198_045_184), ("rtx-3060", 12_487_294_976), ("t4", 15_360 * 2**20),
        ("rtx-4080-laptop", 12_450_922_496), ("l4", 23_034 * 2**20), ("l40s", 46_068 * 2**20),
        ("a10g", 23_028 * 2**20), ("a40", 46_068 * 2**20), ("l20", 46_068 * 2**20),
        ("rtx-a6000", 49_140 * 2**20), ("rtx-6000-ada", 49_140 * 2**20),
        ("h200-sxm", 143_771 * 2**20), ("h100-sxm", 81_559 * 2**20), ("rtx-4090", 25.38e9),
        ("mi300x", 206_141_652_992),
    ],
)  # fmt: skip
def test_memory_is_what_a_process_sees(name: str, seen: float) -> None:
    has = find_device(name).memory_bytes
    assert has is not None
    assert 0.96 * has <= seen <= has * 1.0005


@pytest.mark.parametrize("name", ["NVIDIA H1000", "NVIDIA H100", "", None, "cpu", "AMD EPYC 7742"])
def test_an_unknown_device_of_a_trace_has_no_fallback(name: str | None) -> None:
    assert device_in_trace(name) is None


@pytest.mark.parametrize(
    ("name", "offered"),
    [
        ("h10-sxm", "h100-sxm"),
        ("H100 80GB", "h100-sxm"),
        ("mi300", "mi300x"),
        ("4090", "rtx-4090"),
        ("a100", "a100-80gb-sxm"),
        ("h100", "nearest: h100-"),
        ("v100", "v100-16gb-pcie"),
    ],
)
def test_an_unknown_device_names_its_neighbours(name: str, offered: str) -> None:
    with pytest.raises(PrunescopeError) as error:
        find_device(name)
    assert offered in error.value.hint


@pytest.mark.parametrize(
    ("name", "offered"),
    [
        ("NVIDIA GeForce RTX 3060 Ti", "nearest of ampere-10x: rtx-3060, "),
        ("NVIDIA RTX A5000", "nearest of ampere-10x: rtx-a6000, "),
        ("NVIDIA A16", "nearest of ampere-10x: a10, "),
        ("NVIDIA RTX 5000 Ada Generation", "nearest of ada: rtx-6000-ada, "),
        ("NVIDIA RTX PRO 4000 Blackwell", "nearest of blackwell-12x: rtx-"),
        ("NVIDIA GeForce RTX 5060", "nearest of blackwell-12x: rtx-5070"),
        ("NVIDIA GeForce RTX 2060", "nearest of turing: rtx-2080-ti, "),
        ("Quadro RTX 8000", "nearest of turing: quadro-rtx-6000, "),
        ("NVIDIA H100 CNX", "nearest of hopper: h100-"),
        ("NVIDIA B100", "nearest of blackwell-100: b200, "),
        ("AMD Instinct MI308X", "nearest of cdna3: mi300x, "),
        ("Apple M5 Max", "nearest of apple: apple-m4-max, "),
    ],
)
def test_an_unknown_device_names_the_nearest_of_its_architecture(name: str, offered: str) -> None:
    with pytest.raises(PrunescopeError) as error:
        find_device(name)
    assert offered in error.value.hint


@pytest.mark.parametrize(
    "name", ["AMD EPYC 9654", "Intel(R) Xeon(R) Platinum 8480+", "Intel Core i9-14900K", "cpu"]
)
def test_a_cpu_that_is_not_in_the_table_is_measured(name: str) -> None:
    with pytest.raises(PrunescopeError) as error:
        find_device(name)
    assert "epyc-7742, grace-cpu, a64fx" in error.value.hint
    assert "calibrate" in error.value.hint
    assert "--from-run" in error.value.hint


def test_overrides() -> None:
    device = with_overrides(
        find_device("h100-sxm"), peaks={"bfloat16": 800}, bandwidth_gb_per_s=3000
    )
    assert device.peak("bf16") == 800e12
    assert device.peak("fp8") == 1979e12
    assert device.byte_per_s == 3000e9
    assert "command line" in device.source
    assert not device.verified
    custom = with_overrides(None, peaks={"fp32": 1.5})
    assert (custom.name, custom.peak("fp32"), custom.byte_per_s) == ("custom", 1.5e12, None)
    assert with_overrides(find_device("l4")) is find_device("l4")


@pytest.mark.parametrize("peaks", [{"bf16": 0}, {"bf16": float("nan")}, {"bf17": 3}])
def test_bad_overrides(peaks: dict[str, float]) -> None:
    with pytest.raises(PrunescopeError):
        with_overrides(find_device("l4"), peaks=peaks)


def test_json() -> None:
    table = json.loads(json.dumps(devices_json(), allow_nan=False))["devices"]
    keys = {"name", "aliases", "vendor", "dense_flop_per_s", "byte_per_s", "sm", "l2_bytes",
            "source", "verified"}  # fmt: skip
    assert all(keys <= set(row) for row in table)
    assert len(table) == len(DEVICES)


PROPERTIES = {"name": "NVIDIA X", "computeMajor": 8, "computeMinor": 6, "warpSize": 32, "numSms": 5}


@pytest.mark.parametrize(
    ("changed", "tf32"),
    [({}, True), ({"computeMajor": 7, "computeMinor": 5}, False),
     ({"computeMajor": 9, "computeMinor": 0}, True)],
)  # fmt: skip
def test_a_compute_capability_tells_the_architecture_and_no_peak(
    changed: dict[str, int], tf32: bool
) -> None:
    found = device_of_capability({**PROPERTIES, **changed})
    assert found is not None
    assert (found.name, found.sm, found.tf32) == ("NVIDIA X", 5, tf32)
    assert (dict(found.dense_flop_per_s), found.byte_per_s) == ({}, None)
    assert found.max_threads_per_sm


@pytest.mark.parametrize(
    "changed", [{"computeMajor": 99}, {"warpSize": 64}, {"computeMinor": None}, {"warpSize": "32"}]
)
def test_a_capability_that_is_not_known_tells_nothing(changed: dict[str, Any]) -> None:
    assert device_of_capability({**PROPERTIES, **changed}) is None
