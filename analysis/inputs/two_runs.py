"""One set of peaks for two runs of one device: in, the Sides; out, the Sides with equal peaks.

A peak is a ceiling, so that the higher of two measurements is nearer to it. Peaks of their own
would move the bounds of equal work by what the machine was at the two times, and the ledger would
take that for the work's.
"""

from __future__ import annotations

from dataclasses import replace

from prunescope.analysis.inputs.subject import Diagnostics, Side
from prunescope.analysis.kernels.bound import APART, BANDWIDTH, Peaks, rate_text


def with_shared_peaks(pruned: Side, dense: Side) -> tuple[Side, Side]:
    """Both sides as they are where their peaks are equal, or of two devices."""
    one, other = pruned.peaks, dense.peaks
    if one is None or other is None or not _of_one_device(pruned, dense):
        return pruned, dense
    mine, its = _rates(one), _rates(other)
    if mine == its:
        return pruned, dense
    said = tuple(
        f"the {name} peak was measured as {rate_text(its[name], name)} around the dense run and "
        f"{rate_text(mine[name], name)} around the pruned one: something else ran, or the clock "
        "fell; bounds of both use the higher one"
        for name in mine.keys() & its.keys()
        if max(mine[name], its[name]) > APART * min(mine[name], its[name])
    )
    peaks = _higher(one, other)
    diagnostics = pruned.diagnostics + Diagnostics(tuple(sorted(said)))
    return replace(pruned, peaks=peaks, diagnostics=diagnostics), replace(dense, peaks=peaks)


def _of_one_device(pruned: Side, dense: Side) -> bool:
    """Whether both runs measured what they say, on one device in as many threads."""
    if pruned.run is None or dense.run is None:
        return False
    devices = [side.run.device for side in (pruned, dense) if side.run is not None]
    seen = [(d.name, d.peaks.threads) for d in devices if d.name and d.peaks is not None]
    measured = all(side.peaks is not None and side.peaks.measured for side in (pruned, dense))
    return measured and len(seen) == len(devices) and seen[0] == seen[1]


def _rates(peaks: Peaks) -> dict[str, float]:
    own = {**peaks.flop_per_s, BANDWIDTH: peaks.byte_per_s or 0.0}
    return {name: rate for name, rate in own.items() if rate > 0}


def _higher(one: Peaks, other: Peaks) -> Peaks:
    """Each rate from the run that measured more, with how it came about there."""
    mine, its = _rates(one), _rates(other)
    source = {n: one if mine.get(n, 0.0) >= its.get(n, 0.0) else other for n in {**mine, **its}}
    rates = {name: _rates(peaks)[name] for name, peaks in source.items()}
    floors = [p.floor_ns for p in (one, other) if p.floor_ns is not None]
    used = [peaks for peaks in (one, other) if any(peaks is its for its in source.values())]
    return replace(
        one,
        byte_per_s=rates.pop(BANDWIDTH, None),
        flop_per_s=rates,
        source=f"{one.source}; of both runs, the higher",
        floor_ns=min(floors, default=None),
        taken={n: p.taken[n] for n, p in source.items() if n in p.taken},
        disturbed=tuple(dict.fromkeys(why for peaks in used for why in peaks.disturbed)),
    )
