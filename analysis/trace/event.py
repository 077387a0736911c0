"""The events of a Chrome trace as they are decoded: whole ones, and lean ones by category.

`Event` holds every field that prunescope reads. `LEAN` decodes a list of events of known categories
into structs that hold only the fields that become columns; it refuses any other list, which is then
decoded in full (a third to a half slower).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

import msgspec

# XPU, NPU and other backends of PyTorch write kernels as CUDA does; MTIA and HPU have categories of
# their own. With a capital: as profilers before PyTorch 1.12 wrote them.
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
    # What torch's annotations of graph kernels add to a kernel; raw, for others may use the names.
    module: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="module_fqn")
    label: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="name")
    label_legacy: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="str")
    # Arguments that torch writes on a collective, as they are.
    collective: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Collective name")
    sent: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="In msg nelems")
    received: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Out msg nelems")
    group: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Group size")
    dtype: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""))
    # Of a snapshot of memory (profile_memory), raw as well.
    allocated: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Total Allocated")
    reserved: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Total Reserved")
    device_type: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Device Type")
    task_type: Number = msgspec.field(default=None, name="Task Type")  # of an NPU


class Event(msgspec.Struct, gc=False):
    """One event; times in the file's microseconds. `id`: of a flow arrow."""

    ph: str = ""
    id: Number = None
    cat: str | None = None
    name: str = ""
    pid: Number = None
    tid: Number = None
    ts: int | Near | None = None
    dur: int | float | None = None
    args: Args | None = None


MEMORY = "cpu_instant_event"  # among others of no use
SNAPSHOT = "[memory]"  # the events of MEMORY that are read
OVERHEAD = "overhead"  # work of the profiler and the driver, not of the program
# How a graph that was recorded as one interval is called, before its number.
WHOLE_GRAPH = "CUDA graph "
# Arrows and spans that become no column: most events of many traces.
SKIPPED = ("ac2g", "fwdbwd", "gpu_user_annotation", "Trace")


def _fields(of: type[msgspec.Struct], names: Sequence[str]) -> list[tuple[str, Any, Any]]:
    """The named fields of a struct, with their types and defaults."""
    known = {one.name: one for one in msgspec.structs.fields(of)}
    return [
        (name, one.type, msgspec.field(default=one.default, name=one.encode_name))
        for name, one in ((name, known[name]) for name in names)
    ]


def _args(of: str, names: Sequence[str]) -> Any:
    """A struct for the arguments that are read of one kind of events."""
    return msgspec.defstruct(f"Args_{of}", _fields(Args, names), gc=False)


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
    """Arguments of a snapshot of memory whose sizes are numbers of bytes."""

    allocated: Size | None = msgspec.field(default=None, name="Total Allocated")
    reserved: Size | None = msgspec.field(default=None, name="Total Reserved")
    device_type: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Device Type")


def _event(category: str, args: Any = None, ph: str = "X") -> Any:
    """A struct for the events of one category (`cat`); `args`: of the arguments that are read.
    `ph`: that of all of them, so that counters are none."""
    fields, known = [("ph", Literal[ph]), *_TIMED], {"cat": category}
    if args is None:
        return _tagged(category, fields, {**known, "args": None})
    return _tagged(category, [*fields, ("args", args | None, None)], known)


def _skipped(category: str) -> Any:
    """A struct for events that become no column: without fields, and with no category."""
    return _tagged(category, [], {"cat": None})


def _tagged(category: str, fields: list[Any], known: dict[str, Any]) -> Any:
    return msgspec.defstruct(
        f"Event_{category}", fields, namespace=known, gc=False, tag_field="cat", tag=category
    )


# The structs of LEAN by the category of their events.
LEAN_STRUCTS: dict[str, Any] = {
    **{category: _event(category, _DEVICE) for category in DEVICE_CATEGORIES},
    **{category: _event(category, _LAUNCH) for category in LAUNCH_CATEGORIES},
    **{category: _event(category, _OP) for category in OP_CATEGORIES},
    MEMORY: _event(MEMORY, _Snapshot, ph="i"),
    **{category: _event(category) for category in ("user_annotation", "python_function", OVERHEAD)},
    **{category: _skipped(category) for category in SKIPPED},
}
LEAN: msgspec.json.Decoder[Any] = msgspec.json.Decoder(
    list[reduce(or_, LEAN_STRUCTS.values())],  # type: ignore[misc]
    strict=True,
)
