"""Builds small Chrome traces as torch.profiler writes them, for a GPU or a CPU.

In: nested calls, times in microseconds. Out: {"traceEvents": [...], ...}, for `save` to write.

    chrome(
        step(0, module("model.layers.0.mlp.up_proj",
                       op("aten::mm", [4, 5], [5, 6], dtype="c10::BFloat16", kernels=[k(us=7)])),
             gap(us=3)))

GPU: the device idles only where `gap` says so; the host runs ahead.
CPU: an op lasts `us`, or the sum of its kernels, beyond its children; scopes add nothing.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

HOST_NS, LAUNCH_NS = 10, 50  # what an op and a launch cost the host of a GPU trace
START_NS = 1_000_000_000
H100 = {
    "id": 0, "name": "NVIDIA H100 80GB HBM3", "computeMajor": 9, "computeMinor": 0, "numSms": 132,
    "maxThreadsPerBlock": 1024, "maxThreadsPerMultiprocessor": 2048, "warpSize": 32,
    "regsPerMultiprocessor": 65536, "sharedMemPerMultiprocessor": 233472,
    "sharedMemPerBlockOptin": 232448, "totalGlobalMem": 85018279936,
}  # fmt: skip
LAUNCHES = {"gpu_memset": "cudaMemsetAsync", "gpu_memcpy": "cudaMemcpyAsync"}


class Kernel(NamedTuple):
    ns: int
    name: str
    gap_ns: int
    cat: str
    stream: int
    args: dict[str, Any]


class Gap(NamedTuple):
    ns: int
    launch: bool


class Scope(NamedTuple):
    name: str
    items: tuple[Any, ...]


class Op(NamedTuple):
    name: str
    args: dict[str, Any]
    kernels: tuple[Kernel, ...]
    items: tuple[Any, ...]
    own_ns: int


def k(
    *, us: float, name: str = "a_kernel", gap_us: float = 0, cat: str = "kernel", stream: int = 7,
    grid: Sequence[int] = (1, 1, 1), block: Sequence[int] = (128, 1, 1), registers: int = 32,
    shared: int = 0,
) -> Kernel:  # fmt: skip
    """A device event (`cat`: kernel, gpu_memset, gpu_memcpy); outside an op it has no launch.

    `gap_us` before it may be negative: it then overlaps what ran before.
    """
    size = {"registers per thread": registers, "shared memory": shared}
    args = {"grid": list(grid), "block": list(block), **size} if cat == "kernel" else {}
    return Kernel(_ns(us), name, _ns(gap_us), cat, stream, args)


def gap(*, us: float, launch: bool = False) -> Gap:
    """Idle device time. With `launch`, the host launches what follows after the device ran out of
    work."""
    return Gap(_ns(us), launch)


def op(
    name: str, *dims: list[Any], dtype: str = "float", dtypes: Sequence[str] | None = None,
    strides: Sequence[list[int]] | None = None, concrete: Sequence[str] | None = None,
    kernels: Iterable[Kernel] = (), inner: Iterable[Any] = (), us: float | None = None,
    sequence: int | None = None,
) -> Op:  # fmt: skip
    """A host op: one shape an input ([] for a scalar), the kernels it launches, the ops `inner`.
    `sequence`: its number in autograd, that of the node with its gradient."""
    shapes = [list(d) for d in dims]
    kernels = tuple(kernels)
    args: dict[str, Any] = {
        "Input Dims": shapes,
        "Input type": list(dtypes or (dtype if d else "Scalar" for d in shapes)),
        "Input Strides": [list(s) for s in strides or map(_contiguous, shapes)],
        "Concrete Inputs": list(concrete or ("" for _ in shapes)),
    }
    if sequence is not None:
        args["Sequence number"] = sequence
    own = sum(x.ns for x in kernels) if us is None else _ns(us)
    return Op(name, args, kernels, tuple(inner), own)


def module(path: str, *items: Any) -> Scope:
    """A user annotation: a module's path as the tracer's hooks record it; or ProfilerStep#3."""
    return Scope(path, items)


def step(index: int, *items: Any) -> Scope:
    return Scope(f"prunescope.step#{index}", items)


def chrome(*items: Any, cpu: bool = False, lead_us: float = 10.0) -> dict[str, Any]:
    """The trace of `items` in order. `lead_us`: host time before the first device event."""
    clock = _Clock(cpu=cpu, device=START_NS + (0 if cpu else _ns(lead_us)))
    for item in items:
        clock.put(item)
    return {
        "schemaVersion": 1, "deviceProperties": [] if cpu else [dict(H100)],
        "baseTimeNanoseconds": 0, "traceEvents": clock.events,
    }  # fmt: skip


def save(trace: dict[str, Any], path: Path) -> Path:
    """Write the trace; gzipped, without a time stamp, where the name ends in .gz."""
    data = json.dumps(trace).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def _contiguous(shape: list[Any]) -> list[int]:
    flat = all(isinstance(n, int) for n in shape)  # not so for a list of tensors
    return [math.prod(shape[i + 1 :]) for i in range(len(shape))] if flat else []


def _ns(us: float) -> int:
    return round(us * 1000)


@dataclass
class _Clock:
    """Two cursors, host and device (one and the same for a CPU), and the events so far."""

    cpu: bool
    device: int
    host: int = START_NS
    ids: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)

    def put(self, item: Any) -> None:
        if isinstance(item, Gap):
            self.host = self.host + item.ns if self.cpu else self.host
            self.host = max(self.host, self.device) if item.launch else self.host
            self.device += item.ns
        elif isinstance(item, Kernel):
            self._kernel(item, {})
        elif isinstance(item, Scope):
            self._host_event("user_annotation", item.name, {}, item.items)
        else:
            self._host_event("cpu_op", item.name, item.args, item.items, op=item)

    def _host_event(
        self,
        cat: str,
        name: str,
        args: dict[str, Any],
        items: tuple[Any, ...],
        op: Op | None = None,
    ) -> None:
        self.ids += 1
        ident, start = self.ids, self.host
        event = _event(cat, name, (1, 1), {"External id": ident, **args})
        self.events.append(event)  # parents first, where times are equal
        self.host += 0 if self.cpu or op is None else HOST_NS
        for item in items:
            self.put(item)
        if op is not None:
            self._work(op, ident)
        event["ts"], event["dur"] = start / 1000, (self.host - start) / 1000

    def _work(self, op: Op, ident: int) -> None:
        if self.cpu:
            self.host += op.own_ns
            return
        for kernel in op.kernels:
            self.ids += 1
            link = {"External id": ident, "correlation": self.ids}
            launch = _event(
                "cuda_runtime", LAUNCHES.get(kernel.cat, "cudaLaunchKernel"), (1, 1), link
            )
            launch["ts"], launch["dur"] = self.host / 1000, LAUNCH_NS / 1000
            self.events.append(launch)
            self.host += LAUNCH_NS
            self._kernel(kernel, link)

    def _kernel(self, kernel: Kernel, link: dict[str, int]) -> None:
        start = self.device + kernel.gap_ns
        args = {"device": 0, "context": 1, "stream": kernel.stream, **kernel.args, **link}
        event = _event(kernel.cat, kernel.name, (0, kernel.stream), args)
        event["ts"], event["dur"] = start / 1000, kernel.ns / 1000
        self.events.append(event)
        self.device = max(self.device, start + kernel.ns)


def _event(cat: str, name: str, where: tuple[int, int], args: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "pid": where[0], "tid": where[1], "args": args}
