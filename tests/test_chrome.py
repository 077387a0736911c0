"""The builder of traces, against the analysis that reads what it builds."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

import prunescope
from prunescope.analysis.schema.report import Phase
from tests.chrome import chrome, gap, k, module, op, save, step

UP = "model.layers.0.mlp.up_proj"


def phase_of(trace: dict[str, Any], tmp_path: Path) -> Phase:
    report = prunescope.analyze(save(trace, tmp_path / "t.json.gz"))
    (phase,) = report.phases.values()
    return phase


def one_step(*, cpu: bool) -> dict[str, Any]:
    mm = op("aten::mm", [4, 5], [5, 6], dtype="c10::BFloat16", kernels=[k(us=7, name="gemm")])
    linear = op("aten::linear", [4, 5], [6, 5], dtype="c10::BFloat16", inner=[mm])
    add = op("aten::add", [4, 6], [4, 6], [], kernels=[k(us=2, name="add")])
    return chrome(step(0, module(UP, linear), gap(us=3), add), cpu=cpu)


@pytest.mark.parametrize("cpu", [False, True])
def test_a_step_is_read_back_as_built(cpu: bool, tmp_path: Path) -> None:
    phase = phase_of(one_step(cpu=cpu), tmp_path)
    assert (phase.steps, phase.wall_ns, phase.busy_ns) == (1, 12_000, 9_000)  # 7 + 3 + 2, 7 + 2
    assert (phase.gap_ns, phase.tail_ns) == (3_000, 0)
    (gemm,) = phase.gemms
    assert (gemm.role, gemm.layers, gemm.m, gemm.n, gemm.k) == ("up", [0], 4, 6, 5)
    assert (gemm.busy_ns, gemm.flop) == (7_000, 240)  # 2*4*6*5


def test_overlap_is_counted_once(tmp_path: Path) -> None:
    kernels = [k(us=5), k(us=4, stream=9, gap_us=-2)]  # [0, 5] and [3, 7]
    phase = phase_of(chrome(step(0, op("aten::mul", [8], [8], kernels=kernels))), tmp_path)
    assert (phase.wall_ns, phase.busy_ns, phase.gap_ns) == (7_000, 7_000, 0)


def test_a_gap_waits_for_the_host_only_where_asked(tmp_path: Path) -> None:
    def launch_ns(*, launch: bool) -> float:
        add = op("aten::add", [8], [8], kernels=[k(us=2)])
        return phase_of(chrome(step(0, add, gap(us=3, launch=launch), add)), tmp_path).bound[
            "launch"
        ]

    assert (launch_ns(launch=False), launch_ns(launch=True)) == (0, 3_000)


def test_parents_come_before_their_children_and_enclose_them() -> None:
    events = [e for e in one_step(cpu=False)["traceEvents"] if e["pid"] and "cuda" not in e["cat"]]
    names = [e["name"] for e in events]
    assert names == ["prunescope.step#0", UP, "aten::linear", "aten::mm", "aten::add"]
    outer, inner = events[2], events[3]
    assert outer["ts"] <= inner["ts"]
    assert round(inner["ts"] + inner["dur"], 3) <= round(outer["ts"] + outer["dur"], 3)


def test_a_kernel_outside_an_op_has_no_launch() -> None:
    trace = chrome(k(us=1, name="stray"), op("aten::mm", [2, 2], [2, 2], kernels=[k(us=1)]))
    links = {e["name"]: e["args"].get("correlation") for e in trace["traceEvents"]}
    assert links["stray"] is None
    assert links["a_kernel"] == links["cudaLaunchKernel"] is not None


def test_saving_is_reproducible(tmp_path: Path) -> None:
    first, second = (save(one_step(cpu=True), tmp_path / name) for name in ("a.gz", "b.gz"))
    assert first.read_bytes() == second.read_bytes()
    assert json.loads(gzip.decompress(first.read_bytes()))["schemaVersion"] == 1
