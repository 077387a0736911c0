"""One trace as Chrome JSON and as an SQLite export of Nsight Systems: time and memory of both.

    PYTHONPATH=. python benchmarks/formats.py [--traces NAME ...] [--events 1000000] [--repeats 7]

Whole processes of `analyze`, start included, in turns. In: public traces of ../shared/data/traces
(the largest ones), and the H100 trace repeated up to --events. A database holds less than a Chrome
trace does, so both are written from what a database can hold (tests/nsys.py). Out: a row a trace:
seconds and peak MB of both, and the ratio of the export to JSON.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine import REPEATED, ROOT, TRACES, Taken, Tool, machine, measure

LARGEST = 3  # public traces, by their size
# In a process of its own: what is measured begins with the peak memory of the one that starts it.
WRITE = """
import json, sys
from pathlib import Path
from scale import scale
from prunescope.analysis.trace.load import load
from tests.nsys import chrome_of, write
source, stem, events = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
if events:
    whole = stem.with_suffix(".whole.json")
    scale(source, whole, events=events)
    source = whole
trace = load(source)
write(trace, stem.with_suffix(".sqlite"))
stem.with_suffix(".json").write_text(json.dumps(chrome_of(trace)))
tables = (trace.device, trace.ops, trace.launches, trace.annotations)
sys.stdout.write(str(sum(len(table["ts"]) for table in tables)))
"""


def main() -> None:
    """Write both formats of each trace, analyse them in turns, and print the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--traces", nargs="*", metavar="NAME", help="[default: the largest three]")
    parser.add_argument("--events", nargs="*", type=int, default=[1_000_000])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--limit", type=float, default=1800, metavar="S", help="of one process")
    given = parser.parse_args()
    lines = [*machine("formats.py"), "",
             "| trace | events | JSON s | export s | × | JSON MB | export MB | × |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="prunescope-bench-") as name:
        folder = Path(name)
        for label, stem, events in inputs(given.traces, given.events, folder):
            ours = Tool("prunescope", lambda trace, out: [
                sys.executable, "-m", "prunescope", "analyze", str(trace), "--json",
                str(out / "r.json")], {"PYTHONPATH": str(ROOT)})  # fmt: skip
            took = in_turns(stem, ours, given.repeats, folder, given.limit)
            lines.append(row(label, events, *took))
    sys.stdout.write("\n".join(lines) + "\n")


def inputs(
    names: Sequence[str] | None, events: Sequence[int], folder: Path
) -> Iterator[tuple[str, Path, int]]:
    """Label, path without its suffix and number of events of each input, made when its turn comes;
    both files go behind it."""
    found = sorted(TRACES.glob("*.json.gz"), key=lambda path: -path.stat().st_size)
    wanted = [path for path in found if names and path.name.split(".json")[0] in names]
    sources = [(path, 0) for path in (found[:LARGEST] if names is None else wanted)]
    for source, most in [*sources, *((TRACES / REPEATED, count) for count in events)]:
        label = source.name.removesuffix(".json.gz") + (" repeated" if most else "")
        stem = folder / f"{source.name.split('.json')[0]}-{most}"
        paths = f"{ROOT}:{ROOT / 'benchmarks'}"
        count = subprocess.run(
            [sys.executable, "-c", WRITE, str(source), str(stem), str(most)],
            env={"PYTHONPATH": paths}, stdout=subprocess.PIPE, check=True,
        ).stdout  # fmt: skip
        yield label, stem, int(count)
        for path in folder.glob(f"{stem.name}.*"):
            path.unlink()


def in_turns(
    stem: Path, ours: Tool, repeats: int, folder: Path, limit_s: float
) -> tuple[Taken, Taken]:
    """Times of Chrome JSON and of the export, a repeat of each in turn."""
    both = Taken(), Taken()
    for _ in range(repeats):
        for taken, suffix in zip(both, (".json", ".sqlite"), strict=True):
            path = stem.with_suffix(suffix)
            one = measure(path, [ours], repeats=1, folder=folder, limit_s=limit_s)[ours.name]
            if one.why:
                raise SystemExit(f"{path.name}: {one.why}")
            taken.seconds += one.seconds
            taken.mb += one.mb
    return both


def row(label: str, events: int, text: Taken, export: Taken) -> str:
    """A line of the table: medians, and their ratios."""
    cells = [label, f"{events:,}"]
    for kind, form in (("seconds", ".2f"), ("mb", ".0f")):
        values = [statistics.median(getattr(taken, kind)) for taken in (text, export)]
        cells += [*(format(value, form) for value in values), f"{values[1] / values[0]:.2f}"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
