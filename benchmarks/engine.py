"""How long prunescope, HTA and TraceLens take for a trace, and how much memory, in one run.

    python benchmarks/engine.py [--traces NAME ...] [--events 1000000 5000000] [--repeats 5]
                                [--limit 1800] [--out benchmarks/engine.md]

Whole processes, start included. In: ../shared/data/traces, and the H100 trace repeated up to
--events, plain and gzipped. Out: a table of medians and their ratios to prunescope, with machine
and versions.
TraceLens is installed into a folder of its own from its public repository, if that is reachable.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TRACES = ROOT.parent / "shared" / "data" / "traces"
REPEATED = "h100_qwen1.5-0.5b_prefill.json.gz"
TRACELENS = "https://github.com/AMD-AGI/TraceLens"
HTA = """
import sys
from hta.trace_analysis import TraceAnalysis
a = TraceAnalysis(trace_files={0: sys.argv[1]}, include_last_profiler_step=True)
if sys.argv[2] == "report":
    a.get_temporal_breakdown(visualize=False)
    a.get_gpu_kernel_breakdown(visualize=False)
    a.get_idle_time_breakdown(visualize=False)
    a.get_cuda_kernel_launch_stats(visualize=False)
"""
# In a process of its own: what is measured begins with the peak memory of the one that starts it.
REPEAT = """
import gzip, shutil, sys
from pathlib import Path
from scale import scale
source, out, packed, events = sys.argv[1:]
sys.stdout.write(str(scale(Path(source), Path(out), events=int(events))))
with open(out, "rb") as plain, gzip.open(packed, "wb", compresslevel=6) as file:
    shutil.copyfileobj(plain, file, 1 << 20)
"""
LOAD = """
import sys; from pathlib import Path; from prunescope.analysis.trace.load import load
load(Path(sys.argv[1]))
"""
SCAN = """
import sys, zlib
packed = open(sys.argv[1], "rb").read()
data = zlib.decompress(packed, 47) if packed[:2] == b"\\x1f\\x8b" else packed
sys.stdout.write(str(data.count(b"{")))
"""
# The least that a JSON reader does: find where every value ends, and keep none of them.
SKIP = """
import sys, zlib, msgspec
packed = open(sys.argv[1], "rb").read()
data = zlib.decompress(packed, 47) if packed[:2] == b"\\x1f\\x8b" else packed
msgspec.json.decode(data, type=msgspec.Raw)
"""


@dataclass(frozen=True)
class Tool:
    """`command` makes the command for a trace and a folder for what it writes."""

    name: str
    command: Callable[[Path, Path], list[str]]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Taken:
    """Seconds and peak MB of each repeat; `why` where there are none."""

    seconds: list[float] = field(default_factory=list)
    mb: list[float] = field(default_factory=list)
    why: str = ""


def main() -> None:
    """Measure all tools on all traces, a repeat of each in turn, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", nargs="*", metavar="NAME", help="[default: all]")
    parser.add_argument("--events", nargs="*", type=int, default=[1_000_000, 5_000_000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=float, default=1800, metavar="S", help="of one process")
    parser.add_argument("--out", type=Path, metavar="FILE.md")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="prunescope-bench-") as name:
        folder = Path(name)
        tools, skipped = find_tools(folder)
        rows = []
        for label, trace in inputs(given.traces, given.events, folder):
            found = measure(trace, tools, repeats=given.repeats, folder=folder, limit_s=given.limit)
            rows.append((label, found))
            sys.stderr.write(f"{label}: done\n")
    text = table(rows, tools, skipped, repeats=given.repeats)
    if given.out:
        given.out.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


def find_tools(folder: Path) -> tuple[list[Tool], list[str]]:
    """The tools that can run here, and why the others cannot."""
    python, here = sys.executable, {"PYTHONPATH": str(ROOT)}
    tools = [
        Tool("prunescope", lambda t, out: [
            python, "-m", "prunescope", "analyze", str(t), "--json", str(out / "r.json")], here),
        Tool("prunescope load", lambda t, _: [python, "-c", LOAD, str(t)], here),
        Tool("unpack, count braces", lambda t, _: [python, "-c", SCAN, str(t)]),
        Tool("unpack, scan as JSON", lambda t, _: [python, "-c", SKIP, str(t)]),
    ]  # fmt: skip
    skipped = []
    if _works([python, "-c", "import hta"]):
        exact = {"HTA_DISABLE_NS_ROUNDING": "1"}
        tools += [
            Tool("HTA report", lambda t, _: [python, "-c", HTA, str(t), "report"], exact),
            Tool("HTA load", lambda t, _: [python, "-c", HTA, str(t), "load"], exact),
        ]
    else:
        skipped.append("HTA is not installed (pip install traceinsight)")
    lens = install_tracelens(folder)
    if isinstance(lens, str):
        skipped.append(f"TraceLens could not be installed: {lens}")
    else:
        tools.append(Tool("TraceLens report", lambda t, out: [
            str(lens), "--profile_json_path", str(t), "--output_csvs_dir", str(out)]))  # fmt: skip
    if _works([python, "-c", "import orjson"]):
        code = "import orjson, sys; orjson.loads(open(sys.argv[1], 'rb').read())"
        tools.append(Tool("orjson.loads", lambda t, _: [python, "-c", code, str(t)]))
    return tools, skipped


