"""The loader of traces: from a file to compact columns.

In: a Chrome trace (reader.py, collect.py), or an SQLite export of Nsight Systems (nsys.py). Out:
`Trace`: numpy columns of device events, launches, host ops and annotations in integer ns, with
strings and op calls interned. Times of a Chrome trace are rounded here and nowhere else: start and
duration each to the nearest ns of the decimal text, and end = start + duration.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from prunescope.analysis.ops.call import OpCall
from prunescope.analysis.schema.notice import warning
from prunescope.analysis.trace.collector import (
    SAMPLES,
    Call,
    Collector,
    parts_of,
)
from prunescope.analysis.trace.counter_samples import counters_of
from prunescope.analysis.trace.event import DEVICE_CATEGORIES, LEAN, decode_json
from prunescope.analysis.trace.nsys import read
from prunescope.analysis.trace.nsys_file import exported, is_nsys, is_report
from prunescope.analysis.trace.reader import Source
from prunescope.analysis.trace.repair import (
    add_launches_from_arrows,
    close_open_annotations,
    drop_invalid_events,
    move_uncorrelated_launches,
    move_waits,
    take_ids_from_flow_events,
)
from prunescope.analysis.trace.results import add_results
from prunescope.analysis.trace.shares import join_shares
from prunescope.analysis.trace.trace_columns import Collective, Trace, stacks_left_out
from prunescope.analysis.trace.uncategorised import (
    holds_no_other,
    is_timed_around_ops,
)
from prunescope.analysis.trace.workers import shares_of
from prunescope.taxonomy.dtypes import dtype
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.lazy_pattern import lazy_pattern
from prunescope.taxonomy.own_files import refuse_own_file
from prunescope.taxonomy.words import when

_SIZE = lazy_pattern(r"\s*\d{1,18}\s*", re.ASCII)  # of a dimension

_MOST = 1 << 50  # elements or ranks; more is a forged number


def is_there(path: Path) -> bool:
    """Return whether the path exists; False for one that no file system can hold."""
    try:
        path.stat()
    except (OSError, ValueError):  # too long, a loop of links, a nul
        return False
    return True


def readable(path: Path) -> Path:
    """Return the file to read for one that a user named.

    That is the file itself, or for a report of Nsight Systems its export, which `nsys` makes.
    Raises PrunescopeError where `nsys` is missing or fails.
    """
    return exported(path) if is_report(path) else path


def load(path: Path, member: str | None = None) -> Trace:
    """Read a trace into compact columns.

    Args:
        path: A Chrome trace (plain, packed, or in an archive), or an SQLite export of Nsight
            Systems.
        member: The trace that is meant in an archive of several, or the device of an export.

    Returns:
        The trace, without events that repeat others or whose time is invalid.

    Raises:
        PrunescopeError: The file is missing, damaged, or holds nothing that can be analysed.
    """
    if not is_there(path):
        raise PrunescopeError(
            f"no such file: {path.name[:200]}", hint="check the path of the trace"
        )
    if not path.is_file():
        raise PrunescopeError(
            f"{path.name} is neither a trace nor a run folder",
            hint="give a Chrome trace (.json, .json.gz or .json.zst), an SQLite export of Nsight "
            "Systems, or what `prunescope trace` wrote",
        )
    try:
        trace = _load_nsys(path, member) if is_nsys(path) else _load_chrome(path, member)
    except PrunescopeError:
        refuse_own_file(path)
        raise
    move_uncorrelated_launches(trace)
    drop_invalid_events(trace)
    move_waits(trace)
    close_open_annotations(trace)
    _refuse_unusable(trace)
    return add_results(trace)


def _load_nsys(path: Path, member: str | None) -> Trace:
    """Read an export of Nsight Systems."""
    source, collect, caveats = read(path, member)
    trace = _build_trace(source, collect)
    trace.caveats += caveats
    return trace


def _load_chrome(path: Path, member: str | None) -> Trace:
    """Read a Chrome trace, and complete formats that record no launches or no correlation ids."""
    shares = shares_of(path, member)  # None where one process is as fast
    joined = None if shares is None else join_shares(path, member, shares)
    source, collect = joined or _read_in_this_process(path, member)
    trace = _build_trace(source, collect)
    if trace.on_device and is_timed_around_ops(collect.threads):
        keep = holds_no_other(trace.device)
        trace.device = {name: column[keep] for name, column in trace.device.items()}
        trace.caveats.append(warning("times-around-ops"))
    if trace.on_device and collect.uncategorised and not len(trace.launches["ts"]):
        add_launches_from_arrows(trace, collect.threads)
    take_ids_from_flow_events(trace, collect.threads)
    return trace


def _read_in_this_process(path: Path, member: str | None) -> tuple[Source, Collector]:
    """Read all blocks of a Chrome trace, one after the other."""
    source, collect = Source(path, member, decoder=LEAN), Collector()
    try:
        for events in source.blocks():
            collect.add(events)
            collect.add_samples(source.take_samples())
    except OSError as error:
        raise PrunescopeError(
            f"{path.name} cannot be read ({error.strerror or type(error).__name__})",
            hint="check the file and its permissions",
        ) from None
    return source, collect


def _refuse_unusable(trace: Trace) -> None:
    """Raise PrunescopeError for a trace in which nothing is left to analyse."""
    source = trace.source
    kernels_missing = len(trace.launches["ts"]) > 0 or bool(source.meta.get("deviceProperties"))
    kernels = trace.device["category"] == DEVICE_CATEGORIES["kernel"]
    if trace.kernels_dropped and not kernels.any():
        raise source.error(
            f"all {trace.kernels_dropped:,} kernels have an invalid start time or duration",
            "the times of the trace are damaged: export it again",
        )
    if source.cut and not trace.on_device and (kernels_missing or not len(trace.ops["ts"])):
        raise source.error("the file is cut off before any kernel", "copy the file again, whole")
    if not trace.on_device and not len(trace.ops["ts"]):
        lost = source.malformed + trace.dropped
        raise source.error(
            "no device events and no host ops in the trace"
            + when(lost > 0, f" ({lost} malformed events were dropped)"),
            "capture with ProfilerActivity.CPU, and CUDA where there is a GPU",
        )


def _build_trace(source: Source, collected: Collector) -> Trace:
    """Build a trace from the collected tables, whose interned values are decoded."""
    names, device = list(collected.names), collected.tables.pop("device").frozen()
    samples = collected.tables.pop(SAMPLES).frozen()
    return Trace(
        source=source,
        names=names,
        calls=_set_list_dtypes([_decode_call(key) for key in collected.calls]),
        device=device,
        launches=collected.tables.pop("launch").frozen(),
        ops=collected.tables.pop("op").frozen(),
        annotations=collected.tables.pop("annotation").frozen(),
        frames=collected.tables.pop("frame").frozen(),
        overhead=collected.tables.pop("overhead").frozen(),
        grids=list(collected.grids),
        collectives=[_decode_collective(key) for key in collected.collectives],
        memory=collected.tables.pop("memory").frozen(),
        counters=collected.counters or counters_of(samples, names, device["device"]),
        dropped=sum(collected.dropped.values()),
        kernels_dropped=collected.dropped["device"],
        unplaced=collected.unplaced,
        stacks=collected.stacks + stacks_left_out(source.meta),
        untimed=collected.untimed,
        unread=collected.unread,
    )


def _decode_collective(key: tuple[bytes, ...]) -> Collective:
    """Decode the raw values that torch writes on a collective; an invalid one becomes None."""
    name, sent, received, ranks, spelling = (decode_json(part) for part in key)
    return Collective(
        name=name if isinstance(name, str) else "?",
        sent=_to_count(sent),
        received=_to_count(received),
        ranks=_to_count(ranks),
        dtype=spelling if isinstance(spelling, str) else None,
    )


def _to_count(value: Any) -> int | None:
    """Return a positive number below _MOST; None for any other value."""
    return value if type(value) is int and 0 < value < _MOST else None


def _decode_call(key: Call) -> OpCall:
    """Decode the key of an op call; an invalid part is empty."""
    raw = parts_of(key)
    dims, types, strides, concrete = (_decode_nested(part) for part in raw)
    if not dims and raw[0]:
        dims, types = _decode_texts(raw[0], raw[1])
    return OpCall(
        name=key[0],
        shapes=dims,
        dtypes=tuple(t if isinstance(t, str) else "" for t in types),
        strides=strides,
        concrete=tuple(c if isinstance(c, str) else "" for c in concrete),
    )


def _decode_texts(dims: bytes, types: bytes) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Decode shapes and types that a profiler wrote as one text each.

    Ascend's profiler writes "4,6;6,5;" and "c10::Half;c10::Half;Scalar", with a semicolon between
    inputs. Both results are empty where the texts are not of that form.
    """
    texts = [decode_json(raw or b'""') for raw in (dims, types)]
    if not all(isinstance(text, str) for text in texts):
        return (), ()
    shapes = [part.split(",") if part.strip() else [] for part in texts[0].split(";")]
    if not all(_SIZE.fullmatch(size) for shape in shapes for size in shape):
        return (), ()
    sizes = tuple(tuple(int(size) for size in shape) for shape in shapes)
    return sizes, tuple(part.strip() for part in texts[1].split(";"))


def _set_list_dtypes(calls: list[OpCall]) -> list[OpCall]:
    """Set the number format of lists of tensors (cat, stack), of which kineto records none.

    Limitations: It is assumed to be the commonest float format of the trace. Ratios of dense to
    pruned do not depend on it.
    """
    floats = Counter(
        d for call in calls for d in call.dtypes if (dtype(d) or "").startswith(("bf", "fp"))
    )
    if not floats:
        return calls
    usual = floats.most_common(1)[0][0]
    return [
        replace(call, dtypes=tuple(usual if d == "TensorList" else d for d in call.dtypes))
        if "TensorList" in call.dtypes
        else call
        for call in calls
    ]


def _decode_nested(raw: bytes) -> tuple[Any, ...]:
    """Decode a JSON list into nested tuples; any other value gives an empty tuple."""
    try:
        frozen = _freeze(decode_json(raw))
    except RecursionError:
        return ()
    return frozen if isinstance(frozen, tuple) else ()


def _freeze(plain: Any) -> Any:
    """Turn nested lists into nested tuples, and objects, which no profiler writes, into None."""
    if isinstance(plain, list):
        return tuple(_freeze(part) for part in plain)
    return None if isinstance(plain, dict) else plain
