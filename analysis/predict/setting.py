"""A request to `predict`, and the setting it resolves to: shape, device, peaks, family, terms.

In: a PredictRequest, with peaks in TFLOP/s and bandwidth in GB/s. Out: a Setting, with both in
FLOP/s and byte/s, and the workloads of its phases.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from prunescope.analysis.device.hardware import (
    Device,
    best_gemm_share,
    find_device,
    with_overrides,
)
from prunescope.analysis.predict.constants import (
    DEFAULT,
    LAUNCHES,
    MARLIN,
    NAMES,
    SPARSE_LIBRARIES,
    Constants,
)
from prunescope.analysis.predict.request import PredictRequest
from prunescope.analysis.predict.routing_file import read_routing
from prunescope.analysis.predict.runtimes import RUNTIMES, Runtime
from prunescope.analysis.shapes.config import NamedModel, read_model
from prunescope.taxonomy.applies import check_applies
from prunescope.taxonomy.architecture_traits import Traits
from prunescope.taxonomy.dtypes import dtype, itemsize
from prunescope.taxonomy.errors import PrunescopeError, nearest
from prunescope.taxonomy.expert_routing import Routing
from prunescope.taxonomy.families import families, family
from prunescope.taxonomy.family import Family
from prunescope.taxonomy.keep import check_sparsity, kept_routes, named_share
from prunescope.taxonomy.method_names import is_function, method_parts
from prunescope.taxonomy.methods import family_of, method_names, slug
from prunescope.taxonomy.plan import FORWARD, PHASES, Workload
from prunescope.taxonomy.presets import preset_named
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.words import spread

WIDE_ITEMSIZE = 2.0  # bytes of a number that engines do not narrow
MARLIN_WEIGHTS = "int4"  # where --weights says nothing


_ROUNDED = 0.01  # of the sparsity: what rounding to whole experts may change without a word


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
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
    sparse_library: str = "torch"  # of 2:4 GEMMs
    tp: int = 1  # devices that share each layer; a PredictedSide is one of them
    ep: int = 1  # devices that hold whole experts of each layer
    pp: int = 1  # stages of layers, which a forward passes in sequence
    routing: Routing | None = None  # how often each expert is chosen; None: all as often
    gemm_ceiling: float | None = None  # the best published GEMM, as a share of the peak
    constants: Constants = DEFAULT
    runtime: Runtime | None = None  # None: the kernels alone
    wide_flop_per_s: float | None = None  # of what stays in 16 bits; None: all is in `dtype`
    stored_itemsize: float | None = None  # bytes a number of linear layers; None: as multiplied
    fused_attention: bool = False  # in eager modules; elsewhere it always is
    layers_kept: float = 1.0  # share of whole layers, apart from the method
    extra_ns: float = 0.0  # outside the model, on both sides
    named: Mapping[str, str] = field(default_factory=dict)  # knobs that the method's name implies
    removed: Mapping[str, Sequence[int]] = field(default_factory=dict)  # layers that a run removed
    pruned_shape: ModelShape | None = None  # of another model, that stands in place of a family
    traits: Traits | None = None  # decide which families apply; None: all do

    @property
    def prunes(self) -> bool:
        """Whether there is a pruned side."""
        return self.family is not None or self.pruned_shape is not None

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
        """Whether the time of an eager dispatch was given."""
        return self.constants.dispatch_ns != DEFAULT.dispatch_ns


def _model(name: str) -> NamedModel:
    is_preset = preset_named(name) and not Path(name).exists()
    return _preset(name) if is_preset else read_model(name)


@lru_cache(maxsize=64)
def _preset(name: str) -> NamedModel:
    return read_model(name)


def workloads(request: PredictRequest, setting: Setting) -> list[Workload]:
    """The workload of each phase of a request."""
    size = itemsize(setting.dtype) or 2
    return [
        Workload.of(
            phase, request, itemsize=size, routing=setting.routing, absorbed=setting.absorbs
        )
        for phase in _phases(request)
    ]


def _phases(request: PredictRequest) -> tuple[str, ...]:
    if request.phase == FORWARD:
        return ("prefill",)  # its work is that of a prompt, without causality and cache
    return PHASES if request.phase == "both" else (request.phase,)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOnDevice:
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
    pruned: NamedModel | None = None  # another model, to compare with


def model_on_device(request: PredictRequest, warnings: list[str]) -> ModelOnDevice:
    """The model and the device of a request. Raises PrunescopeError where one is unknown or
    incomplete."""
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
    model = _model(request.model)
    pruned = None if request.pruned_model is None else _model(request.pruned_model)
    warnings += [*model.notes, *(pruned.notes if pruned else ())]
    given = request.routing
    routing = None if given is None else routing_of_model(given, model.shape)
    if routing is not None:
        warnings += [text for one in _phases(request) for text in routing.caveats(one)]
    known = find_device(request.device) if request.device else None
    device = with_overrides(known, peaks=request.peaks, bandwidth_gb_per_s=request.bandwidth)
    name = _dtype(request.dtype, model.dtype, device, warnings)
    if model.quantised and request.dtype is None and request.weights is None:
        warnings.append(
            f"its weights are published as {model.quantised}: predicted as if all of them were "
            f"{name}, in time and in memory"
        )
    peak = device.peak(name)
    if device.is_cpu:
        warnings.append(
            "no published speedup on a CPU was held against these ranges: --from-run predicts from "
            "one measured run"
        )
    if peak is None or device.byte_per_s is None:
        what = f"{name} peak" if peak is None else "bandwidth"
        raise PrunescopeError(
            f"{device.name} has no {what}",
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


def resolve(
    request: PredictRequest,
    method: str | None,
    sparsity: float | None,
    warnings: list[str],
    target: ModelOnDevice | None = None,
) -> tuple[Setting, str]:
    """The setting of one point of a request, and the source of the model's shape. `target`: its
    model and device, if they were looked up before.

    Raises PrunescopeError for an unknown method, a knob of none, or a family that does not apply to
    the model.
    """
    target = target or model_on_device(request, warnings)
    chosen, method_knobs = _family(method)
    shape, device = target.shape, target.device
    default = (chosen.only if chosen else None) or 0.25
    chosen = runnable(chosen, device, warnings)
    if chosen is not None:
        check_applies(chosen.id, chosen.applies, target.traits)
    given = default if sparsity is None else sparsity
    runtime = _runtime(request.runtime)
    library = runtime.library if runtime else "torch"
    sparse_library, given_knobs = split_library(
        {"kernel": library, **method_knobs, **request.knobs}
    )
    knobs = {k: v for k, v in given_knobs.items() if chosen and k in chosen.knobs}
    if chosen and not request.many:
        knobs = given_knobs  # an unknown one is an error
    filled = chosen.point(given, knobs).knobs if chosen else {}
    if shape.uneven and given and filled.get("layers") == "":
        warnings.append(
            "layers of this model differ, and which ones are removed is unknown: the prediction "
            "removes average layers; --set layers=0,1 names them"
        )
    named = filled.get("layers")
    if named and (text := named_share(str(named), shape.layers, given)):
        warnings.append(text)
    setting = Setting(
        shape=shape,
        device=device,
        dtype=target.dtype,
        flop_per_s=target.flop_per_s,
        byte_per_s=target.byte_per_s,
        family=chosen,
        sparsity=given,
        knobs=filled,
        terms=terms_of(request.terms, request.without),
        launch=_launch(request.launch, runtime, device),
        sparse_library=sparse_library,
        tp=_devices(request.tp),
        ep=_expert_devices(request.ep, request.tp, shape),
        pp=_stages(request.pp, shape.layers),
        routing=target.routing,
        gemm_ceiling=target.gemm_ceiling,
        constants=_constants(request),
        runtime=runtime,
        wide_flop_per_s=_wide_peak(device, target.dtype) if runtime and runtime.mixed else None,
        stored_itemsize=_stored(
            request.weights or (MARLIN_WEIGHTS if sparse_library == MARLIN else None)
        ),
        fused_attention=request.attn == "sdpa",
        layers_kept=_layers_kept(request.depth, shape.layers),
        extra_ns=_extra(request.extra_ms),
        named=method_knobs,
        traits=target.traits,
        pruned_shape=target.pruned.shape if target.pruned else None,
    )
    return setting, target.source


def assumptions(setting: Setting) -> list[str]:
    """Assumptions about the engine behind a prediction, in sentences."""
    found = []
    if setting.layers_kept < 1:
        left = round(setting.layers_kept * setting.shape.layers)
        found.append(f"the pruned model has {left} of {setting.shape.layers} layers")
    if setting.pp > 1:
        found.append(
            f"{setting.pp} stages of equal layers, as nearly as whole layers allow, with lm_head "
            f"on the last; memory is that of the fullest stage with {setting.pp} batches in flight"
        )
    if setting.shape.experts.count:
        found += _of_experts(setting)
    if setting.shape.attention.kv_rank is not None:
        found.append(_of_latents(setting))
    if setting.sparse_library == MARLIN:
        bits = round(8 * (setting.stored_itemsize or WIDE_ITEMSIZE))
        found.append(
            f"both sides store the weights of linear layers in {bits} bits and multiply them in "
            f"{setting.dtype} by Marlin kernels"
        )
    if setting.runtime is None:
        return found
    found.append(setting.runtime.assumed)
    if setting.wide_flop_per_s is not None:
        found.append(
            f"linear layers multiply in {setting.dtype}; lm_head, attention, its cache and what "
            "lies between stay in 16 bits"
        )
    return found


def _of_latents(setting: Setting) -> str:
    """How decode reads a cache of latents."""
    shape = setting.shape
    numbers = f"{shape.cache_elements():,} numbers a cached token and layer"
    if setting.absorbs:
        return (
            f"latent attention reads {numbers} in decode: its queries are multiplied into them, as "
            "serving engines do"
        )
    more = shape.attention.kv_elements / shape.cache_elements()
    return (
        f"latent attention expands all of its {numbers} in each decode step, as transformers does, "
        f"and reads {more:.0f} times as many; serving engines do not: --runtime vllm or sglang"
    )


def _rounded(setting: Setting) -> list[str]:
    """How many experts stay, or a token goes to, where that is not the share that was asked for: a
    router needs as many as a token goes to, and a token one."""
    family, shape, asked = setting.family, setting.shape, setting.sparsity
    if family is None or not family.changes_experts or not shape.experts.count:
        return []
    parts = [part for part in shape.mlp_parts() if part.moe_layers]
    if family.cuts_experts:
        what = "experts of a layer stay"
        pairs = [(part.experts.kept(asked), part.experts.count) for part in parts]
    else:
        what = "experts of each token stay"
        routes = [part.experts.per_token for part in parts]
        pairs = [(kept_routes(count, asked), count) for count in routes]
    layers = [part.moe_layers for part in parts]
    left, there = (
        sum(n * m for n, m in zip(one, layers, strict=True)) for one in zip(*pairs, strict=True)
    )
    if abs(1 - left / there - asked) < _ROUNDED:
        return []
    kept, count = (spread(min(one), max(one)) for one in zip(*pairs, strict=True))
    return [f"{kept} of {count} {what}: {1 - left / there:.1%} fewer; {asked:.1%} were requested"]


def _of_experts(setting: Setting) -> list[str]:
    """How many experts are kept, how tokens are spread over them, and their placement on
    devices."""
    found = _rounded(setting)
    if setting.routing is None:
        found.append(
            "every expert is chosen as often; a real router is uneven and reads fewer experts: "
            "give --routing"
        )
    else:
        goes = setting.family is not None and setting.family.cuts_experts
        found.append(
            f"experts are chosen as often as in {setting.routing.source}"
            + _picks(setting.routing)
            + "; of experts that are removed, the least chosen go first" * goes
        )
        most = max((len(one) for by in setting.routing.phases.values() for one in by), default=0)
        if most > setting.shape.experts.count:
            found.append(
                f"{setting.routing.source} counts {most} experts of a layer, and the model has "
                f"{setting.shape.experts.count}: taken for those that were chosen most"
            )
    if setting.loops_experts:
        found.append(
            "the host calls each expert that got a token on its own, as eager experts of "
            "transformers do; grouped ones (its default from 5.0 on where it has them) take as "
            "many calls for any number of experts"
        )
    if setting.ep > 1:
        whose = (
            "each has sequences of its own, --batch of them"
            if setting.tp == 1
            else "all share every other layer"
        )
        found.append(
            f"{setting.ep} devices hold the experts in their order, as whole ones; {whose}; times "
            "are those of the device whose experts get most tokens"
        )
    return found


def _picks(routing: Routing) -> str:
    """How many picks were counted, in brackets; empty where none were."""
    if not routing.picks:
        return ""
    sizes = {f"{picks:,.0f}" for picks in routing.picks.values()}
    if len(sizes) == 1:
        return f" ({sizes.pop()} picks a layer)"
    by_phase = ", ".join(f"{phase} {picks:,.0f}" for phase, picks in routing.picks.items())
    return f" (picks a layer: {by_phase})"


def split_library(knobs: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The library of 2:4 GEMMs (`--set kernel=`), and the other knobs, which are the family's.

    Raises PrunescopeError for an unknown library.
    """
    rest = dict(knobs)
    library = str(rest.pop("kernel", "torch"))
    if library not in SPARSE_LIBRARIES:
        raise PrunescopeError(
            f"option kernel={library!r} is no library of 2:4 kernels",
            hint=f"one of {', '.join(SPARSE_LIBRARIES)}",
        )
    return library, rest


