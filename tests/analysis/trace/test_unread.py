"""Nothing vanishes: tasks of an NPU of any type, unknown categories, GPUs without device events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.ops.kernel_kinds import kernel_kind
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Report
from prunescope.analysis.trace.load import load
from tests.chrome import chrome, k, op, save, step

MM = op("aten::mm", [4, 5], [5, 6], kernels=[k(us=7)])


def report(tmp_path: Path, trace: Any) -> Report:
    return analyze(save(trace, tmp_path / "t.json")).report


@pytest.mark.parametrize(
    ("name", "task", "is_work"),
    [
        ("aclnnAdd_AddAiCore_Add", "Other", True),
        ("MatMulV2", "AI_CORE", True),
        ("Cast", "AI_VECTOR_CORE", True),
        ("x", "A_TYPE_OF_TOMORROW", True),
        ("MEMCPY_ASYNC", "Other", True),
        ("EVENT_WAIT", "Other", False),
        ("Notify_Wait", "NOTIFY_WAIT_SQE", False),
        ("x", "EVENT_RECORD_SQE", False),
        ("x", "PLACE_HOLDER_SQE", False),
    ],
)
def test_a_task_of_an_npu_is_work_unless_it_waits(
    name: str, task: str, is_work: bool, tmp_path: Path
) -> None:
    events = [
        {"ph": "X", "name": kernel, "pid": 800, "tid": 3, "ts": ts, "dur": 5,
         "args": {"Task Type": kind, "Stream Id": 3}}
        for ts, kernel, kind in ((100, "MatMulV2", "AI_CORE"), (200, name, task))
    ]  # fmt: skip
    trace = load(save(events, tmp_path / "t.json"))
    assert len(trace.device["ts"]) == 1 + is_work


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aclnnAddcmul_AddcmulAiCore_Addcmul", "elementwise"),
        ("aclnnDivs_RealDivAiCore_RealDiv", "elementwise"),
        ("aclnnMm_MatMulCommon_MatMulV2", "gemm"),
        ("aclnnMm_MatMulCommon_MemSet", "memset"),
        ("trans_TransData_27", "layout"),
        ("ReduceSum7", "reduction"),
        ("aclnnThresholdBackward_ReluGrad_ReluGrad", "activation"),
        ("gloo:send", "comm"),
        ("gloo:recv", "comm"),
        ("hcom_allReduce__123", "comm"),
        ("nothing_known", "unknown"),
    ],
)
def test_a_kernel_has_the_kind_of_the_op_that_it_is_named_after(name: str, kind: str) -> None:
    assert kernel_kind(name) == kind


def test_device_events_of_an_unknown_category_are_counted_in_the_first_paragraph(
    tmp_path: Path,
) -> None:
    """Two events of 40 and 60 us on a stream; one that waits for a stream is none."""
    trace = chrome(step(0, MM), step(1, MM))
    for category, us in (("npu_workload", 40), ("npu_workload", 60), ("cuda_sync", 30)):
        trace["traceEvents"].append(
            {"ph": "X", "cat": category, "name": "w", "pid": 0, "tid": 7, "ts": 5, "dur": us,
             "args": {"stream": 7, "device": 0}}
        )  # fmt: skip
    [phase] = report(tmp_path, trace).phases.values()
    [numbers] = [n.numbers for n in phase.notices if n.kind == "unread-device-work"]
    assert numbers == {"count": 2, "ns": 100_000, "categories": ["npu_workload"]}
    assert "2 events of the device (100 µs) are not read" in phase.summary


def test_a_rank_that_calls_nccl_and_has_no_device_events_is_named(tmp_path: Path) -> None:
    trace = chrome(step(0, op("aten::mm", [4, 5], [5, 6]), op("nccl:all_reduce", [4])), cpu=True)
    warnings = " ".join(report(tmp_path, trace).warnings)
    assert "uses a GPU (its launches or NCCL say so), but holds no device events" in warnings


def test_compute_properties_name_the_device(tmp_path: Path) -> None:
    """The key of the first profilers on kineto."""
    trace = chrome(step(0, MM))
    listed = trace.pop("deviceProperties", None) or [{}]
    trace["computeProperties"] = [{**listed[0], "id": 0, "name": "Tesla V100-DGXS-32GB"}]
    device = report(tmp_path, trace).device
    assert (device["name"], device["named"]) == ("v100-sxm2", "Tesla V100-DGXS-32GB")


def test_the_last_annotation_without_a_duration_owns_what_its_like_owned(tmp_path: Path) -> None:
    steps = [op("aten::mm", [4, 5], [5, 6], kernels=[k(us=7)]) for _ in range(4)]
    trace = chrome(*(step(i, each, each) for i, each in enumerate(steps)))
    spans = sorted(
        (e for e in trace["traceEvents"] if "step#" in e.get("name", "")), key=lambda e: e["ts"]
    )
    spans[-1]["dur"] = 0
    [phase] = report(tmp_path, trace).phases.values()
    assert phase.kernels_per_step == [2, 2, 2, 2]
