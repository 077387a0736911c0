"""Edit a real GPU trace with known truth, and draw the picture of README.md: docs/hero.png.

In: a trace of Qwen1.5-0.5B, a prefill of 24 layers on an H100 (TraceLens publishes it among its
tests). Out: the ledger of that trace against a copy with half of the MLP channels (2816 → 1408,
their kernels in half of the time), in which every down projection was made 60 µs slower. The row
*kernel efficiency* has to hold these 24 × 60 µs, *added work* a gather of 20 µs in each layer, and
*launch and idle* 10 µs of waiting before each. Run it from the checkout:
`python -m benchmarks.hero TRACE`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from prunescope import analyze
from tests.analysis.edits import Edit, Event, replaced

ROOT = Path(__file__).resolve().parents[1]
WIDTH, KEPT, HIDDEN = 2816, 1408, 1024
SLOWER_NS, GATHER_NS, WAIT_NS = 60_000, 20_000, 10_000


def edited(dense: Path, folder: Path) -> Path:
    """Write the edited copy of a trace into a folder, and return its path."""
    edit = Edit(dense)

    def matrix(event: Event) -> list[int]:
        op = edit.op_of(event)
        dims = op["args"].get("Input Dims", []) if op is not None else []
        return dims[1] if len(dims) > 1 else []

    def is_narrowed(event: Event) -> bool:
        op = edit.op_of(event)
        return op is not None and WIDTH in sum(op["args"].get("Input Dims", []), start=[])

    def takes(event: Event) -> int:
        is_down = matrix(event) == [WIDTH, HIDDEN] and event["cat"] == "kernel"
        return event["dur"] // 2 + SLOWER_NS * is_down

    downs = [e for e in edit.device if e["cat"] == "kernel" and matrix(e) == [WIDTH, HIDDEN]]
    edit.resize(is_narrowed, takes)
    edit.reshape(lambda op: replaced(op["args"].get("Input Dims"), WIDTH, KEPT))
    edit.insert(
        downs, ns=GATHER_NS, gap=WAIT_NS, kernel="indexSelectLargeIndex", op="aten::index_select",
        dims=[[8944, HIDDEN], [], [8944]], types=["c10::BFloat16", "Scalar", "long int"],
    )  # fmt: skip
    return edit.save(folder / "edited.json")


def main() -> None:
    """Draw the picture, and print the answer."""
    dense = Path(sys.argv[1])
    with TemporaryDirectory() as name:
        pruned = edited(dense, Path(name))
        report = analyze(pruned, baseline=dense, device="h100-sxm")
    (phase,) = report.phases.values()
    sys.stdout.write(f"{phase.summary}\n")
    report.plot.ledger().savefig(ROOT / "docs" / "hero.png", dpi=160)


if __name__ == "__main__":
    main()