def runnable(chosen: Family | None, device: Device, warnings: list[str]) -> Family | None:
    """The family as this device runs it: 2:4 without matrix units for it is a mask, with a
    warning."""
    if chosen is None or not chosen.without_sparse_units or device.sparse_24 is not False:
        return chosen
    warnings.append(f"{device.name} has no matrix units for 2:4: the weights stay dense with zeros")
    return family(chosen.without_sparse_units)


def terms_of(terms: Collection[str] | None, without: Collection[str]) -> Collection[str]:
    """The execution costs to count: `terms` (None: all) but those in `without`. Raises
    PrunescopeError for an unknown name."""
    for name in (*(terms or ()), *without):
        if name not in NAMES:
            raise PrunescopeError(
                f"no execution cost is called {name!r}", hint=f"one of {', '.join(NAMES)}"
            )
    return tuple(name for name in (NAMES if terms is None else terms) if name not in without)


def _devices(tp: int) -> int:
    if not 1 <= tp <= 64:
        raise PrunescopeError(f"{tp} devices cannot share a layer", hint="--tp 1 to 64")
    return tp


def _expert_devices(ep: int, tp: int, shape: ModelShape) -> int:
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
    """The token counts that `--routing` names. Raises PrunescopeError where it is of another
    model."""
    if not shape.experts.count:
        raise PrunescopeError("--routing needs a model with experts", hint="remove --routing")
    found = read_routing(given)
    for layers in found.phases.values():
        if len(layers) not in (1, shape.moe_layers):
            raise PrunescopeError(
                f"{found.source} counts experts of {len(layers)} layers, and the model has "
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
                    f"{found.source} counts {len(counts)} experts{where}, and the model has "
                    f"{experts} there",
                    hint="give --routing the counts of the dense model",
                )
    return found


