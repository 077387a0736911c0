"""Whether other work disturbed a measurement: CPU time of others, steal, and waits for a core.

Counters of the system are read before and after the measurement; their differences make a
Disturbance, in ns. The system counts in ticks of 10 ms, so that every threshold leaves room for a
few ticks and a quiet machine does not count as disturbed.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from prunescope.tracer.machine.gpu_tools import is_throttled, num_processes
from prunescope.tracer.machine.host import num_cores

# Reasons that may have ended when a capture is repeated; a GPU that is hot or shared stays so.
PASSING = ("other processes", "steal", "waits")
T = TypeVar("T")
_STAT, _TASKS = Path("/proc/stat"), Path("/proc/self/task")
_TICK_NS = 10**9 // (os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100)
_OTHERS_SHARE = 0.10  # share of one core that other processes use
_STEAL_SHARE = 0.02  # share of our cores that the host of a virtual machine takes
_WAIT_SHARE = 0.05  # share of the time in which our threads wait for a core
_LEAST_WAIT_NS = 2_000_000
_SLACK_TICKS = 3  # others and steal are differences of tick counts on several cores
_SHORT_NS = 200_000_000  # a shorter sample ends within a few ticks of the system's counters
_CONTIGUOUS = 0.8  # share of the time from the first sample to the last that is in samples
_FULL = 0.9  # processes compete for the cores if a larger share of them is in use


@dataclass(frozen=True)
class Reading:
    """Counters of the system, in ns since its start; None where a counter is unknown."""

    at_ns: int
    own_ns: int  # CPU time of this process
    busy_ns: int | None  # CPU time of all processes on the cores that we may use
    steal_ns: int | None
    waited_ns: int | None  # time of our threads without a core
    switches: int  # involuntary context switches of this process


@dataclass(frozen=True)
class Disturbance:
    """The difference of two readings."""

    elapsed_ns: int
    others_ns: int | None
    steal_ns: int | None
    waited_ns: int | None
    switches: int  # recorded only, not a reason
    threads: int  # the threads of this process that compute
    cores: int

    @property
    def reasons(self) -> list[str]:
        """The reasons among `PASSING` that exceed the level of a quiet machine."""
        reasons, slack = [], _SLACK_TICKS * _TICK_NS
        others, steal, waited = self.others_ns or 0, self.steal_ns or 0, self.waited_ns or 0
        in_use = others + self.threads * self.elapsed_ns
        if (
            others > _OTHERS_SHARE * self.elapsed_ns + slack
            and in_use > _FULL * self.cores * self.elapsed_ns
        ):
            reasons.append("other processes")
        if steal > _STEAL_SHARE * self.cores * self.elapsed_ns + slack:
            reasons.append("steal")
        if self.threads <= self.cores and waited > _WAIT_SHARE * self.elapsed_ns + _LEAST_WAIT_NS:
            reasons.append("waits")
        return reasons


def read() -> Reading:
    """Read the counters now, which takes a tenth of a millisecond."""
    busy_ns, steal_ns = _busy_and_steal()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return Reading(
        at_ns=time.perf_counter_ns(),
        own_ns=time.process_time_ns(),
        busy_ns=busy_ns,
        steal_ns=steal_ns,
        waited_ns=_waited_ns(),
        switches=usage.ru_nivcsw,
    )


def device_troubles(device: torch.device) -> list[str]:
    """Ask the driver of a GPU what disturbs it: throttled clocks, or other processes."""
    if device.type == "cpu":
        return []
    troubles = []
    if is_throttled(device):
        troubles.append("clocks held down")
    if num_processes(device) > 1:
        troubles.append("other processes on the device")
    return troubles


def watched(run: Callable[[], T], device: torch.device) -> tuple[T, list[str]]:
    """Run a function that computes on `device`; return its result and what disturbed it."""
    before = read()
    result = run()
    return result, [*between(before, read(), device).reasons, *device_troubles(device)]


def num_threads(device: torch.device) -> int:
    """Return how many threads of this process keep a core busy.

    On a CPU these are torch's threads. For a GPU it is the one thread that launches kernels.
    """
    return torch.get_num_threads() if device.type == "cpu" else 1


def between(before: Reading, after: Reading, device: torch.device) -> Disturbance:
    """Compare two readings, between which this process computed on `device`."""
    own = after.own_ns - before.own_ns
    busy = _difference(before.busy_ns, after.busy_ns)
    return Disturbance(
        elapsed_ns=after.at_ns - before.at_ns,
        others_ns=None if busy is None else max(0, busy - own),
        steal_ns=_difference(before.steal_ns, after.steal_ns),
        waited_ns=_difference(before.waited_ns, after.waited_ns),
        switches=after.switches - before.switches,
        threads=num_threads(device),
        cores=num_cores(),
    )


class DisturbanceMonitor:
    """What disturbed consecutive samples, or profiled steps, on a device.

    Short samples are also judged as a whole, because each of them ends within a few ticks of the
    system's counters.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._samples: list[Disturbance] = []
        self._begun: Reading | None = None
        self._ended: Reading | None = None

    @contextmanager
    def sample(self) -> Iterator[None]:
        """Watch one sample: the block is the sample."""
        before = read()
        if self._begun is None:
            self._begun = before
        yield
        self._ended = read()
        self._samples.append(between(before, self._ended, self._device))

    def reasons(self) -> list[list[str]]:
        """Return the reasons that disturbed each sample, those of a GPU's driver included."""
        if self._begun is None or self._ended is None:
            return []
        whole = between(self._begun, self._ended, self._device)
        spent_ns = sum(sample.elapsed_ns for sample in self._samples)
        short = whole.elapsed_ns < _SHORT_NS * len(self._samples)
        # Work of others between the steps of a user's loop disturbs no step.
        contiguous = spent_ns >= _CONTIGUOUS * whole.elapsed_ns
        overall = whole.reasons if short and contiguous else []
        troubles = device_troubles(self._device)
        return [[*(sample.reasons or overall), *troubles] for sample in self._samples]

    def switches(self) -> list[int]:
        """Return the involuntary context switches of this process in each sample."""
        return [sample.switches for sample in self._samples]


