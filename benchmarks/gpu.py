"""What a GPU says of pruned LLMs, in slices of a few minutes that are resumed where they stopped.

    python benchmarks/gpu.py SLICE --out FOLDER [--minutes 8] [--device cuda|cpu] [--tiny]
    python benchmarks/gpu.py report FOLDER [--out benchmarks/gpu.md]

SLICE: calibrate, sparse24, graph, waves, observer, families-1b, families-8b or goldens. A slice
needs torch and transformers alone, and weights are random. It leaves SLICE.json and SLICE.zip.
Exit code 0: nothing is left to do; 3: cells are open or failed, and the same command goes on.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from pathlib import Path
from typing import Any

_BEGUN = time.monotonic()  # imports of torch are in the minutes
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

# Slice -> where its cells are made: a function of the Bench.
SLICES = {
    "calibrate": "gpu_kernels:calibrate_cells",
    "sparse24": "gpu_kernels:sparse24_cells",
    "graph": "gpu_models:graph_cells",
    "waves": "gpu_kernels:waves_cells",
    "observer": "gpu_models:observer_cells",
    "families-1b": "gpu_families:families_1b_cells",
    "families-8b": "gpu_families:families_8b_cells",
    "goldens": "gpu_families:goldens_cells",
}


def main(argv: list[str] | None = None) -> int:
    """Run a slice, or write the report."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["report"]:
        return _report(words[1:])
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("slice", choices=SLICES, metavar="SLICE")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: a test, no benchmark")
    given = parser.parse_args(words)
    from gpu_slice import Bench, run_slice

    from prunescope.taxonomy.errors import PrunescopeError
    from prunescope.tracer.machine.device import pick_device

    module, _, name = SLICES[given.slice].partition(":")
    command = ["benchmarks/gpu.py", given.slice, "--minutes", f"{given.minutes:g}"]
    command += ["--device", given.device, *(["--tiny"] if given.tiny else [])]
    try:
        bench = Bench(
            slice=given.slice,
            folder=given.out,
            device=pick_device(given.device),
            tiny=given.tiny,
            deadline=_BEGUN + 60 * given.minutes,
            command=command,
        )
        record = run_slice(bench, getattr(importlib.import_module(module), name)(bench))
    except PrunescopeError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(_summary(record))
    failed = any(e["state"] == "failed" for e in record["cells"].values())
    return 3 if record["open"] or failed else 0


def _summary(record: dict[str, Any]) -> str:
    counts: dict[str, int] = {}
    for entry in record["cells"].values():
        counts[entry["state"]] = counts.get(entry["state"], 0) + 1
    said = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    lines = [f"{record['slice']}: {said or 'nothing done'}, {len(record['open'])} open"]
    reasons = {e["why"]: i for i, e in record["cells"].items() if e["state"] != "done"}
    lines += [f"  {cell}: {why}" for why, cell in list(reasons.items())[:12]]
    return "\n".join(lines) + "\n"


def _report(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="gpu.py report")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "gpu.md")
    given = parser.parse_args(words)
    from gpu_report import page

    given.out.write_text(page(given.folder), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
