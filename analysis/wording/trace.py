"""The words of what was lost, repaired or dropped while traces and folders of ranks were read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prunescope.taxonomy.words import plural, when

_RANKS = 8  # that are named


def _host_instead(file: str, device: str | None, recorder: str) -> str:
    named = f"names {device}" if device else "uses a GPU (its launches or NCCL say so)"
    return (
        f"{file} {named}, but holds no device events: host ops are shown in their place, with "
        f"times of the host and no peaks; capture with {recorder}"
    )


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:_RANKS])) + when(len(numbers) > _RANKS, ", …")


WORDS: dict[str, str | Callable[..., str]] = {
    "trace-cut": "{file} is cut off: analysed up to the cut",
    "no-device-events-before-cut": (
        "{file} has no device events before the cut: host ops stand for the work, and their times "
        "are those of a CPU"
    ),
    "bytes-behind-trace": "{file}: {bytes:,} bytes after the end of the trace were ignored",
    "kernels-dropped": (
        "{file}: {dropped:,} of {whole:,} kernels were dropped: their start time or duration is "
        "missing or invalid"
    ),
    "work-without-device": (
        "{file}: {dropped:,} of {whole:,} kernels, copies and fills were dropped: they name no "
        "device"
    ),
    "malformed-events": "{file}: {dropped} malformed events were dropped",
    "repeated-events": "{file}: {count:,} repeated {events} were counted once",
    "untimed-kernels": (
        "{file}: {count:,} kernels of CUPTI's range profiler hold counters, and no measured times "
        "(the capture in equal parts), so they are left out: capture without "
        "CUPTI_PROFILER_METRICS for times"
    ),
    "repaired-json": "{file}: invalid JSON (NaN, control characters or bytes) was repaired",
    "host-instead-of-device": _host_instead,
    "times-around-ops": (
        "{file}: device times are those between two CUDA events around each op, as "
        "torch.autograd's profiler takes them, not those of kernels; capture with torch.profiler "
        "for kernels and shapes"
    ),
    "events-far-apart": (
        "{file}: its device events lie up to {seconds:,.0f} s apart, as in no capture: some have "
        "wrong times, or several captures are in one file"
    ),
    # -- exports of Nsight Systems --
    "unread-wal": ("{file}: changes that SQLite keeps in a file next to it (-wal) were not read"),
    "lacking-columns": lambda file, table, columns: (
        f"{file}: its table {table} lacks the column{plural(len(columns))} {', '.join(columns)}: "
        "what depends on that is unknown"
    ),
    "work-without-process": (
        "{file}: {count:,} of its kernels, copies and fills name no process (globalPid), and "
        "{processes} processes made calls of CUDA: launches of one process may be taken for those "
        "of another, and so may ops and layers"
    ),
    "work-without-launches": (
        "{file}: none of its {count:,} kernels, copies and fills has its launch in the file: which "
        "step, op or layer they are of is unknown, and all of it counts as one step (calls of CUDA "
        "are recorded by `nsys profile --trace cuda`)"
    ),
    "graphs-without-kernels": (
        "{file}: {count:,} launches of CUDA graphs are one interval each, without their kernels: "
        "profile with --cuda-graph-trace=node"
    ),
    "nameless-kernels": (
        "{file}: {count:,} of its kernels have no name in the file ({table}): they are shown as "
        "{shown}, and what they do is unknown; {again}"
    ),
    # -- folders of ranks --
    "ranks-missing": lambda folder, ranks, world: (
        f"{folder} lacks rank {_listed(ranks)}{when(world > 0, f' of {world}')}: statements on "
        "ranks are about the others"
    ),
    "ranks-twice": lambda folder, ranks: (
        f"{folder} holds several traces of rank {_listed(ranks)}: ranks are not compared"
    ),
}
