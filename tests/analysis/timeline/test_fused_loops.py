"""Compiled code on a CPU: what its fused loops take lies between ops, and a note says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from tests.chrome import chrome, gap, module, op, save

GRAPH = "## Call CompiledFxGraph abc ##"


def notes(folder: Path, *inside: Any) -> list[str]:
    mm = op("aten::mm", [4, 5], [5, 6], us=10)
    trace = chrome(module("ProfilerStep#0", mm, module(GRAPH, mm, *inside, mm)), cpu=True)
    sentences = analyze(save(trace, folder / "t.json")).report.phases["trace"].notes
    return [text for text in sentences if "compiled code" in text]


def test_time_between_ops_of_compiled_code_is_of_fused_loops(tmp_path: Path) -> None:
    (text,) = notes(tmp_path, gap(us=200))
    assert "enable_kernel_profile" in text


@pytest.mark.parametrize("name", ["graph_0_cpp_fused_add_1", "cpp_fused_mul_0"])
def test_recorded_loops_are_ops(name: str, tmp_path: Path) -> None:
    assert not notes(tmp_path, op(name, us=20))
