"""The events of a Chrome trace as they are decoded: whole ones, and lean ones by category.

`Event` holds every field that prunescope reads. `LEAN` decodes a list of events of known categories
into structs that hold only the fields that become columns. It refuses any other list, which is then
decoded in full (a third to a half slower).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

import msgspec

# XPU, NPU and other backends of PyTorch write kernels as CUDA does; MTIA and HPU have categories of
# their own. Profilers before PyTorch 1.12 wrote the names with a capital.
DEVICE_CATEGORIES = {"kernel": 0, "gpu_memcpy": 1, "gpu_memset": 2,
                     "Kernel": 0, "Memcpy": 1, "Memset": 2,
                     "mtia_ccp_events": 0, "hpu_op": 0}  # fmt: skip
OP_CATEGORIES = ("cpu_op", "Operator")
LAUNCH_CATEGORIES = ("cuda_runtime", "cuda_driver", "hip_runtime", "hip_driver", "xpu_runtime",
                     "xpu_driver", "privateuse1_runtime", "privateuse1_driver", "mtia_runtime",
                     "Runtime")  # fmt: skip
# From 2^42 us on, a double no longer distinguishes all nanoseconds: read the decimal text instead.
EXACT_FROM_US = float(1 << 42)

Number = int | float | str | None
Size = Annotated[int, msgspec.Meta(ge=0, lt=10**18)]
Near = Annotated[float, msgspec.Meta(gt=-EXACT_FROM_US, lt=EXACT_FROM_US)]


class Args(msgspec.Struct, gc=False):
    """The arguments that prunescope reads; every other one is skipped while decoding."""

    correlation: Number = None
    external_id: Number = msgspec.field(default=None, name="External id")
    external_id_legacy: Number = msgspec.field(default=None, name="external id")
    stream: Number = None
    device: Number = None
    dims: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Input Dims")
    dims_legacy: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Input dims")
    types: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Input type")
    strides: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Input Strides")
    concrete: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Concrete Inputs")
    sequence: Number = msgspec.field(default=None, name="Sequence number")
    grid: list[int] | None = None
    block: list[int] | None = None
    registers: Number = msgspec.field(default=None, name="registers per thread")
    shared_memory: Number = msgspec.field(default=None, name="shared memory")
    bytes: Number = None
    kernel: str | int | float | None = None  # ROCm names the kernel at its launch
    graph_node: Number = msgspec.field(default=None, name="graph node id")
    # What torch's annotations of graph kernels add to a kernel; raw, as others may use the names.
    module: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="module_fqn")
    label: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="name")
    label_legacy: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="str")
    # Arguments that torch writes on a collective; undecoded.
    collective: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Collective name")
    sent: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="In msg nelems")
    received: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Out msg nelems")
    group: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Group size")
    dtype: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""))
    # Arguments of a snapshot of memory (profile_memory); undecoded.
    allocated: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Total Allocated")
    reserved: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Total Reserved")
    device_type: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Device Type")
    task_type: Number = msgspec.field(default=None, name="Task Type")  # of an NPU


class Event(msgspec.Struct, gc=False):
    """One event, with times in the unit of the file (µs); `id` is that of a flow event."""

    ph: str = ""
    id: Number = None
    cat: str | None = None
    name: str = ""
    pid: Number = None
    tid: Number = None
    ts: int | Near | None = None
    dur: int | float | None = None
    args: Args | None = None


MEMORY = "cpu_instant_event"  # a category with other events too, which are not read
SNAPSHOT = "[memory]"  # the events of MEMORY that are read
OVERHEAD = "overhead"  # work of the profiler and the driver, not of the program
# The name of a graph that was recorded as one interval, before its number.
WHOLE_GRAPH = "CUDA graph "
# Arrows and spans that become no column: most events of many traces.
SKIPPED = ("ac2g", "fwdbwd", "gpu_user_annotation", "Trace")


# Events on the streams of a device that are no work: they wait, mark or sample.
_NO_WORK = (*SKIPPED, "cuda_sync", "cuda_event", "gpu_pm_counter", "cuda_profiler_range")


def is_unread(event: Event) -> bool:
    """Return whether an event of an unknown category runs on a stream of a device.

    It may be work that is not read, and is counted.
    """
    if event.ph != "X" or event.cat is None or event.cat in _NO_WORK or event.args is None:
        return False
    return event.args.stream is not None and event.args.device is not None


def decode_json(raw: bytes | str) -> Any:
    """Decode JSON; None where it is empty or invalid."""
    try:
        return msgspec.json.decode(raw) if raw else None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def _fields(struct: type[msgspec.Struct], names: Sequence[str]) -> list[tuple[str, Any, Any]]:
    """Return the named fields of a struct, with their types and defaults."""
    fields = {field.name: field for field in msgspec.structs.fields(struct)}
    return [
        (field.name, field.type, msgspec.field(default=field.default, name=field.encode_name))
        for field in map(fields.__getitem__, names)
    ]


def _args(kind: str, names: Sequence[str]) -> Any:
    """Make a struct for the arguments that are read of one kind of event."""
    return msgspec.defstruct(f"Args_{kind}", _fields(Args, names), gc=False)


_TIMED = _fields(Event, ("name", "pid", "tid", "ts", "dur"))
_LINKED = ("external_id", "external_id_legacy")
_OF_DEVICE = (*_LINKED, "correlation", "stream", "device", "grid", "block", "registers",
              "shared_memory", "bytes", "graph_node", "module", "label", "label_legacy",
              "collective", "sent", "received", "group", "dtype")  # fmt: skip
_OF_OP = (*_LINKED, "dims", "dims_legacy", "types", "strides", "concrete", "sequence")
_DEVICE = _args("device", _OF_DEVICE)
_LAUNCH = _args("launch", (*_LINKED, "correlation", "kernel"))
_OP = _args("op", _OF_OP)


class _Snapshot(msgspec.Struct, gc=False):
    """The arguments of a snapshot of memory, whose sizes are numbers of bytes."""

    allocated: Size | None = msgspec.field(default=None, name="Total Allocated")
    reserved: Size | None = msgspec.field(default=None, name="Total Reserved")
    device_type: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Device Type")


def _event(category: str, args: Any = None, ph: str = "X") -> Any:
    """Make a struct for the events of one category.

    `args` is the struct of the arguments that are read; None skips them. `ph` is the phase that all
    of the events have, so that counters of the same category are refused.
    """
    fields, constants = [("ph", Literal[ph]), *_TIMED], {"cat": category}
    if args is None:
        return _tagged(category, fields, {**constants, "args": None})
    return _tagged(category, [*fields, ("args", args | None, None)], constants)


def _tagged(category: str, fields: list[Any], constants: dict[str, Any]) -> Any:
    """Make a struct that decodes only events of a category; `constants` are class attributes."""
    return msgspec.defstruct(
        f"Event_{category}", fields, namespace=constants, gc=False, tag_field="cat", tag=category
    )


# The structs of LEAN by the category of their events.
LEAN_STRUCTS: dict[str, Any] = {
    **{category: _event(category, _DEVICE) for category in DEVICE_CATEGORIES},
    **{category: _event(category, _LAUNCH) for category in LAUNCH_CATEGORIES},
    **{category: _event(category, _OP) for category in OP_CATEGORIES},
    MEMORY: _event(MEMORY, _Snapshot, ph="i"),
    **{category: _event(category) for category in ("user_annotation", "python_function", OVERHEAD)},
    **{category: _tagged(category, [], {"cat": None}) for category in SKIPPED},
}
LEAN: msgspec.json.Decoder[Any] = msgspec.json.Decoder(
    list[reduce(or_, LEAN_STRUCTS.values())],  # type: ignore[misc]
    strict=True,
)
