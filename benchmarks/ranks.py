"""A folder of ranks, one of them slowed by 20 %: found, with the same bytes, in so many processes.

    python benchmarks/ranks.py [--trace NAME] [--ranks 64 1000] [--ways local:2 local:1 ray:2]
                               [--repeats 3] [--out benchmarks/ranks.md]

In: a trace of ../shared/data/traces, written as often as there are ranks. Out: a table of whole
processes: wall time, memory of the largest process, the ratio to the first of --ways, whether the
JSON is the same to the byte, and which rank is reported as slow.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TRACES = ROOT.parent / "shared" / "data" / "traces"
SLOWED = 0.2


@dataclass(frozen=True)
class Run:
    """One analysis of the folder, as a whole process."""

    seconds: float
    megabytes: float
    digest: str
    slow: tuple[str, ...]


def main() -> None:
    """Write the folders, analyse them, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trace", default="h100_vit")
    parser.add_argument("--ranks", type=int, nargs="+", default=[64, 1000])
    parser.add_argument("--ways", nargs="+", default=["local:2", "local:1"], metavar="ENGINE:JOBS")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    lines = [line for ranks in options.ranks for line in _table(options, ranks)]
    arguments = " ".join(f'"{word}"' if " " in word else word for word in sys.argv[1:])
    head = [
        "# Ranks of one job, analysed together",
        "",
        f"`python benchmarks/ranks.py {arguments}`: {options.trace}, a file a rank; "
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}. One "
        f"rank's kernels take {SLOWED:.0%} longer. Whole processes: median of "
        f"{options.repeats}, lowest to highest.",
        "",
        "| ranks | events in all | engine | processes | wall s | × | MB of the largest process "
        "| same bytes | reported as slow |",
        "|--:|--:|---|--:|--:|--:|--:|---|---|",
    ]
    options.out.write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")
    sys.stderr.write(f"wrote {options.out.name}\n")


def _table(options: Any, ranks: int) -> Iterator[str]:
    data = (TRACES / f"{options.trace}.json.gz").read_bytes()
    trace = json.loads(gzip.decompress(data))
    slow = ranks // 3
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) / "ranks"
        where.mkdir()
        for rank in range(ranks):
            _write(where, trace if rank != slow else slowed(trace), rank, ranks)
        runs = {
            way: [_analyzed(where, way) for _ in range(options.repeats)] for way in options.ways
        }
    first = next(iter(runs.values()))
    for way, each in runs.items():
        engine, _, jobs = way.partition(":")
        times = [run.seconds for run in each]
        middle = statistics.median(times)
        same = {run.digest for run in each} == {first[0].digest}
        slow = ", ".join(each[0].slow) or "none"
        yield (
            f"| {ranks:,} | {ranks * len(trace['traceEvents']):,} | {engine} | {jobs} "
            f"| {middle:.1f} ({min(times):.1f}–{max(times):.1f}) "
            f"| {middle / statistics.median(run.seconds for run in first):.2f} "
            f"| {max(run.megabytes for run in each):,.0f} | {'yes' if same else 'NO'} | {slow} |"
        )
        sys.stderr.write(f"{ranks} ranks, {way}: {middle:.1f} s\n")


def slowed(trace: dict[str, Any]) -> dict[str, Any]:
    """The trace with every kernel 20 % longer, and those behind it that much later."""
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


def _analyzed(where: Path, way: str) -> Run:
    engine, _, jobs = way.partition(":")
    out = where.parent / "report.json"
    command = [sys.executable, "-m", "prunescope", "analyze", str(where), "--json", str(out)]
    begin = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--jobs", jobs, "--engine", engine],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    if status:
        raise SystemExit(f"analyze ended with {status}")
    data = out.read_bytes()
    phases = json.loads(data)["phases"].items()
    slow = tuple(n for n, p in phases for f in p["findings"] if f["id"] == "straggler")
    return Run(seconds, usage.ru_maxrss / 1024, hashlib.sha256(data).hexdigest(), slow)


if __name__ == "__main__":
    main()
