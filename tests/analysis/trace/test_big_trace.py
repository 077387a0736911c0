"""Memory grows with the kernels that are kept, not with the file: 1 GB of trace in 1 GiB."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
GIB = 1 << 30
CALLS = 60_000  # of one GEMM each
FRAMES = 48  # Python frames around each, the bulk of a trace with stacks
STEP_CALLS = 10_000
US = 20
FRAME = (
    '{"ph": "X", "cat": "python_function", "name": "modeling_llama.py(%d): forward", "pid": 7,'
    ' "tid": 7, "ts": %d.%03d, "dur": 14.125, "args": {"Python id": %d, "Python parent id": 1,'
    f' "note": "{"a frame of the host; " * 9}"}}}}'
)

RUN = f"""
import re, resource, sys
resource.setrlimit(resource.RLIMIT_DATA, ({GIB}, {GIB}))
import prunescope
code = prunescope.main(sys.argv[1:])
# Not ru_maxrss, which is that of the process that began this one where it was larger.
status = open("/proc/self/status").read()
sys.stderr.write("peak " + re.search("VmHWM:\\s+(\\d+)", status)[1])
sys.exit(code)
"""


def event(cat: str, name: str, ts: float, dur: float, **args: Any) -> dict[str, Any]:
    where = {"pid": 0 if cat == "kernel" else 7, "tid": 7}
    return {"ph": "X", "cat": cat, "name": name, **where, "ts": ts, "dur": dur, "args": args}


def events(i: int) -> str:
    """Return one call: Python frames, op, launch, flow and a kernel of 7 µs.

    It begins 20 µs after the last call.
    """
    ts, ident = 1_000_000_000 + i * US, 3 * i + 1
    link = {"External id": ident, "correlation": ident}
    flow = {"id": ident, "pid": 7, "tid": 7, "cat": "ac2g", "name": "ac2g"}
    size = {"device": 0, "stream": 7, "grid": [4, 1, 1], "block": [128, 1, 1]}
    half = ["c10::BFloat16"] * 2
    shapes = {"Input Dims": [[512, 64], [64, 64]], "Input type": half,
              "Input Strides": [[64, 1], [64, 1]], "Concrete Inputs": ["", ""]}  # fmt: skip
    step = event("user_annotation", f"ProfilerStep#{i // STEP_CALLS}", ts, STEP_CALLS * US)
    listed = [
        *([step] if i % STEP_CALLS == 0 else []),
        event("cpu_op", "aten::mm", ts + 2, 10, **{"External id": ident, **shapes}),
        event("cuda_runtime", "cudaLaunchKernel", ts + 4, 3, **link),
        {"ph": "s", "ts": ts + 4, **flow}, {"ph": "f", "ts": ts + 8, "bp": "e", **flow},
        event("kernel", "gemm_kernel", ts + 8, 7, **link, **size),
    ]  # fmt: skip
    return ",".join(
        [*(FRAME % (n, ts, n, ident + n) for n in range(FRAMES)), *map(json.dumps, listed)]
    )


@pytest.fixture
def big(tmp_path: Path) -> Path:
    if shutil.disk_usage(tmp_path).free < 2 * GIB:
        pytest.skip("needs 2 GB of free disk")
    path = tmp_path / "big.json"
    device = {"id": 0, "name": "NVIDIA H100 80GB HBM3", "numSms": 132}
    with path.open("w") as file:
        file.write(f'{{"deviceProperties":[{json.dumps(device)}],"traceEvents":[\n')
        for i in range(CALLS):
            file.write(("," if i else "") + events(i) + "\n")
        file.write("]}\n")
    return path


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is of Linux")
def test_a_gigabyte_of_trace_within_a_gibibyte_of_memory(big: Path, tmp_path: Path) -> None:
    assert big.stat().st_size > 1e9
    written = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-c", RUN, "analyze", str(big), "--json", str(written)],
        cwd=ROOT, capture_output=True, text=True, timeout=540,
        env={"PATH": "", "POLARS_MAX_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    big.unlink()
    assert done.returncode == 0, done.stderr[-2000:]
    phase = json.loads(written.read_text())["phases"]["trace"]
    assert phase["kernels_per_step"] == [STEP_CALLS] * (CALLS // STEP_CALLS)
    assert phase["busy_ns"] == STEP_CALLS * 7_000
    # Between the ends of two kernels lie 20 us; the first step begins at its first kernel.
    assert phase["gap_ns"] == pytest.approx(STEP_CALLS * 13_000, rel=1e-4)
    assert phase["coverage"] == {"kind": 1.0, "work": 1.0, "role": 0.0, "gemm_work": 1.0}
    peak_kib = int(done.stderr.rsplit("peak ", 1)[1])
    assert peak_kib < 400 * 1024