def _stages(pp: int, layers: int) -> int:
    if not 1 <= pp <= layers:
        raise PrunescopeError(
            f"{layers} layers cannot make {pp} stages", hint=f"--pp 1 to {layers}"
        )
    return pp


def _runtime(name: str | None) -> Runtime | None:
    if name is not None and name not in RUNTIMES:
        raise PrunescopeError(
            f"no runtime is called {name!r}", hint=f"one of {', '.join(RUNTIMES)}"
        )
    return RUNTIMES[name] if name else None


def _constants(request: PredictRequest) -> Constants:
    us = request.host_us_per_op
    if us is None:
        return DEFAULT
    if not 0 < us < 1e6:
        raise PrunescopeError(
            f"a host cannot take {us:g} us an op", hint="for example --host-us-per-op 12"
        )
    return replace(DEFAULT, dispatch_ns=us * 1e3)


def _wide_peak(device: Device, name: str) -> float | None:
    """FLOP/s of ops that stay in 16 bits next to linear layers of `name`; None: nothing is
    narrower."""
    if (itemsize(name) or 2) >= WIDE_ITEMSIZE:
        return None
    return device.peak("bf16") or device.peak("fp16")


def _stored(name: str | None) -> float | None:
    if name is None:
        return None
    size = itemsize(dtype(name))
    if size is None:
        raise PrunescopeError(
            f"no number format is called {name!r}", hint="for example int4, int8 or fp8"
        )
    return size