def distinct(reasons: list[list[str]]) -> list[str]:
    """Return the reasons that disturbed any of the samples, each once."""
    return list(dict.fromkeys(why for each in reasons for why in each))


def most_disturbed(reasons: list[list[str]]) -> list[str]:
    """Return the reasons that disturbed the samples; empty unless more than half were disturbed."""
    return distinct(reasons) if 2 * sum(map(bool, reasons)) > len(reasons) else []


def _difference(before: int | None, after: int | None) -> int | None:
    """Return by how much a counter grew, 0 at least; None if a reading lacks it."""
    return None if before is None or after is None else max(0, after - before)


def _busy_and_steal() -> tuple[int | None, int | None]:
    """Return the busy time and the steal, in ns, of the cores that this process may use.

    Busy time does not include steal. None means unknown.
    """
    try:
        lines = _STAT.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return _busy_by_psutil(), None
    ours = os.sched_getaffinity(0)
    busy = steal = 0
    for line in lines:
        name, *words = line.split()
        if not name.startswith("cpu"):
            break
        if name[3:].isdecimal() and int(name[3:]) in ours:
            user, nice, system, *_ = counts = [int(word) for word in words]
            busy += user + nice + system
            steal += counts[7] if len(counts) > 7 else 0
    return busy * _TICK_NS, steal * _TICK_NS


def _busy_by_psutil() -> int | None:
    """Return the busy time of all cores in ns, for systems without /proc; None without psutil."""
    if importlib.util.find_spec("psutil") is None:
        return None
    times = importlib.import_module("psutil").cpu_times()
    return round((times.user + times.system + getattr(times, "nice", 0.0)) * 1e9)


def _waited_ns() -> int | None:
    """Sum over our threads the time in which they were ready to run but had no core."""
    total = 0
    try:
        for task in _TASKS.iterdir():
            total += int((task / "schedstat").read_text().split()[1])
    except (OSError, ValueError, IndexError):  # a thread that ended, or a system without counts
        return None
    return total
