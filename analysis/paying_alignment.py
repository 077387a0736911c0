"""The alignments of kept dimensions: their times, and the smallest that saves nearly the most.

The GEMMs of a phase were replayed alone at each alignment near the kept size. Sizes differ by a few
elements, so times are compared at the kept size: a time at another size is scaled by the ratio of
the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean

from prunescope.analysis.schema.replay import AlignedTime
from prunescope.taxonomy.replays import ReplayedGemm, ReplayTimes, interval_of
from prunescope.taxonomy.words import ms, percent

_WORTH = 0.05  # a saving worth other dimensions, as a share of the time of the pruned GEMMs
# As a share of the most that any alignment saves. The smallest one that saves so much is named,
# as it keeps the pruned model nearest to the request.
_NEARLY = 0.95
# A GEMM at an alignment, and the pruned one, each with its times with warm operands.
_Pair = tuple[ReplayedGemm, ReplayTimes, ReplayedGemm, ReplayTimes]


def paying_alignment(
    phase: str, gemms: Sequence[ReplayedGemm], calls: Callable[[ReplayedGemm], float]
) -> str:
    """Name the smallest alignment that is faster beyond noise and by enough, or say that none is.

    Args:
        phase: The name of a phase.
        gemms: The replayed GEMMs.
        calls: How often a pruned GEMM runs in a step.

    Returns:
        A sentence; empty where no alignment was replayed.
    """
    saved: dict[int, list[list[float]]] = {}
    for aligned, warm, pruned, pruned_warm in _pairs_at_alignments(phase, gemms):
        axis = next(_moved_axes(aligned, pruned), None)
        if axis is None:
            continue
        ratio = getattr(pruned, axis) / getattr(aligned, axis)
        times = zip(pruned_warm.placements_ns, warm.placements_ns, strict=False)
        by_placement = [calls(pruned) * (before - after * ratio) for before, after in times]
        saved.setdefault(aligned.align or 0, []).append(by_placement)
    # A sum over all GEMMs needs each of them.
    most_gemms = max(map(len, saved.values()), default=0)
    sums = {
        align: [sum(placement) for placement in zip(*by_gemm, strict=False)]
        for align, by_gemm in sorted(saved.items())
        if len(by_gemm) == most_gemms
    }
    pruned_ns = sum(
        calls(gemm) * gemm.warm.ns
        for gemm in _pruned_gemms(gemms).values()
        if gemm.phase == phase and gemm.warm
    )
    sums = {align: values for align, values in sums.items() if len(values) > 1}
    if not sums or not pruned_ns:
        return ""
    best = max(fmean(values) for values in sums.values())
    for align, values in sums.items():
        mean, ends = fmean(values), interval_of(values)
        if ends and ends[0] > 0 and mean > _WORTH * pruned_ns and mean >= _NEARLY * best:
            return (
                f"Alone, dimensions aligned to {align} take {ms(mean)} a step less at the same "
                f"kept size (95 %: {ms(ends[0])} to {ms(ends[1])}), {percent(mean / pruned_ns)} of "
                f"the pruned GEMMs: --set align={align}."
            )
    return (
        f"Alone, none of the alignments {', '.join(map(str, sums))} is faster than the kept "
        f"dimensions by {percent(_WORTH)} and beyond noise."
    )


def alignment_times(phase: str, gemms: Sequence[ReplayedGemm]) -> list[AlignedTime]:
    """Return the time at each alignment, by pruned GEMM and axis that pruning moved."""
    times = [
        AlignedTime(
            role=str(aligned.role),
            axis=axis.upper(),
            now=getattr(pruned, axis),
            align=aligned.align or 0,
            size=getattr(aligned, axis),
            ns=warm.ns,
            relative=warm.ns / getattr(aligned, axis) / (pruned_warm.ns / getattr(pruned, axis)),
        )
        for aligned, warm, pruned, pruned_warm in _pairs_at_alignments(phase, gemms)
        for axis in _moved_axes(aligned, pruned)
    ]
    return sorted(times, key=lambda time: (time.role, time.axis, time.align))


def _pruned_gemms(
    gemms: Sequence[ReplayedGemm],
) -> dict[tuple[str | None, str | None], ReplayedGemm]:
    """Return the GEMMs of the pruned model, by role and phase."""
    return {(gemm.role, gemm.phase): gemm for gemm in gemms if "pruned" in gemm.reasons}


def _pairs_at_alignments(phase: str, gemms: Sequence[ReplayedGemm]) -> Iterator[_Pair]:
    """Yield each GEMM at an alignment with the pruned GEMM of its role."""
    pruned_gemms = _pruned_gemms(gemms)
    for gemm in gemms:
        pruned = pruned_gemms.get((gemm.role, gemm.phase))
        if gemm.align is None or gemm.phase != phase or pruned is None:
            continue
        if gemm.warm and pruned.warm:
            yield gemm, gemm.warm, pruned, pruned.warm


def _moved_axes(aligned: ReplayedGemm, pruned: ReplayedGemm) -> Iterator[str]:
    """Yield each axis ("n" or "k") that was pruned and along which alone the two shapes differ."""
    for axis, fixed in (("n", "k"), ("k", "n")):
        was_pruned = getattr(pruned, axis) != getattr(pruned, f"dense_{axis}")
        if was_pruned and getattr(aligned, fixed) == getattr(pruned, fixed):
            yield axis
