"""What differs between two runs beside the model, so that no shape tells of pruning.

In: both sides of a phase. Out: a Reason, or None.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from prunescope.analysis.inputs.subject import Side
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.kernels.phase_kind import rows_of_linears
from prunescope.analysis.schema.report import NOT_COMPARABLE
from prunescope.analysis.verdict.evidence import Reason

_INPUTS = ("batch", "prompt_len", "context")


def other_conditions(
    dense: tuple[Side, Kernels],
    pruned: tuple[Side, Kernels],
    name: str,
    told: Sequence[dict[str, str] | None],
) -> Reason | None:
    """What differs between the runs beside the model, so that no shape tells of pruning. `told`:
    the phase of each side whose run does not say it."""
    (side_d, kernels_d), (side_p, kernels_p) = dense, pruned
    if kernels_d.compiled != kernels_p.compiled:
        which = "pruned" if kernels_p.compiled else "dense"
        return _other(
            "compiled",
            f"the {which} side runs compiled code (torch.compile), whose fused loops stand for "
            "many ops; trace both sides compiled, or neither",
            side=which,
        )
    run_d, run_p = side_d.phase(name), side_p.phase(name)
    if run_d is None or run_p is None:
        kinds = [name if one is None else one["kind"] for one in told]
        return _other_phase(kernels_d, kernels_p, kinds)
    for field in _INPUTS:
        old, new = getattr(run_d, field), getattr(run_p, field)
        if old != new:
            text = f"{field} is {new}, that of the dense run {old}: other inputs"
            return _other(field.replace("_", "-"), text, dense=old, pruned=new)
    shape_d, shape_p = _shape(side_d), _shape(side_p)
    length = max(run_p.positions, default=0)
    return _other_model(shape_d, shape_p) or _other_windows(shape_d, shape_p, length)


def _shape(side: Side) -> dict[str, Any]:
    """What the manifest says of the model's shape; empty where it says nothing."""
    shape = side.run.model.get("shape") if side.run is not None else None
    return shape if isinstance(shape, dict) else {}


def _other_model(dense: dict[str, Any], pruned: dict[str, Any]) -> Reason | None:
    old, new = dense.get("model_type"), pruned.get("model_type")
    if not old or not new or old == new:
        return None
    text = f"the model is of type {new}, the dense one of type {old}"
    return _other("model-type", text, dense=old, pruned=new)


def _other_windows(dense: dict[str, Any], pruned: dict[str, Any], length: int) -> Reason | None:
    """Layers that attend to other windows of a context of `length` tokens."""
    old, new = (
        shape.get("window") if shape.get("sliding_layers") else None for shape in (dense, pruned)
    )
    reach_d, reach_p = (min(w, length) if isinstance(w, int) else length for w in (old, new))
    if not dense or not pruned or reach_d == reach_p:
        return None
    if None in (old, new) and dense.get("layers") != pruned.get("layers"):
        return None  # the layers with a window may be those that are gone
    told_d, told_p = (f"{w} tokens" if w else "all tokens" for w in (old, new))
    text = f"attention sees a window of {told_p}, in the dense run of {told_d}: another attention"
    return _other("window", text, dense=reach_d, pruned=reach_p)


def other_activation(dense: Kernels, pruned: Kernels) -> Reason | None:
    """The ops that stand in the place of the activation, where they are others."""
    old, new = (
        {str(op).rstrip("_") for op in kernels.frame.filter(pl.col("role") == "activation")["op"]
         if op is not None}
        for kernels in (dense, pruned)
    )  # fmt: skip
    gone, fresh = sorted(old - new), sorted(new - old)
    if not gone or not fresh:
        return None
    text = f"the activation is another op: {', '.join(fresh)} instead of {', '.join(gone)}"
    return Reason(kind="activation", lines=(text,), numbers={"dense": gone, "pruned": fresh})


def _other_phase(dense: Kernels, pruned: Kernels, kinds: list[str]) -> Reason | None:
    """Prefill against decode, as bare traces may be by mistake."""
    old, new = kinds
    if {old, new} != {"prefill", "decode"}:
        return None
    rows = [rows_of_linears(kernels) for kernels in (dense, pruned)]
    if rows[0] is not None and rows[0] == rows[1]:  # attention alone looks otherwise
        return None
    return _other("phase", f"the pruned side is {new}, the dense one {old}", dense=old, pruned=new)


def _other(kind: str, text: str, *, side: str | None = None, **numbers: Any) -> Reason:
    """Another condition: the two sides do not compare."""
    return Reason(
        kind=kind,
        lines=(f"{NOT_COMPARABLE}: {text}",),
        side=side,
        numbers=numbers,
        comparable=False,
    )
