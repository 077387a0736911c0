"""Holistic Trace Analysis (HTA) as a second opinion; this is the only importer of hta.

A trace file gives a SecondOpinion, in ns over the whole trace. HTA runs in a process of its own on
a link in a temporary folder: it needs a GB per million events, and asserts on some traces. What
fails is named, and no number of ours depends on it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from prunescope.analysis.schema.report import SecondOpinion
from prunescope.analysis.timeline.intervals import cover
from prunescope.analysis.trace.nsys_file import is_nsys
from prunescope.analysis.trace.trace_columns import Trace
from prunescope.analysis.trace.unpack import GZIP_MAGIC, ZSTD_MAGIC, members, unpacked
from prunescope.taxonomy.atomic_write import scratch_folder

TIME_LIMIT_S = 1800
_ANSWER = "answer.json"
_ROOT = Path(__file__).parents[2]  # the folder of the package: a checkout, or site-packages
_US = 1000.0
# Whatever HTA and pandas raise on a trace that they cannot handle.
_FAILURES = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError,
             OSError, RuntimeError, TypeError, UnicodeError, ValueError)  # fmt: skip


class HtaAnswer(msgspec.Struct):
    """HTA's totals of a whole trace in ns; None where it did not run or failed (`failed`)."""

    failed: list[str] = []
    version: str | None = None
    total_ns: float | None = None
    busy_ns: float | None = None
    idle_ns: float | None = None
    compute_ns: float | None = None
    waits: dict[str, float] | None = None
    kernel_types: dict[str, float] | None = None
    launches: dict[str, float] | None = None


def second_opinion(trace: Trace, *, time_limit_s: float = TIME_LIMIT_S) -> SecondOpinion:
    """Return HTA's totals of the file that `trace` was read from, and ours of all its events.

    Args:
        trace: A trace.
        time_limit_s: Seconds after which HTA is stopped.

    Returns:
        The opinion. It never raises for what HTA does: `failed` names a failure, a crash or the
        end of the time limit.
    """
    if not trace.on_device:
        return _opinion(
            HtaAnswer(failed=["HTA looks at device events, and the trace has none"]), trace
        )
    if is_nsys(trace.source.path):
        failed = ["HTA reads Chrome traces, and this is an export of Nsight Systems"]
        return _opinion(HtaAnswer(failed=failed), trace)
    with scratch_folder() as folder:
        link = _link(trace, folder)
        return _opinion(_answer_of_process(link, time_limit_s), trace)


def own_totals(trace: Trace) -> dict[str, float]:
    """Return total, busy (union) and idle ns of all device events of a trace.

    Carry-over from the step before is included.
    """
    order = np.argsort(trace.device["ts"], kind="stable")
    start = trace.device["ts"][order]
    if not len(start):
        return {}
    end = start + trace.device["dur"][order]
    total = int(end.max() - start[0])
    busy = int(cover(start, end, int(start[0]))[0].sum())
    return {"total_ns": float(total), "busy_ns": float(busy), "idle_ns": float(total - busy)}


def _link(trace: Trace, folder: Path) -> Path:
    """Give the trace a name that tells HTA how to open it.

    The file is unpacked where it is in an archive, or packed with zstd; else the name is a link to
    it.
    """
    source = trace.source
    with source.path.open("rb") as file:
        magic = file.read(4)
        packed = magic[:2] == GZIP_MAGIC
        inside = magic == ZSTD_MAGIC or bool(members(source.path))
        link = folder / ("trace.json.gz" if packed and not inside else "trace.json")
        if not inside:
            link.symlink_to(source.path.resolve())
            return link
        file.seek(0)
        stream = unpacked(source.path, file, source.member)
        with link.open("wb") as plain:
            while block := stream.read(1 << 20):
                plain.write(block)
    return link


