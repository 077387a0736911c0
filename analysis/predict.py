"""What shapes and peaks promise of a pruned model, without a run.

In: a PredictRequest (model, device, method, sparsity, phase, workload). Out: a dict in the report's
schema with the fields that need no run: ladder, roles, gemms, bytes. Times are ns, a forward.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.hardware import Device, find_device, with_overrides
from analysis.predict_break_even import break_even
from analysis.predict_execution import NAMES, Scene, execution, speedup
from analysis.predict_model import read_model
from analysis.predict_rows import gemm_rows
from analysis.predict_side import Side, side
from taxonomy.dtypes import dtype, itemsize
from taxonomy.errors import PrunescopeError
from taxonomy.family import Family, family
from taxonomy.plan import PHASES, Workload
from taxonomy.shape import ModelShape

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class PredictRequest:
    """What `predict` is asked. `model`: a preset, a config.json or a folder that holds one.

    `context` (decode): keys the query sees, itself included; `prompt_len` where it is None.
    `peaks` in TFLOP/s a dtype and `bandwidth` in GB/s replace those of the device. `terms`: the
    costs of execution to add to the roofline, all of `predict_execution.NAMES` where it is None.
    """

    model: str
    device: str | None = None
    method: str | None = None
    sparsity: float | None = None
    phase: str = "both"
    batch: int = 1
    prompt_len: int = 512
    context: int | None = None
    logits: str = "last"
    dtype: str | None = None
    knobs: Mapping[str, Any] = field(default_factory=dict)
    peaks: Mapping[str, float] = field(default_factory=dict)
    bandwidth: float | None = None
    terms: Collection[str] | None = None


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

    def scene(self, work: Workload, *, sparsity: float | None = None, pruned: bool = True) -> Scene:
        """A side with what its costs of execution depend on."""
        return Scene(
            side=self.side(work, sparsity=sparsity, pruned=pruned),
            device=self.device,
            dtype=self.dtype,
            work=work,
            family=self.family if pruned else None,
            sparsity=self.sparsity if sparsity is None else sparsity,
        )

    def bound_gain(self, work: Workload, sparsity: float | None = None) -> float:
        """Dense over pruned at the roofline."""
        dense = self.side(work, pruned=False)
        return dense.ns / self.side(work, sparsity=sparsity).ns

    def execution_gain(self, work: Workload, sparsity: float | None = None) -> float:
        """Dense over pruned with the costs of execution."""
        dense = self.scene(work, pruned=False)
        return speedup(dense, self.scene(work, sparsity=sparsity), self.terms)

    def side(self, work: Workload, *, sparsity: float | None = None, pruned: bool = True) -> Side:
        """The forward of one side, with its times at this device's peaks."""
        chosen = self.family if pruned else None
        asked = self.sparsity if sparsity is None else sparsity
        return side(
            self.shape,
            work,
            None if chosen is None else chosen.point(asked, self.knobs),
            family=chosen,
            flop_per_s=self.flop_per_s,
            byte_per_s=self.byte_per_s,
        )


def predict(request: PredictRequest) -> dict[str, Any]:
    """The prediction, JSON-ready. Raises PrunescopeError for a request that cannot be met."""
    warnings: list[str] = []
    setting, source = _resolve(request, warnings)
    wanted = PHASES if request.phase == "both" else (request.phase,)
    phases = {}
    for phase in wanted:
        work = Workload(
            phase=phase,
            batch=request.batch,
            prompt_len=request.prompt_len,
            context=request.context if phase == "decode" else None,
            logits=request.logits,
            itemsize=itemsize(setting.dtype) or 2,
        )
        phases[phase] = predict_phase(setting, work)
    return {
        "schema": SCHEMA,
        "tool": "prunescope predict",
        "subject": _subject(request, setting, source),
        "baseline": {"name": f"{request.model}, dense"} if setting.family else None,
        "device": _device(setting),
        "phases": phases,
        "warnings": warnings,
    }


def _subject(request: PredictRequest, setting: Setting, source: str) -> dict[str, Any]:
    method = setting.family
    return {
        "name": request.model,
        "model": {"id": request.model, "source": source, "shape": setting.shape.to_dict()},
        "method": method.id if method else None,
        "extension": method.extension if method else None,
        "sparsity": setting.sparsity if method else None,
        "knobs": dict(setting.knobs),
        "dtype": setting.dtype,
        "device": setting.device.name,
    }


def _device(setting: Setting) -> dict[str, Any]:
    device = setting.device
    return {
        "name": device.name,
        "peaks": {
            "dense_flop_per_s": {setting.dtype: setting.flop_per_s},
            "byte_per_s": setting.byte_per_s,
        },
        "source": device.source,
        "verified": device.verified,
        "unverified": list(device.unverified),
        "measured": False,
    }


