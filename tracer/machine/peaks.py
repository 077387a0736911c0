"""Measurement of a device's peaks: GEMMs, a read from memory, and the shortest time of a kernel.

Results are FLOP/s by dtype, bytes/s and ns, and take seconds. A rate is the best over shapes of the
median over repeats, so that neither one large GEMM nor one lucky repeat is the peak.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence

import torch

from prunescope.taxonomy.dtypes import ITEMSIZE
from prunescope.taxonomy.formats import changed
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.runs.run_blocks import GemmTime, MeasuredPeaks, MeasuredRates
from prunescope.tracer.machine.backends import backend_of
from prunescope.tracer.machine.device import free_bytes, last_cache_bytes, synchronize
from prunescope.tracer.machine.disturbance import watched
from prunescope.tracer.machine.timed_calls import TORCH_DTYPES, operands, product, times_ns

STATISTIC = "best over shapes of the median over repeats"
# M, N and K of square GEMMs and of a prefill's; the best size differs between devices.
_CPU_SHAPES = ((512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048), (512, 4096, 1024))
_GPU_SHAPES = (
    (2048, 2048, 2048),
    (4096, 4096, 4096),
    (8192, 8192, 8192),
    (8192, 4096, 4096),
    (16384, 4096, 4096),
    (4096, 14336, 4096),
)
_REPEATS = 7
_TURNS, _FASTER = 3, 0.9
# An idle GPU runs at a fraction of its clock: it computes this long before the measurement.
_WAKE_S = 0.2
_WAKE_WIDTH = 4096
# On a GPU a read must be long compared to the few microseconds of its launch.
_LEAST_READ = {"cpu": 256 << 20, "gpu": 2 << 30}


def measure_peaks(
    device: torch.device,
    dtype: str,
    known: MeasuredPeaks | None = None,
    *,
    budget_s: float = 3.5,
) -> MeasuredPeaks:
    """Measure the peaks of a device, and measure them again if something disturbed them.

    A disturbance can only lower a peak, so that the better of two disturbed measurements counts.

    Args:
        device: The device to measure.
        dtype: The number format of the weights, such as "bf16". fp32 is measured too.
        known: An earlier measurement of this device: of each dtype only the shape that was best
            then is measured, as a peak is that of its best shape. None measures all shapes.
        budget_s: The seconds of one measurement. Shapes that do not fit into them are left out.

    Returns:
        The peaks, with the reasons of a disturbance that remained.
    """
    first, reasons = _watched(device, dtype, known, budget_s)
    if not reasons:
        return first
    second, second_reasons = _watched(device, dtype, known, budget_s)
    return better_peaks(
        changed(first, disturbed=reasons), changed(second, disturbed=second_reasons)
    )


def faster_dtype(device: torch.device, dtype: str, alternative: str) -> str:
    """Return `alternative` if a product in it is clearly faster, else `dtype`.

    It is clearly faster if it takes less than nine tenths of the time. (A processor without bf16
    emulates it at a quarter of its fp32 rate.) The product is of size 512. Its time is the minimum
    over three turns of up to seven calls each, because other work can only add to it.
    """
    square = torch.randn(512, 512, device=device)
    least: dict[str, float] = {}
    for _ in range(_TURNS):
        for name in (dtype, alternative):
            a = square.to(TORCH_DTYPES[name])
            times = times_ns(
                product(a, a), device, deadline=time.perf_counter() + 0.5, most=_REPEATS
            )
            least[name] = min([*times, *_known(least.get(name))])
    return alternative if least[alternative] < _FASTER * least[dtype] else dtype


def better_peaks(first: MeasuredPeaks, second: MeasuredPeaks) -> MeasuredPeaks:
    """Combine two measurements of one device: the higher rates and the lower kernel floor.

    A disturbance only lowers a rate: if one measurement was undisturbed, so is the result.
    Otherwise the result has the reasons of those measurements that gave a better rate.
    """
    rates = {**first.dense_flop_per_s}
    for dtype, rate in second.dense_flop_per_s.items():
        rates[dtype] = max(rate, rates.get(dtype, 0.0))
    better = [a for a, b in ((first, second), (second, first)) if _is_better(a, b)] or [first]
    reasons = dict.fromkeys(why for a in better for why in a.disturbed)
    return changed(
        first,
        dense_flop_per_s=rates,
        byte_per_s=max(_known(first.byte_per_s, second.byte_per_s)),
        kernel_floor_ns=min(_known(first.kernel_floor_ns, second.kernel_floor_ns), default=None),
        gemm_sweep=[*first.gemm_sweep, *second.gemm_sweep],
        seconds=round(sum(_known(first.seconds, second.seconds)), 3),
        disturbed=list(reasons) if first.disturbed and second.disturbed else [],
    )


def rates_of(peaks: MeasuredPeaks) -> MeasuredRates:
    """Return the rates of a measurement that are stored next to those of the better one."""
    return MeasuredRates(
        dense_flop_per_s=peaks.dense_flop_per_s,
        byte_per_s=peaks.byte_per_s,
        disturbed=peaks.disturbed,
    )


def _is_better(first: MeasuredPeaks, second: MeasuredPeaks) -> bool:
    """Return whether `first` has a higher rate than `second`, or a lower kernel floor."""
    if (first.kernel_floor_ns or math.inf) < (second.kernel_floor_ns or math.inf):
        return True
    rates, reference = (
        {**peaks.dense_flop_per_s, "": peaks.byte_per_s or 0.0} for peaks in (first, second)
    )
    return any(rate > reference.get(name, 0.0) for name, rate in rates.items())


def _known(*values: float | None) -> list[float]:
    """Return the values that are not None."""
    return [value for value in values if value is not None]


def _watched(
    device: torch.device, dtype: str, known: MeasuredPeaks | None, budget_s: float
) -> tuple[MeasuredPeaks, list[str]]:
    """Measure the peaks once; return them with what disturbed them."""
    return watched(lambda: _measure_once(device, dtype, known, budget_s), device)


def _measure_once(
    device: torch.device, dtype: str, known: MeasuredPeaks | None, budget_s: float
) -> MeasuredPeaks:
    """Measure the peaks once, within about `budget_s` seconds."""
    start = time.perf_counter()
    dtypes = [d for d in dict.fromkeys((dtype, "fp32")) if d in TORCH_DTYPES]
    with torch.inference_mode(), backend_of(device).make_current(device):
        _wake(device)
        floor_ns = _kernel_floor_ns(device)
        bandwidth = _read_byte_per_s(device, deadline=start + budget_s / 3)
        sweep: list[GemmTime] = []
        for number, name in enumerate(dtypes, start=1):
            share = budget_s * (1 / 3 + 2 / 3 * number / len(dtypes))
            sweep += _gemm_sweep(device, name, _shapes(device, name, known), deadline=start + share)
    return MeasuredPeaks(
        dense_flop_per_s={d: max(r.flop_per_s for r in sweep if r.dtype == d) for d in dtypes},
        byte_per_s=bandwidth,
        kernel_floor_ns=floor_ns,
        gemm_sweep=sweep,
        statistic=STATISTIC,
        repeats=_REPEATS,
        threads=torch.get_num_threads(),
        seconds=round(time.perf_counter() - start, 3),
    )


def _wake(device: torch.device) -> None:
    """Compute until an idle GPU runs at its full clock; a CPU needs no such time."""
    if device.type == "cpu":
        return
    a = torch.randn(_WAKE_WIDTH, _WAKE_WIDTH, device=device)
    end = time.perf_counter() + _WAKE_S
    while time.perf_counter() < end:
        a @ a
        synchronize(device)


def _shapes(
    device: torch.device, dtype: str, known: MeasuredPeaks | None
) -> Sequence[tuple[int, int, int]]:
    """Return the M, N and K to measure: of a known measurement, the fastest of the dtype."""
    rows = [row for row in known.gemm_sweep if row.dtype == dtype] if known is not None else []
    if not rows:
        return _CPU_SHAPES if device.type == "cpu" else _GPU_SHAPES
    fastest = max(rows, key=lambda row: row.flop_per_s)
    return [(fastest.m, fastest.n, fastest.k)]


def _gemm_sweep(
    device: torch.device,
    dtype: str,
    shapes: Sequence[tuple[int, int, int]],
    *,
    deadline: float,
) -> list[GemmTime]:
    """Time GEMMs of one dtype until the deadline, one at least."""
    rows: list[GemmTime] = []
    for m, n, k in shapes:
        if rows and _estimate_seconds(m * n * k, rows) > deadline - time.perf_counter():
            break
        call = product(*operands(Gemm(m, n, k), dtype, device))
        times = times_ns(call, device, deadline=deadline, most=_REPEATS)
        median = statistics.median(times)
        rows.append(
            GemmTime(
                dtype=dtype,
                m=m,
                n=n,
                k=k,
                median_ns=round(median),
                repeats=len(times),
                flop_per_s=2 * m * n * k / median * 1e9,
            )
        )
    return rows


def _estimate_seconds(work: int, rows: list[GemmTime]) -> float:
    """Estimate the seconds of a warm-up and two repeats of `work` multiply-adds.

    The estimate uses the rate of the last row.
    """
    return 3 * 2 * work / rows[-1].flop_per_s


def _read_byte_per_s(device: torch.device, *, deadline: float) -> float:
    """Measure the bytes per second of summing a buffer once per repeat.

    The buffer is four times as large as the last-level cache, and 256 MiB (GPU: 2 GiB) at least.
    """
    size = max(
        _LEAST_READ["cpu" if device.type == "cpu" else "gpu"], 4 * (last_cache_bytes(device) or 0)
    )
    size = min(size, free_bytes(device) // 4)
    buffer = torch.ones(int(size // ITEMSIZE["fp32"]), dtype=torch.float32, device=device)
    times = times_ns(lambda: buffer.sum(), device, deadline=deadline, most=_REPEATS)
    return buffer.numel() * ITEMSIZE["fp32"] / statistics.median(times) * 1e9


def _kernel_floor_ns(device: torch.device) -> int | None:
    """Return the shortest time of one small op; None on a GPU without graphs or events.

    On a CPU it is the time from call to return. On a GPU it is the time between two events around
    a graph of many launches, divided by their number.
    """
    x = torch.ones(32, device=device)
    if device.type == "cpu":
        times = times_ns(lambda: x.add_(1), device, deadline=time.perf_counter() + 0.2, most=200)
        return round(statistics.median(times))
    backend, count = backend_of(device), 200
    if not backend.has_graphs or backend.event is None:
        return None
    first, last = backend.timed_events()
    graph = backend.new_graph()
    x.add_(1)  # its kernel is loaded in its first call, which must not be captured
    synchronize(device)
    with backend.module.graph(graph):
        for _ in range(count):
            x.add_(1)
    samples = []
    for _ in range(_REPEATS):
        first.record()
        graph.replay()
        last.record()
        synchronize(device)
        samples.append(first.elapsed_time(last) * 1e6 / count)
    return round(statistics.median(samples))
