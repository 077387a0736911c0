"""Pairs that are no pruning, or an extension that no family of the paper holds.

In: Evidence; or both sides of a phase. Out: one sentence with what was seen, or None. Experts that
are fewer, or fewer of them a token, are M of the expert GEMMs: by extension, "expert dropping".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import polars as pl

from prunescope.analysis.inputs.subject import Side
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.kernels.phase_kind import rows_of_linears
from prunescope.analysis.ledger.gemms import Call, Pair
from prunescope.analysis.schema.report import NOT_COMPARABLE
from prunescope.analysis.verdict.evidence import Evidence
from prunescope.taxonomy.roles import GROUPS

_LINEARS = GROUPS.keys() - {"lm_head", "router"}
_OTHER_LINEARS = ("mixer_in", "mixer_out", "experts", "shared_expert")
_INPUTS = ("batch", "prompt_len", "context")
_SAME = 1e-3


def other_conditions(
    dense: tuple[Side, Kernels],
    pruned: tuple[Side, Kernels],
    name: str,
    told: Sequence[dict[str, str] | None],
) -> str | None:
    """What differs between the runs beside the model, so that no shape tells of pruning. `told`:
    the phase of each side whose run does not say it."""
    (side_d, kernels_d), (side_p, kernels_p) = dense, pruned
    if kernels_d.compiled != kernels_p.compiled:
        which = "pruned" if kernels_p.compiled else "dense"
        return (
            f"{NOT_COMPARABLE}: the {which} side runs compiled code (torch.compile), whose fused "
            "loops stand for many ops; trace both sides compiled, or neither"
        )
    run_d, run_p = side_d.phase(name), side_p.phase(name)
    if run_d is None or run_p is None:
        kinds = [name if one is None else one["kind"] for one in told]
        return _other_phase(kernels_d, kernels_p, kinds)
    for field in _INPUTS:
        old, new = getattr(run_d, field), getattr(run_p, field)
        if old != new:
            return f"{NOT_COMPARABLE}: {field} is {new}, that of the dense run {old}: other inputs"
    shape_d, shape_p = _shape(side_d), _shape(side_p)
    length = max(run_p.positions, default=0)
    return _other_model(shape_d, shape_p) or _other_windows(shape_d, shape_p, length)


def _shape(side: Side) -> dict[str, Any]:
    """What the manifest says of the model's shape; empty where it says nothing."""
    shape = side.run.model.get("shape") if side.run is not None else None
    return shape if isinstance(shape, dict) else {}


def _other_model(dense: dict[str, Any], pruned: dict[str, Any]) -> str | None:
    old, new = dense.get("model_type"), pruned.get("model_type")
    if not old or not new or old == new:
        return None
    return f"{NOT_COMPARABLE}: the model is of type {new}, the dense one of type {old}"


def _other_windows(dense: dict[str, Any], pruned: dict[str, Any], length: int) -> str | None:
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
    return (
        f"{NOT_COMPARABLE}: attention sees a window of {told_p}, in the dense run of {told_d}: "
        "another attention"
    )


def other_activation(dense: Kernels, pruned: Kernels) -> str | None:
    """The ops that stand in the place of the activation, where they are others."""
    old, new = (
        {str(op).rstrip("_") for op in kernels.frame.filter(pl.col("role") == "activation")["op"]
         if op is not None}
        for kernels in (dense, pruned)
    )  # fmt: skip
    gone, fresh = sorted(old - new), sorted(new - old)
    if not gone or not fresh:
        return None
    return f"the activation is another op: {', '.join(fresh)} instead of {', '.join(gone)}"


def _other_phase(dense: Kernels, pruned: Kernels, kinds: list[str]) -> str | None:
    """Prefill against decode, as bare traces may be by mistake."""
    old, new = kinds
    if {old, new} != {"prefill", "decode"}:
        return None
    rows = [rows_of_linears(kernels) for kernels in (dense, pruned)]
    if rows[0] is not None and rows[0] == rows[1]:  # attention alone looks otherwise
        return None
    return f"{NOT_COMPARABLE}: the pruned side is {new}, the dense one {old}"


