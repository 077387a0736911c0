"""The timer of GEMMs on a device, with operands in fresh memory in each placement.

Shapes come in; ns a call go out, warm or with a flushed last-level cache.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable

import torch
from torch import nn

from prunescope.taxonomy.gemm import Gemm
from prunescope.tracer.capture.placements import move_weights
from prunescope.tracer.machine.backends import backend_of
from prunescope.tracer.machine.device import synchronize
from prunescope.tracer.machine.timed_calls import CacheFlush, call_ns, operands, product

# The shortest duration of a warm sample, compared with which reading the clock takes no time, and
# the most calls in it.
_SAMPLE_NS, _MOST_CALLS = 300_000, 100


class DeviceTimer:
    """A timer of products of one dtype on a device."""

    def __init__(self, device: torch.device, dtype: str) -> None:
        self.device, self._dtype = device, dtype
        self._flush = CacheFlush(device)
        self._operands: dict[Gemm, _Operands] = {}
        self._calls: dict[Gemm, int] = {}

    @property
    def flush_bytes(self) -> int:
        """The size in bytes of the buffer that a flush reads and writes."""
        return self._flush.bytes

    def prepare(self, gemms: Iterable[Gemm]) -> None:
        """Make the operands of these shapes, and drop those of earlier ones."""
        self._operands = {gemm: _Operands(gemm, self._dtype, self.device) for gemm in gemms}
        self._calls = {}
        for gemm in self._operands:
            self._product(gemm)()  # the library chooses and makes its kernel in the first call
            once = call_ns(self._product(gemm), self.device)
            self._calls[gemm] = min(_MOST_CALLS, math.ceil(_SAMPLE_NS / once))

    def place(self, rng: random.Random) -> None:
        """Move all operands to fresh memory."""
        move_weights(self._operands.values(), rng)

    def sample(self, gemm: Gemm, *, cold: bool) -> float:
        """Return the ns of a call, with its operands just used or (`cold`) with a flushed cache."""
        call = self._product(gemm)
        if cold:
            self._flush()
            return call_ns(call, self.device)
        call()
        synchronize(self.device)
        return call_ns(call, self.device, calls=self._calls[gemm])

    def kernel(self, gemm: Gemm) -> str | None:
        """Return the name of the longest kernel of a call; None where none is recorded."""
        backend = backend_of(self.device)
        if backend.activity is None:
            return None
        with torch.profiler.profile(activities=backend.activities()) as profiled:
            self._product(gemm)()
            synchronize(self.device)
        kernels = [e for e in profiled.events() if e.device_type != torch.profiler.DeviceType.CPU]
        return max(kernels, key=lambda e: e.device_time).name if kernels else None

    def _product(self, gemm: Gemm) -> Callable[[], torch.Tensor]:
        """Return the call that multiplies the operands of a shape."""
        held = self._operands[gemm]
        return product(held.a, held.w)


class _Operands(nn.Module):
    """The operands A and W of a GEMM, as a module that moves as a model does."""

    a: torch.Tensor
    w: torch.Tensor

    def __init__(self, gemm: Gemm, dtype: str, device: torch.device) -> None:
        super().__init__()
        a, w = operands(gemm, dtype, device)
        self.register_buffer("a", a)
        self.register_buffer("w", w)
