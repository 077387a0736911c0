"""A question to `predict`, and what it resolves to: shape, device, peaks, family, terms.

In: a PredictRequest. Out: a Setting, with the two sides of a workload and their speedups. Peaks in
FLOP/s, bandwidth in byte/s; the request has them in TFLOP/s and GB/s.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from prunescope.analysis.device.hardware import Device, find_device, with_overrides
from prunescope.analysis.predict.constants import DEFAULT, KERNELS, Constants
from prunescope.analysis.predict.costs import LAUNCHES, NAMES, speedup
from prunescope.analysis.predict.parallel import of_one
from prunescope.analysis.predict.request import PredictRequest
from prunescope.analysis.predict.side import Forward, PredictedSide, dense_forward, pruned_forward
from prunescope.analysis.predict.silicon import achievable
from prunescope.analysis.shapes.config import NamedModel, read_model
from prunescope.taxonomy.applies import check_applies
from prunescope.taxonomy.architecture_traits import Traits
from prunescope.taxonomy.arguments import is_function, method_parts
from prunescope.taxonomy.dtypes import dtype, itemsize
from prunescope.taxonomy.errors import PrunescopeError, nearest
from prunescope.taxonomy.families import families, family
from prunescope.taxonomy.family import Family, FamilyPoint
from prunescope.taxonomy.keep import named_share
from prunescope.taxonomy.methods import family_of, method_names, slug
from prunescope.taxonomy.plan import PHASES, Workload
from prunescope.taxonomy.presets import preset_named
from prunescope.taxonomy.shape import ModelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A request resolved: everything a phase needs."""

    shape: ModelShape
    device: Device
    dtype: str
    flop_per_s: float
    byte_per_s: float
    family: Family | None
    sparsity: float
    knobs: Mapping[str, Any]
    terms: Collection[str]
    launch: str = "graph"
    kernel: str = "torch"  # the library of 2:4 GEMMs
    tp: int = 1  # devices that share each layer; a PredictedSide is one of them
    ceiling: float | None = None  # of the best published GEMM, as a share of the peak
    constants: Constants = DEFAULT
    removed: Mapping[str, Sequence[int]] = field(default_factory=dict)  # layers that a run drew
    traits: Traits | None = None  # what decides which families apply; None: any does

    def bound_gain(self, work: Workload, sparsity: float | None = None) -> float:
        """Dense over pruned at the roofline."""
        return self.side(work, pruned=False).ns / self.side(work, sparsity=sparsity).ns

    def execution_gain(self, work: Workload, sparsity: float | None = None) -> float:
        """Dense over pruned with the costs of execution."""
        dense = self.side(work, pruned=False)
        return speedup(dense, self.side(work, sparsity=sparsity), self.terms)

    def side(
        self, work: Workload, *, sparsity: float | None = None, pruned: bool = True
    ) -> PredictedSide:
        """The forward of one side, with its times at this device's peaks."""
        if not pruned or self.family is None:
            return self._one(dense_forward(self.shape, work))
        asked = self.sparsity if sparsity is None else sparsity
        removed = self.removed if asked == self.sparsity else {}
        # The family fills in knobs that are not given.
        point = FamilyPoint(sparsity=asked, knobs=self.knobs, removed=removed)
        return self._one(pruned_forward(self.shape, work, self.family, point))

    def _one(self, forward: Forward) -> PredictedSide:
        if self.tp > 1:
            key = ("tp", self.tp)
            forward.cost_estimates[key] = forward.cost_estimates.get(key) or of_one(
                forward, self.tp, self.shape
            )
            forward = forward.cost_estimates[key]
        return PredictedSide(setting=self, forward=forward)


def _model(name: str) -> NamedModel:
    """The shape of a model; a preset's is read once."""
    known = preset_named(name) and not Path(name).exists()
    return _preset(name) if known else read_model(name)


@lru_cache(maxsize=64)
def _preset(name: str) -> NamedModel:
    return read_model(name)


