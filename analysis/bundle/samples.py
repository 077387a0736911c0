"""Whether the unprofiled samples of a run agree with its traces, which hold other steps.

In: reports that were rebuilt from a bundle. Out: an entry for each phase, with the speedup that the
samples give and the speedups that the profiled steps allow. Samples that were changed on one side
move only the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from prunescope.analysis.schema.report import MUCH_SLOWED, Phase, Report
from prunescope.analysis.schema.sides import Totals

_MOST_STEPS = (10, 90)  # percentiles of the profiled steps, so that one odd step does not count


def on_trust(reports: Mapping[str, Report]) -> Iterator[dict[str, Any]]:
    """Yield an entry for each phase with unprofiled samples.

    Args:
        reports: The rebuilt reports by run.

    Yields:
        {"run", "phase", "profiled_over_unprofiled": {"pruned", "dense"}, "speedup": {"samples",
        "ci95", "profiled": [low, high]}, "agree", "why"}. `agree` is None if nothing can be judged.
        `why` says why that is, or why they agree or not.
    """
    for name, report in reports.items():
        for phase_name, phase in report.phases.items():
            if phase.profiler_overhead_ratio is None:
                continue
            dense = phase.baseline.profiler_overhead_ratio if phase.baseline else None
            ratios = {"pruned": phase.profiler_overhead_ratio, "dense": dense}
            entry = {"run": name, "phase": phase_name, "profiled_over_unprofiled": ratios}
            yield {**entry, **_compare_speedups(phase, dense)}


def _compare_speedups(phase: Phase, dense_ratio: float | None) -> dict[str, Any]:
    ladder, dense = phase.ladder, phase.baseline
    if ladder is None or dense is None or dense_ratio is None:
        return {"speedup": None, "agree": None, "why": "one side alone has samples"}
    low, high = allowed_speedups(phase, dense)
    ends = ladder.realised_ci95 or [ladder.realised, ladder.realised]
    speedup = {"samples": ladder.realised, "ci95": ladder.realised_ci95, "profiled": [low, high]}
    why = not_judged = _why_not_judged(phase)
    apart = ends[1] < low / MUCH_SLOWED or ends[0] > high * MUCH_SLOWED
    why = why or f"{'more than' if apart else 'within'} {MUCH_SLOWED:g} times"
    return {"speedup": speedup, "agree": None if not_judged else not apart, "why": why}


def _why_not_judged(phase: Phase) -> str | None:
    if phase.invalid_times:
        return "the report says itself that its times are no evidence"
    if phase.ladder is not None and phase.ladder.holds_one:
        return "the samples claim no speedup"
    return None


def allowed_speedups(phase: Phase, dense: Totals) -> tuple[float, float]:
    """Return the least and the largest speedup that the profiled steps allow.

    On a CPU the profiler slows all work, on both sides alike within `MUCH_SLOWED`. On a device it
    slows the host but no kernel: an unprofiled step takes at least the time of its kernels and at
    most that of a profiled step, so that one side may be slowed more if the host sets its pace.
    """
    (dense_low, dense_high), (low, high) = _step_range(dense), _step_range(phase)
    if not phase.is_slowed:
        dense_low, low = dense.busy_ns, phase.busy_ns
    return dense_low / high, dense_high / low


def _step_range(side: Phase | Totals) -> tuple[float, float]:
    """Return the duration of a short and of a long profiled step, in ns."""
    walls: list[int] | list[float] = side.step_ns or [side.wall_ns]
    low, high = np.percentile(walls, _MOST_STEPS)
    return float(low), float(high)
