"""The alignment of kept dimensions that would have paid: the smallest that saves nearly the most.

In: the GEMMs of a phase and their replays alone, at each alignment near the kept size. Out: a
sentence. Sizes differ by a few elements, so times are compared at the kept size: a time at another
size is scaled by the ratio of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from prunescope.taxonomy.replays import ReplayedGemm, interval_of
from prunescope.taxonomy.words import ms, percent

_WORTH = 0.05  # of the time of the pruned GEMMs: a saving worth other dimensions
# Of the most that any alignment saves: the smallest that gets so much is named, as it keeps the
# pruned model nearest to the request.
_NEARLY = 0.95


def paying_alignment(
    phase: str, gemms: Sequence[ReplayedGemm], calls: Callable[[ReplayedGemm], float]
) -> str:
    """The smallest alignment that is faster beyond noise and by enough, or that none is; empty
    where no alignment was replayed. `calls`: how often a pruned GEMM runs in a step."""
    kept = {(one.role, one.phase): one for one in gemms if "pruned" in one.reasons}
    saved: dict[int, list[list[float]]] = {}
    for one in gemms:
        now = kept.get((one.role, one.phase))
        if one.align is None or one.phase != phase or now is None:
            continue
        ratio = _kept_size(one, now)
        if ratio is not None and one.warm and now.warm:
            times = zip(now.warm.placements_ns, one.warm.placements_ns, strict=False)
            saved.setdefault(one.align, []).append([calls(now) * (a - b * ratio) for a, b in times])
    # A sum over all GEMMs needs each of them.
    most_gemms = max(map(len, saved.values()), default=0)
    sums = {
        align: [sum(each) for each in zip(*parts, strict=False)]
        for align, parts in sorted(saved.items())
        if len(parts) == most_gemms
    }
    before = sum(
        calls(one) * one.warm.ns for one in kept.values() if one.phase == phase and one.warm
    )
    sums = {align: values for align, values in sums.items() if len(values) > 1}
    if not sums or not before:
        return ""
    best = max(fmean(values) for values in sums.values())
    for align, values in sums.items():
        mean, ends = fmean(values), interval_of(values)
        if ends and ends[0] > 0 and mean > _WORTH * before and mean >= _NEARLY * best:
            return (
                f"Alone, dimensions aligned to {align} take {ms(mean)} a step less at the same "
                f"kept size (95 %: {ms(ends[0])} to {ms(ends[1])}), {percent(mean / before)} of "
                f"the pruned GEMMs: --set align={align}."
            )
    return (
        f"Alone, none of the alignments {', '.join(map(str, sums))} is faster than the kept "
        f"dimensions by {percent(_WORTH)} and beyond noise."
    )


def _kept_size(one: ReplayedGemm, now: ReplayedGemm) -> float | None:
    """The kept size over that of a replayed shape, along the axis that was pruned and alone
    differs; None for another shape."""
    for size, was, dense, other, own in (
        (one.n, now.n, now.dense_n, one.k, now.k),
        (one.k, now.k, now.dense_k, one.n, now.n),
    ):
        if was != dense and other == own:
            return was / size
    return None
