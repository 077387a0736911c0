"""One set of peaks for two runs on one device.

In: both Sides. Out: the Sides with equal peaks. A peak is a ceiling: the higher of two measurements
is nearer to it. With separate peaks, a machine that was slower during one run would change the
bounds of equal work, and the ledger would attribute that change to the work.
"""

from __future__ import annotations

from msgspec.structs import replace

from prunescope.analysis.inputs.side import Diagnostics, Side
from prunescope.analysis.kernels.peaks import APART, BANDWIDTH, Peaks
from prunescope.analysis.schema.notice import warning


def with_shared_peaks(pruned: Side, dense: Side) -> tuple[Side, Side]:
    """Give both sides the higher rates of both measurements.

    They are unchanged where their peaks are equal, unknown, or of two devices.
    """
    if pruned.peaks is None or dense.peaks is None or not _on_one_device(pruned, dense):
        return pruned, dense
    rates_p, rates_d = _known_rates(pruned.peaks), _known_rates(dense.peaks)
    if rates_p == rates_d:
        return pruned, dense
    warnings = tuple(
        warning("peaks-of-sides-differ", peak=name, dense=rates_d[name], pruned=rates_p[name])
        for name in sorted(rates_p.keys() & rates_d.keys())
        if max(rates_p[name], rates_d[name]) > APART * min(rates_p[name], rates_d[name])
    )
    peaks = _take_higher(pruned.peaks, dense.peaks)
    diagnostics = pruned.diagnostics + Diagnostics(warnings)
    return replace(pruned, peaks=peaks, diagnostics=diagnostics), replace(dense, peaks=peaks)


def _on_one_device(pruned: Side, dense: Side) -> bool:
    """Return whether both runs measured their peaks, on one device with as many threads."""
    if pruned.run is None or dense.run is None:
        return False
    devices = [pruned.run.device, dense.run.device]
    used = [(d.name, d.peaks.threads) for d in devices if d.name and d.peaks is not None]
    measured = all(side.peaks is not None and side.peaks.measured for side in (pruned, dense))
    return measured and len(used) == len(devices) and used[0] == used[1]


def _known_rates(peaks: Peaks) -> dict[str, float]:
    """Return FLOP/s by dtype, and bytes/s; only those that are known."""
    rates = {**peaks.flop_per_s, BANDWIDTH: peaks.byte_per_s or 0.0}
    return {name: rate for name, rate in rates.items() if rate > 0}


def _take_higher(pruned: Peaks, dense: Peaks) -> Peaks:
    """Take each rate from the run that measured more, with how it was measured there."""
    rates_p, rates_d = _known_rates(pruned), _known_rates(dense)
    source = {
        name: pruned if rates_p.get(name, 0.0) >= rates_d.get(name, 0.0) else dense
        for name in {**rates_p, **rates_d}
    }
    rates = {name: _known_rates(peaks)[name] for name, peaks in source.items()}
    floors = [peaks.floor_ns for peaks in (pruned, dense) if peaks.floor_ns is not None]
    used = [peaks for peaks in (pruned, dense) if any(peaks is s for s in source.values())]
    return replace(
        pruned,
        byte_per_s=rates.pop(BANDWIDTH, None),
        flop_per_s=rates,
        source=f"{pruned.source}; of both runs, the higher",
        floor_ns=min(floors, default=None),
        taken={name: p.taken[name] for name, p in source.items() if name in p.taken},
        disturbed=tuple(dict.fromkeys(why for peaks in used for why in peaks.disturbed)),
    )
