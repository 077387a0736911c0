"""A trace as compact columns.

In: a Chrome trace (reader.py, collect.py), or an SQLite export of Nsight Systems (nsys.py). Out:
`Trace`: numpy columns of device events, launches, host ops and annotations, integer ns, strings and
op calls interned. Times of a Chrome trace are rounded here and nowhere else: start and duration
each to the nearest ns of the decimal text, end = start + duration.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from prunescope.analysis.ops.call import OpCall
from prunescope.analysis.schema.notice import warning
from prunescope.analysis.trace.collect import (
    MODULE,
    NONE,
    SAMPLES,
    Call,
    Collector,
    Ints,
    parts_of,
)
from prunescope.analysis.trace.event import DEVICE_CATEGORIES, LAUNCH_CATEGORIES, LEAN
from prunescope.analysis.trace.events import Collective, Trace, stacks_left_out
from prunescope.analysis.trace.nsys import read
from prunescope.analysis.trace.nsys_file import exported, is_nsys, is_report
from prunescope.analysis.trace.reader import Source
from prunescope.analysis.trace.repair import (
    clean,
    launch_by_arrows,
    set_apart_uncorrelated,
    set_waits_apart,
    take_ids_of_flows,
)
from prunescope.analysis.trace.results import with_results
from prunescope.analysis.trace.samples import counters_of
from prunescope.analysis.trace.shares import join_shares
from prunescope.analysis.trace.uncategorised import (
    innermost_only,
    is_timed_around_ops,
)
from prunescope.analysis.trace.workers import shares_of
from prunescope.taxonomy.dtypes import dtype
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.own_files import refuse_own_file

_SIZE = re.compile(r"\s*\d{1,18}\s*", re.ASCII)  # of a dimension

__all__ = ["DEVICE_CATEGORIES", "LAUNCH_CATEGORIES", "MODULE", "NONE", "Ints", "Trace", "load"]


_MOST = 1 << 50  # elements or ranks; more is a forged number


def is_there(path: Path) -> bool:
    """Whether the path exists; False for one that no file system can hold."""
    try:
        path.stat()
    except (OSError, ValueError):  # too long, a loop of links, a nul
        return False
    return True


def readable(path: Path) -> Path:
    """The file to read for one that a user named: of a report of Nsight Systems its export, where
    `nsys` can make one. Raises PrunescopeError where it cannot."""
    return exported(path) if is_report(path) else path


def load(path: Path, member: str | None = None) -> Trace:
    """Read a trace: a file, or `member` of a zip that holds several.

    Raises PrunescopeError where the file holds nothing that can be analysed.
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
    set_apart_uncorrelated(trace)
    clean(trace)
    set_waits_apart(trace)
    _refuse_unusable(trace)
    return with_results(trace)


def _load_nsys(path: Path, member: str | None) -> Trace:
    source, collect, caveats = read(path, member)
    trace = _trace(source, collect)
    trace.caveats += caveats
    return trace


def _load_chrome(path: Path, member: str | None) -> Trace:
    source, collect = _read_in_processes(path, member) or _read_in_this_process(path, member)
    trace = _trace(source, collect)
    if trace.on_device and is_timed_around_ops(collect.threads):
        keep = innermost_only(trace.device)
        trace.device = {name: column[keep] for name, column in trace.device.items()}
        trace.caveats.append(warning("times-around-ops"))
    if trace.on_device and collect.uncategorised and not len(trace.launches["ts"]):
        launch_by_arrows(trace, collect.threads)
    take_ids_of_flows(trace, collect.threads)
    return trace


def _read_in_processes(path: Path, member: str | None) -> tuple[Source, Collector] | None:
    """A large file, read by several processes; None where one process is as fast."""
    shares = shares_of(path, member)
    return None if shares is None else join_shares(path, member, shares)


def _read_in_this_process(path: Path, member: str | None) -> tuple[Source, Collector]:
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
        lost = f" ({source.malformed + trace.dropped} malformed events were dropped)"
        raise source.error(
            "no device events and no host ops in the trace"
            + (lost if source.malformed + trace.dropped else ""),
            "capture with ProfilerActivity.CPU, and CUDA where there is a GPU",
        )


def _trace(source: Source, found: Collector) -> Trace:
    names, device = list(found.names), found.tables.pop("device").frozen()
    samples = found.tables.pop(SAMPLES).frozen()
    return Trace(
        source=source,
        names=names,
        calls=_with_list_dtype([_decode_call(key) for key in found.calls]),
        device=device,
        launches=found.tables.pop("launch").frozen(),
        ops=found.tables.pop("op").frozen(),
        annotations=found.tables.pop("annotation").frozen(),
        frames=found.tables.pop("frame").frozen(),
        overhead=found.tables.pop("overhead").frozen(),
        grids=list(found.grids),
        collectives=[_decode_collective(key) for key in found.collectives],
        memory=found.tables.pop("memory").frozen(),
        counters=found.counters or counters_of(samples, names, device["device"]),
        dropped=sum(found.dropped.values()),
        kernels_dropped=found.dropped["device"],
        unplaced=found.unplaced,
        stacks=found.stacks + stacks_left_out(source.meta),
        untimed=found.untimed,
    )


def _decode_collective(key: tuple[bytes, ...]) -> Collective:
    name, sent, received, ranks, spelling = (_plain(part) for part in key)
    return Collective(
        name=name if isinstance(name, str) else "?",
        sent=_count(sent),
        received=_count(received),
        ranks=_count(ranks),
        dtype=spelling if isinstance(spelling, str) else None,
    )


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 < value < _MOST else None


def _plain(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw) if raw else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _decode_call(key: Call) -> OpCall:
    raw = parts_of(key)
    dims, types, strides, concrete = (_nested(part) for part in raw)
    if not dims and raw[0]:
        dims, types = _as_texts(raw[0], raw[1])
    return OpCall(
        name=key[0],
        shapes=dims,
        dtypes=tuple(t if isinstance(t, str) else "" for t in types),
        strides=strides,
        concrete=tuple(c if isinstance(c, str) else "" for c in concrete),
    )


def _as_texts(dims: bytes, types: bytes) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Shapes and types that a profiler wrote as one text each, with a semicolon between inputs, as
    Ascend's does: "4,6;6,5;" and "c10::Half;c10::Half;Scalar"."""
    texts = []
    for raw in (dims, types):
        try:
            texts.append(msgspec.json.decode(raw or b'""', type=str))
        except (msgspec.DecodeError, UnicodeDecodeError):
            return (), ()
    shapes = [part.split(",") if part.strip() else [] for part in texts[0].split(";")]
    if not all(_SIZE.fullmatch(size) for shape in shapes for size in shape):
        return (), ()
    sizes = tuple(tuple(int(size) for size in shape) for shape in shapes)
    return sizes, tuple(part.strip() for part in texts[1].split(";"))


def _with_list_dtype(calls: list[OpCall]) -> list[OpCall]:
    """Kineto records no dtype for a list of tensors (cat, stack): the commonest float dtype of the
    trace is used instead. Ratios of dense to pruned do not depend on it."""
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


def _nested(raw: bytes) -> tuple[Any, ...]:
    if not raw:
        return ()
    try:
        frozen = _freeze(msgspec.json.decode(raw))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ()
    return frozen if isinstance(frozen, tuple) else ()


def _freeze(plain: Any) -> Any:
    return tuple(_freeze(p) for p in plain) if isinstance(plain, list) else plain