def predict_phase(setting: Setting, work: Workload) -> dict[str, Any]:
    """One phase of a prediction, in the report's schema with the fields that need no run."""
    dense = setting.side(work, pruned=False)
    pruned = setting.side(work) if setting.family else dense
    result: dict[str, Any] = {
        "batch": work.batch,
        "prompt_len": work.prompt_len,
        "context": work.keys,
        "logits": work.logits,
        **_sums(pruned),
        "tokens_per_s": work.rows * 1e9 / pruned.ns,  # at the roofline: no run is faster
        "gemms": gemm_rows(dense, pruned, setting.family, dtype=setting.dtype),
        "ladder": None,
        "baseline": None,
    }
    if setting.family is None:
        return result
    result["ladder"] = _ladder(setting, dense, pruned)
    result["sparsity"] = {
        "nominal": setting.sparsity,
        "parameters": 1 - pruned.parameters / dense.parameters,
        "flop": 1 - pruned.flop / dense.flop,
        "bytes": 1 - pruned.bytes / dense.bytes,
    }
    result["baseline"] = _sums(dense)
    expected = execution(setting.scene(work, pruned=False), setting.scene(work), setting.terms)
    result["predicted"] = {
        "break_even": break_even(work, setting.bound_gain),
        "execution": {**expected, "break_even": break_even(work, setting.execution_gain)},
    }
    return result


def _ladder(setting: Setting, dense: Side, pruned: Side) -> dict[str, float | None]:
    """Rungs that need a run are null."""
    return {
        "nominal": 1 / (1 - setting.sparsity),
        "flop": dense.flop / pruned.flop,
        "coverage": dense.ns / pruned.covered_ns(dense),
        "roofline": dense.ns / pruned.ns,
        "busy": None,
        "realised": None,
        "realised_ci95": None,
        "share_of_bound": None,
    }


def _sums(one: Side) -> dict[str, Any]:
    return {
        "flop": one.flop,
        "bytes": one.bytes,
        "ideal_ns": one.ns,
        "parameters": round(one.parameters),
        "weight_bytes": round(one.weight_bytes),
        "kv_bytes": round(one.kv_bytes),
        "memory_bytes": round(one.weight_bytes) + round(one.kv_bytes),
        "bound": one.bound_ns(),
        "roles": one.role_ns(),
    }


def _resolve(request: PredictRequest, warnings: list[str]) -> tuple[Setting, str]:
    if request.phase not in (*PHASES, "both"):
        raise PrunescopeError(
            f"no phase is called {request.phase!r}", hint="prefill, decode or both"
        )
    method = _family(request.method)
    shape, source, written = read_model(request.model)
    known = find_device(request.device) if request.device else None
    device = with_overrides(known, peaks=request.peaks, bandwidth_gb_per_s=request.bandwidth)
    name = _dtype(request.dtype, written, device, warnings)
    peak = device.peak(name)
    if peak is None or device.byte_per_s is None:
        what = f"{name} peak" if peak is None else "bandwidth"
        raise PrunescopeError(
            f"{device.name} has no {what}",
            hint=f"it has {', '.join(device.dense_flop_per_s) or 'none'}; "
            "give --peak DTYPE=TFLOPS or --bandwidth GB/s",
        )
    if method and method.id == "static-k-24" and device.sparse_24 is False:
        warnings.append(
            f"{device.name} has no matrix units for 2:4: the weights stay dense with zeros"
        )
        method = family("static-k-mask")
    fallback = 0.5 if request.method == "static-k-24" else 0.25
    sparsity = fallback if request.sparsity is None else request.sparsity
    knobs = method.point(sparsity, request.knobs).knobs if method else {}
    setting = Setting(
        shape=shape,
        device=device,
        dtype=name,
        flop_per_s=peak,
        byte_per_s=device.byte_per_s,
        family=method,
        sparsity=sparsity,
        knobs=knobs,
        terms=_terms(request.terms),
    )
    return setting, source


def _terms(asked: Collection[str] | None) -> Collection[str]:
    unknown = sorted(set(asked or ()) - set(NAMES))
    if unknown:
        raise PrunescopeError(
            f"no cost of execution is called {unknown[0]!r}", hint=f"one of {', '.join(NAMES)}"
        )
    return NAMES if asked is None else asked


def _family(method: str | None) -> Family | None:
    if method is None or method == "dense":
        return None
    if ":" in method:
        raise PrunescopeError(
            f"{Path(method).name} is a function: it has no theory",
            hint="predict takes one of `prunescope families`; trace measures a function",
        )
    return family(method)


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
