"""What `prunescope capture` prints of a serving engine.

In: the folder, its serving.json and the answers of its phases. Out: a table of request times.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from prunescope.analysis.report.escape import clean
from prunescope.taxonomy import numbers
from prunescope.taxonomy.runs.serving import Serving
from prunescope.taxonomy.words import plural

if TYPE_CHECKING:
    from rich.console import RenderableType


def captured(
    folder: Path, serving: Serving, answers: Mapping[str, str], problem: str | None
) -> RenderableType:
    """Return the times of requests without the profiler, the answers, and what to do next.

    Args:
        folder: The run folder.
        serving: Its serving.json.
        answers: The answer of each phase, where it is known.
        problem: Why the traces cannot be analysed; None where they can.
    """
    version = serving.versions.get(serving.engine)
    engine = " ".join(filter(None, (serving.engine, version, serving.model)))
    count, traces = len(serving.requests), len(serving.traces)
    table = Table(box=None, pad_edge=False)
    for name in ("without the profiler", *serving.ttft_ns):
        table.add_column(name, justify="left" if name.startswith("without") else "right")
    for name, times in (("TTFT", serving.ttft_ns), ("TPOT", serving.tpot_ns)):
        table.add_row(name, *(numbers.time(ns) for ns in times.values()))
    lines = [
        f"{count} request{plural(count)}, {serving.concurrency} at a time; "
        f"{traces} trace{plural(traces)}",
        *(f"note: {note}" for note in serving.notes),
        *(f"{name}: {answer}" for name, answer in answers.items()),
        f"next: prunescope analyze {folder} --model MODEL"
        if problem is None
        else f"the traces cannot be analysed: {problem}; look at the engine's log",
    ]
    return Group(Text(clean(engine)), table, *(Text(clean(line)) for line in lines))
