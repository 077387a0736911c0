"""Runs a piece of prunescope in a process of its own that is killed at one point. No test in it.

In: what to do, the point, the folder, and how it dies. Out: whatever was on disk at that moment.
    python -m tests.faults.driver runs|report|analyze|file POINT FOLDER kill|fsize
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import prunescope.taxonomy.atomic_write
from prunescope.taxonomy.runs.run import PhaseRun, Run
from prunescope.tracer.capture.chrome import PHASE
from prunescope.tracer.capture.runs import Capture, write_runs

# Every place at which the process may die while it writes, in order.
POINTS = ("made", "file 1", "file 2", "file 3", "filled", "placed")
FSIZE = 4096  # bytes a file, in the process whose disk is full


def capture(variant: str) -> Capture:
    """A capture of one phase whose trace fills some kB."""
    events = [
        {"ph": "X", "cat": "cpu_op", "name": f"aten::op{i * 7919 % 1000003}", "pid": 1, "tid": 1,
         "ts": i * 1.237, "dur": i % 13 + 0.5}
        for i in range(3000)
    ]  # fmt: skip
    phase = PhaseRun(
        batch=1, prompt_len=8, positions=[0, 8], context=8, logits="last", cache="dynamic",
        attention="sdpa", mode="eager", steps=1, tokens_per_step=8, warmup=0, samples_ns=[5, 6],
    )  # fmt: skip
    run = Run(variant=variant, model={}, phases={"prefill": phase}, dtype="fp32", device={},
              versions={}, seeds={}, argv=[])  # fmt: skip
    spanned = {**events[0], "name": PHASE, "cat": "user_annotation", "dur": 5000.0}
    trace = {"traceEvents": [spanned, *events], "prunescope": {"variant": variant, "cut_ns": []}}
    captured = Capture(run=run)
    captured.traces["prefill"].add(trace)
    return captured


def write_both(out: Path) -> None:
    """F/dense and F/pruned, as `trace` writes them at its end."""
    write_runs(out, {name: capture(name) for name in ("dense", "pruned")}, None)


def write_one_report(out: Path) -> None:
    """A report of four files, as `analyze` writes it at its end."""
    from prunescope.analysis.report.write import write_files

    mark = os.environ.get("MARK", "new")
    names = ("report.md", "report.json", "a.png", "b.pdf")
    write_files({name: f"{mark} {name}\n".encode() * 2000 for name in names}, out)


def analyze_it(out: Path) -> None:
    """The command itself."""
    import prunescope

    sys.exit(prunescope.main(["analyze", str(out), "--format", "md,json"]))


def write_one_file(out: Path) -> None:
    """A bundle, or what --json FILE writes."""
    prunescope.taxonomy.atomic_write.write_file(out, b"half" * 9999)


def everything(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


WORK: dict[str, Callable[[Path], None]] = {
    "runs": write_both, "report": write_one_report, "analyze": analyze_it, "file": write_one_file
}  # fmt: skip


def arm(point: str, die: Callable[[], None]) -> None:
    """Call `die` when the process reaches a point of writing."""
    files = [0]
    for name in ("write_bytes", "write_text"):
        setattr(Path, name, _counted(getattr(Path, name), files, point, die))
    real = prunescope.taxonomy.atomic_write.put_in_place
    for module in list(sys.modules.values()):
        if getattr(module, "put_in_place", None) is real:
            module.put_in_place = _placing(real, point, die)  # type: ignore[attr-defined]
    if point == "replaced":
        Path.replace = lambda *_: die()  # type: ignore[assignment,method-assign,return-value]
    if point == "made":
        Path.mkdir = _dying(Path.mkdir, die)  # type: ignore[method-assign]


def _counted(
    real: Callable[..., Any], files: list[int], point: str, die: Callable[[], None]
) -> Callable[..., Any]:
    """A write that dies half-way through the file of the point."""

    def write(*args: Any, **more: Any) -> Any:
        files[0] += 1
        if point == f"file {files[0]}":
            real(args[0], args[1][: len(args[1]) // 2], **more)
            die()
        return real(*args, **more)

    return write


def _placing(real: Callable[..., Any], point: str, die: Callable[[], None]) -> Callable[..., Any]:
    def put(*args: Any) -> None:
        if point == "filled":
            die()
        real(*args)
        if point == "placed":
            die()

    return put


def _dying(real: Callable[..., Any], die: Callable[[], None]) -> Callable[..., Any]:
    def mkdir(self: Path, *args: Any, **more: Any) -> None:
        real(self, *args, **more)
        if self.suffix == ".partial":
            die()

    return mkdir


def main() -> None:
    """Parse the words and run."""
    what, point, out, how = sys.argv[1:]
    if how == "fsize":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (FSIZE, FSIZE))
    else:
        arm(point, lambda: os.kill(os.getpid(), signal.SIGKILL))
    WORK[what](Path(out))


if __name__ == "__main__":
    main()
