"""A Chrome trace as compact columns.

In: a file (see reader.py, collect.py). Out: `Trace`: numpy columns of device events, launches,
host ops and marks, integer ns, strings and op calls interned. Numbers are rounded here and nowhere
else: start and duration each to the nearest ns of the decimal text, end = start + duration.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from prunescope.analysis.ops.work import OpCall
from prunescope.analysis.trace.collect import (
    DEVICE_CATEGORIES,
    LAUNCH_CATEGORIES,
    MODULE,
    NONE,
    Call,
    Collector,
    Ints,
)
from prunescope.analysis.trace.flows import correlate
from prunescope.analysis.trace.plausible import clean
from prunescope.analysis.trace.reader import Source
from prunescope.taxonomy.dtypes import dtype
from prunescope.taxonomy.errors import PrunescopeError

__all__ = ["DEVICE_CATEGORIES", "LAUNCH_CATEGORIES", "MODULE", "NONE", "Ints", "Trace", "load"]


@dataclass
class Trace:
    """One trace. Every `dict` maps a column name to an int64 array; -1 stands for an absent id.

    `names`: the interned strings; `calls`: the distinct op calls, decoded; `device`: kernel, memcpy
    and memset events; `launches`: runtime calls; `ops`: host ops; `marks`: annotations and modules.
    `dropped`: events without a time that can be, `kernels_dropped` of them on the device; `twice`:
    device events (of a CPU trace: ops) that stood in the file more than once; `doubts`: what else
    is odd about its times.
    """

    source: Source
    names: list[str]
    calls: list[OpCall]
    device: dict[str, Ints]
    launches: dict[str, Ints]
    ops: dict[str, Ints]
    marks: dict[str, Ints]
    grids: list[tuple[int, ...]]
    dropped: int = 0
    kernels_dropped: int = 0
    twice: int = 0
    doubts: list[str] = field(default_factory=list)

    @property
    def on_device(self) -> bool:
        """Whether the trace holds device events: else its host ops are its kernels."""
        return len(self.device["ts"]) > 0

    @property
    def device_name(self) -> str | None:
        """The device that most device events ran on, as the profiler names it."""
        found = self._device()
        return None if found is None else str(found.get("name") or "") or None

    def _properties(self) -> list[dict[str, Any]]:
        """What the profiler says of each device."""
        properties = self.source.meta.get("deviceProperties")
        return (
            [p for p in properties if isinstance(p, dict)] if isinstance(properties, list) else []
        )

    def _device(self) -> dict[str, Any] | None:
        known = self._properties()
        if not known:
            return None
        used = self.device["device"]
        used = used[used >= 0]
        ids, counts = np.unique(used, return_counts=True)
        main = int(ids[np.argmax(counts)]) if len(ids) else None
        return next((p for p in known if p.get("id") == main), known[0])

    def times_of_devices(self, events: Ints) -> dict[str, int]:
        """ns that device events ran, by the device, "0 (NVIDIA A100)", the most used first."""
        events = events[events >= 0]
        ids, times = self.device["device"][events], self.device["dur"][events]
        known = self._properties()
        found: dict[str, int] = {}
        for one in np.unique(ids[ids >= 0]).tolist():
            name = next((p.get("name") for p in known if p.get("id") == one), None)
            label = f"{one} ({name[:80]})" if isinstance(name, str) and name else str(one)
            found[label] = int(times[ids == one].sum())
        return dict(sorted(found.items(), key=lambda item: -item[1]))


def is_there(path: Path) -> bool:
    """Whether there is a file or folder; a path that cannot be one is none."""
    try:
        path.stat()
    except (OSError, ValueError):  # too long, a loop of links, a nul
        return False
    return True


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
            hint="give a Chrome trace (.json, .json.gz) or what `prunescope trace --out` wrote",
        )
    source = Source(path, member)
    collect = Collector()
    try:
        for events in source.blocks():
            collect.add(events)
    except OSError as error:
        raise PrunescopeError(
            f"{path.name} cannot be read ({error.strerror or type(error).__name__})",
            hint="check the file and its permissions",
        ) from None
    trace = _trace(source, collect)
    correlate(trace, collect.threads)
    clean(trace)
    _refuse_unusable(trace)
    return trace


def _refuse_unusable(trace: Trace) -> None:
    source = trace.source
    kernels_missing = len(trace.launches["ts"]) > 0 or bool(source.meta.get("deviceProperties"))
    kernels = trace.device["category"] == DEVICE_CATEGORIES["kernel"]
    if trace.kernels_dropped and not kernels.any():
        raise source.error(
            f"all {trace.kernels_dropped:,} kernels have a start or duration that cannot be",
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
    return Trace(
        source=source,
        names=list(found.names),
        calls=_with_list_dtype([_decode_call(key) for key in found.calls]),
        device=found.tables["device"].frozen(),
        launches=found.tables["launch"].frozen(),
        ops=found.tables["op"].frozen(),
        marks=found.tables["mark"].frozen(),
        grids=list(found.grids),
        dropped=sum(found.dropped.values()),
        kernels_dropped=found.dropped["device"],
    )


def _decode_call(key: Call) -> OpCall:
    name, *raw = key
    dims, types, strides, concrete = (_nested(part) for part in raw)
    return OpCall(
        name=name,
        shapes=dims,
        dtypes=tuple(t if isinstance(t, str) else "" for t in types),
        strides=strides,
        concrete=tuple(c if isinstance(c, str) else "" for c in concrete),
    )


def _with_list_dtype(calls: list[OpCall]) -> list[OpCall]:
    """Kineto records no number format for a list of tensors (cat, stack): the float format that
    most calls of the trace have stands in. Ratios of dense and pruned do not depend on it."""
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
