"""What `sweep` and `pareto` show on screen: in, their plain values; out, a rich renderable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from prunescope.analysis.report.escape import clean
from prunescope.analysis.schema.pareto import Pareto

_SHOWN = 10  # failures that are listed
_APART = 1.25  # the time at the worst peaks that were measured, over that at the best: it is said


def sweep_state(found: Mapping[str, Any]) -> RenderableType:
    """Counts, the time that is left, what was merged, and what failed."""
    plan = found["plan"]
    lines = [
        f"{plan['results']} results of {plan['models']} models: {plan['done']} done,"
        f" {plan['failed']} failed, {plan['pending']} pending"
    ]
    if plan.get("running"):
        lines[0] += f", {plan['running']} running in another process"
    if plan["impossible"]:
        lines[0] += f" ({plan['impossible']} cannot be, and are recorded as failed)"
    if plan["seconds"] == 0:
        lines.append("nothing is left to do")
    elif plan["seconds"] is not None:
        lines.append(_duration(plan))
    lines += plan["notes"]
    failed = [r for r in found["results"] if r["state"] == "failed"]
    lines += [f"failed: {r['id']}: {r['error']}" for r in failed[:_SHOWN]]
    if len(failed) > _SHOWN:
        lines.append(f"and {len(failed) - _SHOWN} more failed: see sweep.json")
    lines.append(f"Results in {found['out']}")
    return Group(*(Text(clean(line)) for line in lines))


def _duration(plan: dict[str, Any]) -> str:
    """What is left, with and without recovery training."""
    trained = plan.get("recovery_seconds") or 0.0
    line = f"about {_hours(plan['seconds'])} on this machine, roughly"
    most = plan.get("seconds_most") or 0.0
    if most > _APART * plan["seconds"]:
        beside = ", ".join(plan["peaks_disturbed"]) or "other work"
        line += (
            f"; {_hours(most)} if it stays as busy as it was: its peaks were measured"
            f" {plan['peaks_measured']} times beside {beside}, and the best counts"
        )
    if not trained:
        return line
    without = _hours(plan["seconds"] - trained)
    return f"{line}; {without} without recovery ({plan['trainings']} trainings, one of them dense)"


def _hours(seconds: float) -> str:
    if seconds < 2 * 3600:
        return f"{max(1, round(seconds / 60))} min"
    return f"{seconds / 3600:.1f} h"


def pareto_summary(found: Pareto, folder: object = None) -> RenderableType:
    """The sentences of a comparison, and where the rest is, if it was written."""
    written = [] if folder is None else [f"Written to {folder}"]
    lines = [*found.notes, *found.summary, *written]
    return Group(*(Text(clean(line)) for line in lines))
