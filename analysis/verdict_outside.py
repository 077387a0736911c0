"""Pairs that are no pruning, or an extension that no family of the paper holds.

In: Evidence; or both sides of a phase. Out: one sentence with what was seen, or None. Experts that
are fewer, or fewer of them a token, are M of the expert GEMMs: by extension, "expert dropping".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from analysis.evidence import Evidence
from analysis.frame import Kernels
from analysis.gemms import Call, Pair
from analysis.phase_kind import phase_kind, rows_of_linears
from analysis.subject import Side
from taxonomy.roles import GROUPS

_LINEARS = GROUPS.keys() - {"lm_head", "router"}
_INPUTS = ("batch", "prompt_len", "context")
_SAME = 1e-3


def other_conditions(
    dense: tuple[Side, Kernels], pruned: tuple[Side, Kernels], name: str
) -> str | None:
    """What differs between the runs beside the model, so that no shape tells of pruning."""
    (side_d, kernels_d), (side_p, kernels_p) = dense, pruned
    if kernels_d.compiled != kernels_p.compiled:
        which = "pruned" if kernels_p.compiled else "dense"
        return (f"not comparable: the {which} side runs compiled code (torch.compile), whose fused "
                "loops stand for many ops; trace both sides compiled, or neither")  # fmt: skip
    run_d, run_p = side_d.phase(name), side_p.phase(name)
    if run_d is None or run_p is None:
        return _other_phase(dense, pruned, name)
    for field in _INPUTS:
        old, new = getattr(run_d, field), getattr(run_p, field)
        if old != new:
            return f"not comparable: {field} is {new}, that of the dense run {old}: other inputs"
    return None


def _other_phase(
    dense: tuple[Side, Kernels], pruned: tuple[Side, Kernels], name: str
) -> str | None:
    """Prefill against decode, as bare traces may be by mistake."""
    old, new = (
        name if side.phase(name) is not None else phase_kind(kernels)["kind"]
        for side, kernels in (dense, pruned)
    )
    if {old, new} != {"prefill", "decode"}:
        return None
    rows = [rows_of_linears(kernels) for _, kernels in (dense, pruned)]
    if rows[0] is not None and rows[0] == rows[1]:  # attention alone looks otherwise
        return None
    return f"not comparable: the pruned side is {new}, the dense one {old}"


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
    others = f"other ops stand in their places ({seen})" if seen else "nothing is in their places"
    return (
        f"none of the {len(linears)} GEMMs of the linears is seen any more, {others}: "
        "quantised, fused or compiled kernels; no pruning removes all of them"
    )


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
