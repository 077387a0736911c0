"""A request to `predict`, and the setting it resolves to: shape, device, peaks, family, terms.

A PredictRequest, with peaks in TFLOP/s and bandwidth in GB/s, gives a Setting, with both in FLOP/s
and byte/s, and the workloads of its phases.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from prunescope.analysis.device.calibrated import named_device
from prunescope.analysis.device.hardware import (
    Device,
    best_gemm_share,
    parse_dtype,
    with_overrides,
)
from prunescope.analysis.predict.constants import (
    DEFAULT,
    LAUNCHES,
    MARLIN,
    NAMES,
    RUNTIMES,
    SPARSE_LIBRARIES,
    Constants,
    Runtime,
    defaults_on,
)
from prunescope.analysis.predict.predict_request import PredictRequest
from prunescope.analysis.predict.routing_file import read_routing
from prunescope.analysis.shapes.named_model import NamedModel, read_model
from prunescope.taxonomy.applies import check_applies
from prunescope.taxonomy.architecture_traits import Traits
from prunescope.taxonomy.dtypes import dtype, itemsize
from prunescope.taxonomy.engines import Legal, legal_sizes
from prunescope.taxonomy.errors import PrunescopeError, nearest
from prunescope.taxonomy.expert_routing import Routing
from prunescope.taxonomy.families import families, family
from prunescope.taxonomy.family import Family
from prunescope.taxonomy.keep import check_sparsity, named_share
from prunescope.taxonomy.match import NOMINAL, Match, solve, take_match
from prunescope.taxonomy.method_names import is_function, method_parts
from prunescope.taxonomy.methods import family_of, nearest_methods
from prunescope.taxonomy.plan import FORWARD, PHASES, Workload
from prunescope.taxonomy.presets import preset_named
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.words import when

WIDE_ITEMSIZE = 2.0  # bytes of a number that engines do not narrow
MARLIN_WEIGHTS = "int4"  # the format of weights without --weights


class Setting(Struct, frozen=True, kw_only=True):
    """Everything about a point but its workload: model, device, family, sparsity, costs."""

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
    sparse_library: str = "torch"  # the library of 2:4 GEMMs
    tp: int = 1  # devices that share each layer; a PredictedSide is one of them
    ep: int = 1  # devices that hold whole experts of each layer
    pp: int = 1  # stages of layers, which a forward passes in sequence
    routing: Routing | None = None  # how often each expert is chosen; None: all as often
    gemm_ceiling: float | None = None  # the best published GEMM, as a share of the peak
    constants: Constants = DEFAULT
    runtime: Runtime | None = None  # None: the kernels alone
    wide_flop_per_s: float | None = None  # rate of what stays in 16 bits; None: all is `dtype`
    stored_itemsize: float | None = None  # bytes per stored number; None: as multiplied
    attn: str = "eager"  # of eager modules: eager, sdpa or flash; elsewhere attention is fused
    cache: str = "dynamic"  # of eager modules: a dynamic one is copied to append to it
    kv_itemsize: float | None = None  # bytes of a cached number; None: as the others
    layers_kept: float = 1.0  # the share of layers that --depth keeps
    extra_ns: float = 0.0  # time outside the model, on both sides
    named: Mapping[str, str] = field(default_factory=dict)  # knobs that the method's name implies
    removed: Mapping[str, Sequence[int]] = field(default_factory=dict)  # layers that a run removed
    pruned_shape: ModelShape | None = None  # of another model, which the family prunes if any
    traits: Traits | None = None  # they decide which families apply; None: all do
    legal: Legal | None = None  # the engine to whose sizes the pruned model is padded

    @property
    def prunes(self) -> bool:
        """Whether there is a pruned side."""
        return self.family is not None or self.pruned_shape is not None

    @property
    def own_family(self) -> Family | None:
        """The family that prunes the model itself; None where it prunes another, or none does."""
        return self.family if self.pruned_shape is None else None

    @property
    def absorbs(self) -> bool:
        """Whether decode attends to cached latents as they are."""
        return self.runtime is not None and self.runtime.absorbs

    @property
    def loops_experts(self) -> bool:
        """Whether the host calls the experts of a layer one after another."""
        engine_loops = self.runtime is None or self.runtime.loops_experts
        return self.launch == "eager" and engine_loops and self.shape.experts.count > 0

    @property
    def host_is_known(self) -> bool:
        """Whether the time of an eager dispatch was given, or measured with the device."""
        given = self.constants.dispatch_ns != defaults_on(self.device).dispatch_ns
        return given or self.device.times is not None


_read_preset = lru_cache(maxsize=64)(read_model)


def _read_model(name: str) -> NamedModel:
    """Return the model of a name; presets are read once."""
    is_preset = preset_named(name) and not Path(name).exists()
    return _read_preset(name) if is_preset else read_model(name)


def workloads(request: PredictRequest, setting: Setting) -> list[Workload]:
    """Return the workload of each phase of a request."""
    size = itemsize(setting.dtype) or 2
    return [
        Workload.from_sizes(
            phase,
            request,
            itemsize=size,
            routing=setting.routing,
            absorbed=setting.absorbs,
            kv_itemsize=setting.kv_itemsize,
        )
        for phase in _phases(request)
    ]


def _phases(request: PredictRequest) -> tuple[str, ...]:
    """Return the phases of a request."""
    if request.phase == FORWARD:
        return ("prefill",)  # the work of a prompt, without causality and cache
    return PHASES if request.phase == "both" else (request.phase,)


class ModelOnDevice(Struct, frozen=True, kw_only=True):
    """The model and the device of a request, shared by all of its points."""

    shape: ModelShape
    traits: Traits
    source: str
    device: Device
    dtype: str
    flop_per_s: float
    byte_per_s: float
    gemm_ceiling: float | None
    routing: Routing | None
    pruned: NamedModel | None = None  # a pruned model to compare with


def read_model_on_device(request: PredictRequest, warnings: list[str]) -> ModelOnDevice:
    """Read the model and find the device of a request.

    Raises PrunescopeError where one is unknown or incomplete.
    """
    if request.phase not in (*PHASES, "both", FORWARD):
        raise PrunescopeError(
            f"no phase is called {request.phase!r}", hint="prefill, decode, both or forward"
        )
    if request.model is None:
        raise PrunescopeError(
            "predict needs --model, or --from-run", hint="for example --model llama-3.1-8b"
        )
    if request.device is None and not (request.peaks and request.bandwidth):
        raise PrunescopeError(
            "predict needs --device, or --peak and --bandwidth",
            hint="`prunescope devices` lists the known ones",
        )
    model = _read_model(request.model)
    other = request.pruned_model or request.draft_model
    pruned = None if other is None else _read_model(other)
    warnings += [*model.notes, *(pruned.notes if pruned else ())]
    words = [named.shape.embedding.vocab for named in (model, pruned) if named is not None]
    if request.draft_tokens is not None and len(set(words)) > 1:
        warnings.append(
            f"the vocabulary of the draft has {words[1]:,} tokens, that of the model {words[0]:,}: "
            "the model verifies those alone by which both mean the same"
        )
    given = request.routing
    routing = None if given is None else routing_of_model(given, model.shape)
    if routing is not None:
        warnings += [text for phase in _phases(request) for text in routing.caveats(phase)]
    known = named_device(request.device) if request.device else None
    device = with_overrides(known, peaks=request.peaks, bandwidth_gb_per_s=request.bandwidth)
    name = _choose_dtype(request.dtype, model.dtype, device, warnings)
    if model.quantised and request.dtype is None and request.weights is None:
        warnings.append(
            f"its weights are published as {model.quantised}: predicted as if all of them were "
            f"{name}, in time and in memory"
        )
    peak = device.peak(name)
    if device.times is not None:
        warnings.append(_calibrated_with(device.name, device.times.threads))
    elif device.is_cpu:
        warnings.append(
            "no published speedup on a CPU was held against these ranges: --from-run predicts from "
            "one measured run"
        )
    if peak is None or device.byte_per_s is None:
        missing = f"{name} peak" if peak is None else "bandwidth"
        raise PrunescopeError(
            f"{device.name} has no {missing}",
            hint=f"it has {', '.join(device.dense_flop_per_s) or 'none'}; "
            "give --peak DTYPE=TFLOPS or --bandwidth GB/s",
        )
    return ModelOnDevice(
        shape=model.shape,
        traits=model.traits,
        source=model.source,
        device=device,
        dtype=name,
        flop_per_s=peak,
        byte_per_s=device.byte_per_s,
        gemm_ceiling=best_gemm_share(device, name),
        pruned=pruned,
        routing=routing,
    )


def _calibrated_with(name: str, threads: int | None) -> str:
    """Tell which measurement the times of a calibrated device are of."""
    many = "an unknown number of threads" if threads is None else f"{threads} thread"
    return (
        f"{name}: times are those that `prunescope calibrate` measured with {many}"
        f"{when(threads not in (None, 1), 's')}"
    )


def resolve(
    request: PredictRequest,
    method: str | None,
    sparsity: float | None,
    warnings: list[str],
    target: ModelOnDevice | None = None,
) -> tuple[Setting, str]:
    """Return the setting of one point of a request, and the source of the model's shape.

    Args:
        request: The request.
        method: The method of the point; None: the dense model.
        sparsity: The sparsity of the point; None: the method's default.
        warnings: Warnings so far, to which this adds its own.
        target: The model and device of the request, if they were looked up before.

    Returns:
        The setting and the source.

    Raises:
        PrunescopeError: The method is unknown, it lacks a knob, or its family does not apply to
            the model.
    """
    target = target or read_model_on_device(request, warnings)
    chosen, method_knobs = _family_of_method(method)
    shape, device = (target.pruned or target).shape, target.device
    default = (chosen.only if chosen else None) or 0.25
    chosen = as_runnable(chosen, device, warnings)
    if chosen is not None:
        check_applies(chosen.id, chosen.applies, (target.pruned or target).traits)
    given = default if sparsity is None else sparsity
    if chosen and (implied := _implied_sparsity(request, chosen, shape)) is not None:
        given = implied
    runtime = _runtime(request.runtime)
    library = runtime.library if runtime else "torch"
    by, given_knobs = take_match({**method_knobs, **request.knobs})
    sparse_library, given_knobs = split_library({"kernel": library, **given_knobs})
    knobs = {k: v for k, v in given_knobs.items() if chosen and k in chosen.knobs}
    if chosen and not request.has_several_methods:
        knobs = given_knobs  # so that an unknown one is an error
    filled = chosen.point(given, knobs).knobs if chosen else {}
    warnings += _doubts_about_layers(shape, given, filled.get("layers"))
    setting = Setting(
        shape=target.shape,
        device=device,
        dtype=target.dtype,
        flop_per_s=target.flop_per_s,
        byte_per_s=target.byte_per_s,
        family=chosen,
        sparsity=given,
        knobs=filled,
        terms=active_terms(request.terms, request.without),
        launch=_launch_mode(request.launch, runtime, device),
        sparse_library=sparse_library,
        tp=_check_tp(request.tp),
        ep=_check_ep(request.ep, request.tp, target.shape),
        pp=_check_pp(request.pp, target.shape.layers),
        routing=target.routing,
        gemm_ceiling=target.gemm_ceiling,
        constants=_constants(request, device),
        runtime=runtime,
        wide_flop_per_s=_wide_peak(device, target.dtype) if runtime and runtime.mixed else None,
        stored_itemsize=_stored_itemsize(
            request.weights or (MARLIN_WEIGHTS if sparse_library == MARLIN else None)
        ),
        attn=request.attn,
        cache=request.cache,
        kv_itemsize=_stored_itemsize(request.kv_dtype),
        layers_kept=_layers_kept(request.depth, shape.layers),
        extra_ns=_extra_ns(request.extra_ms),
        named=method_knobs,
        traits=target.traits,
        pruned_shape=target.pruned.shape if target.pruned else None,
        legal=_legal(request),
    )
    if chosen is not None and by != NOMINAL:
        work = workloads(request, setting)[0]
        matched = solve(chosen, given, by=by, shape=shape, work=work, knobs=knobs)
        setting = _set_matched(setting, chosen, matched, knobs, warnings)
    return setting, target.source


def _set_matched(
    setting: Setting, chosen: Family, matched: Match, knobs: Mapping[str, Any], warnings: list[str]
) -> Setting:
    """Return a setting at the sparsity that removes a requested share, and say which it is."""
    warnings.append(f"{chosen.id}: {matched.note}")
    filled = chosen.point(matched.own, knobs).knobs
    return replace(setting, sparsity=matched.own, knobs=filled)


def _legal(request: PredictRequest) -> Legal | None:
    """Return the sizes of --legal, at --legal-tp or the degree of --tp; None without it."""
    if request.legal is None:
        return None
    return legal_sizes(request.legal, max(request.legal_tp, request.tp))


def _doubts_about_layers(shape: ModelShape, sparsity: float, named: object) -> Iterator[str]:
    """Yield what is unknown or unlike the sparsity of the layers that a method removes."""
    if shape.is_uneven and sparsity and named == "":
        yield (
            "layers of this model differ, and which ones are removed is unknown: the prediction "
            "removes average layers; --set layers=0,1 names them"
        )
    if named and (text := named_share(str(named), shape.layers, sparsity)):
        yield text


def _implied_sparsity(request: PredictRequest, chosen: Family, shape: ModelShape) -> float | None:
    """Return the sparsity that the knobs of a request give at its length; None where none does."""
    tokens = request.context or request.prompt_len + (request.new_tokens or 0)
    if chosen.skips_tokens:
        tokens = request.prompt_len
    knobs = {key: value for key, value in request.knobs.items() if key in chosen.knobs}
    return chosen.implied_sparsity(shape, chosen.point(0.0, knobs).knobs, tokens)


def split_library(knobs: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the library of 2:4 GEMMs (`--set kernel=`), and the knobs of the family.

    Raises PrunescopeError for an unknown library.
    """
    family_knobs = dict(knobs)
    library = str(family_knobs.pop("kernel", "torch"))
    if library not in SPARSE_LIBRARIES:
        raise PrunescopeError(
            f"option kernel={library!r} is no library of 2:4 kernels",
            hint=f"one of {', '.join(SPARSE_LIBRARIES)}",
        )
    return library, family_knobs


