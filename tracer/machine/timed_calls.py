"""The time of a call in ns: by events of the device on a GPU, by the host's clock on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.gemm import Gemm
from prunescope.tracer.machine.backends import backend_of
from prunescope.tracer.machine.device import free_bytes, last_cache_bytes, synchronize

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Assumed where the size of the last-level cache cannot be read; no cache is larger today.
_UNKNOWN_CACHE = 512 << 20


def operands(gemm: Gemm, dtype: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Make random operands A [M, K] and W [N, K] of a GEMM, or [batch, M, K] and [batch, N, K]."""
    lead = () if gemm.batch == 1 else (gemm.batch,)
    kind = TORCH_DTYPES[dtype]
    a = torch.randn(*lead, gemm.m, gemm.k, device=device).to(kind)
    return a, torch.randn(*lead, gemm.n, gemm.k, device=device).to(kind)


def product(a: torch.Tensor, w: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Return a function that multiplies A·Wᵀ, as a linear layer does."""
    return lambda: a @ w.mT


def call_ns(run: Callable[[], object], device: torch.device, *, calls: int = 1) -> float:
    """Return the ns of one call: the mean of `calls` of them in a row.

    Launches are part of it on a CPU; on a GPU only where the device waits for them.
    """
    backend = backend_of(device)
    if backend.event is not None:
        first, last = backend.timed_events()
        first.record()
        for _ in range(calls):
            run()
        last.record()
        synchronize(device)
        return float(first.elapsed_time(last)) * 1e6 / calls
    start = time.perf_counter_ns()
    for _ in range(calls):
        run()
    return max(1, time.perf_counter_ns() - start) / calls


def times_ns(
    run: Callable[[], object], device: torch.device, *, deadline: float, most: int
) -> list[float]:
    """Return up to `most` times of one call in ns, at least one, after a warm-up call."""
    run()
    synchronize(device)
    times: list[float] = []
    while len(times) < most and not (times and time.perf_counter() > deadline):
        times.append(call_ns(run, device))
    return times


def flush_size(device: torch.device) -> int:
    """Return how many bytes a flush goes through: twice the last-level cache."""
    return 2 * (last_cache_bytes(device) or _UNKNOWN_CACHE)


class CacheFlush:
    """A function that empties the last-level cache by adding 1 to a buffer of twice its size.

    Plain stores would not do, because they may pass a cache by.

    Raises:
        PrunescopeError: The device has no room for the buffer.
    """

    def __init__(self, device: torch.device) -> None:
        wanted = flush_size(device)
        if wanted > free_bytes(device):
            raise PrunescopeError(
                f"no room for a buffer of {wanted >> 20:,} MiB, twice the last-level cache",
                hint="free memory of the device, or measure without a flush",
            )
        self._buffer = torch.zeros(wanted // 4, dtype=torch.int32, device=device)
        self._device = device

    @property
    def bytes(self) -> int:
        """The size of the buffer."""
        return 4 * self._buffer.numel()

    def __call__(self) -> None:
        """Flush the cache, and wait until it is flushed."""
        self._buffer.add_(1)
        synchronize(self._device)
