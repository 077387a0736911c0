"""What a reader must know of a trace as it was read: what is missing, mended or set aside.

In: a Trace. Out: sentences for the warnings of the report, and whether it is of a part only.
"""

from __future__ import annotations

from prunescope.analysis.trace.events import Trace


def trace_warnings(trace: Trace) -> list[str]:
    """What was lost, mended or set aside while the trace was read."""
    source, name = trace.source, trace.source.name
    said: list[str] = []
    if source.cut:
        said.append(f"{name} is cut off: analysed up to the cut")
        if not trace.on_device:
            said.append(
                f"{name} has no device events before the cut: host ops stand for the work, and "
                "their times are those of a CPU"
            )
    if source.behind:
        said.append(
            f"{name}: something stands behind the end of the trace ({source.behind:,} "
            "bytes), and was not read"
        )
    if trace.kernels_dropped:
        whole = trace.kernels_dropped + len(trace.device["ts"])
        said.append(
            f"{name}: {trace.kernels_dropped:,} of {whole:,} kernels were dropped: their start or "
            "duration is missing or cannot be"
        )
    lost = source.malformed + trace.dropped - trace.kernels_dropped
    if lost:
        said.append(f"{name}: {lost} malformed events were dropped")
    if trace.twice:
        what = "device events" if trace.on_device else "host ops"
        said.append(f"{name}: {trace.twice:,} {what} stand in it twice: counted once")
    said += [f"{name}: {text}" for text in trace.caveats]
    if source.repaired:
        said.append(f"{name}: invalid JSON (NaN, control characters or bytes) was mended")
    return said


def host_instead(trace: Trace) -> list[str]:
    """Says so where the work of a GPU is not in a trace that names it, or launches on it."""
    launched = len(trace.launches["ts"]) > 0
    if trace.on_device or trace.source.cut or not (trace.device_name or launched):
        return []
    named = f" names {trace.device_name}, but" if trace.device_name else " launches kernels, but"
    return [
        f"{trace.source.name}{named} holds no device events: host ops are shown in their place, "
        "with times of the host and no peaks; capture with ProfilerActivity.CUDA"
    ]


def is_partial(trace: Trace) -> bool:
    """Whether what was analysed is a part of what ran."""
    return trace.source.cut or trace.kernels_dropped > 0