def as_runnable(chosen: Family | None, device: Device, warnings: list[str]) -> Family | None:
    """Return the family as this device runs it.

    2:4 on a device without matrix units for it is a mask, with a warning.
    """
    if chosen is None or not chosen.without_sparse_units or device.sparse_24 is not False:
        return chosen
    warnings.append(f"{device.name} has no matrix units for 2:4: the weights stay dense with zeros")
    return family(chosen.without_sparse_units)


def active_terms(terms: Collection[str] | None, without: Collection[str]) -> Collection[str]:
    """Return the execution costs to count: `terms` (None: all) but those in `without`.

    Raises PrunescopeError for an unknown name.
    """
    for name in (*(terms or ()), *without):
        if name not in NAMES:
            raise PrunescopeError(
                f"no execution cost is called {name!r}", hint=f"one of {', '.join(NAMES)}"
            )
    return tuple(name for name in (NAMES if terms is None else terms) if name not in without)


def _check_tp(tp: int) -> int:
    """Return the number of devices that share layers.

    Raises PrunescopeError for an impossible one.
    """
    if not 1 <= tp <= 64:
        raise PrunescopeError(f"{tp} devices cannot share a layer", hint="--tp 1 to 64")
    return tp


def _check_ep(ep: int, tp: int, shape: ModelShape) -> int:
    """Return the number of devices that hold experts.

    Raises PrunescopeError for an impossible one.
    """
    if ep == 1:
        return ep
    if not shape.experts.count:
        raise PrunescopeError("--ep needs a model with experts", hint="use --tp to share layers")
    if not 1 <= ep <= shape.experts.count:
        raise PrunescopeError(
            f"{shape.experts.count} experts cannot lie on {ep} devices",
            hint=f"--ep 1 to {shape.experts.count}",
        )
    if tp not in (1, ep):
        raise PrunescopeError(
            f"--tp {tp} and --ep {ep} are not the same devices",
            hint=f"--tp {ep} with --ep {ep} (all share every layer), or --tp 1 (each has "
            "sequences of its own)",
        )
    return ep


