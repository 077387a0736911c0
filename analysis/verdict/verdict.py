"""The family verdict, read from the traces and the census, never from what the tool did.

In: GEMM pairs, units, alignment, census of both runs. Out: report.model.Family with evidence: a
family id, "a+b", "dense" (nothing changed), "outside" (no M, N or K) or "unknown".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from prunescope.analysis.inputs.subject import Side
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.ledger.gemms import Call, Pair
from prunescope.analysis.ledger.pairing import Units
from prunescope.analysis.schema.report import Family, FamilyPart
from prunescope.analysis.verdict.dimensions import WIDTH_DETECTORS, narrower_heads
from prunescope.analysis.verdict.evidence import Evidence, Seen, Touches, matrices, stored_shapes
from prunescope.analysis.verdict.layer_shares import DYNAMIC_DETECTORS
from prunescope.analysis.verdict.outside import (
    fewer_experts,
    other_activation,
    other_conditions,
    other_dtype,
    other_routes,
    replaced,
)
from prunescope.taxonomy.roles import MLP_ROLES, QKV_ROLES

# What leaves every shape and kernel as it is, so that only a census tells them apart.
_UNSEEN = ("dense", "static-k-24", "static-k-mask")
# A share of zeros that no initialisation or training leaves by accident.
MANY_ZEROS = 0.02


def evidence_of(
    dense: tuple[Side, Kernels], pruned: tuple[Side, Kernels], name: str, pairs: list[Pair],
    units: Units, told: Sequence[dict[str, str] | None],
) -> Evidence:  # fmt: skip
    """What the detectors read of both sides of a phase. `told`: the `phase_kind` of each side whose
    run does not say it."""
    run_d, run_p = dense[0].run, pruned[0].run
    return Evidence(
        pairs,
        units,
        run_d.census if run_d else None,
        run_p.census if run_p else None,
        name,
        conditions=other_conditions(dense, pruned, name, told),
        parameters=(run_d.parameters if run_d else None, run_p.parameters if run_p else None),
        activation=other_activation(dense[1], pruned[1]),
    )


def verdict(evidence: Evidence) -> Family:
    """The family of a pair, with the evidence and the alternatives that fit less well."""
    reason = evidence.conditions or replaced(evidence) or fewer_experts(evidence)
    if reason is not None:
        return Family(id="outside", confidence=0.9, evidence=[reason])
    dynamic = [found for detect in DYNAMIC_DETECTORS if (found := detect(evidence)) is not None]
    reason = None if dynamic else _not_comparable(evidence)
    if reason is not None:
        return Family(id="outside", confidence=0.9, evidence=[reason])
    explained = {name for found in dynamic for name in found.explains}
    if evidence.removed_weights():
        explained.discard("static-m")  # no method of run time takes weights away
    static = [found for detect in DETECTORS if (found := detect(evidence)) is not None]
    seen = [*dynamic, *(found for found in static if found.id not in explained)]
    narrower = narrower_heads(evidence)
    if not seen:
        if narrower is not None:
            return Family(id="unknown", confidence=0.5, evidence=[narrower])
        return _unmoved(evidence)
    family = _named(evidence, seen, len(dynamic))
    if narrower is not None:  # beside the families, and of none of them
        family.evidence.append(narrower)
        family.confidence = min(family.confidence, 0.6)
    return family


def _named(e: Evidence, seen: list[Seen], num_dynamic: int) -> Family:
    """The families, the one that touches most of the dense time first. `saved_ns` is dense less
    pruned time of the GEMMs that a family touches; work that was added is the dynamic family's, or
    that of the family which touches most."""
    times = [e.times(s.touches) for s in seen]
    saved = [dense - pruned for dense, pruned in times]
    order = sorted(range(len(seen)), key=lambda i: -times[i][0])
    saved[0 if num_dynamic else order[0]] -= e.added_ns()
    touched = sum(dense for dense, _ in times) or 1.0
    moved = sum(map(abs, saved)) or 1.0
    parts = [
        FamilyPart(id=seen[i].id, share=times[i][0] / touched, saved_ns=saved[i],
                   saved_share=saved[i] / moved)
        for i in order
    ]  # fmt: skip
    return Family(
        id="+".join(seen[i].id for i in order),
        confidence=min(s.confidence for s in seen),
        evidence=[line for i in order for line in seen[i].evidence],
        parts=parts,
    )


def _unmoved(e: Evidence) -> Family:
    """No M, N or K moved: nothing changed, something else did, or the weights are not known."""
    unclear = [p for p in e.pairs if p.axis != "none"] if not other_routes(e) else []
    if unclear:
        names = Counter(f"{p.key[1]}: {p.axis}" for p in unclear)
        shown = ", ".join(f"{n} ({c} GEMMs)" for n, c in names.most_common(4))
        return Family(
            id="unknown", confidence=0.3, evidence=[f"GEMMs moved as in no family: {shown}"]
        )
    added = Counter(
        f"{k[1]} ({k[2]})" for k, a in zip(e.units.keys, e.units.added, strict=True) if a
    )
    gone = Counter(
        f"{k[1]} ({k[2]})" for k, r in zip(e.units.keys, e.units.removed, strict=True) if r
    )
    if added or gone:
        lines = [f"no GEMM moved; {sum(c.values())} units {what}: {_top(c)}"
                 for what, c in (("added", added), ("gone", gone)) if c]  # fmt: skip
        return Family(id="outside", confidence=0.7, evidence=lines)
    if e.census_pruned is None:
        line = (
            "no GEMM moved and no work was added: nothing was pruned, or zeros are in dense "
            "tensors, which a bare trace cannot show (a run's census does)"
        )
        return Family(id="unknown", confidence=0.5, evidence=[line], alternatives=list(_UNSEEN))
    if e.activation is not None:
        return Family(id="outside", confidence=0.9, evidence=[e.activation])
    if (moved := _stored_otherwise(e)) is not None:
        return Family(id="unknown", confidence=0.5, evidence=[moved])
    return Family(id="dense", confidence=1.0, evidence=["no GEMM moved, no zeros, no work added"])


def _stored_otherwise(e: Evidence) -> str | None:
    """Weights that are others, while no GEMM moved."""
    old, new = e.parameters
    if old and new and old != new:
        verb = "fell" if new < old else "grew"
        return f"parameters {verb} by {abs(1 - new / old):.1%}, but no GEMM moved: other ops did"
    before, after = stored_shapes(e.census_dense), stored_shapes(e.census_pruned)
    others = sum(((before - after) + (after - before)).values())
    if e.census_dense is not None and others:
        return f"{others} matrices are of other shapes than the dense ones, but no GEMM moved"
    return None


def _top(counter: Counter[str]) -> str:
    return ", ".join(f"{name} × {count}" for name, count in counter.most_common(4))


def _not_comparable(e: Evidence) -> str | None:
    """Pairs that are no pruning: other inputs, another dtype, another attention."""
    if (other := other_dtype(e)) is not None:
        return other
    both = [(p, p.dense, p.pruned) for p in e.pairs if p.dense is not None and p.pruned is not None]
    rows = [(d.m, p.m) for q, d, p in both if q.key[1] in (*QKV_ROLES, *MLP_ROLES)]
    if rows and all(d and p and d != p for d, p in rows):
        ratios = {round(p / d, 6) for d, p in rows if d and p}
        if len(ratios) == 1:
            times = f"{ratios.pop():g} ×"
            return f"M of every linear is {times} the dense one: other inputs (batch or length)"
    return _grown(e) or _other_attention(e)


def _grown(e: Evidence) -> str | None:
    """GEMMs that are larger than their dense partners, while none is smaller."""
    larger: list[Pair] = []
    for pair in e.pairs:
        if pair.pruned is None:
            return None  # what is gone is smaller
        if pair.dense is None or pair.axis == "rank":
            continue
        old, new = pair.dense.gemm, pair.pruned.gemm
        if old is None or new is None:
            continue
        if (new.n, new.k, new.batch) != (old.n, old.k, old.batch):
            if new.n < old.n or new.k < old.k or new.batch < old.batch:
                return None
            larger.append(pair)
    if not larger:
        return None
    roles = _top(Counter(p.key[1] for p in larger))
    return f"GEMMs are larger than the dense ones, none is smaller: {roles}"


def _other_attention(e: Evidence) -> str | None:
    """Attention computed by other ops, while no linear moved."""

    def ops(side: Callable[[Pair], Call | None]) -> set[str]:
        calls = (side(p) for p in e.pairs if p.key[2] in ("qk", "pv"))
        return {c.op for c in calls if c is not None and c.op}

    dense, pruned = ops(lambda p: p.dense), ops(lambda p: p.pruned)
    linears = {p.axis for p in e.pairs if p.key[2] not in ("qk", "pv")}
    if dense and pruned and not dense & pruned and linears <= {"none"}:
        return (
            f"attention runs as {', '.join(sorted(pruned))} instead of {', '.join(sorted(dense))}"
        )
    return None


def _static_m(e: Evidence) -> Seen | None:
    """Whole layers, or all GEMMs of an attention or MLP sublayer, are gone."""
    gone, here = e.gone_and_here()
    layers = [i for i in gone if i not in here]
    attention = [i for i in gone if i in here and _lacks(_ATTENTION_ENDS, gone[i], here[i])]
    mlp = [i for i in gone if i in here and _lacks(_MLP_ENDS, gone[i], here[i])]
    # The router and experts are one sublayer: some of them here means that it is.
    mlp = [i for i in mlp if not here[i] & {*_MLP_ENDS, "router", "shared_expert"}]
    weights = e.removed_weights()
    if weights:  # what a router left out has its weights still
        layers = [i for i in layers if any((i, role) in weights for role in gone[i])]
        attention = [i for i in attention if any((i, end) in weights for end in _ATTENTION_ENDS)]
        mlp = [i for i in mlp if any((i, end) in weights for end in _MLP_ENDS)]
    if not layers and not attention and not mlp:
        return None
    total = e.units.alignment.num_dense
    lines = []
    for rows, what in (
        (layers, "layers"),
        (attention, "attention sublayers"),
        (mlp, "MLP sublayers"),
    ):
        if rows:
            which = f": {_list(sorted(rows))}" if e.units.alignment.exact else ""
            lines.append(f"{len(rows)} of {total} {what} gone{which}")
    touched = {*layers, *attention, *mlp}
    return Seen("static-m", lines, lambda p: float(p.key[0] in touched and p.pruned is None))


# What a sublayer ends with: linear attention and state-space mixers stand in attention's place.
_ATTENTION_ENDS = ("o", "mixer_out")
_MLP_ENDS = ("down", "experts")


def _lacks(ends: tuple[str, ...], gone: set[str], here: set[str]) -> bool:
    return any(end in gone and end not in here for end in ends)


def _list(values: list[int]) -> str:
    shown = ", ".join(map(str, values[:12]))
    return shown + (", …" if len(values) > 12 else "")


def _semi_structured(e: Evidence) -> Seen | None:
    """Sparse kernels on the same logical shapes; or 2:4 zeros in dense tensors."""
    sparse = [p for p in e.pairs if p.axis == "2:4"]
    if sparse:
        roles = Counter(p.key[1] for p in sparse)
        return Seen("static-k-24", [f"{len(sparse)} GEMMs run as 2:4 sparse ones: {_top(roles)}"],
                    lambda p: float(p.axis == "2:4"))  # fmt: skip
    fresh = _fresh_zeros(e)
    half = [m for m in fresh if _two_of_four(m)]
    if fresh and len(half) == len(fresh):
        line = (f"{len(half)} matrices hold 2 zeros in every 4 along K, and run on dense kernels: "
                "zeros are in dense tensors, nothing was removed")  # fmt: skip
        return Seen("static-k-24", [line], _of_roles(half))
    return None


def _masked(e: Evidence) -> Seen | None:
    """Zeros in dense tensors without a pattern: no dimension moved, nothing was removed."""
    fresh = _fresh_zeros(e)
    if not fresh or all(_two_of_four(m) for m in fresh):
        return None
    share = sum(m["zeros"] for m in fresh) / len(fresh)
    line = (f"{share:.1%} of the weights of {len(fresh)} matrices are zero in dense tensors; "
            "no dimension moved, nothing was removed")  # fmt: skip
    return Seen("static-k-mask", [line], _of_roles(fresh))


def _two_of_four(matrix: dict[str, Any]) -> bool:
    return (matrix.get("groups_2_of_4") or 0) > 0.99 and matrix.get("zeros", 1) < 0.55


def _fresh_zeros(e: Evidence) -> list[dict[str, Any]]:
    """Matrices of the pruned run with many zeros that the dense run does not have."""
    before = {m.get("name"): m.get("zeros", 0) for m in matrices(e.census_dense)}
    out = []
    for m in matrices(e.census_pruned):
        zeros = m.get("zeros")
        if not isinstance(zeros, int | float) or zeros < MANY_ZEROS:
            continue
        if m.get("role") == "residual":
            continue  # a map between two sets of hidden dimensions is zeros and ones
        if zeros > before.get(m.get("name"), 0) + MANY_ZEROS:
            out.append(m)
    return out


def _of_roles(touched: list[dict[str, Any]]) -> Touches:
    roles = {m.get("role") for m in touched}
    return lambda p: float(p.key[1] in roles)


def _low_rank(e: Evidence) -> Seen | None:
    found = [p for p in e.pairs if p.axis == "rank"]
    if not found:
        return None
    roles = Counter(p.key[1] for p in found if p.key[3] == 0)
    line = f"{sum(roles.values())} GEMMs became two through a rank: {_top(roles)}"
    return Seen("static-k-lowrank", [line], lambda p: float(p.axis == "rank"))


# Every detector reads the evidence alone; the order has no meaning.
DETECTORS: tuple[Callable[[Evidence], Seen | None], ...] = (
    _static_m,
    _semi_structured,
    _masked,
    _low_rank,
    *WIDTH_DETECTORS,
)
