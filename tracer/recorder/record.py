"""Record a run for prunescope where prunescope cannot be installed: torch 2.0 or later is enough.

    import torch
    from record import record

    with record("runs/mine", phase="prefill", side="dense") as step, torch.no_grad():
        for _ in range(step.count):
            with step():
                model(input_ids)

Do the same with the pruned model and side="pruned", in this program or in another one. Then copy
the folder to where prunescope is: `prunescope analyze runs/mine`.

`step.count` steps are needed: 3 warm up, 20 are timed without a profiler, one is thrown away, and 5
are profiled. Only what is inside of `with step():` is measured; prepare inputs and caches before.
A folder holds several phases, each from a `record` of its own: "prefill" and "decode", say. It
names no host, user, path or environment value, and holds no weights and no inputs.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile, record_function

from prunescope.taxonomy.processor import cpu_name
from prunescope.taxonomy.scrub import scrub_values
from prunescope.tracer.capture.chrome import PHASE, STEP, WARMUP, Turn, has_backward, split
from prunescope.tracer.capture.joined import Joined
from prunescope.tracer.capture.weight_zeros import weight_rows
from prunescope.tracer.machine.backends import (
    PROFILER,
    backend_of,
    synchronize_used,
    toolkit,
)
from prunescope.tracer.machine.disturbance import DisturbanceMonitor, distinct, most_disturbed
from prunescope.tracer.machine.gpu_tools import gpu_clocks
from prunescope.tracer.machine.host import load_average, load_notes, num_cores
from prunescope.tracer.model.calls import PHASE_NAME, call_shape, inner, inputs_of, usual_phase
from prunescope.tracer.model.forwards import hooked, spanned
from prunescope.tracer.model.packed_weights import weight_bytes

VERSION = "0+source"
_SIDES = ("dense", "pruned")
_MANIFEST = "run.json"
_VARIANT = "user"  # of the trace's steps
_DTYPES = {"float64": "fp64", "float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
# Containers of modules: nothing runs in them.
_LISTS = (torch.nn.ModuleList, torch.nn.ModuleDict, torch.nn.Sequential)
# Peaks: M, N, K of products, repeats of each, and bytes of a buffer that is read.
_PRODUCTS = ((1024, 1024, 1024), (4096, 4096, 4096), (8192, 4096, 4096))
_REPEATS = 7
_BUDGET_S = 1.0  # the time for the products of one dtype
_READ_BYTES = 512 << 20
# Keys of a config whose values name a kind, such as `model_type` and `layer_types`, and those
# values. Free text is dropped.
_KIND_KEY = re.compile(r"(?:\w*_)?(?:types?|act|activation|proj)")
_KIND = re.compile(r"[A-Za-z0-9_.+-]{1,64}")


@contextmanager
def record(  # noqa: PLR0913 - the options of `prunescope.capture`
    folder: str | Path,
    *,
    phase: str | None = None,
    side: str = "dense",
    model: torch.nn.Module | None = None,
    warmup: int = 3,
    repeats: int = 20,
    steps: int = 5,
    overwrite: bool = False,
) -> Iterator[RecordedSteps]:
    """Record `step.count` steps into FOLDER/SIDE when the block ends without an exception.

    Args:
        folder: The folder of both sides of the comparison.
        phase: The name of the phase in the report. None takes "training", "prefill", "decode"
            or "forward", by what the steps do.
        side: "dense" or "pruned".
        model: The module that holds the weights. None takes the largest module that the first
            step calls.
        warmup: Steps that are dropped at the start.
        repeats: Steps that are timed without a profiler.
        steps: Steps that the profiler records.
        overwrite: Whether a recorded phase is replaced.

    Yields:
        The steps: `with step():` goes around each of them.

    Raises:
        ValueError: An argument is not valid.
        FileExistsError: The phase is recorded already, and `overwrite` is False.
        RuntimeError: The loop ran too few steps.
    """
    if side not in _SIDES:
        raise ValueError(f"side is {side!r}: it is 'dense' or 'pruned'")
    if phase is not None and not PHASE_NAME.fullmatch(phase):
        raise ValueError(f"{phase!r} is no phase: letters, digits, - and _, as in prefill")
    if warmup < 0 or repeats < 1 or steps < 1:
        raise ValueError("warmup is 0 or more, and repeats and steps are 1 or more")
    run_folder = Path(folder) / side
    _check_free(run_folder, phase, overwrite=overwrite)
    with ExitStack() as stack:
        recorded = RecordedSteps(model, (warmup, repeats, steps), stack)
        yield recorded
    run, trace = recorded.finish(side, phase)
    _write(run_folder, run, trace, overwrite=overwrite)


def _check_free(run_folder: Path, phase: str | None, *, overwrite: bool) -> None:
    """Raise FileExistsError if the run folder holds the phase and may not be overwritten."""
    if overwrite or not (run_folder / _MANIFEST).is_file():
        return
    phases = _read_manifest(run_folder)["phases"]
    if phase is None or phase in phases:
        raise FileExistsError(
            f"{run_folder} holds {', '.join(phases)} already: name another phase or folder, or"
            " pass overwrite=True"
        )


class RecordedSteps:
    """The steps of a loop: `with step():` goes around each of the first `count`."""

    def __init__(
        self, model: torch.nn.Module | None, plan: tuple[int, int, int], stack: ExitStack
    ) -> None:
        self.count = sum(plan) + 1
        self._warmup, self._repeats, self._steps = plan
        self._model, self._stack = model, stack
        self._number = 0  # the number of the next step
        self._inside = self._trains = False
        self._inputs: dict[str, Any] = {}
        self._samples: list[int] = []
        self._cost_ns = 0
        self._reasons: list[list[str]] = []
        self._switches = 0
        self._watch: Any = None
        self._turns: list[Turn] = []
        self._trace = Joined()
        self._load_before = load_average()
        self._clocks_before: dict[str, float] | None = None
        self._steps_disturbed: list[str] = []

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Run one step, which warms up, is timed or is profiled, by its number.

        Raises:
            RuntimeError: The step was started inside another step, or calls no module.
        """
        if self._inside:
            raise RuntimeError("a step was started inside another step")
        number = self._number
        self._inside, self._number = True, number + 1
        try:
            with self._observe_calls():
                if number < self._warmup + self._repeats:
                    with self._time_step(is_sample=number >= self._warmup):
                        yield
                elif number < self.count:
                    with self._profile_step(number - self._warmup - self._repeats - 1):
                        yield
                else:
                    yield
        finally:
            self._inside = False

    @contextmanager
    def _observe_calls(self) -> Iterator[None]:
        """Find the model in the first step, and its inputs in the step after that.

        If the model was given, the first step already records the inputs of its calls.
        """
        if self._inputs:
            yield
        elif self._model is None:
            called: dict[int, torch.nn.Module] = {}

            def note(module: torch.nn.Module, _args: Any) -> None:
                called.setdefault(id(module), module)

            handle = torch.nn.modules.module.register_module_forward_pre_hook(note)
            with hooked([handle]):
                yield
            if not called:
                raise RuntimeError("no torch.nn.Module was called in the first step")
            # The first of equally large modules is the outermost.
            self._model = max(called.values(), key=_num_parameters)
        else:
            model, calls = self._model, []
            lack = backend_of(self._device).lack(PROFILER)
            if lack is not None:
                raise RuntimeError(": ".join(lack))

            def see(_module: torch.nn.Module, args: Any, kwargs: Any) -> None:
                calls.append(call_shape(getattr(model, "_orig_mod", model), args, kwargs))

            handle = model.register_forward_pre_hook(see, with_kwargs=True)
            with hooked([handle]):
                yield
            if not calls:
                raise RuntimeError(f"{type(model).__name__} was not called in this step")
            self._inputs = inputs_of(calls)

    @contextmanager
    def _time_step(self, *, is_sample: bool) -> Iterator[None]:
        """Time a step, and watch what disturbs it if it is a sample."""
        if is_sample and self._watch is None:
            self._watch = DisturbanceMonitor(self._device)
            self._clocks_before = gpu_clocks(self._device)
        with ExitStack() as stack:
            if is_sample:
                stack.enter_context(self._watch.sample())
            synchronize_used()
            start = time.perf_counter_ns()
            yield
            synchronize_used()
            elapsed_ns = max(1, time.perf_counter_ns() - start)
        if not is_sample:
            self._cost_ns += elapsed_ns
            return
        self._samples.append(elapsed_ns)
        if len(self._samples) == self._repeats:
            self._reasons, self._switches = self._watch.reasons(), sum(self._watch.switches())

    @contextmanager
    def _profile_step(self, index: int) -> Iterator[None]:
        """Profile step `index`; step −1 starts the profiler and is thrown away."""
        if index < 0:
            activities = backend_of(self._device).activities()
            self._stack.enter_context(_annotate_modules(self._whole_model))
            self._profile = profile(activities=activities, record_shapes=True)
            self._stack.enter_context(self._profile)
            self._stack.enter_context(record_function(PHASE))
            self._watch = DisturbanceMonitor(self._device)
        label = WARMUP if index < 0 else f"{STEP}{index}"
        with ExitStack() as stack:
            if index >= 0:
                stack.enter_context(self._watch.sample())
            synchronize_used()
            begun = time.perf_counter_ns()
            with record_function(label):
                yield
                synchronize_used()
            taken = (begun, time.perf_counter_ns())
        self._turns.append(Turn(_VARIANT, label, taken))
        if index + 1 == self._steps:
            self._close_profile()

    def _close_profile(self) -> None:
        """Close the profiler, and keep the trace of its steps."""
        self._stack.close()
        self._steps_disturbed = most_disturbed(self._watch.reasons())
        with tempfile.TemporaryDirectory() as scratch:
            raw = Path(scratch) / "session.json"
            self._profile.export_chrome_trace(str(raw))
            trace = split(raw.read_bytes(), self._turns)[_VARIANT]
        self._trains = has_backward(trace)
        self._trace.add(trace)

    @property
    def _whole_model(self) -> torch.nn.Module:
        assert self._model is not None
        return self._model

    @property
    def _device(self) -> torch.device:
        """The device of the weights; the CPU before the model is known."""
        first = None if self._model is None else next(self._model.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    def finish(self, side: str, phase: str | None) -> tuple[dict[str, Any], Joined]:
        """Return the manifest and the trace of all steps.

        Raises:
            RuntimeError: The loop ran too few steps.
        """
        if self._number < self.count:
            raise RuntimeError(
                f"{self._number} steps ran, and {self.count} are needed: run more, or pass smaller"
                " warmup, repeats or steps to record()"
            )
        model, name = self._whole_model, phase or usual_phase(self._inputs, trains=self._trains)
        torch_dtype = str(next(model.parameters(), torch.empty(0)).dtype).split(".")[-1]
        dtype = _DTYPES.get(torch_dtype, torch_dtype)
        device = _device_entry(self._device, dtype)
        device["clocks"] = {"before": self._clocks_before, "after": gpu_clocks(self._device)}
        load, cores = {"before": self._load_before, "after": load_average()}, num_cores()
        run = {
            "schema": 1,
            "tool": f"prunescope recorder {VERSION}",
            "variant": side,
            "model": _model_entry(model),
            "phases": {name: self._phase_entry()},
            "dtype": dtype,
            "device": device,
            "versions": _versions(),
            "seeds": {},
            "argv": [],
            "weight_bytes": weight_bytes(model),
            "parameters": _num_parameters(model),
            "census": {"matrices": weight_rows(inner(model))},
            "timing": {
                "load_average": load,
                "cores": cores,
                "notes": load_notes(**load, cores=cores),
            },
        }
        return run, self._trace

    def _phase_entry(self) -> dict[str, Any]:
        """Return the entry of the phase in run.json, without the trace."""
        inputs, config = self._inputs, getattr(self._model, "config", None)
        end = inputs["past"] + inputs["length"]
        return {
            "batch": inputs["batch"],
            "prompt_len": inputs["length"],
            "positions": [inputs["past"], end],
            "context": end,
            "logits": inputs["logits"],
            "cache": inputs["cache"],
            "attention": str(getattr(config, "_attn_implementation", "unknown")),
            "mode": "eager",
            "steps": self._steps,
            "tokens_per_step": inputs["tokens"],
            "warmup": self._warmup,
            "samples_ns": self._samples,
            "interleaved": "alone",
            "placements": [
                {
                    "samples": len(self._samples),
                    "steps": self._steps,
                    "cost_ns": self._cost_ns,
                    "disturbed": sum(map(bool, self._reasons)),
                    "reasons": distinct(self._reasons),
                    "steps_disturbed": self._steps_disturbed,
                    "switches": self._switches,
                }
            ],
        }


def _num_parameters(module: torch.nn.Module) -> int:
    """Count the weights of a module, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


@contextmanager
def _annotate_modules(model: torch.nn.Module) -> Iterator[None]:
    """Annotate every forward with the name of its module until the context closes.

    A model that torch.compile made gets no annotations, because they would compile it again.
    """
    modules = dict(model.named_modules())
    names = [] if any(hasattr(m, "_orig_mod") for m in modules.values()) else scoped_names(model)
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(spanned(modules[name], name))
        yield


def scoped_names(model: torch.nn.Module) -> list[str]:
    """Return the names of the modules whose forwards are annotated.

    They are modules with parameters or without children, every element of a layer list, and every
    module inside such an element except lists.
    """
    elements = [
        f"{name}.{number}"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList)
        for number in range(len(module))
    ]
    inside = tuple(f"{name}." for name in elements)
    return [
        name
        for name, module in model.named_modules()
        if name
        and not isinstance(module, torch.jit.ScriptModule)
        and (
            next(module.parameters(recurse=False), None) is not None
            or next(module.children(), None) is None
            or name in elements
            or (name.startswith(inside) and not isinstance(module, _LISTS))
        )
    ]


def _model_entry(model: torch.nn.Module) -> dict[str, Any]:
    """Return `model` of run.json, from whose config and weights the shape is derived later."""
    config: Any = getattr(model, "config", None)
    whole = inner(model)
    name = str(getattr(config, "_name_or_path", "") or type(whole).__name__)
    plain = config if isinstance(config, dict) else {}
    if hasattr(config, "to_dict"):
        plain = config.to_dict()
    return {
        "id": Path(name).name,
        "source": "recorder",
        "architecture": type(whole).__name__,
        "config": _keep_config(plain),
        "shape": None,
        "notes": [],
    }


def _keep_config(config: dict[str, Any]) -> dict[str, Any]:
    """Keep the sizes, switches and kinds of a config, at any depth, and drop free text."""
    kept = {}
    for key, value in config.items():
        if isinstance(value, dict):
            kept[str(key)] = _keep_config(value)
            continue
        parts = value if isinstance(value, (list, tuple)) else [value]
        is_kind = _KIND_KEY.fullmatch(str(key)) is not None and all(map(_is_kind, parts))
        if is_kind or all(map(_is_number, parts)):
            kept[str(key)] = value
    return kept


def _is_number(value: Any) -> bool:
    """Return whether a value is a finite number, a boolean or None."""
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, (bool, int))


def _is_kind(value: Any) -> bool:
    """Return whether a value is a text that names a kind."""
    return isinstance(value, str) and _KIND.fullmatch(value) is not None


def _versions() -> dict[str, str]:
    """Return the versions of the libraries that the times depend on."""
    known = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "prunescope": VERSION,
        "system": f"{platform.system()} {platform.machine()}",
    }
    transformers = sys.modules.get("transformers")
    if transformers is not None:
        known["transformers"] = str(transformers.__version__)
    built_for = toolkit()
    if built_for is not None:
        known["toolkit"] = built_for[1]
    return known


def _device_entry(device: torch.device, dtype: str) -> dict[str, Any]:
    """Return `device` of run.json, with measured peaks."""
    entry: dict[str, Any] = {"kind": "cpu", "name": cpu_name()}
    properties: dict[str, Any] = {"cores": num_cores()}
    if device.type != "cpu":
        backend = backend_of(device)
        name, properties = backend.describe(device)
        entry = {"kind": backend.kind, "name": name}
        if backend.has_tf32:
            entry["tf32"] = torch.backends.cuda.matmul.allow_tf32
    elif hasattr(torch.backends, "cpu"):  # since torch 2.1
        properties["isa"] = torch.backends.cpu.get_cpu_capability()
    entry["threads"], entry["properties"] = torch.get_num_threads(), properties
    try:
        entry["peaks"] = _peaks(device, dtype)
    except RuntimeError:  # the model leaves no memory for it
        entry["peaks"] = None
    return entry


@torch.no_grad()
def _peaks(device: torch.device, dtype: str) -> dict[str, Any]:
    """Measure FLOP/s by dtype and bytes/s: the best over shapes of the median over repeats."""
    start = time.perf_counter()
    rates: dict[str, float] = {}
    for torch_name, name in _DTYPES.items():
        if name in (dtype, "fp32"):
            rates[name] = _measure_products(device, getattr(torch, torch_name))
    buffer = torch.ones(_READ_BYTES // 4, device=device)
    read_ns = statistics.median(_time_calls(buffer.sum))
    small = torch.ones(32, device=device)
    floor_ns = statistics.median(_time_calls(lambda: small.add_(1), repeats=200))
    return {
        "dense_flop_per_s": rates,
        "byte_per_s": _READ_BYTES / read_ns * 1e9,
        # On a GPU a launch takes longer than a small kernel does.
        "kernel_floor_ns": round(floor_ns) if device.type == "cpu" else None,
        "statistic": "best over shapes of the median over repeats",
        "repeats": _REPEATS,
        "threads": torch.get_num_threads(),
        "seconds": round(time.perf_counter() - start, 3),
    }


def _measure_products(device: torch.device, dtype: torch.dtype) -> float:
    """Return the best FLOP/s of products of a dtype that fit into the time budget."""
    best, end = 0.0, time.perf_counter() + _BUDGET_S
    for m, n, k in _PRODUCTS:
        flop = 2 * m * n * k
        if best and (_REPEATS + 1) * flop / best > end - time.perf_counter():
            break
        left = torch.randn(m, k, device=device).to(dtype)
        right = torch.randn(n, k, device=device).to(dtype).T
        times = _time_calls(lambda left=left, right=right: left @ right)
        best = max(best, flop / statistics.median(times) * 1e9)
    return best


def _time_calls(call: Any, repeats: int = _REPEATS) -> list[int]:
    """Return the ns of each call, after one call that warms up."""
    times = []
    for _ in range(repeats + 1):
        synchronize_used()
        start = time.perf_counter_ns()
        call()
        synchronize_used()
        times.append(max(1, time.perf_counter_ns() - start))
    return times[1:]


def _read_manifest(run_folder: Path) -> dict[str, Any]:
    """Return the manifest of a run folder."""
    run: dict[str, Any] = json.loads((run_folder / _MANIFEST).read_text(encoding="utf-8"))
    return run


def _write(run_folder: Path, run: dict[str, Any], trace: Joined, *, overwrite: bool) -> None:
    """Write the trace, the manifest, and the reference of the pruned side to the dense one.

    The manifest keeps the phases of the same model that the folder holds already.
    """
    run_folder.mkdir(parents=True, exist_ok=True)
    ((phase, entry),) = run["phases"].items()
    if (run_folder / _MANIFEST).is_file():
        old = _read_manifest(run_folder)
        same = all(old.get(key) == run[key] for key in ("parameters", "weight_bytes", "dtype"))
        if not same and not overwrite:
            raise FileExistsError(f"{run_folder} holds a run of another model: name another folder")
        if phase in old["phases"] and not overwrite:
            raise FileExistsError(f"{run_folder} holds {phase} already: name another phase")
        run["phases"] = {**(old["phases"] if same else {}), phase: entry}
    file = run_folder / f"{phase}.trace.json.gz"
    entry["trace"], entry["sha256"] = file.name, trace.write(file)
    _write_manifest(run_folder, run)
    dense, pruned = (run_folder.parent / side for side in _SIDES)
    if all((each / _MANIFEST).is_file() for each in (dense, pruned)):
        digest = hashlib.sha256((dense / _MANIFEST).read_bytes()).hexdigest()
        _write_manifest(
            pruned,
            {**_read_manifest(pruned), "twin": {"path": "../dense/run.json", "sha256": digest}},
        )


def _write_manifest(run_folder: Path, run: dict[str, Any]) -> None:
    """Replace the manifest as a whole, scrubbed except for file names and the baseline's path."""
    kept = {key: run[key] for key in ("phases", "twin") if key in run}
    text = json.dumps({**scrub_values(run), **kept}, indent=1, allow_nan=False)
    partial = run_folder / f"{_MANIFEST}.partial"
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(run_folder / _MANIFEST)
