"""What `sweep` and `pareto` show on screen: in, their plain values; out, a rich renderable."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from prunescope.analysis.report.escape import clean
from prunescope.analysis.schema.pareto import Pareto

_SHOWN = 10  # failures that are listed


def sweep_state(found: dict[str, Any]) -> RenderableType:
    """Counts, the time that is left, what was merged, and what failed."""
    plan = found["plan"]
    lines = [
        f"{plan['results']} results of {plan['models']} models: {plan['done']} done,"
        f" {plan['failed']} failed, {plan['pending']} pending"
    ]
    if plan["impossible"]:
        lines[0] += f" ({plan['impossible']} cannot be, and are recorded as failed)"
    if plan["seconds"] == 0:
        lines.append("nothing is left to do")
    elif plan["seconds"] is not None:
        lines.append(f"about {max(1, round(plan['seconds'] / 60))} min on this machine, roughly")
    lines += plan["notes"]
    failed = [r for r in found["results"] if r["state"] == "failed"]
    lines += [f"failed: {r['id']}: {r['error']}" for r in failed[:_SHOWN]]
    if len(failed) > _SHOWN:
        lines.append(f"and {len(failed) - _SHOWN} more failed: see sweep.json")
    lines.append(f"Results in {found['out']}")
    return Group(*(Text(clean(line)) for line in lines))


def pareto_summary(found: Pareto, folder: object = None) -> RenderableType:
    """The sentences of a comparison, and where the rest is, if it was written."""
    written = [] if folder is None else [f"Written to {folder}"]
    lines = [*found.notes, *found.summary, *written]
    return Group(*(Text(clean(line)) for line in lines))
