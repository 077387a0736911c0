"""Edits of a real device trace with known truth, in whole ns. No test in it.

In: a trace of one step on one stream. `Edit` copies it; every method changes it and returns what
it did to the device's time. Device and host clocks are moved apart: an edit of kernels leaves the
host's times, and so every launch, where they were.
"""

from __future__ import annotations

import gzip
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

Event = dict[str, Any]
DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
LAUNCHES = ("cuda_runtime", "cuda_driver")


@lru_cache(maxsize=2)
def _read(path: Path) -> str:
    """The trace as JSON with times in whole ns, from their decimal text."""
    trace: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()), parse_float=Decimal)
    trace["traceEvents"] = [e for e in trace["traceEvents"] if _is_read(e)]
    for event in trace["traceEvents"]:
        for key in ("ts", "dur"):
            event[key] = int((event[key] * 1000).to_integral_value())
    return json.dumps(trace, default=float)


def _is_read(event: Event) -> bool:
    """Not flow events, counters and Python functions, which say nothing here and cost time."""
    python = event.get("cat") == "python_function" and not event["name"].startswith("nn.Module")
    return event.get("ph") == "X" and not python


@dataclass(frozen=True)
class Change:
    """A device event whose duration changed, ns, and the op behind it (None where unknown)."""

    event: Event
    op: Event | None
    before: int
    after: int


