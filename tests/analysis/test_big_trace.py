"""Memory grows with the kernels that are kept, not with the file: 1 GB of trace in 1 GiB of memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30
CALLS = 60_000  # of one GEMM each
FRAMES = 44  # Python frames around each, the bulk of a trace with stacks
STEP_CALLS = 10_000
US = 20

RUN = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({GIB}, {GIB}))
import prunescope
code = prunescope.main(sys.argv[1:])
sys.stderr.write(f"peak {{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}}")
sys.exit(code)
"""


def events(i: int) -> str:
    """A call: its Python frames, op, launch, flow events and kernel of 7 us; 20 us after the last."""
    ts, ident = 1_000_000_000 + i * US, 3 * i + 1
    frames = (
        f'{{"ph":"X","cat":"python_function","name":"modeling_llama.py({n}): forward of layer {i % 32}",'
        f'"pid":7,"tid":7,"ts":{ts}.{n:03d},"dur":{15 - 0.01 * n:.3f},"args":{{"Python id":{ident + n},'
        f'"Python parent id":{ident + n - 1},"Ev Idx":{ident + n},"note":"{"frame of the host " * 8}"}}}}'
        for n in range(FRAMES)
    )
    host = f'"pid":7,"tid":7,"ts":{ts + 2},"dur":10'
    link = f'"External id":{ident},"correlation":{ident}'
    step = (
        f'{{"ph":"X","cat":"user_annotation","name":"ProfilerStep#{i // STEP_CALLS}","pid":7,"tid":7,'
        f'"ts":{ts},"dur":{STEP_CALLS * US}}},'
        if i % STEP_CALLS == 0
        else ""
    )
    return (
        f"{step}{','.join(frames)},"
        f'{{"ph":"X","cat":"cpu_op","name":"aten::mm",{host},"args":{{"External id":{ident},'
        f'"Input Dims":[[512,64],[64,64]],"Input type":["c10::BFloat16","c10::BFloat16"],'
        f'"Input Strides":[[64,1],[64,1]],"Concrete Inputs":["",""]}}}},'
        f'{{"ph":"X","cat":"cuda_runtime","name":"cudaLaunchKernel","pid":7,"tid":7,"ts":{ts + 4},'
        f'"dur":3,"args":{{{link}}}}},'
        f'{{"ph":"s","id":{ident},"pid":7,"tid":7,"ts":{ts + 4},"cat":"ac2g","name":"ac2g"}},'
        f'{{"ph":"f","id":{ident},"pid":0,"tid":7,"ts":{ts + 8},"cat":"ac2g","name":"ac2g","bp":"e"}},'
        f'{{"ph":"X","cat":"kernel","name":"gemm_kernel","pid":0,"tid":7,"ts":{ts + 8},"dur":7,'
        f'"args":{{{link},"device":0,"stream":7,"grid":[4,1,1],"block":[128,1,1]}}}}'
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
@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are of Linux")
def test_a_gigabyte_of_trace_within_a_gibibyte_of_memory(big: Path, tmp_path: Path) -> None:
    assert big.stat().st_size > 1e9
    out = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-c", RUN, "analyze", str(big), "--json", str(out)],
        cwd=ROOT, capture_output=True, text=True, timeout=540,
        env={"PATH": "", "POLARS_MAX_THREADS": "2", "OPENBLAS_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    big.unlink()
    assert done.returncode == 0, done.stderr[-2000:]
    phase = json.loads(out.read_text())["phases"]["trace"]
    assert phase["kernels_per_step"] == [STEP_CALLS] * (CALLS // STEP_CALLS)
    assert phase["busy_ns"] == STEP_CALLS * 7_000
    # Between the ends of two kernels lie 20 us; the first step begins at its first kernel.
    assert phase["gap_ns"] == pytest.approx(STEP_CALLS * 13_000, rel=1e-4)
    assert phase["coverage"] == {"kind": 1.0, "work": 1.0, "role": 0.0, "gemm_work": 1.0}
    peak_kib = int(done.stderr.rsplit("peak ", 1)[1])
    assert peak_kib < 400 * 1024
