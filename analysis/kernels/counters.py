"""What the counters of a device say of a phase, beside what its work models say.

In: a Trace with samples of counters (Nsight Systems, `--gpu-metrics-devices`), linked rows, the
bytes that the work models move and the peak bandwidth. Out: sentences. Samples count that lie
between the first and the last kernel of a step, idle time included.
"""

from __future__ import annotations

import re

import numpy as np

from prunescope.analysis.timeline.link import Linked
from prunescope.analysis.trace.collect import Ints
from prunescope.analysis.trace.events import Trace

_SHARES = (
    ("SMs active", re.compile(r"SMs? Active")),
    ("tensor cores active", re.compile(r"Tensor Active")),
    ("memory read", re.compile(r"DRAM Read")),
    ("memory written", re.compile(r"DRAM Write")),
)
_CLOCK = re.compile(r"(?:GPC|SM) Clock Frequency")
_MHZ = 1e6


def counter_notes(
    trace: Trace, linked: Linked, *, moved: float | None, byte_per_s: float | None
) -> list[str]:
    """A note on what the counters show in the steps; none without samples. `moved`: bytes of all
    steps by the work models, None where they do not know most of them."""
    inside = {
        name: kept
        for name, (ts, values) in trace.counters.items()
        if len(kept := values[_in_steps(linked, ts)])
    }
    parts = []
    means: dict[str, float] = {}
    for label, pattern in _SHARES:
        found = [float(np.mean(values)) for name, values in inside.items() if pattern.match(name)]
        if found:
            means[label] = max(found)
            parts.append(f"{label} {means[label]:,.0f} %")
    clocks = [values for name, values in inside.items() if _CLOCK.match(name)]
    if clocks:
        # Nsight writes Hz or MHz, by version.
        unit = _MHZ if float(np.median(clocks[0])) > _MHZ else 1.0
        parts.append(
            f"clock {np.median(clocks[0]) / unit:,.0f} MHz (lowest {np.min(clocks[0]) / unit:,.0f})"
        )
    if not parts:
        return []
    samples = max(len(values) for values in inside.values())
    text = f"counters of the device, means of {samples:,} samples in the steps: {', '.join(parts)}"
    measured = means.get("memory read", 0.0) + means.get("memory written", 0.0)
    span = sum(end - start for start, end in _spans(linked))
    if measured and moved and byte_per_s and span:
        modelled = 100 * moved / (span / 1e9) / byte_per_s
        text += (
            f"; the work models move {modelled:,.0f} % of what the memory can in that time, the "
            f"counters show {measured:,.0f} %"
        )
    return [text]


def _spans(linked: Linked) -> list[tuple[int, int]]:
    """Begin and end of the device's work in each step, ns."""
    spans = []
    for step in np.unique(linked.step).tolist():
        rows = linked.step == step
        end = linked.start[rows] + linked.duration[rows]
        spans.append((int(linked.start[rows].min()), int(end.max())))
    return spans


def _in_steps(linked: Linked, ts: Ints) -> np.ndarray:
    found = np.zeros(len(ts), bool)
    for start, end in _spans(linked):
        found |= (ts >= start) & (ts < end)
    return found