def _layers_kept(depth: float, layers: int) -> float:
    """The share of layers that is left when whole ones go."""
    check_sparsity(depth)
    return max(1, layers - round(depth * layers)) / layers


def _extra(ms: float) -> float:
    if not 0 <= ms < 1e9:
        raise PrunescopeError(f"{ms:g} ms outside the model", hint="--extra-ms 0 or more")
    return ms * 1e6


def _launch(given: str | None, runtime: Runtime | None, device: Device) -> str:
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


def _family(method: str | None) -> tuple[Family | None, Mapping[str, str]]:
    """The family of an id or of a published method, and the knobs that the method implies."""
    if method is None or method == "dense":
        return None, {}
    if is_function(method):
        raise PrunescopeError(
            f"{Path(method).name} is a function, which has no cost model",
            hint="predict takes one of `prunescope families`; trace measures a function",
        )
    return named_family(method)


def named_family(method: str) -> tuple[Family, Mapping[str, str]]:
    """The family of a name, and the knobs that a published method implies.

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
        close = nearest(slug(name), [*ids, *method_names()])
        raise PrunescopeError(
            f"no pruning family or method is called {name!r}",
            hint=f"nearest: {close}; `prunescope families` lists the families",
        )
    return family(name), knobs


def _dtype(requested: str | None, of_model: str | None, device: Device, warnings: list[str]) -> str:
    """The requested format, else the model's, else bf16; with a warning the widest next one that
    the device has where it has no bf16."""
    name = dtype(requested or of_model or "bf16")
    if name is None:
        raise PrunescopeError(
            f"no number format is called {requested or of_model!r}",
            hint="for example bf16 or fp32",
        )
    if requested is None and name in ("bf16", "fp16") and device.peak(name) is None:
        instead = next((other for other in ("fp16", "fp32") if device.peak(other)), None)
        if instead is not None:
            warnings.append(f"{device.name} has no {name} matrix units: predicted in {instead}")
            return instead
    return name
