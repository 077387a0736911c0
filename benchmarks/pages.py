"""Make every page of benchmarks/ again from what is committed, and pack the kept runs.

    make pages

In: kept runs in runs/, and the numbers next to each page. Out: every page, and bundles in bundles/,
which git ignores, so that a new version of the tool never meets an old bundle. Verify one by
`prunescope verify benchmarks/bundles/sweep.zip`. The runs of cpu.md are packed by hand.
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import allocate
import cpu
import gemm
import same_page
import sweep
from evidence import RUNS, unpacked

import prunescope

# Each module has page(), which makes the text of the page of its name.
PAGES = ("advice", "engine", "families", "predict", "ranks", "shapes", "strangers")
SWEEPS = ("recovery", "sweep")
UNBUNDLED = ("cpu",)  # of seventy pairs, each with its figures: minutes of `prunescope bundle`
BUNDLES = HERE / "bundles"


def main() -> None:
    """Write the pages and the bundles."""
    for name in PAGES:
        write(name, importlib.import_module(name).page())
    write("same", same_page.page_of(HERE / "same"))
    for path in sorted(RUNS.glob("*.tar.xz")):
        name = path.name.removesuffix(".tar.xz")
        with unpacked(name) as runs:
            if name in SWEEPS:
                sweep.write(name, runs)
                say(f"{name}.md")
            elif name == "allocation":
                write("allocate", allocate.page(runs))
            elif name == "gemm":
                write("gemm", gemm.page(runs))
            elif name == "cpu":
                cpu.write(runs)
                say("cpu.md")
            if name in UNBUNDLED:
                continue
            BUNDLES.mkdir(exist_ok=True)
            prunescope.bundle(runs, out=BUNDLES / f"{name}.zip", overwrite=True)
            say(f"bundles/{name}.zip")


def write(name: str, text: str) -> None:
    """Write the page of a name."""
    (HERE / f"{name}.md").write_text(text, encoding="utf-8")
    say(f"{name}.md")


def say(name: str) -> None:
    """Print what was written, and when."""
    sys.stderr.write(f"{time.process_time():6.1f} s  {name}\n")


if __name__ == "__main__":
    main()
