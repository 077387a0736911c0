"""Events by category, each with the fields that become columns: nothing else of them is made.

In: the categories of collect.py. Out: `LEAN`, the decoder of a list of events that are all of a
known category; it refuses any other list, which is then read in full (a third to a half slower).
"""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Any

import msgspec

from prunescope.analysis.trace.collect import DEVICE_CATEGORIES, LAUNCH_CATEGORIES, OP_CATEGORIES
from prunescope.analysis.trace.reader import Near, Number

# Arrows, counters and spans that become no column: most events of many traces.
SKIPPED = ("ac2g", "fwdbwd", "cpu_instant_event", "gpu_user_annotation", "overhead", "Trace")


class _Linked(msgspec.Struct, gc=False):
    external_id: Number = msgspec.field(default=None, name="External id")
    external_id_legacy: Number = msgspec.field(default=None, name="external id")


class _DeviceArgs(_Linked, gc=False):
    device: Number = None
    stream: Number = None
    correlation: Number = None
    registers: Number = msgspec.field(default=None, name="registers per thread")
    shared_memory: Number = msgspec.field(default=None, name="shared memory")
    grid: list[int] | None = None
    block: list[int] | None = None
    bytes: Number = None
    graph_node: Number = msgspec.field(default=None, name="graph node id")


class _LaunchArgs(_Linked, gc=False):
    correlation: Number = None
    kernel: str | int | float | None = None


class _OpArgs(_Linked, gc=False):
    concrete: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Concrete Inputs")
    types: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Input type")
    strides: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Input Strides")
    dims: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Input Dims")
    dims_legacy: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Input dims")
    sequence: Number = msgspec.field(default=None, name="Sequence number")


class _Timed(msgspec.Struct, gc=False):
    ph: str = ""
    name: str = ""
    pid: Number = None
    tid: Number = None
    ts: int | Near | None = None
    dur: int | float | None = None


class _Device(_Timed, gc=False):
    args: _DeviceArgs | None = None


class _Launch(_Timed, gc=False):
    args: _LaunchArgs | None = None


class _Op(_Timed, gc=False):
    args: _OpArgs | None = None


class _Skipped(msgspec.Struct, gc=False):
    """Its category is told as none, so that no table takes it."""


def _of(base: type[msgspec.Struct], category: str, **more: Any) -> Any:
    """`base` for the events of one category, which each of them tells as its `cat`."""
    return msgspec.defstruct(
        f"{base.__name__}_{category}",
        [],
        bases=(base,),
        namespace={"cat": category} | more,
        gc=False,
        tag_field="cat",
        tag=category,
    )


_KINDS = [
    *(_of(_Device, category) for category in DEVICE_CATEGORIES),
    *(_of(_Launch, category) for category in LAUNCH_CATEGORIES),
    *(_of(_Op, category) for category in OP_CATEGORIES),
    *(_of(_Timed, category, args=None) for category in ("user_annotation", "python_function")),
    *(_of(_Skipped, category, cat=None) for category in SKIPPED),
]
_EVENT: Any = reduce(or_, _KINDS)
LEAN: msgspec.json.Decoder[Any] = msgspec.json.Decoder(list[_EVENT], strict=True)
