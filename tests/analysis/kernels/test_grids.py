"""Grids of ROCm kernels count blocks or work-items, and small kernels alone are latency-bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from prunescope.analysis.pipeline import analyze
from tests.chrome import chrome, k, op, save, step

MI300X = {"id": 0, "name": "AMD Instinct MI300X", "warpSize": 64, "numSms": 304}
MT = "Cijk_Alik_Bljk_BBS_BH_MT256x128x64_MI16x16x1"
Sizes = tuple[str, list[int], list[int]]  # runtime call, grid, block


def told(launches: list[Sizes], tmp_path: Path, *, us: float = 5.0) -> pl.DataFrame:
    """The frame of kernels that these calls launched, each of an elementwise op of 1 GB."""
    ops = [
        op("aten::mul", [1 << 28], [1 << 28], kernels=[k(us=us, grid=grid, block=block)])
        for _, grid, block in launches
    ]
    trace: dict[str, Any] = chrome(step(0, *ops))
    trace["deviceProperties"] = [dict(MI300X)]
    calls = [e for e in trace["traceEvents"] if e["cat"] == "cuda_runtime"]
    for event, (name, _, _) in zip(calls, launches, strict=True):
        event["name"] = name
    (frame,) = analyze(save(trace, tmp_path / "t.json")).frames.values()
    return frame


def test_a_grid_that_its_block_does_not_divide_shows_that_calls_record_blocks(
    tmp_path: Path,
) -> None:
    frame = told(
        [
            ("hipLaunchKernel", [301_152, 1, 1], [1024, 1, 1]),  # 96 · 3,137 rows of a softmax
            ("hipModuleLaunchKernel", [512, 1, 1], [256, 1, 1]),
            ("hipExtLaunchKernel", [256, 2, 1], [256, 1, 1]),
            ("hipExtModuleLaunchKernel", [51_200, 1, 1], [256, 1, 1]),
        ],
        tmp_path,
    )
    assert frame["blocks"].to_list() == [301_152, 512, 512, 200]


def test_many_grids_that_their_blocks_divide_are_work_items_of_dispatches(tmp_path: Path) -> None:
    grids = [256 * n for n in (1, 3, 5, 7, 11, 13, 17, 19)]
    frame = told([("hipLaunchKernel", [g, 1, 1], [256, 1, 1]) for g in grids], tmp_path)
    assert frame["blocks"].to_list() == [1, 3, 5, 7, 11, 13, 17, 19]


def test_what_a_few_grids_count_is_not_known(tmp_path: Path) -> None:
    frame = told([("hipLaunchKernel", [512, 1, 1], [256, 1, 1])], tmp_path)
    assert frame["blocks"].to_list() == [None]
    assert frame["bound"].to_list() == ["memory"]


def test_a_kernel_without_a_call_is_told_by_its_name_alone(tmp_path: Path) -> None:
    ops = [op("aten::mul", [8], [8], kernels=[k(us=5, grid=[9, 1, 1], block=[256, 1, 1])])]
    bare = [k(us=5, name=name, grid=[51_200, 1, 1], block=[256, 1, 1]) for name in (MT, "other")]
    trace = chrome(step(0, *ops, *bare, *ops))
    trace["deviceProperties"] = [dict(MI300X)]
    for event in trace["traceEvents"]:
        if event["cat"] == "cuda_runtime":
            event["name"] = "hipLaunchKernel"
    (frame,) = analyze(save(trace, tmp_path / "t.json")).frames.values()
    assert frame["blocks"].to_list() == [9, 200, None, 9]


def test_grids_of_cuda_count_blocks_whatever_divides_them(tmp_path: Path) -> None:
    ops = [
        op("aten::mul", [8], [8], kernels=[k(us=5, grid=[256 * n, 1, 1], block=[256, 1, 1])])
        for n in range(1, 10)
    ]
    (frame,) = analyze(save(chrome(step(0, *ops)), tmp_path / "t.json")).frames.values()
    assert frame["blocks"].to_list() == [256 * n for n in range(1, 10)]


@pytest.mark.parametrize(
    ("blocks", "us", "bound"),
    [
        (65, 5, "latency"),  # fewer than half of 132 SMs, and short
        (66, 5, "memory"),
        (65, 500, "memory"),  # long on a few units: it works, and does not wait
        (131, 5, "memory"),
    ],
)
def test_a_small_kernel_is_latency_bound_a_long_one_on_some_units_is_not(
    blocks: int, us: float, bound: str, tmp_path: Path
) -> None:
    work = op("aten::mul", [1 << 20], [1 << 20], kernels=[k(us=us, grid=[blocks, 1, 1])])
    (frame,) = analyze(save(chrome(step(0, work)), tmp_path / "t.json")).frames.values()
    assert frame["bound"].to_list() == [bound]


@pytest.mark.parametrize(
    ("category", "call"),
    [("mtia_ccp_events", "mtia_runtime"), ("kernel", "xpu_runtime"), ("hpu_op", "Runtime"),
     ("kernel", "privateuse1_driver")],
)  # fmt: skip
def test_other_accelerators_are_devices_without_peaks(
    category: str, call: str, tmp_path: Path
) -> None:
    trace = chrome(step(0, op("aten::mul", [8], [8], kernels=[k(us=5)])))
    trace["deviceProperties"] = []
    for event in trace["traceEvents"]:
        event["cat"] = {"kernel": category, "cuda_runtime": call}.get(event["cat"], event["cat"])
    found = analyze(save(trace, tmp_path / "t.json"))
    (frame,) = found.frames.values()
    assert frame["op"].to_list() == ["aten::mul"]
    assert frame["busy"].to_list() == [5_000]
    assert frame["bound"].to_list() == ["unknown"]
    assert found.report.device["peaks"] is None