def install_tracelens(folder: Path) -> Path | str:
    """TraceLens's command in a virtual environment of its own, or why there is none."""
    home = folder / "tracelens"
    steps = (
        [sys.executable, "-m", "venv", str(home)],
        [str(home / "bin" / "pip"), "install", "--quiet", f"git+{TRACELENS}"],
    )
    for step in steps:
        try:
            done = subprocess.run(step, capture_output=True, text=True, timeout=900, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return type(error).__name__
        if done.returncode:
            lines = [x.strip() for x in done.stderr.splitlines() if x.strip()]
            fatal = [x for x in lines if x.startswith("fatal:")]
            return (fatal or lines or ["pip failed"])[0][:160]
    return home / "bin" / "TraceLens_generate_perf_report_pytorch"


def inputs(
    names: Sequence[str] | None, events: Sequence[int], folder: Path
) -> Iterator[tuple[str, Path]]:
    """(label, path) of every input, each made when its turn comes."""
    for path in sorted(TRACES.glob("*.json.gz")):
        if names is None or path.name.split(".json")[0] in names:
            yield path.name.removesuffix(".json.gz"), path
    for wanted in events:
        plain, packed = (folder / f"repeated-{wanted}{suffix}" for suffix in (".json", ".json.gz"))
        words = [str(x) for x in (TRACES / REPEATED, plain, packed, wanted)]
        count = subprocess.run(
            [sys.executable, "-c", REPEAT, *words], cwd=Path(__file__).parent,
            stdout=subprocess.PIPE, check=True,
        ).stdout  # fmt: skip
        for path, packing in ((plain, ""), (packed, "gzipped, ")):
            size = f"{packing}{path.stat().st_size / 1e6:.0f} MB"
            yield f"h100_qwen repeated, {int(count):,} events, {size}", path
            path.unlink()


def measure(
    trace: Path, tools: Sequence[Tool], *, repeats: int, folder: Path, limit_s: float
) -> dict[str, Taken]:
    """All tools in turn, `repeats` times, so that a change of the machine meets all of them."""
    found = {tool.name: Taken() for tool in tools}
    for _ in range(repeats):
        for tool in tools:
            taken = found[tool.name]
            if taken.why or tool.name == "orjson.loads" and trace.suffix == ".gz":
                continue
            with tempfile.TemporaryDirectory(dir=folder) as out:
                seconds, mb, why = run(tool, trace, Path(out), limit_s)
            if why:
                found[tool.name] = Taken(why=why)
            else:
                taken.seconds.append(seconds)
                taken.mb.append(mb)
    return found


def run(tool: Tool, trace: Path, out: Path, limit_s: float) -> tuple[float, float, str]:
    """Wall seconds and peak MB of one process, or what it failed with."""
    command = tool.command(trace, out)
    environment = {**os.environ, **tool.environment}
    with (out / "log").open("w+") as log:
        begin = time.monotonic()
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=out, env=environment)
        # A child that hangs is stopped by a timer of the system: wait4 itself has no limit.
        timer = subprocess.Popen(
            [sys.executable, "-c", "import os, sys, time; time.sleep(float(sys.argv[2])); "
             "os.kill(int(sys.argv[1]), 9)", str(process.pid), str(limit_s)])  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        timer.kill()
        timer.wait()
        log.seek(0)
        lines = log.read().strip().splitlines() or [""]
    if process.returncode == -9:
        return seconds, 0.0, f"stopped after {limit_s:g} s"
    if process.returncode not in (0, 3):
        return seconds, 0.0, lines[-1][:100]
    scale_to_mb = 1024 if platform.system() == "Linux" else 1024 * 1024
    return seconds, usage.ru_maxrss / scale_to_mb, ""


def _works(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def table(
    rows: Sequence[tuple[str, dict[str, Taken]]],
    tools: Sequence[Tool],
    skipped: Sequence[str],
    *,
    repeats: int,
) -> str:
    """The report: machine, versions, and a row a trace and tool."""
    lines = ["# The trace engine, in time and memory", "", *machine(), *skipped, ""]
    lines += [
        f"Whole processes, start included; medians of {repeats}, all tools in turn. × is the ratio "
        "to `prunescope` (the full analysis and report) in the same run.", "",
        "| trace | tool | wall s | min to max | × | peak MB | × |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for label, found in rows:
        ours = found["prunescope"]
        for tool in tools:
            taken = found[tool.name]
            if taken.why:
                lines.append(f"| {label} | {tool.name} | fails: {taken.why} | | | | |")
            if not taken.seconds:
                continue
            wall, mb = statistics.median(taken.seconds), statistics.median(taken.mb)
            low, high = min(taken.seconds), max(taken.seconds)
            times = wall / statistics.median(ours.seconds) if ours.seconds else None
            sizes = mb / statistics.median(ours.mb) if ours.mb else None
            lines.append(
                f"| {label} | {tool.name} | {wall:.2f} | {low:.2f} to {high:.2f} | {_ratio(times)} "
                f"| {mb:.0f} | {_ratio(sizes)} |"
            )
    return "\n".join(lines) + "\n"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def machine(script: str = "engine.py") -> list[str]:
    """Processor, cores, load when it began, versions, and the command."""
    cpu = next((x.split(":")[1].strip() for x in _read("/proc/cpuinfo") if "model name" in x),
               platform.processor())  # fmt: skip
    names = ("prunescope", "polars", "numpy", "msgspec", "traceinsight", "pandas")
    versions = ", ".join(f"{name} {version(name)}" for name in names if _installed(name))
    load = " ".join(f"{x:.1f}" for x in os.getloadavg())
    return [
        f"{cpu}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}, load {load}.",
        f"Python {platform.python_version()}, {versions}.",
        f"Command: `python benchmarks/{script} {' '.join(json.dumps(x) for x in sys.argv[1:])}`.",
    ]


def _read(path: str) -> list[str]:
    file = Path(path)
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []


def _installed(name: str) -> bool:
    try:
        version(name)
    except ModuleNotFoundError:  # PackageNotFoundError is one
        return False
    return True


if __name__ == "__main__":
    main()