def routing_of_model(given: str, shape: ModelShape) -> Routing:
    """Return the token counts that `--routing` names.

    Raises PrunescopeError where they are of another model.
    """
    if not shape.experts.count:
        raise PrunescopeError("--routing needs a model with experts", hint="remove --routing")
    routing = read_routing(given)
    for layers in routing.phases.values():
        if len(layers) not in (1, shape.moe_layers):
            raise PrunescopeError(
                f"{routing.source} counts experts of {len(layers)} layers, and the model has "
                f"{shape.moe_layers} with experts",
                hint="give the counts of each of them, or of one that stands for all",
            )
        there = [shape.experts.count]
        if len(layers) > 1:
            each = [layer.experts for layer in shape.layer_shapes if layer.experts]
            there = each or there * shape.moe_layers
        for number, (counts, experts) in enumerate(zip(layers, there, strict=True)):
            if len(counts) < experts:
                where = f" of layer {number} of those with experts" if len(layers) > 1 else ""
                raise PrunescopeError(
                    f"{routing.source} counts {len(counts)} experts{where}, and the model has "
                    f"{experts} there",
                    hint="give --routing the counts of the dense model",
                )
    return routing


def _check_pp(pp: int, layers: int) -> int:
    """Return the number of stages; raise PrunescopeError where there are more than layers."""
    if not 1 <= pp <= layers:
        raise PrunescopeError(
            f"{layers} layers cannot make {pp} stages", hint=f"--pp 1 to {layers}"
        )
    return pp


