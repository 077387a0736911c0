"""The family verdict, read from traces and weight statistics, never from what the tool did.

In: GEMM pairs, units, alignment, weight statistics of both runs. Out: a Verdict: a family id,
"a+b", "dense" (nothing changed), "outside" (no M, N or K) or "unknown".
"""

from __future__ import annotations

import math
from collections import Counter

from msgspec.structs import replace

from prunescope.analysis.comparison.convolutions import convolutions
from prunescope.analysis.comparison.differences import find_differences, find_unpaired
from prunescope.analysis.comparison.equal_information import ComparableSides
from prunescope.analysis.comparison.more_calls import more_calls, unpacked_formats
from prunescope.analysis.comparison.parallelism import ranks_of
from prunescope.analysis.kernels.columns import is_one_of
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.kernels.role import GEMM_KINDS
from prunescope.analysis.ledger.gemms import Pair
from prunescope.analysis.ledger.pairing import Units
from prunescope.analysis.ledger.partners import is_gradient
from prunescope.analysis.schema.pair_comparison import SHAPES, UNREADABLE
from prunescope.analysis.schema.report import FamilyPart, FamilyVerdict
from prunescope.analysis.verdict.detectors import detectors
from prunescope.analysis.verdict.detectors.run_time import shorter_cache
from prunescope.analysis.verdict.detectors.widths import families_by_order, narrower_heads
from prunescope.analysis.verdict.evidence import Detection, Evidence, Reason, Verdict, stored_shapes
from prunescope.analysis.verdict.gathers import gathers
from prunescope.analysis.verdict.outside import (
    FIRST,
    NO_DYNAMIC,
    NOTHING_MOVED,
    OTHER_WORK,
    has_other_routes,
    other_activation,
    quantised_too,
    reason,
)
from prunescope.analysis.verdict.unread import unread
from prunescope.analysis.wording.sentence import sentence
from prunescope.taxonomy.families import families
from prunescope.taxonomy.words import percent

# Confidence in what rests on roles and layers that the order of kernels alone gives, at most.
_BY_ORDER = 0.7
_MOSTLY = 0.5  # of the busy time: where as much is not read, what is read says little


def evidence_of(sides: ComparableSides, pairs: list[Pair], units: Units) -> Evidence:
    """Collect the evidence of both sides of a phase.

    Args:
        sides: The two sides, with equal information.
        pairs: The pairs of their GEMMs.
        units: The units of both sides.
    """
    dense, pruned = sides.dense, sides.pruned
    run_d, run_p = dense.side.run, pruned.side.run
    images = convolutions(dense.kernels, pruned.kernels)
    differences = find_differences(dense, pruned, pairs, images)
    if (nothing_pairs := find_unpaired(units)) is not None:
        differences = (*differences, nothing_pairs)
    return Evidence(
        # Adapters are no part of the pruned model, and gradients have other axes.
        [p for p in pairs if p.key[1] != "adapter" and not is_gradient(p.key[1])],
        units,
        run_d.census if run_d else None,
        run_p.census if run_p else None,
        pruned.name,
        differences=differences,
        parameters=(run_d.parameters if run_d else None, run_p.parameters if run_p else None),
        by_order=dense.kernels.is_by_order or pruned.kernels.is_by_order,
        unread=(unread(dense.kernels), unread(pruned.kernels)),
        ranks=(ranks_of(dense).number, ranks_of(pruned).number),
        gathers=gathers(pruned.kernels) if pruned.kernels.has_shapes else None,
        convolutions=images,
        more_calls=more_calls(dense.kernels, pruned.kernels),
        unpacked=min(
            unpacked_formats(pruned.kernels) - unpacked_formats(dense.kernels), default=None
        ),
        activation=other_activation(dense.kernels, pruned.kernels),
        other_grids=_other_grids(dense.kernels, pruned.kernels),
        shapes_ignored=frozenset(
            "dense" if ignored.missing == "pruned" else "pruned"
            for ignored in sides.one_sided
            if ignored.kind == SHAPES
        ),
    )


