"""Memory of reading an export: no more than of the same trace as Chrome JSON, in one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.nsys import PROCESS, PUSH_POP, Export

KERNELS = 60_000
CODE = """
import resource, sys
from pathlib import Path
from prunescope.analysis.trace.load import load
from prunescope.analysis.trace.workers import start_no_workers
start_no_workers()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
load(Path(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def write_both(folder: Path) -> tuple[Path, Path]:
    """Ops of 40 names with sizes, each with a launch and a kernel, in both formats."""
    export, events = Export(folder / "t.sqlite"), list[dict[str, Any]]()
    ranges, calls, kernels = [], [], []
    process = PROCESS << 24
    for i in range(KERNELS):
        ns, name, kernel = 10_000 * i, f"aten::op{i % 40}", f"void kernel<{i % 40}>(Params)" * 3
        sizes = [[16 + i % 7, 64], [64, 32]]
        text = f"{name}, op_id = {i + 1}, sizes = {json.dumps(sizes)}"
        ranges.append({"start": ns, "end": ns + 5000, "text": text, "globalTid": process | 1,
                       "eventType": PUSH_POP})  # fmt: skip
        calls.append({"start": ns + 100, "end": ns + 3000, "globalTid": process | 1,
                      "correlationId": i + 1,
                      "nameId": export.string("cudaLaunchKernel")})  # fmt: skip
        axes = {f"{extent}{axis}": 1 + i % 5 for extent in ("grid", "block") for axis in "XYZ"}
        kernels.append({"start": ns + 6000, "end": ns + 14_000, "deviceId": 0, "contextId": 1,
                        "streamId": 7, "correlationId": i + 1, "globalPid": process,
                        "demangledName": export.string(kernel), **axes})  # fmt: skip
        us, size = ns / 1000, [1 + i % 5] * 3
        on_host = {"ph": "X", "pid": 7, "tid": 1}
        events += [
            {**on_host, "cat": "cpu_op", "name": name, "ts": us, "dur": 5,
             "args": {"External id": i + 1, "Input Dims": sizes}},
            {**on_host, "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": us + 0.1,
             "dur": 2.9, "args": {"correlation": i + 1, "External id": i + 1}},
            {"ph": "X", "cat": "kernel", "name": kernel, "pid": 0, "tid": 7, "ts": us + 6,
             "dur": 8, "args": {"correlation": i + 1, "device": 0, "stream": 7, "grid": size,
                                "block": size}},
        ]  # fmt: skip
    for table, rows in (("NVTX_EVENTS", ranges), ("CUPTI_ACTIVITY_KIND_RUNTIME", calls),
                        ("CUPTI_ACTIVITY_KIND_KERNEL", kernels)):  # fmt: skip
        export.add(table, rows)
    export.close()
    (folder / "t.json").write_text(json.dumps({"traceEvents": events}))
    return folder / "t.sqlite", folder / "t.json"


@pytest.mark.slow
def test_an_export_takes_no_more_memory_than_json(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    took = []
    for path in write_both(tmp_path):
        command = [sys.executable, "-c", CODE, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        took.append(int(done.stdout))
    assert took[0] <= took[1]
