"""A device that `prunescope calibrate` measured: the times of a CPU by the size of an op.

A name gives a Device: "cpu" is this machine as it was calibrated last, a path is a file that
`calibrate --out` wrote, and every other name is one of the device table. Between measured sizes the
logarithm of a GEMM's time is linear in those of M, N and K; beyond them its rate stays.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunescope.analysis.device.hardware import Device, find_device
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import decode_file
from prunescope.taxonomy.kept_calibrations import newest_calibration
from prunescope.taxonomy.processor import cpu_name
from prunescope.taxonomy.runs.run_blocks import CalibratedDevice, GemmGrid, StreamTimes

CPU = "cpu"
_HINT = "measure it: prunescope calibrate"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TimesBySize:
    """The measured times of a CPU: of GEMMs by dtype, of element-wise ops, and of any op's call.

    `call_ns` is that of a small op called in a loop, `op_ns` that of an op in the modules of a
    model, with the Python around it, and `forward_ns` what a forward takes beyond its layers.
    `threads` are those of the measurement. Two objects are equal if they are the same one.
    """

    gemms: Mapping[str, GemmGrid]
    streams: StreamTimes
    call_ns: float
    op_ns: float
    forward_ns: float
    threads: int | None

    def gemm_ns(self, dtype: str, *, m: float, n: float, k: float) -> float | None:
        """Return the ns of a GEMM whose weight is in the last cache, if that holds it.

        The call of its op is not part of it. None for a dtype that was not measured.
        """
        grid = self.gemms.get(dtype)
        return None if grid is None else max(0.0, _interpolate(grid, (m, n, k)) - self.call_ns)

    def cold_weight_ns(self, dtype: str) -> float:
        """Return the ns for each number of a weight that a GEMM reads from memory.

        It is that of the largest weight with the fewest rows, which no cache of most machines
        holds. 0 for a dtype that was not measured.
        """
        grid = self.gemms.get(dtype)
        if grid is None:
            return 0.0
        n, k = grid.n[-1], grid.k[-1]
        return _interpolate(grid, (grid.m[0], n, k)) / (n * k)

    def stream_ns(self, size: float) -> float:
        """Return the ns of an element-wise op that reads and writes `size` bytes in all.

        It is what the measured time of this size is above that of the smallest: the call of the op
        is not part of it.
        """
        sizes, ns = self.streams.bytes, self.streams.ns
        return max(0.0, _linear(sizes, ns, size) - ns[0])


def named_device(name: str) -> Device:
    """Return the device of a name: "cpu", a file of `calibrate --out`, or one of the table.

    Raises:
        PrunescopeError: No device has this name, this machine was not calibrated, or the file is
            no calibration.
    """
    if name.strip().lower() == CPU:
        kept = newest_calibration(cpu_name())
        if kept is None:
            raise PrunescopeError("no calibration of this machine is kept", hint=_HINT)
        return calibrated_device(kept)
    path = Path(name)
    if path.suffix != ".json":
        return find_device(name)
    entry = decode_file(path, CalibratedDevice, where=path.name, hint=f"{_HINT} --out {path.name}")
    if entry is None:
        raise PrunescopeError(f"there is no file {path.name}", hint=f"{_HINT} --out {path.name}")
    return calibrated_device(entry)


def calibrated_device(entry: CalibratedDevice) -> Device:
    """Return the device of a calibration, with its times by size where it has them.

    Raises:
        PrunescopeError: It has no peak.
    """
    if not entry.dense_flop_per_s or not entry.byte_per_s:
        raise PrunescopeError("the calibration has no peaks", hint=_HINT)
    times = times_by_size(entry)
    return Device(
        name=entry.name or "unnamed",
        aliases=tuple(entry.aliases),
        vendor=entry.vendor,
        architecture=None if times is None else "cpu",
        dense_flop_per_s=dict(entry.dense_flop_per_s),
        byte_per_s=entry.byte_per_s,
        sm=None,
        llc_bytes=entry.l2_bytes,  # `calibrate` keeps the last level
        source=entry.source,
        sparse_24=False,
        times=times,
    )


def times_by_size(entry: CalibratedDevice) -> TimesBySize | None:
    """Return the times of a calibration by size; None where it has none (a GPU, an old file)."""
    measured = entry.measured
    if measured is None or measured.streams is None or not measured.gemms:
        return None
    call_ns = float(measured.dispatch_ns or measured.streams.ns[0])
    return TimesBySize(
        gemms=measured.gemms,
        streams=measured.streams,
        call_ns=call_ns,
        op_ns=max(call_ns, float(measured.op_ns or 0)),
        forward_ns=float(measured.forward_ns or 0),
        threads=measured.threads,
    )


def _interpolate(grid: GemmGrid, size: tuple[float, float, float]) -> float:
    """Return the ns of a GEMM of M, N and K between the measured ones."""
    axes, beyond, corners = (grid.m, grid.n, grid.k), 1.0, [(0, 1.0)]
    for axis, value in zip(axes, size, strict=True):
        inside = min(max(value, axis[0]), axis[-1])
        beyond *= max(1.0, value / axis[-1])
        low, share = _between(axis, inside)
        corners = [
            (at * len(axis) + low + step, weight * part)
            for at, weight in corners
            for step, part in ((0, 1 - share), (1, share))
            if part
        ]
    return beyond * math.exp(sum(weight * math.log(grid.ns[at]) for at, weight in corners))


def _between(axis: Sequence[int], value: float) -> tuple[int, float]:
    """Return the place of the size below a value, and how far the value is to the next one.

    The distance is that of logarithms, from 0 to 1.
    """
    low = min(bisect_right(axis, value) - 1, len(axis) - 1)
    if low == len(axis) - 1:
        return low, 0.0
    return low, math.log(value / axis[low]) / math.log(axis[low + 1] / axis[low])


def _linear(sizes: Sequence[int], values: Sequence[int], size: float) -> float:
    """Return the value at a size between measured ones; beyond them it grows as the size does."""
    if size <= sizes[0]:
        return values[0]
    if size >= sizes[-1]:
        return values[-1] * size / sizes[-1]
    low = bisect_right(sizes, size) - 1
    share = (size - sizes[low]) / (sizes[low + 1] - sizes[low])
    return values[low] + share * (values[low + 1] - values[low])
