"""Rules of `check` that are about a role, or compare with a history.

In: a phase of a report, or a history and a report. Out: the value of a metric with its ends, in the
units of rules.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import hypot
from pathlib import Path
from typing import TYPE_CHECKING

from prunescope.taxonomy.errors import PrunescopeError, nearest
from prunescope.taxonomy.lazy_pattern import lazy_pattern
from prunescope.taxonomy.roles import ROLES

if TYPE_CHECKING:
    from prunescope.analysis.schema.report import Phase, Report

HISTORY = "history"
_OF_ROLES = lazy_pattern(r"roles\.([a-z_]+)\.(efficiency|time|share)")
ROLE_METRICS = ("roles.ROLE.efficiency", "roles.ROLE.time", "roles.ROLE.share")
Value = tuple[float | None, float | None, float | None]


def is_role_metric(metric: str) -> bool:
    """Return whether a metric is about a role.

    Raises:
        PrunescopeError: It begins like one, and names no role or nothing of it.
    """
    if not metric.startswith("roles."):
        return False
    matched = _OF_ROLES.fullmatch(metric)
    if matched is None:
        raise PrunescopeError(
            f"no metric is called {metric!r}", hint=f"of roles: {', '.join(ROLE_METRICS)}"
        )
    if matched[1] not in ROLES:
        raise PrunescopeError(
            f"no role is called {matched[1]!r}", hint=f"nearest: {nearest(matched[1], ROLES)}"
        )
    return True


def has_time_units(metric: str) -> bool:
    """Return whether a metric of a role is a time; the others are shares."""
    return metric.endswith(".time")


def role_value(metric: str, phase: Phase) -> float | None:
    """Return a metric of a role in a phase; None where the phase does not show it.

    The time is that of a step in the time base of the report. The efficiency is the roofline time
    of the role's GEMMs over the time that they ran.
    """
    matched = _OF_ROLES.fullmatch(metric)
    assert matched is not None
    role, what = matched[1], matched[2]
    if what != "efficiency":
        busy = phase.roles.get(role)
        if busy is None or not phase.busy_ns:
            return None
        return phase.scale_to_step(busy) if what == "time" else busy / phase.busy_ns
    rows = [gemm for gemm in phase.gemms if gemm.role == role]
    if not rows or any(gemm.efficiency is None or not gemm.ideal_ns for gemm in rows):
        return None
    ran = sum((gemm.ideal_ns or 0.0) / (gemm.efficiency or 1.0) for gemm in rows)
    return sum(gemm.ideal_ns or 0.0 for gemm in rows) / ran


def changes_of_history(
    path: Path, report: Report, *, commit: str | None, model: str | None
) -> dict[str, Value]:
    """Return how much longer a step of each phase takes than its history says, as a share.

    The history is that of other commits. The ends are those of the 95 % interval of the difference.
    A phase without a history, or whose time is not valid, is left out.
    """
    from prunescope.analysis.history.history_file import read_lines
    from prunescope.analysis.history.measured_lines import lines_of
    from prunescope.analysis.history.series import level_before

    if not path.is_file():
        return {}
    lines, _ = read_lines(path)
    changes: dict[str, Value] = {}
    for line in lines_of(report, commit=commit, model=model, versions={}):
        level = level_before(lines, line)
        if level is None or not line.valid or not level.ns:
            continue
        change = line.step_ns / level.ns - 1
        if level.half is None or line.ci95 is None:
            changes[line.phase] = change, None, None
            continue
        noise = hypot(level.half, (line.ci95[1] - line.ci95[0]) / 2) / level.ns
        changes[line.phase] = change, change - noise, change + noise
    return changes


def printed_phases(phases: Mapping[str, Phase]) -> list[str]:
    """Return the names of phases as a report prints them, with the kind that a trace shows."""
    kinds = {name: phase.phase_kind["kind"] for name, phase in phases.items() if phase.phase_kind}
    return [f"{name} ({kinds[name]})" if kinds.get(name, name) != name else name for name in phases]


def phases_named(name: str, phases: Mapping[str, Phase]) -> list[str]:
    """Return the phases that a rule names: that name, else all of the kind that the report prints.

    A trace without run.json has a phase "trace", which the report prints as "trace (decode)".
    """
    if name in phases:
        return [name]
    return [
        key
        for key, phase in phases.items()
        if phase.phase_kind is not None and phase.phase_kind["kind"] == name
    ]
