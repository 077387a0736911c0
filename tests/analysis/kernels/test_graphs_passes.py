"""Eager traces of several passes, or without names: which one is taken, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunescope.analysis.inputs.options import Options
from prunescope.analysis.kernels.graph_match import GraphPart, Launches, Order
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Report
from prunescope.analysis.timeline.engine_steps import decode_batch, names_batch
from tests.analysis.replays import DEVICE, replayed
from tests.chrome import chrome, k, module, op, save

STEP = "execute_32_context_0(sq0sk0)_generation_32(sq32sk9999)"


def layer(m: int, *, grid: int = 8) -> list[Any]:
    """q and down, by kernels that have one name for every M."""
    names = (("gemm_q", 512, 256), ("gemm_down", 256, 512))
    return [
        op("aten::mm", [m, depth], [depth, n], kernels=[k(us=9, name=name, grid=(grid, 1, 1))])
        for name, n, depth in names
    ]


def passes(*batches: int, annotated: bool = True) -> list[Any]:
    """Passes of two layers, each in the annotation of its capture."""
    out: list[Any] = []
    for m in batches:
        both = [*layer(m), *layer(m)]
        out += [module(f"capture_{m}_DECODE", *both)] if annotated else both
    return out


def capture(items: list[Any], *, names: bool) -> dict[str, Any]:
    """A capture: launches that run nothing; with the names of kernels, as ROCm writes them."""
    trace = chrome(*items)
    name_of = {
        e["args"]["correlation"]: e["name"] for e in trace["traceEvents"] if e["cat"] in DEVICE
    }
    events = [e for e in trace["traceEvents"] if e["cat"] not in DEVICE]
    for event in events:
        if names and event["cat"] == "cuda_runtime":
            event["args"]["kernel"] = name_of[event["args"]["correlation"]]
    return {**trace, "traceEvents": events}


def replay_of(m: int, *, step: str | None = None, grid: int = 8) -> dict[str, Any]:
    trace = replayed(chrome(*layer(m, grid=grid), *layer(m, grid=grid)))
    if step is not None:
        first = min(e["ts"] for e in trace["traceEvents"])
        trace["traceEvents"].append(
            {"ph": "X", "cat": "user_annotation", "name": step, "pid": 1, "tid": 1,
             "ts": first - 1, "dur": 900, "args": {}}
        )  # fmt: skip
    return trace


def told(tmp_path: Path, replay: dict[str, Any], eager: dict[str, Any]) -> Report:
    options = Options(eager_trace=save(eager, tmp_path / "eager.json"))
    return analyze(save(replay, tmp_path / "replay.json"), options=options).report


def shapes(report: Report) -> set[int | None]:
    (phase,) = report.phases.values()
    return {g.m for g in phase.gemms}


def mapped(report: Report) -> str:
    (phase,) = report.phases.values()
    return next(note for note in phase.notes if "replay" in note)


@pytest.mark.parametrize("order", [(64, 32), (32, 64), (16, 32, 64)])
def test_the_batch_in_annotations_decides(order: tuple[int, ...], tmp_path: Path) -> None:
    report = told(tmp_path, replay_of(32, step=STEP), capture(passes(*order), names=True))
    assert shapes(report) == {32}
    assert report.warnings == []
    assert mapped(report) == (
        "100.0 % of the time of 4 replayed kernels was mapped to the eager pass by launch order "
        "and kernel name, without grids of GEMMs to compare"
    )


@pytest.mark.parametrize("order", [(64, 32), (8, 64, 32, 16)])
@pytest.mark.parametrize("lost", [0, 1, 2, 3])
def test_a_lost_kernel_changes_no_batch(lost: int, order: tuple[int, ...], tmp_path: Path) -> None:
    """Three of four kernels, found in the capture of 32 and not in parts of several."""
    replay = replay_of(32, step=STEP)
    kernels = [e for e in replay["traceEvents"] if e["cat"] == "kernel"]
    replay["traceEvents"].remove(kernels[lost])
    assert shapes(told(tmp_path, replay, capture(passes(*order), names=True))) == {32}
    without = told(tmp_path, replay, capture(passes(*order, annotated=False), names=True))
    assert shapes(without) == {None}
    assert any("several passes" in w for w in without.warnings)


def test_a_lost_kernel_of_many_passes_is_not_looked_for_in_another() -> None:
    """35 passes of 40 layers, each between an embedding and a head; kernel 100 of one is lost: the
    begin and the end of what is left are those of the first and of the last pass too."""
    one = ["embedding", *("q", "attention", "o", "up", "down") * 40, "head"]
    sizes = [(8 * (1 + i), 64, 64) if name == "q" else None for i in range(35) for name in one]
    launches = Launches(one * 35, sizes, [None] * len(sizes), np.arange(len(sizes)))
    left = (*one[:100], *one[101:])
    found = Order(launches).find(
        [GraphPart(np.arange(len(left)), left, (None,) * len(left), whole=True)]
    )
    assert (found.at >= 0).all()
    assert len({int(i) // len(one) for i in found.at}) == 1
    assert found.rivals == tuple(8 * (1 + i) for i in range(35))


@pytest.mark.parametrize(
    ("step", "annotated"), [(None, True), (STEP, False), ("step[EXTEND bs=32]", True)]
)
def test_passes_that_match_as_well_are_not_chosen_from(
    step: str | None, annotated: bool, tmp_path: Path
) -> None:
    eager = capture(passes(64, 32, annotated=annotated), names=True)
    report = told(tmp_path, replay_of(32, step=step), eager)
    assert shapes(report) == {None}
    (warning,) = [w for w in report.warnings if "eager.json" in w]
    assert "several passes that match 100.0 % of the time" in warning
    assert "M = 32 or 64" in warning
    assert "several passes" in mapped(report)


def test_passes_of_one_shape_are_no_caveat(tmp_path: Path) -> None:
    report = told(tmp_path, replay_of(32), capture(passes(32, 32), names=True))
    assert shapes(report) == {32}
    assert report.warnings == []


def test_other_n_of_the_same_rows_is_a_caveat(tmp_path: Path) -> None:
    """A dense pass and one pruned to half of K in one file, by kernels of the same names."""
    half = [op("aten::mm", [32, 128], [128, 512], kernels=[k(us=9, name="gemm_q")]),
            op("aten::mm", [32, 256], [256, 256], kernels=[k(us=9, name="gemm_down")])]  # fmt: skip
    eager = capture([*passes(32, annotated=False), *half, *half], names=True)
    report = told(tmp_path, replay_of(32), eager)
    assert shapes(report) == {None}
    assert any("M = 32 and other N or K" in w for w in report.warnings)


def test_grids_decide_where_an_eager_pass_ran(tmp_path: Path) -> None:
    """The pass of 64 has grids of 16, that of 32 has those of the replay."""
    eager = chrome(*layer(64, grid=16), *layer(64, grid=16), *layer(32), *layer(32))
    report = told(tmp_path, replay_of(32), eager)
    assert shapes(report) == {32}
    assert report.warnings == []
    assert mapped(report).endswith("by launch order, kernel name and the grid of GEMMs")


def test_pieces_of_a_step_may_differ_in_n_and_k(tmp_path: Path) -> None:
    """A graph for each GEMM of two layers, the second one pruned: four pieces in a row, not one
    that could be of either layer."""
    second = [
        op("aten::mm", [32, depth], [depth, n], kernels=[k(us=9, name=name)])
        for name, n, depth in (("gemm_q", 384, 256), ("gemm_down", 256, 384))
    ]
    eager = chrome(*layer(32, grid=1), *second)
    report = told(tmp_path, replayed(eager, pieces=4), eager)
    (phase,) = report.phases.values()
    assert {(g.n, g.k) for g in phase.gemms} == {(512, 256), (256, 512), (384, 256), (256, 384)}


def test_counts_alone_are_a_warning(tmp_path: Path) -> None:
    """A capture on CUDA: launches without names; those of another model may be as many."""
    report = told(tmp_path, replay_of(32), capture(passes(64), names=False))
    assert shapes(report) == {64}
    (warning,) = [w for w in report.warnings if "eager.json" in w]
    assert "neither names nor grids" in warning
    assert "its 4 launches" in warning
    assert "the count of launches alone" in mapped(report)
    assert "kernel name" not in mapped(report)


def test_counts_are_those_of_the_capture_of_the_batch(tmp_path: Path) -> None:
    """Two captures without names: 8 launches, 4 of them of the batch that the step says."""
    report = told(tmp_path, replay_of(32, step=STEP), capture(passes(64, 32), names=False))
    assert shapes(report) == {32}
    without = told(tmp_path, replay_of(32), capture(passes(64, 32), names=False))
    assert shapes(without) == {None}


def test_another_batch_than_the_step_is_annotated_with_is_said(tmp_path: Path) -> None:
    report = told(tmp_path, replay_of(32, step=STEP), capture(passes(64), names=True))
    assert shapes(report) == {64}
    (warning,) = [w for w in report.warnings if "eager.json" in w]
    assert "a batch of 32 have M = 64" in warning


@pytest.mark.parametrize(
    ("name", "batch"),
    [
        (STEP, 32), ("execute_context_0(0)_generation_8(8)", 8), ("step[DECODE bs=4]", 4),
        ("step[EXTEND bs=4]", None), ("execute_context_1(888)_generation_8(8)", None),
        ("ProfilerStep#32", None), ("capture_32_DECODE", None),
    ],
)  # fmt: skip
def test_the_batch_of_a_decode_step(name: str, batch: int | None) -> None:
    assert decode_batch(name) == batch


@pytest.mark.parametrize(
    ("name", "carries"),
    [
        ("capture_32_DECODE", True), ("capture bs32", True), ("capture_64_DECODE", False),
        ("capture_320", False), ("ProfilerStep#32", False), ("v2.32", False),
        ("region: 32/0", False), (STEP, True), ("execute_context_32(888)_generation_0(0)", False),
    ],
)  # fmt: skip
def test_annotations_that_carry_a_batch(name: str, carries: bool) -> None:
    assert names_batch(name, 32) == carries


def test_json_of_a_capture_has_the_names_that_are_read() -> None:
    """The builder above says what ROCm says: a launch with the name of its kernel."""
    assert '"kernel": "gemm_q"' in json.dumps(capture(passes(1), names=True))
