"""How the engine's time and memory grow with a trace, against the floor, and where the time goes.

    python benchmarks/growth.py [--events N ...] [--repeats 3]

Whole processes, in turns. Floor: a typed scan of the same bytes, one field an event. Out:
growth.json, the seconds and bytes of each repeat and the stages of each analysis, of which
engine.py makes the last section of engine.md: a row a size, the straight line through them, and the
stages.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import processes
from processes import REPEATED, ROOT, TRACES, Timed

KEPT = Path(__file__).resolve().with_suffix(".json")
SIZES = (10_000, 100_000, 300_000, 1_000_000, 3_000_000)
HERE = {"PYTHONPATH": str(ROOT)}
OURS, FLOOR = "prunescope", "typed scan"
SCAN = """
import msgspec, sys
class E(msgspec.Struct): ph: str = ''
class T(msgspec.Struct): traceEvents: list[E]
msgspec.json.decode(open(sys.argv[1], 'rb').read(), type=T)
"""
# A stage is what its own code takes, without that of the stages it calls. Functions are wrapped
# before what uses them is imported; the readers begin first, as they do in the command.
STAGES = """
import json, sys, time
begun, path, out, report = float(sys.argv[1]), *sys.argv[2:]
times, stack = {}, []

def timed(owner, name, stage):
    inner = getattr(owner, name)
    def outer(*args, **kwargs):
        start = time.perf_counter()
        stack.append(0.0)
        try:
            return inner(*args, **kwargs)
        finally:
            took = time.perf_counter() - start
            times[stage] = times.get(stage, 0.0) + took - stack.pop()
            if stack:
                stack[-1] += took
    setattr(owner, name, outer)

from prunescope.analysis.trace import workers
workers.begin_early([path])
from prunescope.analysis.trace import load
timed(load, "load", "read into columns")
from prunescope.analysis import phase
timed(phase, "single_phase", "pairs, ledger, findings")
from prunescope.analysis.inputs import side
timed(side.Side, "read", "steps, links, kernels, work")
from prunescope.analysis.report import write
timed(write, "write_report", "write md, json and html")
from prunescope import deliver
timed(deliver.Delivery, "show", "print")
from prunescope.cli import main
times["start and imports"] = time.time() - begun
code = main(["analyze", path, "--out", report])
times["the rest"] = time.time() - begun - sum(times.values())
with open(out, "w") as file:
    json.dump(times, file)
sys.exit(code)
"""


def main() -> None:
    """Measure, and write growth.json; the page is engine.py's."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--events", nargs="*", type=int, default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=600, metavar="S", help="of one process")
    options = parser.parse_args()
    KEPT.write_text(json.dumps(measured(options), indent=1) + "\n", encoding="utf-8")


def measured(options: Any) -> dict[str, Any]:
    """Return what an analysis and the scan took of each size, with the machine and settings."""
    head = {
        "command": processes.command_line("growth.py"),
        "machine": processes.machine(),
        "trace": {
            "name": REPEATED,
            "sha256": processes.digest(TRACES / f"{REPEATED}.json.gz"),
        },
        "limit_s": options.limit,
    }
    sizes = []
    with tempfile.TemporaryDirectory(prefix="prunescope-bench-") as name:
        for wanted in options.events:
            trace = Path(name) / f"repeated-{wanted}.json"
            events = processes.repeated(trace, wanted)
            sizes.append(
                {"events": events, "bytes": trace.stat().st_size} | measure(trace, options)
            )
            trace.unlink()
            sys.stderr.write(f"{events:,} events: done\n")
    return {**head, "sizes": sizes}


def measure(trace: Path, options: Any) -> dict[str, Any]:
    """Return the repeats of the analysis and of the scan, and the stages of as many analyses."""
    taken = {OURS: Timed(), FLOOR: Timed()}
    stages = []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, "-m", "prunescope", "analyze", str(trace)]
            command += ["--out", str(Path(out) / "report")]
            taken[OURS].add(command, HERE, limit_s=options.limit)
        taken[FLOOR].add([sys.executable, "-c", SCAN, str(trace)], {}, limit_s=options.limit)
        stages.append(stages_of(trace))
    return {"tools": {name: asdict(timed) for name, timed in taken.items()}, "stages_s": stages}


