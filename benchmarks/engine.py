"""How long prunescope, HTA and TraceLens take for a trace, and how much memory, in one run.

    python benchmarks/engine.py [--traces NAME ...] [--repeats 5] [--events 1000000:3]
                                [--limit 1800]
    python benchmarks/engine.py --page    # the page alone, without measuring

Whole processes, start included. In: ../shared/data/traces, and the H100 trace repeated up to
--events. Out: engine.json, the seconds and bytes of each repeat, and engine.md, which follows from
it and from growth.json (see growth.py).
TraceLens is installed into a folder of its own from its public repository, if that is reachable.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import growth
import processes
from processes import ROOT, TRACES, Timed

KEPT = Path(__file__).resolve().with_suffix(".json")
OURS, HTA_LOAD = "prunescope", "HTA load"
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
    does: str
    command: Callable[[Path, Path], list[str]]
    environment: dict[str, str] = field(default_factory=dict)


def main() -> None:
    """Measure all tools on all traces, and write engine.json and the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--traces", nargs="*", metavar="NAME", help="[default: all]")
    parser.add_argument("--events", nargs="*", default=["1000000:3"], metavar="EVENTS:REPEATS")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=float, default=1800, metavar="S", help="of one process")
    parser.add_argument("--page", action="store_true", help="write the page of engine.json")
    options = parser.parse_args()
    if not options.page:
        KEPT.write_text(json.dumps(measured(options), indent=1) + "\n", encoding="utf-8")
    KEPT.with_suffix(".md").write_text(page(), encoding="utf-8")


def measured(options: Any) -> dict[str, Any]:
    """Return what all tools took on all traces, with the machine and the settings."""
    head = {"command": processes.command_line("engine.py"), "machine": processes.machine()}
    with tempfile.TemporaryDirectory(prefix="prunescope-bench-") as name:
        folder = Path(name)
        tools, skipped = find_tools(folder)
        rows: list[dict[str, Any]] = []
        for trace, path, repeats in inputs(options, folder):
            if not rows:  # modules are compiled and files cached before anything is timed
                measure(path, tools, 1, options.limit)
            taken = measure(path, tools, repeats, options.limit)
            rows.append({**trace, "tools": {tool: asdict(timed) for tool, timed in taken.items()}})
            sys.stderr.write(f"{trace['name']}: done\n")
    does = {tool.name: tool.does for tool in tools}
    return {**head, "limit_s": options.limit, "tools": does, "skipped": skipped, "traces": rows}


def find_tools(folder: Path) -> tuple[list[Tool], list[str]]:
    """Return the tools that can run here, and why the others cannot."""
    python, here = sys.executable, {"PYTHONPATH": str(ROOT)}
    tools = [
        Tool(OURS, "the full analysis, and its report as JSON", lambda t, out: [
            python, "-m", "prunescope", "analyze", str(t), "--json", str(out / "r.json")], here),
        Tool("prunescope load", "the trace as tables of columns",
             lambda t, _: [python, "-c", LOAD, str(t)], here),
        Tool("unpack, count braces", "zlib, and one pass over the text",
             lambda t, _: [python, "-c", SCAN, str(t)]),
        Tool("unpack, scan as JSON", "zlib, and msgspec without a value kept",
             lambda t, _: [python, "-c", SKIP, str(t)]),
    ]  # fmt: skip
    skipped = []
    if _works([python, "-c", "import hta"]):
        exact = {"HTA_DISABLE_NS_ROUNDING": "1"}
        tools += [
            Tool("HTA report", "load; breakdowns of time, kernels, idle time and launches",
                 lambda t, _: [python, "-c", HTA, str(t), "report"], exact),
            Tool(HTA_LOAD, "TraceAnalysis of one rank",
                 lambda t, _: [python, "-c", HTA, str(t), "load"], exact),
        ]  # fmt: skip
    else:
        skipped.append("HTA was not measured this time: it is not installed.")
    lens = install_tracelens(folder)
    if lens is None:
        skipped.append(
            f"TraceLens was not measured this time: it could not be installed from {TRACELENS} "
            "(the package of that name on PyPI is another project)."
        )
    else:
        tools.append(Tool("TraceLens report", "its tables as CSV", lambda t, out: [
            str(lens), "--profile_json_path", str(t), "--output_csvs_dir", str(out)]))  # fmt: skip
    return tools, skipped