def _runtime(name: str | None) -> Runtime | None:
    """Return the engine of a name; raise PrunescopeError for an unknown one."""
    if name is not None and name not in RUNTIMES:
        raise PrunescopeError(
            f"no runtime is called {name!r}", hint=f"one of {', '.join(RUNTIMES)}"
        )
    return RUNTIMES[name] if name else None


def _constants(request: PredictRequest, device: Device) -> Constants:
    """Return the constants on a device, with the host time of a request."""
    us = request.host_us_per_op
    if us is None:
        return defaults_on(device)
    if not 0 < us < 1e6:
        raise PrunescopeError(
            f"a host cannot take {us:g} us an op", hint="for example --host-us-per-op 12"
        )
    return replace(DEFAULT, dispatch_ns=us * 1e3)


def _wide_peak(device: Device, name: str) -> float | None:
    """Return the FLOP/s of ops that stay in 16 bits next to linear layers of `name`.

    Returns None where nothing is narrower.
    """
    if (itemsize(name) or 2) >= WIDE_ITEMSIZE:
        return None
    return device.peak("bf16") or device.peak("fp16")


def _stored_itemsize(name: str | None) -> float | None:
    """Return the bytes per number of a format; raise PrunescopeError for an unknown one."""
    if name is None:
        return None
    size = itemsize(dtype(name))
    if size is None:
        raise PrunescopeError(
            f"no number format is called {name!r}", hint="for example int4, int8 or fp8"
        )
    return size


