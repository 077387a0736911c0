"""Whole processes, timed with their start: in, a command; out, its seconds and peak memory.

A child's peak begins with that of the process that starts it, so scripts that measure import
neither numpy nor prunescope before they are done.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TRACES = ROOT.parent / "shared" / "data" / "traces"
REPEATED = "h100_qwen1.5-0.5b_prefill"  # the trace that is repeated to any size
PACKAGES = ("prunescope", "polars", "numpy", "msgspec", "traceinsight", "pandas", "ray")
_TIMER = "import os, sys, time; time.sleep(float(sys.argv[2])); os.kill(int(sys.argv[1]), 9)"


@dataclass(frozen=True)
class Run:
    """One run of a command: wall and CPU seconds, peak bytes, and why it failed or ""."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    why: str = ""


@dataclass
class Timed:
    """What each repeat of a command took; `why` says why there are none.

    CPU seconds are those of the process and of those that it waited for. What else runs on the core
    lengthens them less than the wall.
    """

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    why: str = ""

    def add(
        self, command: Sequence[str], environment: Mapping[str, str], *, limit_s: float
    ) -> None:
        """Run a command once more, unless it failed before."""
        if self.why:
            return
        taken = run(command, environment, limit_s=limit_s)
        if taken.why:
            self.seconds, self.cpu_seconds, self.peak_bytes, self.why = [], [], [], taken.why
        else:
            self.seconds.append(taken.seconds)
            self.cpu_seconds.append(taken.cpu_seconds)
            self.peak_bytes.append(taken.peak_bytes)


def run(command: Sequence[str], environment: Mapping[str, str], *, limit_s: float) -> Run:
    """Run a command in an empty folder.

    The exit code 3 of `analyze` says that the report has a caveat, and is no failure.
    """
    # Compiled modules are kept, whatever the environment says: else each start would compile all
    # that it imports, and tools with more of it would look slower than they are.
    inherited = {n: value for n, value in os.environ.items() if n != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as home, (Path(home) / "log").open("w+") as log:
        begin = time.monotonic()
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=home, env={**inherited, **environment}
        )
        # A child that hangs is stopped by a timer of the system: wait4 itself has no limit.
        timer = subprocess.Popen([sys.executable, "-c", _TIMER, str(process.pid), str(limit_s)])
        _, status, usage = os.wait4(process.pid, 0)
        seconds = round(time.monotonic() - begin, 4)
        process.returncode = os.waitstatus_to_exitcode(status)
        timer.kill()
        timer.wait()
        log.seek(0)
        lines = log.read().strip().splitlines() or [""]
    cpu_seconds = round(usage.ru_utime + usage.ru_stime, 4)
    why = ""
    if process.returncode == -9:
        why = f"stopped after {limit_s:g} s"
    elif process.returncode not in (0, 3):
        why = lines[-1][:100]
    unit = 1024 if platform.system() == "Linux" else 1
    return Run(seconds, cpu_seconds, usage.ru_maxrss * unit, why)


def machine() -> dict[str, Any]:
    """Return what the numbers depend on: processor, cores, memory, load now, and versions."""
    cpu = next((row.split(":")[1].strip() for row in _read("/proc/cpuinfo") if "model name" in row),
               platform.processor())  # fmt: skip
    memory = next((int(row.split()[1]) for row in _read("/proc/meminfo") if "MemTotal" in row), 0)
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": cpu,
        "cores": os.cpu_count(),
        "bound_to": own,
        "memory_gb": memory * 1024 // 10**9,
        "system": f"{platform.system()} {platform.machine()}",
        "load": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES if _installed(name)},
    }


def machine_lines(kept: Mapping[str, Any], command: str) -> list[str]:
    """Return the lines of a page on the machine, as `machine` described it, and the command."""
    where = f"{kept['cores']} cores of an {kept['processor']}"
    if kept["bound_to"] < kept["cores"]:
        where = f"bound to {kept['bound_to']} of {where}"
    load = " ".join(map(str, kept["load"]))
    beside = f"load {load} when it began"
    if kept["load"][0] > 0.5:
        beside += (
            ": other work ran meanwhile, another measurement on the other core, so that ratios "
            "within the run and CPU seconds count"
        )
    versions = ", ".join(f"{name} {number}" for name, number in kept["packages"].items())
    return [
        f"{where[0].upper()}{where[1:]}, {kept['memory_gb']} GB, {kept['system']}; {beside}.",
        f"Python {kept['python']}, {versions}.",
        f"Command: `{command}`.",
    ]


def command_line(script: str) -> str:
    """Return the command that runs this process, with the script as the project names it."""
    return " ".join([f"python benchmarks/{script}", *sys.argv[1:]])


def repeated(out: Path, events: int) -> int:
    """Write the trace REPEATED to `out` until it has so many events; return how many it has.

    It is done by a process of its own, whose memory is not that of this one.
    """
    source = TRACES / f"{REPEATED}.json.gz"
    command = [sys.executable, str(ROOT / "benchmarks" / "scale.py"), source, out, str(events)]
    return int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, which may be larger than memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: str) -> list[str]:
    file = Path(path)
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
