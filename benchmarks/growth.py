"""How the engine's time and memory grow with a trace, against the floor, and where the time goes.

    python benchmarks/growth.py [--events N ...] [--repeats 3] [--into benchmarks/engine.md]

Whole processes, in turns. Floor: a typed scan of the same bytes, one field an event. Out: a row a
size, the straight line through them, and the stages of one analysis; `--into` puts them at the end
of a page, in place of what an earlier run put there.
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
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from engine import REPEATED, ROOT, TRACES, Taken, Tool, machine, run
from scale import scale

HEAD = "## Growth, and stages"
SIZES = (10_000, 100_000, 300_000, 1_000_000, 3_000_000, 5_000_000)
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
    """Measure, and print the part of the page; `--into` writes it there as well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", nargs="*", type=int, default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=600, metavar="S", help="of one process")
    parser.add_argument("--into", type=Path, metavar="FILE.md")
    given = parser.parse_args()
    rows, stages = [], {}
    with tempfile.TemporaryDirectory(prefix="prunescope-bench-") as name:
        folder = Path(name)
        for wanted in given.events:
            trace = folder / f"repeated-{wanted}.json"
            count = scale(TRACES / REPEATED, trace, events=wanted)
            found = {tool.name: Taken() for tool in TOOLS}
            for _ in range(given.repeats):
                for tool in TOOLS:
                    taken = found[tool.name]
                    with tempfile.TemporaryDirectory(dir=folder) as out:
                        seconds, mb, why = run(tool, trace, Path(out), given.limit)
                    taken.seconds.append(seconds)
                    taken.mb.append(mb)
                    taken.why = taken.why or why
                stages.setdefault(count, []).append(stages_of(trace, folder))
            rows.append((count, trace.stat().st_size, found))
            trace.unlink()
            sys.stderr.write(f"{count:,} events: done\n")
    text = page(rows, stages, repeats=given.repeats)
    if given.into:
        before = given.into.read_text(encoding="utf-8").split(f"\n{HEAD}\n")[0].rstrip("\n")
        given.into.write_text(f"{before}\n\n{text}", encoding="utf-8")
    sys.stdout.write(text)


HERE = {"PYTHONPATH": str(ROOT)}
TOOLS = [
    Tool("prunescope", lambda t, out: [
        sys.executable, "-m", "prunescope", "analyze", str(t), "--out", str(out / "report")], HERE),
    Tool("typed scan", lambda t, _: [sys.executable, "-c", SCAN, str(t)]),
]  # fmt: skip


def stages_of(trace: Path, folder: Path) -> dict[str, float]:
    """Seconds by stage of one analysis in a process of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        times = Path(out) / "times.json"
        words = [repr(time.time()), str(trace), str(times), str(Path(out) / "report")]
        subprocess.run(
            [sys.executable, "-c", STAGES, *words],
            env={**os.environ, **HERE}, stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        found: dict[str, float] = json.loads(times.read_text(encoding="utf-8"))
    return found


def page(
    rows: Sequence[tuple[int, int, dict[str, Taken]]],
    stages: dict[int, list[dict[str, float]]],
    *,
    repeats: int,
) -> str:
    """The part of the page: a row a size, the line through them, the stages."""
    lines = [HEAD, "", *machine("growth.py"), "",
        f"The H100 trace repeated, plain JSON; medians of {repeats}, in turns. Peak memory is that "
        "of the largest process.", "",
        "| events | MB | prunescope, s | min to max | typed scan, s | × | peak MB | MB a million |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    sizes, walls = [], []
    for count, size, found in rows:
        ours, scan = found["prunescope"], found["typed scan"]
        if ours.why or scan.why:
            lines.append(
                f"| {count:,} | {size / 1e6:,.0f} | fails: {ours.why or scan.why} | | | | | |"
            )
            continue
        wall, floor = statistics.median(ours.seconds), statistics.median(scan.seconds)
        mb = statistics.median(ours.mb)
        sizes.append(count / 1e6)
        walls.append(wall)
        lines.append(
            f"| {count:,} | {size / 1e6:,.0f} | {wall:.2f} | {min(ours.seconds):.2f} to "
            f"{max(ours.seconds):.2f} | {floor:.2f} | {wall / floor:.1f} | {mb:,.0f} | "
            f"{mb / count * 1e6:,.0f} |"
        )
    if len(sizes) > 2:
        lines += ["", fit(sizes, walls)]
    return "\n".join([*lines, "", *stage_table(stages, repeats=repeats)]) + "\n"


def fit(millions: Sequence[float], walls: Sequence[float]) -> str:
    """The straight line through (events, seconds) that misses the least by share of its value."""
    x, y = np.array(millions), np.array(walls)
    columns = np.stack([np.ones_like(x), x], axis=1) / y[:, None]
    (start, slope), *_ = np.linalg.lstsq(columns, np.ones_like(y), rcond=None)
    off = (start + slope * x) / y - 1
    worst = int(np.abs(off).argmax())
    return (
        f"Straight line (least squares of relative errors): {start:.2f} s + {slope:.2f} s a "
        f"million events; it is off by {np.sqrt((off**2).mean()):.1%} (root mean square), "
        f"at most by {off[worst]:+.1%} (at {x[worst]:,.2f} million)."
    )


def stage_table(stages: dict[int, list[dict[str, float]]], *, repeats: int) -> list[str]:
    """Seconds by stage, a column a size."""
    sizes = list(stages)
    names = list(dict.fromkeys(name for runs in stages.values() for one in runs for name in one))
    lines = [
        f"Where it goes, s by stage (medians of {repeats}). From 24 MB on two processes read the "
        "trace while this one imports what it needs, on the same cores:", "",
        f"| stage | {' | '.join(f'{size:,}' for size in sizes)} |", "|---" * (1 + len(sizes)) + "|",
    ]  # fmt: skip
    for name in names:
        cells = [statistics.median(one.get(name, 0.0) for one in stages[size]) for size in sizes]
        lines.append(f"| {name} | {' | '.join(f'{cell:.2f}' for cell in cells)} |")
    return lines


if __name__ == "__main__":
    main()
