"""Every family on every listed architecture: is it named from its traces, and does theory hold?

    python benchmarks/families.py [--only NAME ...] [--out FILE.md]

In: nothing. Out: a table, a row a family. Models of few layers with random weights on a CPU: it
says what is recognised, not how fast it is. What a run says that it did is blanked beforehand.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from tests.tracer.matrix import Cell

Rows = dict[str, list["Cell"]]  # by architecture
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
    """Run all, or `--only` some, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "families.md")
    options = parser.parse_args()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    import torch
    import transformers

    from tests.tracer.matrix import matrix_row
    from tests.tracer.tiny_models import TINY

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    rows: Rows = {}
    for number, name in enumerate(options.only or TINY, 1):
        rows[name] = matrix_row(name)
        sys.stderr.write(f"{number}/{len(options.only or TINY)} {name}\n")
    text = page(rows)
    if options.only:
        sys.stdout.write(text)
    else:
        options.out.write_text(text, encoding="utf-8")
        sys.stderr.write(f"wrote {options.out.name}\n")


def page(rows: Rows) -> str:
    """The whole page."""
    import torch
    import transformers

    from tests.tracer.matrix_theory import PROMPT, STEPS

    reasons: dict[str, int] = {}
    table = list(table_lines(rows, reasons))
    head = _HEAD.format(
        prompt=PROMPT, steps=STEPS, python=platform.python_version(), torch=torch.__version__,
        transformers=transformers.__version__,
    )  # fmt: skip
    lines = [head, *counts(rows), "", *table, "", "Does not apply, or is not realised:", ""]
    lines += [f"{number}. {reason}" for reason, number in reasons.items()]
    return "\n".join([*lines, ""])


def table_lines(rows: Rows, reasons: dict[str, int]) -> Iterator[str]:
    """A row a family, a column an architecture; numbers the `reasons` as they come."""
    yield f"| family | {' | '.join(rows)} |"
    yield f"|---|{'---|' * len(rows)}"
    families = [cell.family for cell in next(iter(rows.values()))]
    for place, family in enumerate(families):
        cells = [cells[place] for cells in rows.values()]
        yield f"| `{family}` | {' | '.join(mark(cell, reasons) for cell in cells)} |"


def mark(cell: Cell, reasons: dict[str, int]) -> str:
    """The text of a cell."""
    if cell.state == "none":
        return str(reasons.setdefault(general(cell.why), len(reasons) + 1))
    half = "" if cell.expected == cell.family else f" as {cell.expected}"
    return f"{cell.state}{half}"


def general(why: str) -> str:
    """A reason without the class that it names, so that one serves many."""
    why = re.sub(r"[A-Z]\w*(ForCausalLM|LMHeadModel)", "the model", why)
    why = re.sub(r"layers of (the model|[A-Z]\w*)", "its layers", why)
    return why.partition(": ")[0]


def counts(rows: Rows) -> Iterator[str]:
    """Totals, of runs and of traces alone, and the theory."""
    cells = [cell for row in rows.values() for cell in row]
    states = Counter(cell.state for cell in cells)
    named = len(cells) - states["none"]
    yield f"- {len(rows)} architectures × {len(cells) // len(rows)} families: {len(cells)} cells"
    yield f"- does not apply: {states['none']}"
    parts = ", ".join(f"{name} {states[name]}" for name in ("ok", "unknown", "wrong"))
    yield f"- named, of {named}: {parts} ({states['ok'] / named:.1%} ok)"
    alone = Counter(cell.bare_state for cell in cells)
    parts = ", ".join(f"{name} {alone[name]}" for name in ("ok", "unknown", "wrong"))
    total = sum(alone.values()) - alone["none"]
    yield f"- static M, NK, rank and cross from the traces alone, of {total}: {parts}"
    works = [work for cell in cells for work in cell.works.values()]
    close = sum(work.deviation <= 0.01 for work in works)
    largest = max((work.deviation for work in works), default=0.0)
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