def workloads(request: PredictRequest, setting: Setting) -> list[Workload]:
    """The workload of each phase that is asked for."""
    wanted = PHASES if request.phase == "both" else (request.phase,)
    size = itemsize(setting.dtype) or 2
    return [Workload.of(phase, request, itemsize=size) for phase in wanted]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The model and the device of a request, the same for all of its points."""

    shape: ModelShape
    traits: Traits
    source: str
    device: Device
    dtype: str
    flop_per_s: float
    byte_per_s: float
    ceiling: float | None


def place_of(request: PredictRequest, warnings: list[str]) -> Place:
    """Where a request is asked of. Raises PrunescopeError for a request that cannot be met."""
    if request.phase not in (*PHASES, "both"):
        raise PrunescopeError(
            f"no phase is called {request.phase!r}", hint="prefill, decode or both"
        )
    if request.model is None:
        raise PrunescopeError(
            "predict needs --model, or --from-run", hint="for example --model llama-3.1-8b"
        )
    if request.device is None and not (request.peaks and request.bandwidth):
        raise PrunescopeError(
            "predict needs --device, or --peak and --bandwidth",
            hint="`prunescope devices` lists those that are known",
        )
    model = _model(request.model)
    known = find_device(request.device) if request.device else None
    device = with_overrides(known, peaks=request.peaks, bandwidth_gb_per_s=request.bandwidth)
    name = _dtype(request.dtype, model.dtype, device, warnings)
    if model.quantised and request.dtype is None:
        warnings.append(
            f"its weights are published as {model.quantised}: predicted as if all of them were "
            f"{name}, with the bytes and the memory of that"
        )
    peak = device.peak(name)
    if peak is None or device.byte_per_s is None:
        what = f"{name} peak" if peak is None else "bandwidth"
        raise PrunescopeError(
            f"{device.name} has no {what}",
            hint=f"it has {', '.join(device.dense_flop_per_s) or 'none'}; "
            "give --peak DTYPE=TFLOPS or --bandwidth GB/s",
        )
    return Place(
        shape=model.shape,
        traits=model.traits,
        source=model.source,
        device=device,
        dtype=name,
        flop_per_s=peak,
        byte_per_s=device.byte_per_s,
        ceiling=achievable(device, name),
    )


def resolve(
    request: PredictRequest,
    method: str | None,
    sparsity: float | None,
    warnings: list[str],
    place: Place | None = None,
) -> tuple[Setting, str]:
    """One point of a request, and where the model's shape is from. `place`: its model and device,
    where they were looked up before.

    Raises PrunescopeError for a request that cannot be met.
    """
    place = place or place_of(request, warnings)
    chosen, meant = _family(method)
    shape, device = place.shape, place.device
    default = (chosen.only if chosen else None) or 0.25
    chosen = runnable(chosen, device, warnings)
    if chosen is not None:
        check_applies(chosen.id, chosen.applies, place.traits)
    given = default if sparsity is None else sparsity
    kernel, asked = take_kernel({**meant, **request.knobs})
    knobs = {k: v for k, v in asked.items() if chosen and k in chosen.knobs}
    if chosen and not request.many:
        knobs = asked  # an unknown one is an error
    filled = chosen.point(given, knobs).knobs if chosen else {}
    if shape.uneven and given and filled.get("layers") == "":
        warnings.append(
            "layers of this model differ, and which ones go is not known: those of an average "
            "layer are counted; --set layers=0,1 names them"
        )
    named = filled.get("layers")
    if named and (text := named_share(str(named), shape.layers, given)):
        warnings.append(text)
    setting = Setting(
        shape=shape,
        device=device,
        dtype=place.dtype,
        flop_per_s=place.flop_per_s,
        byte_per_s=place.byte_per_s,
        family=chosen,
        sparsity=given,
        knobs=filled,
        terms=terms_of(request.terms, request.without),
        launch=_launch(request.launch),
        kernel=kernel,
        tp=_devices(request.tp),
        ceiling=place.ceiling,
        traits=place.traits,
    )
    return setting, place.source


def take_kernel(knobs: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The library of 2:4 GEMMs (`--set kernel=`) and the other knobs, which are the family's.

    Raises PrunescopeError for a library that is not known.
    """
    rest = dict(knobs)
    kernel = str(rest.pop("kernel", "torch"))
    if kernel not in KERNELS:
        raise PrunescopeError(
            f"knob kernel={kernel!r} is no library of 2:4 kernels",
            hint=f"one of {', '.join(KERNELS)}",
        )
    return kernel, rest


def runnable(chosen: Family | None, device: Device, warnings: list[str]) -> Family | None:
    """The family that this device runs: 2:4 without matrix units for it is a mask, and said."""
    if chosen is None or not chosen.without_sparse_units or device.sparse_24 is not False:
        return chosen
    warnings.append(f"{device.name} has no matrix units for 2:4: the weights stay dense with zeros")
    return family(chosen.without_sparse_units)


def terms_of(asked: Collection[str] | None, without: Collection[str]) -> Collection[str]:
    """The costs of execution to count. Raises PrunescopeError for a name that is none."""
    for name in (*(asked or ()), *without):
        if name not in NAMES:
            raise PrunescopeError(
                f"no cost of execution is called {name!r}", hint=f"one of {', '.join(NAMES)}"
            )
    return tuple(name for name in (NAMES if asked is None else asked) if name not in without)


def _devices(tp: int) -> int:
    if not 1 <= tp <= 64:
        raise PrunescopeError(f"{tp} devices cannot share a layer", hint="--tp 1 to 64")
    return tp


def _launch(name: str) -> str:
    if name not in LAUNCHES:
        raise PrunescopeError(
            f"no launch is called {name!r}", hint=f"nearest: {nearest(name, LAUNCHES)}"
        )
    return name


def _family(method: str | None) -> tuple[Family | None, Mapping[str, str]]:
    """The family of an id or of a published method, and the knobs that the method means."""
    if method is None or method == "dense":
        return None, {}
    if is_function(method):
        raise PrunescopeError(
            f"{Path(method).name} is a function: it has no theory",
            hint="predict takes one of `prunescope families`; trace measures a function",
        )
    return named_family(method)


def named_family(method: str) -> tuple[Family, Mapping[str, str]]:
    """The same of a name. Raises PrunescopeError with the nearest families and methods."""
    name, knobs = family_of(method)
    ids = [one.id for one in families()]
    parts = [part for part, _ in method_parts(method)]
    if len(parts) > 1 and all(family_of(part)[0] in ids for part in parts):
        raise PrunescopeError(
            f"families together ({method}) cannot be predicted, only one at a time",
            hint="predict each alone, or measure them together with trace",
        )
    if name not in ids:
        close = nearest(slug(name), [*ids, *method_names()])
        raise PrunescopeError(
            f"no pruning family or method is called {name!r}",
            hint=f"nearest: {close}; `prunescope families` lists the families",
        )
    return family(name), knobs


def _dtype(asked: str | None, written: str | None, device: Device, warnings: list[str]) -> str:
    """The format asked for, else the model's, else bf16. A device without bf16 gets fp16, said."""
    name = dtype(asked or written or "bf16")
    if name is None:
        raise PrunescopeError(
            f"no number format is called {asked or written!r}", hint="for example bf16 or fp32"
        )
    if asked is None and name == "bf16" and device.peak("bf16") is None and device.peak("fp16"):
        warnings.append(f"{device.name} has no bf16 matrix units: predicted in fp16")
        return "fp16"
    return name
