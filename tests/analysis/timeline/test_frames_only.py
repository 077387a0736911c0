"""A real vLLM trace in which nothing but frames of Python shows the iterations."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prunescope.analysis.pipeline import analyze
from tests.chrome import save

Event = dict[str, Any]
PROMPT, SINGLE, STEPS = 888, 4, 3
KEPT = ("cpu_op", "cuda_runtime", "cuda_driver", "kernel", "gpu_memcpy", "gpu_memset")
EXECUTE = "gpu_model_runner.py(2907): execute_model"


def _shaped(shapes: Any, rows: int) -> Any:
    """Shapes with the rows of the prompt replaced."""
    if isinstance(shapes, list):
        return [_shaped(inner, rows) for inner in shapes]
    return rows if shapes == PROMPT else shapes


def _iteration(events: list[Event], index: int, rows: int) -> Iterator[Event]:
    """Repeat the recorded iteration later, with ids of its own.

    A decode has fewer rows, and its GEMMs run half as long.
    """
    for event in events:
        if rows == SINGLE and event["name"].startswith(("nvjet", "bmm_")):
            event = event | {"dur": event["dur"] / 2}
        args = dict(event.get("args") or {})
        for key in ("correlation", "External id"):
            if key in args:
                args[key] += index * 10_000_000
        if "Input Dims" in args:
            args["Input Dims"] = _shaped(args["Input Dims"], rows)
        yield event | {"ts": event["ts"] + index * 200_000, "args": args}


def test_frames_alone_show_a_prefill_and_its_decodes(
    real_trace: Callable[[str], Path], tmp_path: Path
) -> None:
    with gzip.open(real_trace("b200_eager.json.gz")) as file:
        trace = json.load(file)
    kept = [
        event
        for event in trace["traceEvents"]
        if event.get("cat") in KEPT
        or (event.get("cat") == "python_function" and event["name"].endswith(EXECUTE))
    ]
    rows = (PROMPT, *[SINGLE] * (STEPS - 1))
    trace["traceEvents"] = [
        event for index, m in enumerate(rows) for event in _iteration(kept, index, m)
    ]
    report = analyze(save(trace, tmp_path / "frames.json")).report
    assert {name: phase.steps for name, phase in report.phases.items()} == {
        "prefill": 1,
        "decode": STEPS - 1,
    }
    for name, m in (("prefill", PROMPT), ("decode", SINGLE)):
        counts = {(g.m, g.n, g.k): g.count for g in report.phases[name].gemms}
        assert counts[m, 640, 2880] == counts[m, 2880, 512] == counts[m, 128, 2880] == 36
