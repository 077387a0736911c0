"""What a Chrome trace holds, as compact columns: the type that the loader fills and all else reads.

Every column is int64: times are ns, -1 stands for an absent id.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from prunescope.analysis.ops.work import OpCall
from prunescope.analysis.trace.collect import COLUMNS, Ints
from prunescope.analysis.trace.reader import Source


def _no_spans() -> dict[str, Ints]:
    return {name: np.empty(0, np.int64) for name in COLUMNS["frame"]}


@dataclass
class Trace:
    """One trace. Every `dict` maps a column name to an int64 array; -1 stands for an absent id.

    `names`: the interned strings; `calls`: the distinct op calls, decoded; `device`: kernel, memcpy
    and memset events; `launches`: runtime calls; `ops`: host ops; `annotations`: NVTX ranges,
    record_function and modules;
    `frames`: frames of Python of 0.1 ms or more; `other_calls`: runtime
    calls without a correlation id.
    `dropped`: events without a time that can be, `kernels_dropped` of them on the device; `twice`:
    device events (of a CPU trace: ops) that stood in the file more than once; `stacks`: calls of
    Python functions that were recorded, short ones too; `caveats`: what else
    is odd about its times.
    """

    source: Source
    names: list[str]
    calls: list[OpCall]
    device: dict[str, Ints]
    launches: dict[str, Ints]
    ops: dict[str, Ints]
    annotations: dict[str, Ints]
    grids: list[tuple[int, ...]]
    dropped: int = 0
    kernels_dropped: int = 0
    twice: int = 0
    stacks: int = 0
    caveats: list[str] = field(default_factory=list)
    frames: dict[str, Ints] = field(default_factory=_no_spans)
    other_calls: dict[str, Ints] = field(default_factory=_no_spans)

    @property
    def on_device(self) -> bool:
        """Whether the trace holds device events: else its host ops are its kernels."""
        return len(self.device["ts"]) > 0

    @cached_property
    def launches_by_id(self) -> tuple[Ints, Ints]:
        """Correlation ids of the launches in order, and their rows; of equal ids the first, longest
        one before the others. Once the trace is loaded: its launches stay as they are."""
        ids = self.launches["correlation"]
        rows = np.lexsort((-self.launches["dur"], self.launches["ts"], ids))
        return ids[rows], rows

    def without_shapes(self) -> Trace:
        """The same, as if no shapes had been recorded."""
        return replace(self, calls=[OpCall(call.name, (), ()) for call in self.calls])

    @property
    def device_name(self) -> str | None:
        """The device that most device events ran on, as the profiler names it."""
        found = self._device()
        return None if found is None else str(found.get("name") or "") or None

    @property
    def device_properties(self) -> dict[str, Any]:
        """What the profiler says of the device that most device events ran on; empty: nothing."""
        return self._device() or {}

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