def verdict(evidence: Evidence) -> Verdict:
    """Name the family of a pair, with the evidence and the alternatives that fit less well.

    Limitations: shapes, counts and weight statistics decide. Without weight statistics, zeros in
    dense tensors cannot be seen, and methods that leave the same shapes cannot be told apart.
    """
    if (why := reason(evidence, FIRST)) is not None:
        return Verdict(_outside(why))
    dynamic = _run_detectors(evidence, dynamic=True)
    if not dynamic and (why := reason(evidence, NO_DYNAMIC)) is not None:
        return Verdict(_outside(why))
    static = _run_detectors(evidence, dynamic=False)
    explained = {name for seen in (dynamic | static).values() for name in seen.explains}
    families_seen = dynamic | {n: s for n, s in static.items() if s.proven or n not in explained}
    narrower = narrower_heads(evidence)
    if not families_seen:
        if narrower is not None:
            lines = [narrower, *_describe_channels(evidence)]
            return Verdict(FamilyVerdict(id="unknown", confidence=0.5, evidence=lines))
        return Verdict(_judge_unmoved(evidence))
    family = _name_families(evidence, families_seen, is_dynamic=bool(dynamic))
    if blind := _find_blind_sides(evidence):
        family.evidence.append(
            _describe_blind_sides(evidence, blind)
        )  # calls that were removed have no width
        family.confidence = min(family.confidence, 0.5)
    if (other_format := quantised_too(evidence)) is not None:
        family.evidence.append(sentence(other_format))
        family.confidence = min(family.confidence, 0.8)
    if narrower is not None:  # in addition to the families, and of none of them
        family.evidence.append(narrower)
        family.confidence = min(family.confidence, 0.6)
    return Verdict(family, tuple(families_seen.values()))


def _run_detectors(e: Evidence, *, dynamic: bool) -> dict[str, Detection]:
    """Run the dynamic or the static detectors in their order.

    Returns:
        The families that were seen, by id.
    """
    return {
        entry.family.id: _limit_confidence(detection, e)
        for entry in detectors()
        if entry.family.is_dynamic == dynamic and (detection := entry.detect(e)) is not None
    }


def _limit_confidence(seen: Detection, e: Evidence) -> Detection:
    """Lower the confidence of a detection that rests on the order of kernels alone."""
    if seen.proven or not e.by_order:
        return seen
    return replace(seen, confidence=min(seen.confidence, _BY_ORDER))


def _outside(why: Reason) -> FamilyVerdict:
    lines = list(map(sentence, why.notices))
    if why.kind in UNREADABLE:
        return FamilyVerdict(id="unknown", confidence=0.1, evidence=lines)
    return FamilyVerdict(id="outside", confidence=why.confidence, evidence=lines)


def _name_families(e: Evidence, seen: dict[str, Detection], *, is_dynamic: bool) -> FamilyVerdict:
    """Name the families, the one that touches most of the dense time first.

    `saved_ns` is the dense less the pruned time of the GEMMs that a family touches. Work that was
    added is charged to the dynamic family, or to the family that touches most.
    """
    times = {name: e.times(detection.touches) for name, detection in seen.items()}
    saved = {name: dense - pruned for name, (dense, pruned) in times.items()}
    order = sorted(seen, key=lambda name: -times[name][0])
    saved[next(iter(seen)) if is_dynamic else order[0]] -= e.added_ns()
    touched = sum(dense for dense, _ in times.values()) or 1.0
    moved = sum(map(abs, saved.values())) or 1.0
    parts = [
        FamilyPart(
            id=name,
            share=times[name][0] / touched,
            saved_ns=saved[name],
            saved_share=saved[name] / moved,
        )
        for name in order
    ]
    return FamilyVerdict(
        id="+".join(order),
        confidence=min(detection.confidence for detection in seen.values()),
        evidence=[line for name in order for line in seen[name].evidence],
        parts=parts,
    )


def _judge_unmoved(e: Evidence) -> FamilyVerdict:
    """Judge a pair in which no M, N or K moved as a family would move it.

    Nothing changed, something else did, or the weights are not known; or no GEMM has any axis to
    move.
    """
    if blind := _find_blind_sides(e):
        return FamilyVerdict(
            id="unknown", confidence=0.1, evidence=[_describe_blind_sides(e, blind)]
        )
    channels = _describe_channels(e)
    unclear = [p for p in e.pairs if p.axis != "none"] if not has_other_routes(e) else []
    if (fewer := shorter_cache(e)) is not None:
        return fewer
    if unclear:
        names = Counter(f"{p.key[1]}: {p.axis}" for p in unclear)
        shown = ", ".join(f"{n} ({c} GEMMs)" for n, c in names.most_common(4))
        if e.by_order and (fitting := families_by_order(e)):
            line = (
                f"GEMMs became smaller ({shown}), but which is which is known from the order of "
                "kernels alone, and not by what one makes and the next reads: record modules "
                "(torch.profiler: with_stack=True; NVTX ranges only with Nsight Systems) to name "
                "the family"
            )
            return FamilyVerdict(
                id="unknown", confidence=0.3, evidence=[line], alternatives=fitting, by_order=True
            )
        return FamilyVerdict(
            id="unknown",
            confidence=0.3,
            evidence=[*channels, f"these GEMM shape changes match no family: {shown}"],
        )
    if channels:
        return FamilyVerdict(id="unknown", confidence=0.5, evidence=channels)
    why = reason(e, NOTHING_MOVED)
    mostly_hidden = any(unread.share > _MOSTLY for unread in e.unread)
    if why is not None and not (mostly_hidden and why.kind == OTHER_WORK):
        return _outside(why)
    if hidden := e.hidden():
        lines = ["no GEMM of known shape moved, but not all are known", *map(sentence, hidden)]
        return FamilyVerdict(id="unknown", confidence=0.3, evidence=lines)
    if e.stats_pruned is None:
        line = (
            "no GEMM moved and no work was added: nothing was pruned, or zeros are in dense "
            "tensors, which a trace does not show (the weight statistics in run.json do)"
        )
        # These change no shape and no kernel: only weight statistics show them.
        unseen = [family.id for family in families() if not family.cuts or family.zeroes_weights]
        return FamilyVerdict(id="unknown", confidence=0.5, evidence=[line], alternatives=unseen)
    if (moved := _other_weights(e)) is not None:
        return FamilyVerdict(id="unknown", confidence=0.5, evidence=[moved])
    return FamilyVerdict(
        id="dense", confidence=1.0, evidence=["no GEMM changed shape, no zeros, no work added"]
    )


