"""Does the tool say what is known? A model against itself, with a wait of 2 ms, without a layer.

    python benchmarks/same.py capture [--model NAME] [--case CASE] [--captures N] [--busy N]
        --out FOLDER
    python benchmarks/same.py costs --out FOLDER
    python benchmarks/same.py places [--model NAME] --out FOLDER
    python benchmarks/same.py plain [--model NAME] --out FOLDER
    python benchmarks/same.py report FOLDER [--out FILE]

`capture` appends a line a capture to FOLDER/MODEL.jsonl and may be called again and again; `report`
writes same.md next to this file: how many 95 % intervals hold the truth, and which scaling of a CPU
ledger tells it. `--busy` runs so many loops at the same time, for a part of it. `costs` measures
what a record costs, and what the wait does to a plain loop. Give it the machine. `places` compares
placements with new processes, `plain` our unprofiled samples with those of a plain loop.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import same_plain
from same_cases import (
    BUSY_LOOPS,
    CASES,
    PHASES,
    ROWS,
    SETTINGS,
    key_of,
    lines_of,
)  # fmt: skip
from same_costs import busy_wait, costs
from same_page import page_of
from same_places import places

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

VARIANTS = ("dense", "pruned")
_LOOP = """
import time
while True:
    end = time.monotonic() + 8
    while time.monotonic() < end:
        pass
    time.sleep(6)
"""


def same(model: torch.nn.Module, sparsity: float) -> torch.nn.Module:  # noqa: ARG001
    """A method that does nothing."""
    return model


def waiting(model: Any, sparsity: float) -> torch.nn.Module:  # noqa: ARG001
    """A method after which the first layer waits, in Python, before its MLP."""

    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: busy_wait())
    return model  # type: ignore[no-any-return]


def main() -> None:
    """Capture, or write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("capture")
    one.add_argument("--model", default="smollm2-135m-instruct")
    one.add_argument("--case", choices=CASES, default="same")
    one.add_argument("--captures", type=int, default=24, help="of this model and case, in all")
    one.add_argument("--minutes", type=float, default=60.0, help="begin none after so long")
    one.add_argument(
        "--busy",
        type=int,
        default=0,
        choices=range(3),
        help="concurrent busy loops, 8 of 14 s",
    )
    one.add_argument("--out", type=Path, required=True)
    commands.add_parser("costs").add_argument("--out", type=Path, required=True)
    for name in ("places", "plain"):
        where = commands.add_parser(name)
        where.add_argument("--model", default="smollm2-135m-instruct")
        where.add_argument("--out", type=Path, required=True)
    page = commands.add_parser("report")
    page.add_argument("folder", type=Path)
    page.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    if options.command == "capture":
        capture(options)
    elif options.command == "costs":
        costs(options.out)
    elif options.command == "places":
        places(options.model, options.out)
    elif options.command == "plain":
        same_plain.measure(options.model, options.out)
    else:
        options.out.write_text(page_of(options.folder), encoding="utf-8")
        sys.stderr.write(f"wrote {options.out.name}\n")


def capture(options: Any) -> None:
    """Captures until there are as many as asked for, or the time is over; a line of JSON each."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"{options.model}.jsonl"
    wanted = options.model, options.case, BUSY_LOOPS[options.busy]
    ours = [x for x in lines_of(options.out) if key_of(x) == wanted]
    end = time.monotonic() + 60 * options.minutes
    for number in range(len(ours), options.captures):
        if time.monotonic() > end:
            break
        with tempfile.TemporaryDirectory() as folder, _busy(options.busy):
            found = _captured(options, number, Path(folder) / "run")
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(found) + "\n")
        intervals = {phase: found[phase]["realised_ci95"] for phase in PHASES}
        sys.stderr.write(f"{options.model} {options.case} {number}: {intervals}\n")


@contextmanager
def _busy(loops: int) -> Iterator[None]:
    """Processes that compute for 8 s and rest for 6, again and again."""
    running = [subprocess.Popen([sys.executable, "-c", _LOOP]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def _captured(options: Any, number: int, out: Path) -> dict[str, Any]:
    import torch

    import prunescope

    method, more, _ = CASES[options.case]
    begun = time.perf_counter()
    given = {"sparsity": 0.0, **SETTINGS, **more}
    prunescope.trace(options.model, method=method, warmup=2, seed=number, out=out, **given)
    found: dict[str, Any] = {
        "model": options.model,
        "case": options.case,
        "beside": BUSY_LOOPS[options.busy],
        "seconds": round(time.perf_counter() - begun, 1),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    return found | _seen(out)


def _seen(run: Path) -> dict[str, Any]:
    """The numbers that are kept of a capture's report."""
    import prunescope
    from prunescope.taxonomy.runs.run import read_run

    report = prunescope.analyze(run).to_dict()
    caveats = [text for text in report["warnings"] if "peak" in text]
    found: dict[str, Any] = {"peaks": report["device"].get("peaks"), "doubts": caveats}
    pruned = read_run(run / "pruned")
    for name, phase in report["phases"].items():
        ids = [finding["id"] for finding in phase["findings"]]
        rows = {row["row"]: row for row in phase["ledger"] if row["row"] in ROWS}
        found[name] = {
            "realised": phase["ladder"]["realised"],
            "realised_ci95": phase["ladder"]["realised_ci95"],
            "rows": {key: [row["ns"], row["ci95"]] for key, row in rows.items()},
            "scalings": _scalings(run, name),
            "valid": "timing-not-valid" not in ids,
            "retaken": sum(one.retaken for one in pruned.phases[name].placements),
            "reasons": sorted(
                {why for one in pruned.phases[name].placements for why in one.reasons}
            ),
            "critical": [f["id"] for f in phase["findings"] if f["severity"] == "critical"],
        }
    return found


def _scalings(run: Path, phase: str) -> dict[str, dict[str, float]]:
    """{scaling: {row: ns a step}}: the same capture under each."""
    from prunescope.analysis.inputs.open import open_side
    from prunescope.analysis.inputs.options import Options
    from prunescope.analysis.ledger.attribution import attribution_inputs
    from prunescope.analysis.ledger.pairing import RecordWeight, UnitSums, pair
    from prunescope.analysis.ledger.samples import samples_of

    dense, pruned = (
        open_side(run / name, Options(), eager=None).read(phase) for name in ("dense", "pruned")
    )
    units = pair(dense.kernels, pruned.kernels, pruned.side.run and pruned.side.run.layer_map)
    walls = samples_of(dense.run), samples_of(pruned.run)

    def by_time(side: UnitSums) -> RecordWeight:
        """The ledger as if recording cost were proportional to the time of each part of a step."""
        return RecordWeight(side.busy.mean(axis=1), side.gap.mean(axis=1), float(side.tail.mean()))

    costs = {"records": lambda side: side.recorded, "everything": by_time, "gaps": lambda _: None}
    out: dict[str, dict[str, float]] = {}
    for scaling, cost in costs.items():
        sides = {n: replace(s, recorded=cost(s)) for n, s in vars(units).items() if n in VARIANTS}
        inputs = attribution_inputs(
            replace(units, **sides), nominal=None, samples_ns=walls, on_device=scaling == "gaps"
        )
        out[scaling] = {row: float(inputs.ledger.total(row)[0]) for row in ROWS}
    return out


if __name__ == "__main__":
    main()
