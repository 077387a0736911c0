"""Events by category, each with the fields that become columns: nothing else of them is made.

In: the categories of collect.py, the fields of reader.py. Out: `LEAN`, the decoder of a list of
events that are all of a known category; it refuses any other list, which is then read in full (a
third to a half slower).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Any

import msgspec

from prunescope.analysis.trace.collect import DEVICE_CATEGORIES, LAUNCH_CATEGORIES, OP_CATEGORIES
from prunescope.analysis.trace.reader import Args, Event

# Arrows, counters and spans that become no column: most events of many traces.
SKIPPED = ("ac2g", "fwdbwd", "cpu_instant_event", "gpu_user_annotation", "overhead", "Trace")
_TIMED = ("ph", "name", "pid", "tid", "ts", "dur")
_LINKED = ("external_id", "external_id_legacy")
_DEVICE = (*_LINKED, "correlation", "stream", "device", "grid", "block", "registers",
           "shared_memory", "bytes", "graph_node")  # fmt: skip
_LAUNCH = (*_LINKED, "correlation", "kernel")
_OP = (*_LINKED, "dims", "dims_legacy", "types", "strides", "concrete", "sequence")


def _fields(of: type[msgspec.Struct], names: Sequence[str]) -> list[tuple[str, Any, Any]]:
    """The named fields of a struct, as they are there."""
    known = {one.name: one for one in msgspec.structs.fields(of)}
    return [
        (name, one.type, msgspec.field(default=one.default, name=one.encode_name))
        for name, one in ((name, known[name]) for name in names)
    ]


def _event(category: str, args: Sequence[str] | None = None) -> Any:
    """The events of one category, which each of them tells as its `cat`; `args`: those read."""
    fields, known = _fields(Event, _TIMED), {"cat": category, "args": None}
    if args is not None:
        kind = msgspec.defstruct(f"Args_{category}", _fields(Args, args), gc=False)
        fields.append(("args", kind | None, None))
        del known["args"]
    return _tagged(category, fields, known)


def _skipped(category: str) -> Any:
    """Events that no table takes: their category is told as none, and nothing else of them."""
    return _tagged(category, [], {"cat": None})


def _tagged(category: str, fields: list[tuple[str, Any, Any]], known: dict[str, Any]) -> Any:
    return msgspec.defstruct(
        f"Event_{category}", fields, namespace=known, gc=False, tag_field="cat", tag=category
    )


_EVENT: Any = reduce(
    or_,
    [
        *(_event(category, _DEVICE) for category in DEVICE_CATEGORIES),
        *(_event(category, _LAUNCH) for category in LAUNCH_CATEGORIES),
        *(_event(category, _OP) for category in OP_CATEGORIES),
        *(_event(category) for category in ("user_annotation", "python_function")),
        *(_skipped(category) for category in SKIPPED),
    ],
)
LEAN: msgspec.json.Decoder[Any] = msgspec.json.Decoder(list[_EVENT], strict=True)
