"""Publish a finished sweep: its table, figures, claims, machine and command.

    prunescope sweep benchmarks/smollm2.yaml --out traces/smollm2
    python benchmarks/sweep.py traces/smollm2

Writes sweep.md beside this file and its pictures into sweep/. Exit code 1 where results are missing
or were timed beside other work, 2 where the pictures and the page are larger than 500 kB.
"""

from __future__ import annotations

import argparse
import datetime
import io
import sys
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from prunescope.analysis.pareto.pareto import judge  # noqa: E402
from prunescope.analysis.report.pareto_figures import pareto_figures  # noqa: E402
from prunescope.analysis.report.pareto_tables import render_pareto  # noqa: E402

MOST_BYTES = 500_000
COLOURS = 128  # eight, their blends with white, and hatches


def main() -> int:
    """Write the page and the pictures of the sweep that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="of a sweep")
    parser.add_argument("--out", type=Path, default=HERE / "sweep.md", help="the page")
    options = parser.parse_args()
    found = judge(options.folder, lambda name: sys.stderr.write(f"{name}\n"))
    pictures = options.out.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    page, size = render_pareto(found), 0
    for name, png in pareto_figures(found, "png").items():
        small = reduced(png)
        (pictures / name).write_bytes(small)
        page = page.replace(f"]({name})", f"]({pictures.name}/{name})")
        size += len(small)
    page += made(options.folder)
    options.out.write_text(page, encoding="utf-8")
    size += len(page.encode())
    sys.stderr.write(f"{options.out.name} and {pictures.name}/: {size:,} bytes\n")
    if size > MOST_BYTES:
        return 2
    return 1 if found.pending or any("beside other work" in note for note in found.notes) else 0


def reduced(png: bytes) -> bytes:
    """The picture in few colours: a third of the bytes."""
    small = Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    out = io.BytesIO()
    small.save(out, format="PNG", optimize=True)
    return out.getvalue()


def made(folder: Path) -> str:
    """When the sweep ended, and what made the page."""
    stamp = (folder / "sweep.json").stat().st_mtime
    day = datetime.datetime.fromtimestamp(stamp, datetime.UTC).date().isoformat()
    return f"---\n\nSweep ended {day}; page by `python benchmarks/sweep.py {folder.name}`.\n"


if __name__ == "__main__":
    sys.exit(main())
