"""Whether the times of a run are evidence, by its manifest alone.

In: the phases of a dense and a pruned run. Out: whether something disturbed their samples, or these
vary too much for a speedup. The finding on invalid times rests on the same rules.
"""

from __future__ import annotations

from collections.abc import Sequence

from prunescope.taxonomy.runs.run import PhaseRun

WIDE = 0.5  # 10th to 90th percentile ÷ median from which samples are too wide
FEW = 3  # samples; fewer have no percentiles


def took_turns(dense: PhaseRun, pruned: PhaseRun) -> bool:
    """Return whether the samples of the two runs were taken alternately, one by one."""
    alike = dense.interleaved == pruned.interleaved == "alternating"
    return alike and len(dense.samples_ns) == len(pruned.samples_ns) >= FEW


def percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the 10th, 50th and 90th percentile, interpolated between neighbours."""
    ordered = sorted(values)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        below = int(place)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (place - below) * (ordered[above] - ordered[below])

    return at(0.1), at(0.5), at(0.9)


def ratios_of_turns(dense: PhaseRun, pruned: PhaseRun) -> list[float]:
    """Return dense over pruned of each turn of two runs that took turns."""
    pairs = zip(dense.samples_ns, pruned.samples_ns, strict=True)
    return [first / second for first, second in pairs]


def is_wide(values: Sequence[float]) -> bool:
    """Return whether values vary by half of their median."""
    low, middle, high = percentiles(values)
    return high - low > WIDE * middle


def has_valid_times(dense: PhaseRun | None, pruned: PhaseRun) -> bool:
    """Return whether the times of a pruned run, and of its dense one, are evidence."""
    runs = [run for run in (dense, pruned) if run is not None]
    if any(run.is_disturbed for run in runs):
        return False
    if dense is not None and took_turns(dense, pruned):
        return not is_wide(ratios_of_turns(dense, pruned))
    return not any(len(run.samples_ns) >= FEW and is_wide(run.samples_ns) for run in runs)