def install_tracelens(folder: Path) -> Path | None:
    """Return TraceLens's command in a virtual environment of its own; None without one."""
    home = folder / "tracelens"
    steps = (
        [sys.executable, "-m", "venv", str(home)],
        [str(home / "bin" / "pip"), "install", "--quiet", f"git+{TRACELENS}"],
    )
    for step in steps:
        try:
            done = subprocess.run(step, capture_output=True, timeout=900, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode:
            return None
    return home / "bin" / "TraceLens_generate_perf_report_pytorch"


def inputs(options: Any, folder: Path) -> Iterator[tuple[dict[str, Any], Path, int]]:
    """Yield what each input is, its path, and its repeats; repeated ones are made in turn."""
    for path in sorted(TRACES.glob("*.json.gz")):
        name = path.name.removesuffix(".json.gz")
        if options.traces is None or name in options.traces:
            kept = {"name": name, "events": None, "bytes": path.stat().st_size}
            yield {**kept, "sha256": processes.digest(path)}, path, options.repeats
    for asked in options.events:
        wanted, repeats = map(int, asked.split(":"))
        path = folder / f"repeated-{wanted}.json"
        events = processes.repeated(path, wanted)
        name = f"{processes.REPEATED} repeated"
        kept = {"name": name, "events": events, "bytes": path.stat().st_size}
        yield {**kept, "sha256": processes.digest(path)}, path, repeats
        path.unlink()


def measure(trace: Path, tools: Sequence[Tool], repeats: int, limit_s: float) -> dict[str, Timed]:
    """Run all tools in turn, `repeats` times, so that a change of the machine meets all of them."""
    taken = {tool.name: Timed() for tool in tools}
    for _ in range(repeats):
        for tool in tools:
            with tempfile.TemporaryDirectory() as out:
                command = tool.command(trace, Path(out))
                taken[tool.name].add(command, tool.environment, limit_s=limit_s)
    return taken


def _works(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def page() -> str:
    """Return the page of what engine.json and growth.json hold."""
    kept = json.loads(KEPT.read_bytes())
    lines = [
        "# The trace engine, in time and memory",
        "",
        *processes.machine_lines(kept["machine"], kept["command"]),
        *kept["skipped"],
        "",
        "Whole processes, start included; medians, all tools in turn. × is the ratio to "
        f"`{OURS}` in the same run. CPU seconds are those of the process and of those that it "
        "waited for: on one core, about the wall of a machine that does nothing else. Peak memory "
        "is that of the largest process. Made from [engine.json](engine.json), which has every "
        "repeat and the digest of each trace, and from [growth.json](growth.json).",
        "",
        *(f"- {name}: {does}" for name, does in kept["tools"].items()),
        "",
        *in_short(kept["traces"]),
        "",
        "| trace | tool | n | wall s | min to max | × | CPU s | × | peak MB | × |",
        "|---|---|--:|--:|---|--:|--:|--:|--:|--:|",
    ]
    lines += [row for trace in kept["traces"] for row in rows_of(trace)]
    return "\n".join([*lines, "", *growth.section()]) + "\n"


def in_short(traces: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the largest trace's CPU time beside HTA's, and on which traces HTA fails."""
    pairs = [
        (trace, Middle.of(trace["tools"][OURS]), Middle.of(trace["tools"][HTA_LOAD]))
        for trace in traces
        if all(trace["tools"].get(name, {}).get("seconds") for name in (OURS, HTA_LOAD))
    ]
    if not pairs:
        return
    largest, ours, hta = max(pairs, key=lambda pair: pair[0]["bytes"])
    ratios = [theirs.cpu_seconds / mine.cpu_seconds for _, mine, theirs in pairs]
    failing = [t["name"] for t in traces if t["tools"].get(HTA_LOAD, {}).get("why")]
    yield (
        f"In short: on {label(largest)}, the whole report of prunescope takes "
        f"{ours.cpu_seconds:.2f} s of CPU and {ours.mb:,.0f} MB, HTA's load alone "
        f"{hta.cpu_seconds:.2f} s and {hta.mb:,.0f} MB ({hta.cpu_seconds / ours.cpu_seconds:.1f} × "
        f"and {hta.mb / ours.mb:.1f} ×). On {len(pairs)} traces HTA's load takes {min(ratios):.1f} "
        f"to {max(ratios):.1f} × as much CPU as our report"
        f"{'; it fails on ' + ', '.join(failing) if failing else ''}."
    )


@dataclass(frozen=True)
class Middle:
    """The medians of what a tool took: wall and CPU seconds, and peak memory in MB."""

    seconds: float
    cpu_seconds: float
    mb: float

    @classmethod
    def of(cls, timed: dict[str, Any]) -> Middle:
        """Return the medians of the repeats of a Timed as JSON."""
        seconds, cpu_seconds, peak = (
            statistics.median(timed[name]) for name in ("seconds", "cpu_seconds", "peak_bytes")
        )
        return cls(seconds, cpu_seconds, peak / 1e6)


def label(trace: dict[str, Any]) -> str:
    """Return how the page names a trace."""
    if trace["events"] is None:
        return str(trace["name"])
    return f"{trace['name']}, {trace['events']:,} events, {trace['bytes'] / 1e6:.0f} MB"


def rows_of(trace: dict[str, Any]) -> Iterator[str]:
    """Yield a row a tool."""
    ours = trace["tools"][OURS]
    base = Middle.of(ours) if ours["seconds"] else None
    for name, timed in trace["tools"].items():
        if not timed["seconds"]:
            why = timed["why"].replace("|", "/")
            yield f"| {label(trace)} | {name} | | fails: {why} | | | | | | |"
            continue
        middle, seconds = Middle.of(timed), timed["seconds"]
        times = cpu = sizes = ""
        if base is not None:
            times = f"{middle.seconds / base.seconds:.2f}"
            cpu = f"{middle.cpu_seconds / base.cpu_seconds:.2f}"
            sizes = f"{middle.mb / base.mb:.2f}"
        yield (
            f"| {label(trace)} | {name} | {len(seconds)} | {middle.seconds:.2f} "
            f"| {min(seconds):.2f} to {max(seconds):.2f} | {times} | {middle.cpu_seconds:.2f} "
            f"| {cpu} | {middle.mb:.0f} | {sizes} |"
        )


if __name__ == "__main__":
    main()
