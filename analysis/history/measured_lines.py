"""From a report to the lines of a history: in, a Report; out, a `HistoryLine` for each phase."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from prunescope.analysis.schema.history import HistoryLine
from prunescope.analysis.schema.report import Phase, Report
from prunescope.analysis.summary.evidence import INVALID, phase_reasons
from prunescope.taxonomy.student_t import t_quantile_975

LEAST_STEPS = 5  # profiled steps that give an interval
_PARTIAL = "the report is partial"


def lines_of(
    report: Report, *, commit: str | None, model: str | None, versions: Mapping[str, str]
) -> list[HistoryLine]:
    """Return a line for each phase of a report.

    Args:
        report: The report.
        commit: What was measured; None if it is unknown.
        model: The name of the model of a trace, which its file does not say; None: that of the
            config that it was analysed with.
        versions: The versions of what measured, next to those of the run.
    """
    subject = report.subject
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    lines = []
    for name, phase in report.phases.items():
        reasons = [reason for reason in phase_reasons(phase) if reason in INVALID]
        reasons += [_PARTIAL] if report.partial else []
        ladder = phase.ladder if phase.is_speedup else None
        lines.append(
            HistoryLine(
                tool=report.tool,
                commit=commit,
                time=now,
                subject=subject["name"],
                model=subject.get("model") or model or _model_of_config(phase),
                pruning=_pruning(subject),
                device=report.device.get("name"),
                versions={**subject.get("versions", {}), **versions},
                phase=name,
                kind=phase.phase_kind["kind"] if phase.phase_kind else None,
                step_ns=phase.step_time_ns,
                ci95=step_interval(phase),
                steps=phase.steps,
                tokens_per_s=phase.tokens_per_s,
                speedup=ladder.realised if ladder else None,
                speedup_ci95=ladder.realised_ci95 if ladder else None,
                valid=not reasons,
                reasons=reasons,
            )
        )
    return lines


def _model_of_config(phase: Phase) -> str | None:
    """Return the model whose config a phase was analysed with; None without one."""
    kinds = ("config-shapes", "config-not-needed")
    return next((n.numbers["model"] for n in phase.notices if n.kind in kinds), None)


def _pruning(subject: Mapping[str, Any]) -> str | None:
    """Return the method and sparsity of a pruned run; None of a dense one, and of a trace."""
    if subject.get("method") is None:
        return None
    sparsity = subject.get("sparsity")
    return subject["method"] if sparsity is None else f"{subject['method']} {sparsity:g}"


def step_interval(phase: Phase) -> list[float] | None:
    """Return the 95 % interval of the time of a step; None where nothing gives one.

    It is that of the samples without the profiler, else Student's t over five profiled steps or
    more.
    """
    if phase.unprofiled_ns is not None:
        return list(phase.unprofiled_ns.ci95)
    steps = phase.step_ns
    if len(steps) < LEAST_STEPS:
        return None
    half = t_quantile_975(len(steps) - 1) * stdev(steps) / sqrt(len(steps))
    return [fmean(steps) - half, fmean(steps) + half]