def _layers_kept(depth: float, layers: int) -> float:
    """Return the share of layers that remain when whole ones go."""
    check_sparsity(depth)
    return max(1, layers - round(depth * layers)) / layers


def _extra_ns(ms: float) -> float:
    """Return a time outside the model in ns; raise PrunescopeError for an impossible one."""
    if not 0 <= ms < 1e9:
        raise PrunescopeError(f"{ms:g} ms outside the model", hint="--extra-ms 0 or more")
    return ms * 1e6


def _launch_mode(given: str | None, runtime: Runtime | None, device: Device) -> str:
    """Return how kernels are launched: as given, else as the engine or the device does.

    Raises PrunescopeError for an unknown mode, and for graphs on a CPU.
    """
    name = given or (runtime.launch if runtime else "eager" if device.is_cpu else "graph")
    if name not in LAUNCHES:
        raise PrunescopeError(
            f"no launch mode is called {name!r}", hint=f"nearest: {nearest(name, LAUNCHES)}"
        )
    if name == "graph" and device.is_cpu:
        raise PrunescopeError(
            f"{device.name} is a CPU, which replays no graph", hint="--launch eager"
        )
    return name


def _family_of_method(method: str | None) -> tuple[Family | None, Mapping[str, str]]:
    """Return the family of an id or of a published method, and the knobs that the method implies.

    Raises PrunescopeError for a function, which has no cost model.
    """
    if method is None or method == "dense":
        return None, {}
    if is_function(method):
        raise PrunescopeError(
            f"{Path(method).name} is a function, which has no cost model",
            hint="predict takes one of `prunescope families`; trace measures a function",
        )
    return find_named_family(method)


def find_named_family(method: str) -> tuple[Family, Mapping[str, str]]:
    """Find the family of a name, and the knobs that a published method implies.

    Raises PrunescopeError with the nearest families and methods.
    """
    name, knobs = family_of(method)
    ids = [known.id for known in families()]
    parts = [part for part, _ in method_parts(method)]
    if len(parts) > 1 and all(family_of(part)[0] in ids for part in parts):
        raise PrunescopeError(
            f"combined families ({method}) cannot be predicted, only one at a time",
            hint="predict each alone, or measure the combination with trace",
        )
    if name not in ids:
        close = nearest_methods(name, {known.id: known.title for known in families()})
        raise PrunescopeError(
            f"no pruning family or method is called {name!r}",
            hint=f"nearest: {close}; `prunescope families` lists the families",
        )
    return family(name), knobs


def _choose_dtype(
    requested: str | None, model_dtype: str | None, device: Device, warnings: list[str]
) -> str:
    """Return the requested format, else the model's, else bf16.

    Without a request, a device that lacks a 16-bit format gets fp16 or fp32 instead, with a
    warning.
    """
    name = parse_dtype(requested or model_dtype or "bf16")
    if requested is None and name in ("bf16", "fp16") and device.peak(name) is None:
        instead = next((known for known in ("fp16", "fp32") if device.peak(known)), None)
        if instead is not None:
            warnings.append(f"{device.name} has no {name} matrix units: predicted in {instead}")
            return instead
    return name
