"""What Holistic Trace Analysis (HTA) says beside our numbers: in, a Phase; out, plain lines."""

from __future__ import annotations

from prunescope.analysis.report import numbers
from prunescope.analysis.schema.report import Phase


def second_opinion(phase: Phase) -> list[str]:
    """What Holistic Trace Analysis says of the whole trace, beside our totals of it."""
    said = phase.hta
    if said is None:
        return []
    name = f"HTA {said.version}" if said.version else "HTA"
    lines = [f"{name} could not say: {why}" for why in said.failed]
    if said.busy_ns is not None:
        ours = said.ours
        text = (
            f"{name} says of the whole trace, all steps and what lies outside: busy "
            f"{numbers.time(said.busy_ns)}, idle {numbers.time(said.idle_ns)} of "
            f"{numbers.time(said.total_ns)} (ours: {numbers.time(ours.get('busy_ns'))}, "
            f"{numbers.time(ours.get('idle_ns'))} of {numbers.time(ours.get('total_ns'))})"
        )
        lines.insert(0, text)
    if said.waits:
        waits = ", ".join(f"{k} {numbers.time(v)}" for k, v in said.waits.items())
        lines.append(f"HTA says of idle time, summed over streams: {waits}")
    if said.kernel_types:
        types = ", ".join(f"{k} {numbers.time(v)}" for k, v in said.kernel_types.items())
        lines.append(f"HTA says of busy time, intervals cut to whole µs: {types}")
    if said.launches:
        mean = {
            key: numbers.time(said.launches.get(f"{key}_ns")) for key in ("cpu", "gpu", "delay")
        }
        lines.append(
            f"HTA says of {numbers.count(said.launches.get('count'))} launches, means: host "
            f"{mean['cpu']}, device {mean['gpu']}, delay {mean['delay']}"
        )
    return lines
