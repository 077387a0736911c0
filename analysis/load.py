"""A Chrome trace as compact columns.

In: a file (see reader.py). Out: `Trace`: numpy columns of device events, launches, host ops and
marks, integer ns, strings and op calls interned. Numbers are rounded here and nowhere else: start
and duration each to the nearest ns of the decimal text, end = start + duration.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from analysis.reader import Args, Event, Source
from analysis.work import OpCall
from taxonomy.dtypes import dtype
from taxonomy.errors import PrunescopeError

Ints = NDArray[np.int64]

DEVICE_CATEGORIES = {"kernel": 0, "gpu_memcpy": 1, "gpu_memset": 2}
LAUNCH_CATEGORIES = ("cuda_runtime", "cuda_driver", "hip_runtime", "hip_driver", "xpu_runtime",
                     "privateuse1_runtime", "mtia_runtime")  # fmt: skip
MODULE = "nn.Module: "
_MAX_NAME = 1 << 14  # characters of a name that are kept
MAX_ROWS = 20_000_000  # events of one kind: 2 GB of columns
_MAX_US = 2_300_000_000_000_000  # 73 years: the ns between any two times fit 63 bits
NONE = -1  # an absent id in an integer column
_NO_TIME = -(1 << 63)
_RUN_CALL = re.compile(r"launch|memcpy|memset|enqueue|dispatch", re.IGNORECASE)


class Columns:
    """Growing integer columns of one kind of event: rows of a block, then one array a block."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.rows: list[tuple[int, ...]] = []
        self.blocks: list[Ints] = []
        self.count = 0

    def close_block(self) -> None:
        """Pack the rows of a block: eight bytes a value from here on."""
        if self.rows:
            self.blocks.append(np.array(self.rows, np.int64))
            self.count += len(self.rows)
            self.rows.clear()
        if self.count > MAX_ROWS:
            raise PrunescopeError(
                f"the trace holds more than {MAX_ROWS:,} events of one kind",
                hint="capture fewer steps: three say as much as a thousand",
            )

    def frozen(self) -> dict[str, Ints]:
        """The columns as numpy arrays, in the order of the file."""
        self.close_block()
        empty = np.empty((0, len(self.names)), np.int64)
        table = np.concatenate([empty, *self.blocks])
        return {name: table[:, i].copy() for i, name in enumerate(self.names)}


_DEVICE = ("ts", "dur", "name", "category", "correlation", "external", "stream", "device", "grid",
           "block", "registers", "shared_memory", "bytes", "node")  # fmt: skip
_LAUNCH = ("ts", "dur", "name", "correlation", "external", "thread", "kernel")
_OP = ("ts", "dur", "name", "external", "thread", "call")
_MARK = ("ts", "dur", "name", "thread", "module")