class Edit:
    """The trace at `path`, to be edited. `events` hold `ts` and `dur` in whole ns."""

    def __init__(self, path: Path) -> None:
        self.trace: dict[str, Any] = json.loads(_read(path))
        self.events: list[Event] = self.trace["traceEvents"]
        launches = [e for e in self.events if e.get("cat") in LAUNCHES and "args" in e]
        self.launch = {e["args"].get("correlation"): e for e in launches}
        self.op = {e["args"]["External id"]: e for e in self.events if e.get("cat") == "cpu_op"}
        self.device = [e for e in self.events
                       if e.get("cat") in DEVICE and self.launch_of(e) is not None]  # fmt: skip
        self.device.sort(key=lambda e: (e["ts"], -e["dur"]))
        self.ids = 10**7

    def launch_of(self, event: Event) -> Event | None:
        return self.launch.get(event["args"].get("correlation"))

    def op_of(self, event: Event) -> Event | None:
        launch = self.launch_of(event)
        return None if launch is None else self.op.get(launch["args"].get("External id"))

    def modules(self, prefix: str) -> list[Event]:
        """The calls of modules of a class, in time order."""
        name = f"nn.Module: {prefix}"
        found = [e for e in self.events if e["name"].startswith(name)]
        return sorted(found, key=lambda e: e["ts"])

    def inside(self, spans: Iterable[Event]) -> list[Event]:
        """Device events that were launched inside of host events."""
        spans = sorted(spans, key=lambda e: e["ts"])
        starts = [s["ts"] for s in spans]
        out = []
        for event in self.device:
            launch = self.launch_of(event)
            at = bisect_right(starts, launch["ts"]) - 1 if launch else -1
            if launch and at >= 0 and launch["ts"] < starts[at] + spans[at]["dur"]:
                out.append(event)
        return out

    def gaps(self) -> dict[int, int]:
        """Idle ns before each linked device event, by id(event); 0 before the first."""
        out, end = {}, self.device[0]["ts"]
        for event in self.device:
            out[id(event)] = max(0, event["ts"] - end)
            end = max(end, event["ts"] + event["dur"])
        return out

    def busy(self, events: Iterable[Event] | None = None) -> int:
        """ns of linked device events (they do not overlap)."""
        return sum(e["dur"] for e in (self.device if events is None else events))

    def wall(self) -> int:
        """From the first linked device event to the end of the last one."""
        return max(e["ts"] + e["dur"] for e in self.device) - self.device[0]["ts"]

    def _move(self, pushes: dict[int, int]) -> None:
        """Every linked event moves by the pushes of all before it and its own (`id` → ns)."""
        total = 0
        for event in self.device:
            total += pushes.get(id(event), 0)
            event["ts"] += total

    def drop_layers(self, which: Iterable[int]) -> list[Event]:
        """Layers without a trace: their device events with the gaps before, ops and modules."""
        layers = self.modules("Qwen2DecoderLayer_")
        spans = [layers[i] for i in which]
        return self.drop(spans)

    def drop(self, spans: list[Event]) -> list[Event]:
        """Everything that was launched or called inside of host events."""
        gone = self.inside(spans)
        gap, ids = self.gaps(), {id(e) for e in gone}
        pushes: dict[int, int] = {}
        debt = 0
        for event in self.device:
            if id(event) in ids:
                debt -= event["dur"] + gap[id(event)]
            elif debt:
                pushes[id(event)], debt = debt, 0
        ids_of_launches = {e["args"]["correlation"] for e in gone}
        self.device = [e for e in self.device if id(e) not in ids]
        self._move(pushes)

        def inner(e: Event) -> bool:
            return any(
                s["ts"] <= e["ts"] and e["ts"] + e["dur"] <= s["ts"] + s["dur"] for s in spans
            )

        host = ("cpu_op", "python_function", "user_annotation")
        self.events[:] = [
            e for e in self.events
            if id(e) not in ids and e.get("args", {}).get("correlation") not in ids_of_launches
            and not (e.get("cat") in host and inner(e))
        ]  # fmt: skip
        return gone

    def resize(self, pick: Callable[[Event], bool], ns: Callable[[Event], int]) -> list[Change]:
        """Device events that `pick` holds for last `ns(event)`; what follows moves with them."""
        out, pushes, debt = [], {}, 0
        for event in self.device:
            if debt:
                pushes[id(event)], debt = debt, 0
            if pick(event):
                after = ns(event)
                out.append(Change(event, self.op_of(event), event["dur"], after))
                debt = after - event["dur"]
        self._move(pushes)
        for change in out:
            change.event["dur"] = change.after
        return out

    def widen(self, events: Iterable[Event], ns: int) -> int:
        """More idle time before events; returns all of it."""
        ids = {id(e): ns for e in events}
        self._move(ids)
        return ns * len(ids)

    def insert(self, after: list[Event], *, ns: int, gap: int, kernel: str, op: str, dims: Any,
               types: list[str]) -> None:  # fmt: skip
        """Behind each of `after`: `gap` idle ns, then a kernel of a new op launched beside it."""
        ids = {id(e) for e in after}
        pushes, debt = {}, 0
        for event in self.device:
            if debt:
                pushes[id(event)], debt = debt, 0
            if id(event) in ids:
                debt = gap + ns
        self._move(pushes)
        for event in after:
            self.ids += 1
            launch = self.launch_of(event)
            assert launch is not None
            at = launch["ts"] + launch["dur"]
            link = {"correlation": self.ids, "External id": self.ids}
            new_op = {"ph": "X", "cat": "cpu_op", "name": op, "pid": launch["pid"],
                      "tid": launch["tid"], "ts": at + 10, "dur": 300,
                      "args": {"External id": self.ids, "Input Dims": dims,
                               "Input type": types}}  # fmt: skip
            new_launch = {**launch, "ts": at + 50, "dur": 100, "args": {**launch["args"], **link}}
            kernel_event = {**event, "name": kernel, "ts": event["ts"] + event["dur"] + gap,
                            "dur": ns, "args": {**event["args"], **link}}  # fmt: skip
            self.events += [new_op, new_launch, kernel_event]
            self.launch[self.ids], self.op[self.ids] = new_launch, new_op
        self.device = sorted(
            (e for e in self.events if e.get("cat") in DEVICE and self.launch_of(e) is not None),
            key=lambda e: (e["ts"], -e["dur"]),
        )

    def reshape(self, change: Callable[[Event], Any]) -> list[Event]:
        """Ops for which `change(op)` gives new Input Dims take them; returns those ops."""
        out = []
        for op in self.op.values():
            dims = change(op)
            if dims is not None and dims != op["args"].get("Input Dims"):
                op["args"]["Input Dims"] = dims
                op["args"].pop("Input Strides", None)
                out.append(op)
        return out

    def renumber(self) -> None:
        """Modules counted anew within each class, as in a model that was really pruned."""
        seen: dict[str, dict[str, int]] = {}
        for event in self.modules(""):
            cls, number = event["name"].rsplit("_", 1)
            numbers = seen.setdefault(cls, {})
            event["name"] = f"{cls}_{numbers.setdefault(number, len(numbers))}"

    def strip_modules(self) -> None:
        """No nn.Module events: roles must come from order and shape."""
        self.events[:] = [e for e in self.events if not e["name"].startswith("nn.Module")]

    def save(self, path: Path) -> Path:
        """Writes the trace, times as us with three decimals."""
        events = [{**e, "ts": e["ts"] / 1000, "dur": e["dur"] / 1000} for e in self.events]
        path.write_text(json.dumps({**self.trace, "traceEvents": events}))
        return path


def replaced(dims: Any, old: int, new: int) -> Any:
    """Dims with every dimension `old` as `new`."""
    if isinstance(dims, list):
        return [replaced(d, old, new) for d in dims]
    return new if dims == old else dims
