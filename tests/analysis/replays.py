"""Graph replays made of eager traces, for tests. No test in it.

In: a small trace of `tests.chrome`, or a real one of one step. Out: the same kernels, launched by
graph launches that lie in one host op with shapes of its own, as a compiled function has them.
"""

from __future__ import annotations

import gzip
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
AROUND = {
    "Input Dims": [[512, 1705], [1705, 1024]], "Input type": ["float", "float"],
    "Input Strides": [[1705, 1], [1024, 1]], "Concrete Inputs": ["", ""],
}  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    trace: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return trace


def replayed(eager: dict[str, Any], *, times: int = 1, pieces: int = 1) -> dict[str, Any]:
    """The launched kernels of `eager`, `times` over, in `pieces` graphs each, without a step."""
    launched = {
        e["args"]["correlation"]
        for e in eager["traceEvents"]
        if e.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in e.get("args", {})
    }
    kernels = [e for e in eager["traceEvents"]
               if e.get("cat") in DEVICE and e["args"].get("correlation") in launched]  # fmt: skip
    kernels.sort(key=lambda e: e["ts"])
    size = -(-len(kernels) // pieces)
    span = kernels[-1]["ts"] + kernels[-1]["dur"] - kernels[0]["ts"] + 100
    events: list[dict[str, Any]] = []
    for turn in range(times):
        for piece in range(pieces):
            ident = 10**6 + turn * pieces + piece
            part = deepcopy(kernels[piece * size : (piece + 1) * size])
            for event in part:
                event["ts"] += turn * span
                event["args"]["correlation"] = ident
                event["args"].pop("External id", None)
            host = {"ph": "X", "pid": 1, "tid": 1, "ts": part[0]["ts"] - 8, "dur": 6}
            events += [
                {**host, "cat": "cpu_op", "name": "CompiledFunction",
                 "args": {"External id": ident, **AROUND}},
                {**host, "cat": "cuda_runtime", "name": "cudaGraphLaunch", "ts": host["ts"] + 1,
                 "dur": 4, "args": {"External id": ident, "correlation": ident}},
                *part,
            ]  # fmt: skip
    return {**eager, "traceEvents": events}
