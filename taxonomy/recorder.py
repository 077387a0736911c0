"""The recorder of a trace, and how to make it record what a trace lacks.

In: the metadata of a trace. Out: a `Recorder`, whose texts are parts of sentences on what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

PROFILER, NSYS = "profiler", "Nsight Systems"  # a key and its value in the metadata


class Recorder(Struct, frozen=True):
    """How to record shapes, modules, both, warm steps only, the host, and kernels."""

    shapes: str
    modules: str
    both: str
    warm: str
    host: str
    device: str


_STACKS = "with_stack=True"
_TORCH = Recorder(
    shapes="profile(..., record_shapes=True)",
    modules=f"profile(..., {_STACKS})",
    both=f"profile(..., record_shapes=True, {_STACKS})",
    warm="torch.profiler.schedule with wait and warmup",
    host=f"capture again with {_STACKS}, which names the calls of Python there",
    device="ProfilerActivity.CUDA",
)
_RANGES = "NVTX ranges that are called as the modules are (layer hooks of an engine)"
_OF_NSYS = Recorder(
    shapes="torch.autograd.profiler.emit_nvtx(record_shapes=True)",
    modules=_RANGES,
    both=f"emit_nvtx(record_shapes=True) and {_RANGES}",
    warm="nsys profile --capture-range cudaProfilerApi",
    host="put NVTX ranges around what the host does there",
    device="nsys profile --trace cuda",
)


def recorder_of(meta: Mapping[str, Any]) -> Recorder:
    """Return the recorder of a trace with such metadata."""
    return recorder_called(meta.get(PROFILER))


def recorder_called(name: Any) -> Recorder:
    """Return a recorder by its name in the metadata; torch's for any other name."""
    return _OF_NSYS if name == NSYS else _TORCH
