"""A folder with a capture for each batch: the one that a step replays is chosen by its batch."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.inputs.captures import captured_pass, usual_batch
from prunescope.analysis.inputs.options import Options
from prunescope.analysis.pipeline import analyze
from prunescope.taxonomy.errors import PrunescopeError
from tests.analysis.replays import replayed
from tests.chrome import chrome, k, op, save, step

NAMES = ("capture_1_DECODE.json.gz", "capture_4_DECODE.json.gz", "bs_16_rank0.json.gz")


def eager(rows: int) -> dict[str, Any]:
    """A product of as many rows as there are sequences."""
    product = op("aten::mm", [rows, 32], [32, 48], kernels=[k(us=8, name="ampere_sgemm_64x64_nn")])
    return chrome(step(0, product))


def captures(folder: Path) -> Path:
    folder.mkdir()
    for name, rows in zip(NAMES, (1, 4, 16), strict=True):
        save(eager(rows), folder / name)
    return folder


def decode(path: Path, annotation: str) -> Path:
    """A replay of the graph for four sequences, in one annotated step."""
    trace = replayed(deepcopy(eager(4)))
    first = min(e["ts"] for e in trace["traceEvents"]) - 5
    note = {"ph": "X", "cat": "user_annotation", "name": annotation, "pid": 1, "tid": 1,
            "ts": first, "dur": 100}  # fmt: skip
    return save({**trace, "traceEvents": [note, *trace["traceEvents"]]}, path)


def test_a_step_of_three_replays_the_graph_of_four(tmp_path: Path) -> None:
    folder = captures(tmp_path / "captures")
    trace = decode(tmp_path / "decode.json", "step[DECODE bs=3]")
    report = analyze(trace, options=Options(eager_trace=folder)).report
    gemm = report.phases["trace"].gemms[0]
    assert (gemm.m, gemm.n, gemm.k, gemm.shapes) == (4, 48, 32, "eager-trace")
    assert [text for text in report.warnings if "capture_4_DECODE" in text and "M = 4" in text]


def test_the_batch_may_be_given(tmp_path: Path) -> None:
    folder = captures(tmp_path / "captures")
    trace = decode(tmp_path / "decode.json", "a step")
    with pytest.raises(PrunescopeError, match="captures of the batches 1, 4, 16"):
        analyze(trace, options=Options(eager_trace=folder))
    asked = Options(eager_trace=folder, batch=16)
    assert analyze(trace, options=asked).report.phases["trace"].gemms[0].m == 16


@pytest.mark.parametrize(("batch", "name"), [(1, 0), (2, 1), (4, 1), (5, 2), (16, 2)])
def test_the_smallest_capture_that_holds_the_batch(batch: int, name: int, tmp_path: Path) -> None:
    assert captured_pass(captures(tmp_path / "captures"), batch).name == NAMES[name]


def test_of_several_ranks_the_one_of_the_phase(tmp_path: Path) -> None:
    for rank in range(2):
        save(eager(4), tmp_path / f"capture_4_rank{rank}.json.gz")
    assert captured_pass(tmp_path, 4, "rank1").name == "capture_4_rank1.json.gz"
    assert captured_pass(tmp_path, 4).name == "capture_4_rank0.json.gz"


def test_what_no_capture_holds_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PrunescopeError, match="batch 17"):
        captured_pass(captures(tmp_path / "captures"), 17)
    other = tmp_path / "other"
    other.mkdir()
    for name in ("a.json", "b.json"):
        save(eager(4), other / name)
    with pytest.raises(PrunescopeError, match="no name states a batch size"):
        captured_pass(other, 4)


def test_the_batch_of_a_capture_may_be_in_an_annotation(tmp_path: Path) -> None:
    for name, batch in (("worker0.1.pt.trace.json", 4), ("worker0.2.pt.trace.json", 8)):
        trace = eager(batch)
        first = trace["traceEvents"][0]["ts"]
        note = {"ph": "X", "cat": "user_annotation", "name": f"capture_{batch}_FULL", "pid": 1,
                "tid": 1, "ts": first, "dur": 50}  # fmt: skip
        save({**trace, "traceEvents": [note, *trace["traceEvents"]]}, tmp_path / name)
    assert captured_pass(tmp_path, 5).name == "worker0.2.pt.trace.json"


def test_the_commonest_batch_of_the_steps() -> None:
    names = ["execute_context_0(0)_generation_3(3)"] * 2 + ["execute_context_0(0)_generation_2(2)"]
    assert usual_batch(names) == 3
    assert usual_batch(["execute_context_1(888)_generation_0(0)", "ProfilerStep#1"]) is None