def stages_of(trace: Path) -> dict[str, float]:
    """Return the seconds by stage of one analysis in a process of its own."""
    with tempfile.TemporaryDirectory() as out:
        times = Path(out) / "times.json"
        words = [repr(time.time()), str(trace), str(times), str(Path(out) / "report")]
        subprocess.run(
            [sys.executable, "-c", STAGES, *words],
            env={**os.environ, **HERE}, stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        seconds: dict[str, float] = json.loads(times.read_text(encoding="utf-8"))
    return {name: round(value, 4) for name, value in seconds.items()}


def section() -> Iterator[str]:
    """Yield the section of growth.json: a row a size, the line through them, the stages."""
    kept = json.loads(KEPT.read_bytes())
    sizes = kept["sizes"]
    yield from (
        "## Growth, and stages",
        "",
        *processes.machine_lines(kept["machine"], kept["command"]),
        "",
        f"{REPEATED} repeated, plain JSON; medians of {len(sizes[0]['stages_s'])}, in turns, with "
        "all files of a report. The floor is a typed scan of the same bytes that keeps one field "
        "an event; × is the ratio of CPU seconds to it. Peak memory is of the largest process.",
        "",
        "| events | MB | wall s | min to max | CPU s | typed scan, CPU s | × | peak MB "
        "| MB a million |",
        "|--:|--:|--:|---|--:|--:|--:|--:|--:|",
        *map(_row, sizes),
    )
    whole = [size for size in sizes if size["tools"][OURS]["seconds"]]
    if len(whole) > 2:
        cpu = [statistics.median(size["tools"][OURS]["cpu_seconds"]) for size in whole]
        yield from ("", line_through([size["events"] / 1e6 for size in whole], cpu))
    yield from ("", *_stages(sizes, one_core=kept["machine"]["bound_to"] == 1))


def _row(size: dict[str, Any]) -> str:
    ours, scan = size["tools"][OURS], size["tools"][FLOOR]
    head = f"| {size['events']:,} | {size['bytes'] / 1e6:,.0f} |"
    if ours["why"] or scan["why"]:
        return f"{head} fails: {ours['why'] or scan['why']} | | | | | | |"
    seconds = ours["seconds"]
    cpu, floor, peak = (
        statistics.median(values)
        for values in (ours["cpu_seconds"], scan["cpu_seconds"], ours["peak_bytes"])
    )
    return (
        f"{head} {statistics.median(seconds):.2f} | {min(seconds):.2f} to {max(seconds):.2f} "
        f"| {cpu:.2f} | {floor:.2f} | {cpu / floor:.1f} | {peak / 1e6:,.0f} "
        f"| {peak / size['events']:,.0f} |"
    )


def line_through(millions: Sequence[float], seconds: Sequence[float]) -> str:
    """Return the line through (events, CPU seconds) that misses the least by share of its value."""
    # A process that measures imports none of it.
    import numpy as np

    x, y = np.array(millions), np.array(seconds)
    columns = np.stack([np.ones_like(x), x], axis=1) / y[:, None]
    (start, slope), *_ = np.linalg.lstsq(columns, np.ones_like(y), rcond=None)
    off = (start + slope * x) / y - 1
    worst = int(np.abs(off).argmax())
    return (
        f"Straight line (least squares of relative errors): {start:.2f} s of CPU + {slope:.2f} s a "
        f"million events; it is off by {np.sqrt((off**2).mean()):.1%} (root mean square), "
        f"at most by {off[worst]:+.1%} (at {x[worst]:,.2f} million)."
    )


def _stages(sizes: Sequence[dict[str, Any]], *, one_core: bool) -> Iterator[str]:
    """Yield the seconds by stage, a column a size."""
    readers = (
        "On one core one process reads the trace."
        if one_core
        else "From 24 MB on several processes read the trace while this one imports what it needs, "
        "on the same cores."
    )
    columns = (f"{size['events']:,}" for size in sizes)
    names = dict.fromkeys(name for size in sizes for run in size["stages_s"] for name in run)
    yield from (
        f"Where it goes, s by stage (medians). {readers}",
        "",
        f"| stage | {' | '.join(columns)} |",
        "|---" + "|--:" * len(sizes) + "|",
    )
    for name in names:
        cells = (
            statistics.median(run.get(name, 0.0) for run in size["stages_s"]) for size in sizes
        )
        yield f"| {name} | {' | '.join(f'{cell:.2f}' for cell in cells)} |"


if __name__ == "__main__":
    main()