@dataclass
class Trace:
    """One trace. Every `dict` maps a column name to an int64 array; -1 stands for an absent id.

    `names`: the interned strings; `calls`: the distinct op calls, decoded; `device`: kernel, memcpy
    and memset events; `launches`: runtime calls; `ops`: host ops; `marks`: annotations and modules.
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

    @property
    def on_device(self) -> bool:
        """Whether the trace holds device events: else its host ops are its kernels."""
        return len(self.device["ts"]) > 0

    @property
    def device_name(self) -> str | None:
        """The device that most device events ran on, as the profiler names it."""
        found = self._device()
        return None if found is None else str(found.get("name") or "") or None

    def _device(self) -> dict[str, Any] | None:
        properties = self.source.meta.get("deviceProperties")
        known = (
            [p for p in properties or [] if isinstance(p, dict)]
            if isinstance(properties, list)
            else []
        )
        if not known:
            return None
        used = self.device["device"]
        used = used[used >= 0]
        ids, counts = np.unique(used, return_counts=True)
        main = int(ids[np.argmax(counts)]) if len(ids) else None
        return next((p for p in known if p.get("id") == main), known[0])


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
    collect = _Collector()
    try:
        for events in source.blocks():
            collect.add(events)
    except OSError as error:
        raise PrunescopeError(
            f"{path.name} cannot be read ({error.strerror or type(error).__name__})",
            hint="check the file and its permissions",
        ) from None
    trace = collect.trace(source)
    _refuse_unusable(trace)
    return trace


def _refuse_unusable(trace: Trace) -> None:
    source = trace.source
    kernels_missing = len(trace.launches["ts"]) > 0 or bool(source.meta.get("deviceProperties"))
    if source.cut and not trace.on_device and (kernels_missing or not len(trace.ops["ts"])):
        raise source.error("the file is cut off before any kernel", "copy the file again, whole")
    if not trace.on_device and not len(trace.ops["ts"]):
        lost = f" ({source.malformed + trace.dropped} malformed events were dropped)"
        raise source.error(
            "no device events and no host ops in the trace"
            + (lost if source.malformed + trace.dropped else ""),
            "capture with ProfilerActivity.CPU, and CUDA where there is a GPU",
        )


class _Collector:
    def __init__(self) -> None:
        self.device = Columns(_DEVICE)
        self.launches = Columns(_LAUNCH)
        self.ops = Columns(_OP)
        self.marks = Columns(_MARK)
        self.names: dict[str, int] = {}
        self.threads: dict[tuple[Any, Any], int] = {}
        self.calls: dict[tuple[str, bytes, bytes, bytes, bytes], int] = {}
        self.grids: dict[tuple[int, ...], int] = {}
        self.dropped = 0
        take: dict[str, Callable[[Event, int, int], None]] = {
            "cpu_op": self.op,
            "user_annotation": self.annotation,
            "python_function": self.python,
        }
        take.update(dict.fromkeys(DEVICE_CATEGORIES, self.kernel))
        take.update(dict.fromkeys(LAUNCH_CATEGORIES, self.launch))
        self.take = take

    def add(self, events: list[Event]) -> None:
        take = self.take
        starts = _nanoseconds([e.ts for e in events])
        lengths = _nanoseconds([e.dur for e in events])
        for event, ts, dur in zip(events, starts, lengths, strict=True):
            handler = take.get(event.cat or "")
            if handler is None or event.ph != "X":
                continue
            if event.cat == "python_function" and not event.name.startswith(MODULE):
                continue
            if ts == _NO_TIME or dur < 0:
                self.dropped += 1
                continue
            handler(event, ts, dur)
        for columns in (self.device, self.launches, self.ops, self.marks):
            columns.close_block()

    def name(self, text: str) -> int:
        if len(text) > _MAX_NAME:
            text = f"{text[:_MAX_NAME]}…"
        return self.names.setdefault(text, len(self.names))

    def thread(self, event: Event) -> int:
        return self.threads.setdefault((event.pid, event.tid), len(self.threads))

    def kernel(self, event: Event, ts: int, dur: int) -> None:
        args = event.args or Args()
        shape = (*(args.grid or ()),) if args.grid else ()
        block = (*(args.block or ()),) if args.block else ()
        row = (
            ts, dur, self.name(event.name), DEVICE_CATEGORIES[event.cat or ""],
            _id(args.correlation), _external(args), _id(args.stream), _id(args.device),
            self.grids.setdefault(shape, len(self.grids)) if shape else NONE,
            self.grids.setdefault(block, len(self.grids)) if block else NONE,
            _id(args.registers), _id(args.shared_memory), _id(args.bytes), _id(args.graph_node),
        )  # fmt: skip
        self.device.rows.append(row)

    def launch(self, event: Event, ts: int, dur: int) -> None:
        args = event.args
        if args is None or args.correlation is None:
            return
        kernel = self.name(args.kernel) if isinstance(args.kernel, str) else NONE
        row = (ts, dur, self.name(event.name), _id(args.correlation), _external(args),
               self.thread(event), kernel)  # fmt: skip
        self.launches.rows.append(row)

    def op(self, event: Event, ts: int, dur: int) -> None:
        args = event.args or Args()
        dims = bytes(args.dims) or bytes(args.dims_legacy)
        key = (event.name[:_MAX_NAME], dims, bytes(args.types), bytes(args.strides),
               bytes(args.concrete))  # fmt: skip
        call = self.calls.get(key)
        if call is None:
            call = self.calls[key] = len(self.calls)
        row = (ts, dur, self.name(event.name), _external(args), self.thread(event), call)
        self.ops.rows.append(row)

    def annotation(self, event: Event, ts: int, dur: int) -> None:
        self.mark(event, ts, dur, module=0)

    def python(self, event: Event, ts: int, dur: int) -> None:
        self.mark(event, ts, dur, module=1)

    def mark(self, event: Event, ts: int, dur: int, *, module: int) -> None:
        row = (ts, dur, self.name(event.name), self.thread(event), module)
        self.marks.rows.append(row)

    def trace(self, source: Source) -> Trace:
        return Trace(
            source=source,
            names=list(self.names),
            calls=_with_list_dtype([_decode_call(key) for key in self.calls]),
            device=self.device.frozen(),
            launches=self.launches.frozen(),
            ops=self.ops.frozen(),
            marks=self.marks.frozen(),
            grids=list(self.grids),
            dropped=self.dropped,
        )


def _nanoseconds(us: list[Any]) -> list[int]:
    """Nearest ns of times in us, _NO_TIME for what is none.

    The whole part and the rest apart: the doubles of both are exact up to 2^42 us, and the reader
    gives decimals beyond. Whatever is no number is no time.
    """
    if not set(map(type, us)) <= {int, float, type(None)}:
        return [_exact(t) for t in us]
    try:
        values = np.array(us, np.float64)  # None becomes NaN
    except OverflowError:  # a whole number that no double holds
        return [_exact(t) for t in us]
    with np.errstate(invalid="ignore"):
        good = np.abs(values) < _MAX_US
        whole = np.floor(np.where(good, values, 0.0))
        rest = np.rint((np.where(good, values, 0.0) - whole) * 1000)
        out = whole.astype(np.int64) * 1000 + rest.astype(np.int64)
    listed: list[int] = np.where(good, out, _NO_TIME).tolist()
    return listed


def _exact(us: Any) -> int:
    if type(us) not in (int, float, Decimal) or not -_MAX_US < us < _MAX_US:
        return _NO_TIME
    return int((Decimal(us) * 1000).to_integral_value())


def _id(value: Any) -> int:
    if value is None:
        return NONE
    if type(value) is int:
        return value if 0 <= value < 1 << 62 else NONE
    if isinstance(value, float):
        return int(value) if 0 <= value < 1 << 62 else NONE
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
        return int(value)
    return NONE


def _external(args: Args) -> int:
    return _id(args.external_id if args.external_id is not None else args.external_id_legacy)


def _decode_call(key: tuple[str, bytes, bytes, bytes, bytes]) -> OpCall:
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
