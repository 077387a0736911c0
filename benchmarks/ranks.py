"""A folder of ranks, one of them slowed by 20 %: found, with the same bytes, in so many processes.

    python benchmarks/ranks.py [--trace NAME] [--ranks 64:3 500:1] [--ways local:2 local:1]
    python benchmarks/ranks.py --page    # the page alone, without measuring

In: a trace of ../shared/data/traces, written as often as there are ranks. Out: ranks.json, with the
wall time, memory, digest of the JSON and slow ranks of each process, and ranks.md of it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import processes

KEPT = Path(__file__).resolve().with_suffix(".json")
SLOWED = 0.2
LIMIT_S = 600


def main() -> None:
    """Write the folders, analyse them, and write ranks.json and the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trace", default="h100_vit")
    parser.add_argument("--ranks", nargs="+", default=["64:3", "500:1"], metavar="RANKS:REPEATS")
    parser.add_argument("--ways", nargs="+", default=["local:2", "local:1"], metavar="ENGINE:JOBS")
    parser.add_argument("--page", action="store_true", help="write the page of ranks.json")
    options = parser.parse_args()
    if not options.page:
        KEPT.write_text(json.dumps(measured(options), indent=1) + "\n", encoding="utf-8")
    KEPT.with_suffix(".md").write_text(page(), encoding="utf-8")


def measured(options: Any) -> dict[str, Any]:
    """Return what each process took and wrote, with the machine and the settings."""
    path = processes.TRACES / f"{options.trace}.json.gz"
    head = {
        "command": processes.command_line("ranks.py"),
        "machine": processes.machine(),
        "trace": {"name": options.trace, "sha256": processes.digest(path)},
        "slowed": SLOWED,
    }
    trace = json.loads(gzip.decompress(path.read_bytes()))
    return {**head, "folders": [_folder_of(options, trace, asked) for asked in options.ranks]}


def _folder_of(options: Any, trace: dict[str, Any], asked: str) -> dict[str, Any]:
    """Return the runs of a folder of RANKS:REPEATS, by way; all ways in turn."""
    ranks, repeats = map(int, asked.split(":"))
    slow = ranks // 3
    ways: dict[str, list[dict[str, Any]]] = {way: [] for way in options.ways}
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) / "ranks"
        where.mkdir()
        for rank in range(ranks):
            _write(where, trace if rank != slow else slowed(trace), rank, ranks)
        for _ in range(repeats):
            for way, runs in ways.items():
                runs.append(_analyzed(where, way))
                sys.stderr.write(f"{ranks} ranks, {way}: {runs[-1]['seconds']} s\n")
    events = ranks * len(trace["traceEvents"])
    return {"ranks": ranks, "events": events, "slowed_rank": slow, "ways": ways}


def slowed(trace: dict[str, Any]) -> dict[str, Any]:
    """Return the trace with every kernel 20 % longer, and those behind it that much later."""
    out, shift = dict(trace, traceEvents=[dict(e) for e in trace["traceEvents"]]), 0.0
    kernels = [e for e in out["traceEvents"] if e.get("cat") == "kernel"]
    for event in sorted(kernels, key=lambda e: e["ts"]):
        event["ts"] += shift
        shift += SLOWED * event["dur"]
        event["dur"] *= 1 + SLOWED
    return out


def _write(where: Path, trace: dict[str, Any], rank: int, ranks: int) -> None:
    of_rank = {**trace, "distributedInfo": {"rank": rank, "world_size": ranks}}
    data = gzip.compress(json.dumps(of_rank).encode(), compresslevel=1)
    (where / f"rank{rank}.json.gz").write_bytes(data)


def _analyzed(where: Path, way: str) -> dict[str, Any]:
    """Return the time, memory, digest and slow ranks of one analysis as a whole process."""
    engine, _, jobs = way.partition(":")
    out = where.parent / "report.json"
    command = [sys.executable, "-m", "prunescope", "analyze", str(where), "--json", str(out)]
    command += ["--jobs", jobs, "--engine", engine]
    taken = processes.run(command, {"PYTHONPATH": str(ROOT)}, limit_s=LIMIT_S)
    if taken.why:
        raise SystemExit(f"analyze failed: {taken.why}")
    phases = json.loads(out.read_bytes())["phases"].items()
    slow = [n for n, p in phases for f in p["findings"] if f["id"] == "straggler"]
    return {
        "seconds": taken.seconds,
        "cpu_seconds": taken.cpu_seconds,
        "peak_bytes": taken.peak_bytes,
        "sha256": processes.digest(out),
        "slow": slow,
    }


def page() -> str:
    """Return the page of what ranks.json holds."""
    kept = json.loads(KEPT.read_bytes())
    lines = [
        "# Ranks of one job, analysed together",
        "",
        *processes.machine_lines(kept["machine"], kept["command"]),
        "",
        f"{kept['trace']['name']}, a file a rank; the kernels of one rank take "
        f"{kept['slowed']:.0%} longer. Whole processes, in turns: median, lowest to highest; × is "
        "the ratio to the first row of as many ranks. All ran on one core, on which other work ran "
        "too: CPU seconds vary less by it than the wall, and a row of one run decides nothing. "
        "Made from [ranks.json](ranks.json).",
        "",
        "| ranks | events in all | engine | processes | n | wall s | × | CPU s | × "
        "| MB of the largest process | same bytes | slowed | reported as slow |",
        "|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|---|---|---|",
    ]
    lines += [line for folder in kept["folders"] for line in _rows(folder)]
    return "\n".join(lines) + "\n"


def _rows(folder: dict[str, Any]) -> Iterator[str]:
    """Yield a row a way."""
    first = next(iter(folder["ways"].values()))
    base, base_cpu = (_middle(first, name) for name in ("seconds", "cpu_seconds"))
    for way, runs in folder["ways"].items():
        engine, _, jobs = way.partition(":")
        times = [run["seconds"] for run in runs]
        wall, cpu = (_middle(runs, name) for name in ("seconds", "cpu_seconds"))
        same = {run["sha256"] for run in runs} == {first[0]["sha256"]}
        peak = max(run["peak_bytes"] for run in runs) / 1e6
        yield (
            f"| {folder['ranks']:,} | {folder['events']:,} | {engine} | {jobs} | {len(runs)} "
            f"| {wall:.1f} ({min(times):.1f}–{max(times):.1f}) | {wall / base:.2f} "
            f"| {cpu:.1f} | {cpu / base_cpu:.2f} | {peak:,.0f} | {'yes' if same else 'NO'} "
            f"| rank{folder['slowed_rank']} | {', '.join(runs[0]['slow']) or 'none'} |"
        )


def _middle(runs: list[dict[str, Any]], name: str) -> float:
    return statistics.median(run[name] for run in runs)


if __name__ == "__main__":
    main()