def replaced(e: Evidence) -> str | None:
    """No linear of the model is a GEMM any more, and other ops stand in their places."""
    linears = [p for p in e.pairs if p.key[1] in _LINEARS and p.dense is not None]
    if not linears or any(p.pruned is not None for p in linears):
        return None
    here = {p.key[:2] for p in linears}
    kinds = Counter(
        f"{key[1]} ({key[2]})"
        for key, is_added in zip(e.units.keys, e.units.added, strict=True)
        if is_added and key[:2] in here
    )
    seen = ", ".join(f"{name} × {count}" for name, count in kinds.most_common(3))
    if not seen and any(p.key[1] in _OTHER_LINEARS and p.pruned is not None for p in e.pairs):
        return None  # the layers that have such linears are gone, others are not
    others = f"other ops stand in their places ({seen})" if seen else "nothing is in their places"
    return (
        f"none of the {len(linears)} GEMMs of the linears is seen any more, {others}: "
        "quantised, fused or compiled kernels; no pruning removes all of them"
    )


def other_dtype(e: Evidence) -> str | None:
    """GEMMs that run in another dtype than the dense ones."""
    both = [(p.dense, p.pruned) for p in e.pairs if p.dense is not None and p.pruned is not None]
    dtypes = {(d.dtype, p.dtype) for d, p in both if d.dtype and p.dtype and d.dtype != p.dtype}
    if not dtypes:
        return None
    old, new = sorted(dtypes)[0]
    return f"the GEMMs run in {new}, the dense ones in {old}: quantisation, not pruning"


def is_quantised(e: Evidence) -> bool:
    """Whether weights are packed, so that no count of parameters holds them: other kernels or
    another dtype, or a GEMM as large as before whose matrix the run lists smaller or not at all."""
    packed = e.removed_weights() | e.smaller_weights()
    # A list of experts is smaller where there are fewer of them, each as large as before.
    whole = {p.key[:2] for p in e.pairs if p.axis == "none" and p.key[1] != "experts"}
    return bool(replaced(e) or other_dtype(e) or packed & whole)


def fewer_experts(e: Evidence) -> str | None:
    """Fewer experts, or fewer of them for each token, while all else is as it was."""
    experts = [p for p in e.pairs if p.key[1] == "experts"]
    if not experts or not _else_unmoved(e):
        return None
    weights_d, rows_d = _experts(p.dense for p in experts)
    weights_p, rows_p = _experts(p.pruned for p in experts)
    if not rows_d or not weights_p <= weights_d:
        return None
    said = []
    router = next((p for p in e.pairs if p.key[1] == "router" and p.axis == "N"), None)
    if router is not None and router.dense is not None and router.pruned is not None:
        said.append(f"fewer experts: N of the router {router.dense.n:g} → {router.pruned.n:g}")
    if rows_p < rows_d * (1 - _SAME):
        said.append(f"fewer experts a token: their GEMMs see {rows_p / rows_d:.0%} of the rows")
    if not said:
        return None
    return f"{'; '.join(said)}. By extension: expert dropping, M of the expert GEMMs"


def other_routes(e: Evidence) -> bool:
    """Whether nothing but the rows that each expert sees is another: the router chose otherwise."""
    experts = [p for p in e.pairs if p.key[1] == "experts"]
    others = [p for p in e.pairs if p.key[1] != "experts" and p.axis != "none"]
    weights_d, rows_d = _experts(p.dense for p in experts)
    weights_p, rows_p = _experts(p.pruned for p in experts)
    same = weights_d == weights_p and abs(rows_d - rows_p) <= _SAME * rows_d
    return bool(experts) and not others and same


def _else_unmoved(e: Evidence) -> bool:
    """Whether only experts moved, and N of the router."""

    def fits(pair: Pair) -> bool:
        role = pair.key[1]
        return role == "experts" or pair.axis == "none" or (role == "router" and pair.axis == "N")

    return all(map(fits, e.pairs))


def _experts(calls: Iterable[Call | None]) -> tuple[set[tuple[int, int]], float]:
    """The weights [N, K] of the expert GEMMs, and the rows that all of them see in a step."""
    weights: set[tuple[int, int]] = set()
    rows = 0.0
    for call in calls:
        if call is not None and call.gemm is not None and call.m is not None:
            weights.add((call.gemm.n, call.gemm.k))
            rows += call.m * call.count * (call.batch or 1)
    return weights, rows
