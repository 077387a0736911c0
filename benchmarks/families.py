"""Every family on every listed architecture: is it named from its traces, and does theory hold?

    python benchmarks/families.py [--only NAME ...]    # runs, and writes both files
    python benchmarks/families.py --page               # the page alone

Out: families.json, and families.md, which follows from it: a row a family. Models of few layers
with random weights on a CPU: it says what is recognised, not how fast it is. What a run says that
it did is blanked beforehand.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from tests.tracer.matrix import Cell

KEPT = Path(__file__).resolve().with_suffix(".json")
Rows = dict[str, list[dict[str, Any]]]  # by architecture
UNCOUNTED = "dynamic-depth"
_HEAD = """# Families and architectures

Every family at s = 0.5 on a model of every listed architecture: 2 or 3 layers, random weights,
float32, a prompt of {prompt} tokens and {steps} decoded. Each pair is traced in process, `pruning`
in run.json is null, and `analyze` says which family it sees, in prefill and in decode. ok: the
right one in both; unknown: "unknown" in one at least; wrong: another one; a number: it does not
apply, or is not realised, for the reason below.

Command: `python benchmarks/families.py`. Python {python}, torch {torch},
transformers {transformers}, CPU, 1 thread.
"""


def main() -> None:
    """Run all architectures, or `--only` some, and write families.json and the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--page", action="store_true", help="write the page of families.json")
    options = parser.parse_args()
    if not options.page:
        KEPT.write_text(json.dumps(read(options.only), indent=0) + "\n", encoding="utf-8")
    KEPT.with_suffix(".md").write_text(page(), encoding="utf-8")


def read(only: Sequence[str]) -> dict[str, Any]:
    """Return what became of each family on each architecture, with settings and versions."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    import torch
    import transformers

    from tests.tracer.matrix import matrix_row
    from tests.tracer.matrix_theory import PROMPT, STEPS
    from tests.tracer.tiny_models import TINY

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    rows: dict[str, list[dict[str, Any]]] = {}
    for number, name in enumerate(only or TINY, 1):
        rows[name] = [plain(cell) for cell in matrix_row(name)]
        sys.stderr.write(f"{number}/{len(only or TINY)} {name}\n")
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "prompt": PROMPT,
        "steps": STEPS,
        "rows": rows,
    }


def plain(cell: Cell) -> dict[str, Any]:
    """Return a cell as JSON: its states, and the relative difference of FLOPs by phase."""
    return {
        "family": cell.family,
        "expected": cell.expected,
        "why": cell.why,
        "state": cell.state,
        "bare_state": cell.bare_state,
        "deviations": {phase: work.deviation for phase, work in cell.works.items()},
    }


def page() -> str:
    """Return the page of what families.json holds."""
    kept = json.loads(KEPT.read_bytes())
    rows: Rows = kept.pop("rows")
    reasons: dict[str, int] = {}
    table = list(table_lines(rows, reasons))
    lines = [_HEAD.format(**kept), *counts(rows), "", *table, ""]
    lines += ["Does not apply, or is not realised:", ""]
    lines += [f"{number}. {reason}" for reason, number in reasons.items()]
    return "\n".join([*lines, ""])


def table_lines(rows: Rows, reasons: dict[str, int]) -> Iterator[str]:
    """Yield a row a family, with a column an architecture; number the `reasons` as they come."""
    yield f"| family | {' | '.join(rows)} |"
    yield f"|---|{'---|' * len(rows)}"
    families = [cell["family"] for cell in next(iter(rows.values()))]
    for place, family in enumerate(families):
        cells = [cells[place] for cells in rows.values()]
        yield f"| `{family}` | {' | '.join(mark(cell, reasons) for cell in cells)} |"


def mark(cell: dict[str, Any], reasons: dict[str, int]) -> str:
    """Return the text of a cell."""
    if cell["state"] == "none":
        return str(reasons.setdefault(general(cell["why"]), len(reasons) + 1))
    half = "" if cell["expected"] == cell["family"] else f" as {cell['expected']}"
    return f"{cell['state']}{half}"


def general(why: str) -> str:
    """Return a reason without the class that it names, so that one serves many."""
    why = re.sub(r"[A-Z]\w*(ForCausalLM|LMHeadModel)", "the model", why)
    why = re.sub(r"layers of (the model|[A-Z]\w*)", "its layers", why)
    return why.partition(": ")[0]


def counts(rows: Rows) -> Iterator[str]:
    """Yield totals, of runs and of traces alone, and the theory."""
    cells = [cell for row in rows.values() for cell in row]
    states = Counter(cell["state"] for cell in cells)
    named = len(cells) - states["none"]
    yield f"- {len(rows)} architectures × {len(cells) // len(rows)} families: {len(cells)} cells"
    yield f"- does not apply: {states['none']}"
    parts = ", ".join(f"{name} {states[name]}" for name in ("ok", "unknown", "wrong"))
    yield f"- named, of {named}: {parts} ({states['ok'] / named:.1%} ok)"
    alone = Counter(cell["bare_state"] for cell in cells)
    parts = ", ".join(f"{name} {alone[name]}" for name in ("ok", "unknown", "wrong"))
    total = sum(alone.values()) - alone["none"]
    yield f"- static M, NK, rank and cross from the traces alone, of {total}: {parts}"
    works = [off for cell in cells for off in cell["deviations"].values()]
    close = sum(off <= 0.01 for off in works)
    largest = max(works, default=0.0)
    yield (
        f"- FLOPs executed by linears and attention within 1 % of the theory, given the recorded "
        f"routes and blocks: {close} of {len(works)} phases (largest difference {largest:.2%})"
    )
    yield (
        f"- masked families execute the dense FLOPs; attention of `{UNCOUNTED}` in decode is not "
        "compared: its cache depends on steps that were not counted"
    )


if __name__ == "__main__":
    main()