def _describe_channels(e: Evidence) -> list[str]:
    """Return a sentence if convolutions have fewer channels; else nothing.

    As implicit GEMMs they lost N and K, but families are defined for linears, and the table of
    GEMMs does not list convolutions.
    """
    narrower = [convolution for convolution in e.convolutions if convolution.is_narrower]
    if not narrower:
        return []
    example = max(narrower, key=lambda c: math.prod(c.dense[1]) - math.prod(c.pruned[1]))
    (n, k), (kept_n, kept_k) = (
        (weight[0], math.prod(weight[1:])) for weight in (example.dense[1], example.pruned[1])
    )
    sizes = (("N", n, kept_n), ("K", k, kept_k))
    moved = [f"{axis} {old} → {new}" for axis, old, new in sizes if old != new]
    return [
        f"channels of convolutions: {len(narrower)} of {len(e.convolutions)} convolutions have "
        f"fewer, as implicit GEMMs {' and '.join(moved)} in the largest; families are of linears, "
        "and the table of GEMMs lists no convolution"
    ]


def _find_blind_sides(e: Evidence) -> list[str]:
    """List the sides that run GEMMs but know the shape of none."""
    return [
        side for side in ("dense", "pruned") if side not in e.shapes_ignored and _is_blind(e, side)
    ]


def _is_blind(e: Evidence, side: str) -> bool:
    """Return whether a side runs GEMMs but knows the shape of none."""
    calls = [call for p in e.pairs if (call := getattr(p, side)) is not None]
    return bool(calls) and all(call.n is None and call.k is None for call in calls)


def _describe_blind_sides(e: Evidence, blind: list[str]) -> str:
    """Describe what is unknown where a side knows the shape of no GEMM."""
    if len(blind) == 1:
        return (
            f"no GEMM of the {blind[0]} side says what it multiplies, so no axis can be seen to "
            "move"
        )
    text = "no GEMM of either side has known shapes, so no change of M, N or K can be detected"
    if e.other_grids is None:
        return text
    if e.other_grids:
        share = percent(e.other_grids)
        return f"{text}; {share} of the time of the GEMMs is in other kernels or grids"
    return f"{text}; the GEMMs run the same kernels in the same grids"


def _other_grids(dense: Kernels, pruned: Kernels) -> float | None:
    """Return the share of the pruned GEMM time in kernels or grids that the dense side lacks.

    None where no grid is known.
    """
    keys = ["name", "blocks"]
    sides = [
        frame[[*keys, "busy"]].filter(is_one_of(frame["kind"], GEMM_KINDS)).drop_nulls("blocks")
        for frame in (dense.frame, pruned.frame)
    ]
    total = int(sides[1]["busy"].sum())
    if not total or sides[0].is_empty():
        return None
    return int(sides[1].join(sides[0], on=keys, how="anti")["busy"].sum()) / total


def _other_weights(e: Evidence) -> str | None:
    """Describe stored weights that differ in number or shape while no GEMM moved.

    None where none do.
    """
    old, new = e.parameters
    if old and new and old != new:
        verb = "fell" if new < old else "grew"
        share = percent(abs(1 - new / old), 1)
        return f"parameters {verb} by {share}, but no GEMM moved: other ops did"
    before, after = stored_shapes(e.stats_dense), stored_shapes(e.stats_pruned)
    differing = sum(((before - after) + (after - before)).values())
    if e.stats_dense is not None and differing:
        return f"{differing} matrices are of other shapes than the dense ones, but no GEMM moved"
    return None
