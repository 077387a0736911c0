"""Real decoder traces without what tells shapes: in, a trace of ../shared; out, the trace stripped.

`strip` takes away the shapes that torch.profiler records only when asked, the modules, the ops, or
several of these. The truth is what the report of the whole trace says.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.inputs.options import Options
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Report

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"
SHAPES = ("Input Dims", "Input type", "Input Strides", "Concrete Inputs")
LINEARS = ("q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "down", "router", "lm_head")
Row = tuple[str, int | None, int | None, int | None]


@dataclass(frozen=True, eq=False)
class Case:
    """A trace, the model in it and the workload that it ran."""

    name: str
    model: str
    device: str
    workload: dict[str, Any]
    eager: str | None = None
    rows: int = 0  # M of the linears
    same: dict[str, str] = field(default_factory=dict)  # role in the truth -> the config's

    @property
    def path(self) -> Path:
        """Where the trace is; skips where it is not."""
        path = SHARED / f"{self.name}.json.gz"
        if not path.is_file():
            pytest.skip(f"{path.name} is not there")
        return path


H100 = Case(
    "traces/h100_qwen1.5-0.5b_prefill", "qwen1.5-0.5b", "h100-sxm",
    {"batch": 16, "prompt_len": 559}, rows=8944,
)  # fmt: skip
MI300 = Case(
    "traces/mi300x_sglang_qwen3-8b_prefilldecode", "qwen3-8b", "mi300x",
    {"batch": 15, "prompt_len": 1024}, rows=15360,
)  # fmt: skip
GRAPH = Case(
    "traces/mi300x_sglang_qwen3-8b_decode_graph", "qwen3-8b", "mi300x",
    {"batch": 32, "phase": "decode"}, rows=32,
    eager="traces/mi300x_sglang_qwen3-8b_decode_capture_bs32",
)  # fmt: skip
B200 = Case(
    "traces/b200_eager", "gpt-oss-120b", "b200", {"batch": 1, "prompt_len": 888}, rows=888,
    same={"unknown": "router"},
)  # fmt: skip
CASES = (H100, MI300, GRAPH, B200)


@cache
def events(name: str) -> str:
    """Return the text of a trace, read once; skip the test where the trace is missing."""
    path = SHARED / f"{name}.json.gz"
    if not path.is_file():
        pytest.skip(f"{path.name} is not there")
    return gzip.decompress(path.read_bytes()).decode()


def strip(
    case: Case, folder: Path, *, modules: bool, ops: bool = True, annotations: bool = True
) -> Path:
    """Write the trace without shapes; without modules, ops or annotations where these are False."""
    assert case.path
    path = folder / "stripped.json.gz"
    path.write_bytes(_stripped(case.name, modules=modules, ops=ops, annotations=annotations))
    return path


@cache
def _stripped(name: str, *, modules: bool, ops: bool, annotations: bool) -> bytes:
    gone = set()
    if not modules:
        gone.add("python_function")
    if not ops:
        gone.add("cpu_op")
    if not annotations:
        gone |= {"user_annotation", "gpu_user_annotation"}
    remaining, recorded = _without_shapes(name)
    return gzip.compress(
        remaining.replace('"@"', ",".join(e for c, e in recorded if c not in gone)).encode(), 1
    )


@cache
def _without_shapes(name: str) -> tuple[str, list[tuple[str | None, str]]]:
    """Return a trace with "@" for its events, and category and text of each, written only once."""
    trace = json.loads(events(name))
    recorded = []
    for event in trace["traceEvents"]:
        for key in SHAPES:
            event.get("args", {}).pop(key, None)
        recorded.append((event.get("cat"), json.dumps(event)))
    return json.dumps({**trace, "traceEvents": ["@"]}), recorded


def save(trace: dict[str, Any], path: Path) -> Path:
    """Write a trace."""
    path.write_bytes(packed(trace))
    return path


def packed(trace: dict[str, Any]) -> bytes:
    """Pack a trace as a profiler does, but fast."""
    return gzip.compress(json.dumps(trace).encode(), 1)


_reports: dict[tuple[object, ...], Report] = {}


def report(path: Path, case: Case, **options: Any) -> Report:
    """Return the report of a trace on the device of a case.

    The same bytes with the same options are analysed once, unless an option is a file.
    """
    key = (hashlib.sha256(path.read_bytes()).digest(), path.name, case.device, *options.items())
    is_file = any("/" in str(value) for value in options.values())
    if is_file or key not in _reports:
        analysed = analyze(path, options=Options(device=case.device, **options)).report
        if is_file:
            return analysed
        _reports[key] = analysed
    return _reports[key]


def table(told: Report, case: Case) -> dict[Row, float]:
    """ns of each (role, M, N, K) of the linears."""
    times: dict[Row, float] = defaultdict(float)
    for phase in told.phases.values():
        for gemm in phase.gemms:
            role = case.same.get(gemm.role, gemm.role) if gemm.n else gemm.role
            if role in LINEARS:
                times[role, gemm.m, gemm.n, gemm.k] += gemm.busy_ns
    return dict(times)


def known(rows: dict[Row, float]) -> dict[Row, float]:
    """Return the rows whose N is known."""
    return {row: ns for row, ns in rows.items() if row[2] is not None}


@cache
def truth(case: Case) -> dict[Row, float]:
    """Return the linears that the whole trace has."""
    eager = None if case.eager is None else SHARED / f"{case.eager}.json.gz"
    return known(table(report(case.path, case, eager_trace=eager), case))
