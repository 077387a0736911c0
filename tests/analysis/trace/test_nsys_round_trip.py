"""Real Chrome traces, written as databases of Nsight Systems.

The report is that of the same trace as Chrome JSON, except for what a database cannot hold
(tests/nsys.py lists it).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Report, to_json
from prunescope.analysis.trace.load import load
from tests.nsys import chrome_of, write

SMALL = ("h100_qwen1.5-0.5b_prefill", "h100_vit", "b200_eager", "mi210_gpu_only",
         "mi300x_compile_triton", "mi300x_sglang_qwen3-8b_decode_graph",
         "mi300x_sglang_qwen3-8b_prefilldecode")  # fmt: skip
LARGE = ("a100_training_graphs_nccl", "a100_legacy_flows", "h100_owlv2-large", "v100_legacy_graphs",
         "mi300x_sglang_qwen3-8b_decode_capture_bs32")  # fmt: skip
# What no part of a step's time depends on; `lead` has to do with ops that a database cannot tell
# from annotations.
TIMES = ("steps", "wall_ns", "busy_ns", "gap_ns", "tail_ns", "spill", "late", "left_out",
         "kernels_per_step")  # fmt: skip


def plain(path: Path) -> dict[str, Any]:
    """Return the report under one name for both files."""
    report = json.loads(to_json(analyze(path).report))
    return json.loads(json.dumps(report).replace(path.name, "trace"))


@pytest.mark.parametrize(
    "name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]
)
def test_report_of_a_database(
    name: str,
    real_trace: Callable[[str], Path],
    real_report: Callable[[str], Report],
    tmp_path: Path,
) -> None:
    path = real_trace(f"{name}.json.gz")
    trace = load(path)
    export = plain(write(trace, tmp_path / "trace.sqlite"))
    again = tmp_path / "trace.json"
    again.write_text(json.dumps(chrome_of(trace)))
    assert export == plain(again)
    whole = json.loads(to_json(real_report(path.name)))
    for phase, exported in export["phases"].items():
        wanted = whole["phases"][phase]
        assert {key: exported[key] for key in TIMES} == {key: wanted[key] for key in TIMES}
    assert list(export["phases"]) == list(whole["phases"])