def _answer_of_process(link: Path, time_limit_s: float) -> HtaAnswer:
    """Return the answer of the process that runs HTA, or why there is none."""
    environment = {
        **os.environ,
        "HTA_DISABLE_NS_ROUNDING": "1",  # else HTA loses 3 to 18 % of the time, or asserts
        "PYTHONPATH": str(_ROOT),
    }
    command = [sys.executable, "-P", "-m", "prunescope.analysis.hta", link.name]
    try:
        done = subprocess.run(
            command,
            cwd=link.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=time_limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return HtaAnswer(failed=[f"HTA was stopped after {time_limit_s:g} s"])
    answer = link.parent / _ANSWER
    if done.returncode or not answer.is_file():
        return HtaAnswer(failed=[f"the process that runs HTA ended with code {done.returncode}"])
    return msgspec.json.decode(answer.read_bytes(), type=HtaAnswer)


def _opinion(answer: HtaAnswer, trace: Trace) -> SecondOpinion:
    """Return an answer of HTA together with our own totals."""
    return SecondOpinion(**msgspec.structs.asdict(answer), ours=own_totals(trace))


def ask(name: str) -> HtaAnswer:
    """Return HTA's answers on the trace file `name` of this folder.

    Runs in the process started above.
    """
    answer = HtaAnswer()
    try:
        from importlib.metadata import version

        from hta.trace_analysis import TraceAnalysis

        answer.version = version("traceinsight")
        analysis = TraceAnalysis(
            trace_files={0: str(Path.cwd() / name)}, include_last_profiler_step=True
        )
    except ModuleNotFoundError as error:
        missing = f"HTA is not installed ({error.name} is missing): pip install traceinsight"
        return msgspec.structs.replace(answer, failed=[missing])
    except _FAILURES as error:
        return msgspec.structs.replace(answer, failed=[f"loading: {_reason(error)}"])
    questions: tuple[tuple[str, Callable[[Any, HtaAnswer], None]], ...] = (
        ("temporal breakdown", _add_breakdown),
        ("idle-time breakdown", _add_waits),
        ("kernel breakdown", _add_kernel_types),
        ("launch statistics", _add_launches),
    )
    for title, question in questions:
        try:
            question(analysis, answer)
        except _FAILURES as error:
            answer.failed.append(f"{title}: {_reason(error)}")
    return answer


def _reason(error: BaseException) -> str:
    """Return the type and first line of an error, without the temporary folder's path."""
    lines = str(error).replace(str(Path.cwd()), "").splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}".rstrip(": ")


def _add_breakdown(analysis: Any, answer: HtaAnswer) -> None:
    """Add the total, busy, idle and compute times."""
    row = analysis.get_temporal_breakdown(visualize=False).iloc[0]
    total, idle = row["kernel_time(us)"] * _US, row["idle_time(us)"] * _US
    compute = float(row["compute_time(us)"] * _US)
    answer.total_ns, answer.idle_ns, answer.busy_ns = float(total), float(idle), float(total - idle)
    answer.compute_ns = compute


def _add_waits(analysis: Any, answer: HtaAnswer) -> None:
    """Add the idle times by what the device waited for."""
    frame = analysis.get_idle_time_breakdown(visualize=False)[0]
    sums = frame.groupby("idle_category")["idle_time"].sum()
    answer.waits = {str(k): float(v * _US) for k, v in sums.items()}


def _add_kernel_types(analysis: Any, answer: HtaAnswer) -> None:
    """Add the times by type of kernel."""
    frame = analysis.get_gpu_kernel_breakdown(visualize=False)[0]
    pairs = zip(frame["kernel_type"], frame["sum"], strict=True)
    answer.kernel_types = {str(k).lower(): float(v * _US) for k, v in pairs}


def _add_launches(analysis: Any, answer: HtaAnswer) -> None:
    """Add how many kernels were launched, and the means of their times."""
    frame = analysis.get_cuda_kernel_launch_stats(visualize=False)[0]
    if not len(frame):  # HTA knows only the names of CUDA's launches
        return
    means = {
        f"{name}_ns": float(frame[column].mean() * _US)
        for name, column in (
            ("cpu", "cpu_duration"),
            ("gpu", "gpu_duration"),
            ("delay", "launch_delay"),
        )
    }
    answer.launches = {"count": float(len(frame)), **means}


if __name__ == "__main__":
    Path(_ANSWER).write_bytes(msgspec.json.encode(ask(sys.argv[1])))
