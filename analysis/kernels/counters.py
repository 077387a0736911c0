"""The counters of a device in a phase, compared with the work models, and the memory of torch.

In: a Trace with samples of counters (an export of `--gpu-metrics-devices`, or counter events of a
Chrome trace), its linked rows, and how long the memory and the tensor cores need at their peaks for
what the work models count. Out: sentences, and the clock and power of the steps. Samples count that
lie between the first and the last kernel of a step, idle time included. The memory is that of
torch's allocator, by its snapshots (`profile_memory=True`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from prunescope.analysis.schema.notice import Notice, note
from prunescope.analysis.timeline.intervals import Windows
from prunescope.analysis.timeline.link import Linked
from prunescope.analysis.trace.collector import Floats, Ints, unique_ids
from prunescope.analysis.trace.counter_samples import (
    CLOCK,
    MEMORY,
    POWER,
    READ,
    SMS,
    TENSOR,
    WRITTEN,
    factor,
    kind_of_counter,
)
from prunescope.analysis.trace.trace_columns import Trace

_MHZ, _GB = 1e6, 1e9
# Percentiles that bound a clock: a single sample may be taken while it changes.
_LOW, _HIGH = 5, 95


# Counters and work models differ by tens of percent where both are right: caches serve operands
# again, products read them again, and peaks are rounded. Beyond half as much again one is wrong.
_AGREE = 1.5


class Needed(NamedTuple):
    """The time in ns that memory and tensor cores need at their peaks for the work of all steps.

    Attributes:
        memory: For all bytes that the work models count; None where they know too few.
        tensor: For the products in formats that tensor cores multiply; None likewise.
    """

    memory: float | None
    tensor: float | None


class SampledClock(NamedTuple):
    """The clock of a device in the steps, in Hz, and its power.

    Attributes:
        low: The 5th percentile: a single sample may be taken while the clock changes.
        median: The median.
        high: The 95th percentile.
        samples: The number of samples of the clock.
        power: The mean power in W; None where it was not sampled.
    """

    low: float
    median: float
    high: float
    samples: int
    power: float | None


def counter_notes(trace: Trace, linked: Linked, needed: Needed) -> list[Notice]:
    """Return a note on what the counters show in the steps, and whether that confirms the bounds.

    Empty without samples.
    """
    inside = _samples_in_steps(trace, linked)
    means: dict[str, float] = {}
    for label in (SMS, TENSOR, READ, WRITTEN):
        shares = [float(np.mean(values)) for values in inside.get(label, []) if _is_share(values)]
        if shares:
            means[label] = max(shares)
    clock, power, memory = (inside.get(kind) for kind in (CLOCK, POWER, MEMORY))
    if not (means or clock or power or memory):
        return []
    span = sum(end - start for start, end in _spans(linked))
    traffic = means.get(READ, 0.0) + means.get(WRITTEN, 0.0)
    return [
        note(
            "counters",
            samples=max(len(values) for shares in inside.values() for values in shares),
            means=means,
            device={
                "clock": _floats(np.median(clock[0]), np.min(clock[0]), _MHZ) if clock else [],
                "power": _floats(np.mean(power[0]), np.max(power[0])) if power else [],
                "memory": float(np.max(memory[0])) / _GB if memory else None,
            },
            bytes=_comparison(needed.memory, span, traffic) if traffic else None,
            flop=_comparison(needed.tensor, span, means[TENSOR]) if TENSOR in means else None,
        )
    ]


def _floats(first: np.floating, second: np.floating, unit: float = 1.0) -> list[float]:
    return [float(first) / unit, float(second) / unit]


def _comparison(needed: float | None, span: int, measured: float) -> dict[str, Any] | None:
    """Return what the models and a counter show in % of the peak, and which of them counts more.

    None where either is unknown.
    """
    if not (needed and span):
        return None
    modelled = 100 * needed / span
    counted = "fewer" if measured * _AGREE < modelled else "as many"
    counted = "more" if measured > _AGREE * modelled else counted
    return {"modelled": modelled, "measured": measured, "counted": counted}


def sampled_clock(trace: Trace, linked: Linked) -> SampledClock | None:
    """Return the clock of the steps by its samples; None without any."""
    inside = _samples_in_steps(trace, linked)
    if not (clocks := inside.get(CLOCK)):
        return None
    low, median, high = np.percentile(clocks[0], (_LOW, 50, _HIGH)).tolist()
    power = inside.get(POWER)
    watts = float(np.mean(power[0])) if power else None
    return SampledClock(low, median, high, len(clocks[0]), watts)


def _samples_in_steps(trace: Trace, linked: Linked) -> dict[str, list[Floats]]:
    """Return the samples in the steps by what they measure: shares in %, clocks in Hz, W, bytes."""
    samples: dict[str, list[Floats]] = {}
    for name, (ts, values) in trace.counters.items():
        kind = kind_of_counter(name)
        kept = values[_is_in_steps(linked, ts)]
        if kind is None or not len(kept):
            continue
        if kind in (CLOCK, POWER, MEMORY):
            unit = factor(kind, name)
            if kind == CLOCK:  # Nsight writes Hz or MHz, by version, under one name
                unit = 1.0 if float(np.median(kept)) > _MHZ else unit or _MHZ
            if unit is None:
                continue
            kept = kept * unit
        samples.setdefault(kind, []).append(kept)
    return samples


def _is_share(values: Floats) -> bool:
    """Return whether values can be shares in %.

    Counters round, and samples exceed 100 % by a bit.
    """
    return bool(values.min() >= 0 and values.max() <= 110)


def _spans(linked: Linked) -> list[tuple[int, int]]:
    """Return begin and end of the device's work in each step, ns."""
    spans = []
    for step in unique_ids(linked.step).tolist():
        rows = linked.step == step
        end = linked.start[rows] + linked.duration[rows]
        spans.append((int(linked.start[rows].min()), int(end.max())))
    return spans


def _is_in_steps(linked: Linked, ts: Ints) -> np.ndarray:
    """Return which times lie in the device's work of a step."""
    inside = np.zeros(len(ts), bool)
    for start, end in _spans(linked):
        inside |= (ts >= start) & (ts < end)
    return inside


def memory_notes(trace: Trace, windows: Windows) -> list[Notice]:
    """Return a how much memory was allocated at most in the steps; empty if unknown."""
    if not trace.on_device or not trace.memory or not len(trace.memory["ts"]):
        return []
    inside = windows.step_of(trace.memory["ts"]) >= 0
    allocated, reserved = (trace.memory[name][inside] for name in ("allocated", "reserved"))
    if not len(allocated) or allocated.max() < 0:
        return []
    most, held = float(allocated.max()) / _GB, float(reserved.max()) / _GB
    return [note("allocated-memory", allocated=most, reserved=held, snapshots=len(allocated))]
