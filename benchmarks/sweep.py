"""Publish a finished sweep: its points, table, figures, claims, machine and command.

    prunescope sweep benchmarks/smollm2.yaml --out traces/smollm2
    python benchmarks/sweep.py traces/smollm2
    python benchmarks/sweep.py benchmarks/sweep.json

Writes sweep.md and sweep.json beside this file and the figures into sweep/. sweep.json holds the
points with their intervals and the seed of the samples, from which frontier, shares, claims and
sentences follow: given instead of a folder, it is judged anew, and page and figures are written
from it. Exit code 1 where results are missing or were timed beside other work, 2 where the files
are larger than 500 kB.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import sys
from pathlib import Path
from typing import Any

import msgspec
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from prunescope.analysis.pareto.cells import judged  # noqa: E402
from prunescope.analysis.pareto.pareto import judge  # noqa: E402
from prunescope.analysis.report.pareto_figures import pareto_figures  # noqa: E402
from prunescope.analysis.report.pareto_tables import render_pareto  # noqa: E402
from prunescope.analysis.schema.pareto import Pareto  # noqa: E402

MOST_BYTES = 500_000
COLOURS = 128  # eight, their blends with white, and hatches


class Published(Pareto, kw_only=True):
    """NAME.json beside a page: the comparison, and the day on which the sweep ended."""

    ended: str


def main() -> int:
    """Write the page, the points and the figures of the sweep that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("source", type=Path, help="folder of a sweep, or the JSON of a page")
    parser.add_argument("--out", type=Path, help="the page; without it, sweep.md or that of a JSON")
    options = parser.parse_args()
    source: Path = options.source
    if source.suffix == ".json":
        stored = read(source)
        return write(stored, options.out or source.with_suffix(".md"), ended=stored.ended)
    found = judge(source, lambda name: sys.stderr.write(f"{name}\n"))
    return write(found, options.out or HERE / "sweep.md", ended=last_day(source))


def read(path: Path) -> Published:
    """The JSON beside a page."""
    return decoded(path.read_bytes())


def decoded(data: bytes) -> Published:
    """The comparison in the bytes of such a file."""
    return msgspec.json.decode(data, type=Published)


def write(found: Pareto, page: Path, *, ended: str) -> int:
    """Judge the points anew, and write page, JSON and figures; gives the exit code."""
    fields = {name: getattr(found, name) for name in Pareto.__struct_fields__}
    # Judged as the JSON has it, with its digits, so that page and JSON agree whoever reads it.
    new = judged(decoded(stored(Published(**fields, ended=ended))))
    files = {page: text(new, page.stem).encode(), page.with_suffix(".json"): stored(new)}
    for name, png in pareto_figures(new, "png").items():
        # The ledgers and exact bounds are gone with the runs of a page that was read back.
        if found.source != "page" or name.startswith("speed-quality"):
            files[page.with_suffix("") / name] = reduced(png)
    for path, data in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    size = sum(map(len, files.values()))
    sys.stderr.write(f"{page.name}, its JSON and figures: {size:,} bytes\n")
    if size > MOST_BYTES:
        return 2
    return 1 if new.pending or any("other work" in note for note in new.notes) else 0


def text(found: Published, name: str) -> str:
    """The page, whose figures lie in the folder `name`."""
    page = render_pareto(found).replace("](", f"]({name}/")
    return (
        f"{page}---\n\nSweep ended {found.ended}; points and intervals: [{name}.json]({name}.json),"
        f" judged anew by `python benchmarks/sweep.py benchmarks/{name}.json`.\n"
    )


def stored(found: Published) -> bytes:
    """The JSON of a page: a line a point; what has its default is left out."""
    plain = {"schema": found.schema, **sparse(found)}
    phases = plain.pop("phases")
    lines = [f"{json.dumps(name)}: {_line(value)}" for name, value in plain.items()]
    for name, phase in phases.items():
        points = ",\n".join(map(_line, phase.pop("points")))
        rest = "".join(f",\n{json.dumps(key)}: {_line(value)}" for key, value in phase.items())
        phases[name] = f'{json.dumps(name)}: {{"points": [\n{points}]{rest}}}'
    lines.append('"phases": {' + ",\n".join(phases.values()) + "}")
    return ("{" + ",\n".join(lines) + "}\n").encode()


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def sparse(value: Any) -> Any:
    """Plain values of a struct without the fields that have their defaults."""
    if isinstance(value, msgspec.Struct):
        found = {}
        for field in msgspec.structs.fields(value):
            own = getattr(value, field.name)
            default = field.default
            if field.default_factory is not msgspec.NODEFAULT:
                default = field.default_factory()
            if default is msgspec.NODEFAULT or own != default:
                found[field.name] = sparse(own)
        return found
    if isinstance(value, list):
        return [sparse(one) for one in value]
    if isinstance(value, dict):
        return {key: sparse(one) for key, one in value.items()}
    return float(f"{value:.7g}") if isinstance(value, float) else value


def reduced(png: bytes) -> bytes:
    """The picture in few colours: a third of the bytes."""
    small = Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    out = io.BytesIO()
    small.save(out, format="PNG", optimize=True)
    return out.getvalue()


def last_day(folder: Path) -> str:
    """The day on which a sweep ended."""
    stamp = (folder / "sweep.json").stat().st_mtime
    return datetime.datetime.fromtimestamp(stamp, datetime.UTC).date().isoformat()


if __name__ == "__main__":
    sys.exit(main())
