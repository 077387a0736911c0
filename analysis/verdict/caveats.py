"""How far a verdict can be trusted: kernels that a trace lacks, lost roles, unequal steps.

In: the kernels of both sides and what the verdict read. Out: caveats, each with the confidence that
it leaves, and the verdict under them. A lost kernel looks like a pruned one; caveats name which it
may be.
"""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl
from msgspec import structs

from prunescope.analysis.comparison.differences import other_widths
from prunescope.analysis.kernels.columns import is_one_of
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.ledger.experts import EXPERTS
from prunescope.analysis.schema.notice import Notice, caveat
from prunescope.analysis.schema.report import FamilyVerdict
from prunescope.analysis.verdict.evidence import Evidence
from prunescope.analysis.wording.sentence import sentence
from prunescope.taxonomy.families import known
from prunescope.taxonomy.roles import LINEARS, MLP_ROLES, QKV_ROLES, UNPLACED

_FALL = 0.05  # of busy time, from the dense to the pruned side
_SPREAD = 0.02  # of the kernels of a step: a library may choose another kernel for a longer context
# The GEMMs of a sublayer, and the work between them that goes with them: where attention itself has
# gone, what has its role scales or copies.
_SUBLAYERS = (
    ({*QKV_ROLES, "attention", "o"}, {"rope", "qk_norm", "kv_update", "attention"}),
    (set(MLP_ROLES), {"activation"}),
)

# Kind of a caveat -> the confidence that it leaves at most.
LIMITS = {
    "lost-kernels": 0.3,
    "cut-off": 0.3,
    "captured-step": 0.1,
    "captured-launches": 0.3,
    "no-gemm": 0.1,
    "no-linear": 0.1,
    "partly-lost-sublayers": 0.3,
    "emptied-sublayers": 0.3,
    "fewer-roles": 0.5,
    "other-roles": 0.5,
    "unequal-steps": 0.6,
    # Shapes of another model's config make its difference from this one look like a pruning.
    "other-config": 0.5,
    "other-widths": 0.6,
}
# The kinds by which kernels are missing, or seem to be.
MISSING_KERNELS = frozenset(
    {"lost-kernels", "cut-off", "no-gemm", "no-linear", "partly-lost-sublayers",
     "emptied-sublayers", "fewer-roles"}
)  # fmt: skip


def caveats(
    pruned: Kernels,
    *,
    dense: Kernels | None = None,
    evidence: Evidence | None = None,
    family: FamilyVerdict | None = None,
) -> list[Notice]:
    """Find all caveats of a phase and its verdict.

    Args:
        pruned: The kernels of the candidate.
        dense: Those of the baseline; None without one, and then there is no verdict.
        evidence: What the verdict read.
        family: The verdict.
    """
    sides = [("pruned", pruned)] if dense is not None else [("the trace", pruned)]
    sides += [("dense", dense)] if dense is not None else []
    notices = [notice for name, kernels in sides if (notice := _lost_kernels(name, kernels))]
    notices += [caveat("cut-off", name) for name, kernels in sides if kernels.linked.cut]
    lossy = {notice.side for notice in notices}
    notices += (
        captured := [notice for name, kernels in sides if (notice := _captured(name, kernels))]
    )
    # What was captured explains what else would seem lost.
    if captured or dense is None or evidence is None or family is None:
        return notices
    notices += [caveat("other-config", name) for name, kernels in sides if kernels.shapes.caveats]
    widths = None if evidence.stats_pruned is not None else other_widths(evidence.pairs)
    if widths is not None and family.id != "outside":
        notices.append(caveat("other-widths", widths=widths))
    notices += [*_no_gemm(evidence, lossy)]
    notices += [*_layers(evidence, family, (dense, pruned)), *_roles(dense, pruned)]
    if not any(notice.is_dynamic for notice in known(family.ids)):  # whose steps differ by nature
        notices += [notice for name, kernels in sides if (notice := _unequal(name, kernels))]
    return notices


def apply_caveats(family: FamilyVerdict, notices: list[Notice]) -> FamilyVerdict:
    """Lower the confidence of a verdict by its caveats; with next to none left it is unknown.

    The evidence of a family stands first while it is the more likely, unless all that identifies a
    model differs.
    """
    if not notices:
        return family
    most = min(LIMITS[notice.kind] for notice in notices)
    confidence, against = min(family.confidence, most), list(map(sentence, notices))
    is_another = any(notice.kind == "other-widths" for notice in notices)
    likely = most >= 0.5 and family.id != "unknown" and not is_another
    lines = [*family.evidence, *against] if likely else [*against, *family.evidence]
    found_less = structs.replace(family, confidence=confidence, evidence=lines)
    if most > 0.1 or family.id == "unknown":
        return found_less
    others = [family.id, *family.alternatives]
    return structs.replace(found_less, id="unknown", alternatives=others)


def _lost_kernels(name: str, kernels: Kernels) -> Notice | None:
    """Return a caveat where launches have no kernel in the trace."""
    launches = kernels.linked.launches
    numbers = {"lost": launches["lost"], "count": launches["events"], "last": launches["at_end"]}
    return caveat("lost-kernels", name, **numbers) if kernels.lacks_kernels else None


def _captured(name: str, kernels: Kernels) -> Notice | None:
    """Return a caveat where launches did not run when they were traced.

    What they would have run seems pruned.
    """
    captured = kernels.linked.launches["captured"]
    if not captured:
        return None
    count = captured + kernels.linked.launches["events"]
    kind = "captured-step" if kernels.is_captured else "captured-launches"
    return caveat(kind, name, captured=captured, count=count)


def _no_gemm(e: Evidence, lossy: set[str | None]) -> Iterator[Notice]:
    """Yield a caveat where a side has no GEMM, or lost kernels and has no GEMM of a linear left."""
    for name in ("pruned", "dense"):
        roles = [p.key[1] for p in e.pairs if getattr(p, name) is not None]
        linear = set(roles) & set(LINEARS)
        if e.pairs and not roles:
            yield caveat("no-gemm", name)
        elif e.pairs and not linear and name in lossy:
            yield caveat("no-linear", name)


def _layers(e: Evidence, family: FamilyVerdict, sides: tuple[Kernels, Kernels]) -> Iterator[Notice]:
    """Yield a caveat where layers of the verdict were not removed as a pruning of layers does it.

    Linears that the run does not hold any more, or whose modules were not called, do not count.
    """
    if not any(detected.skips_layers and not detected.is_dynamic for detected in known(family.ids)):
        return
    removed, here = e.removed_and_kept_roles()
    meant = e.removed_weights() | _not_called(e, *sides)
    # Attention has no weight of its own: it goes with its projection.
    meant |= {(i, "attention") for i, role in meant if role == "o"}
    removed = {
        i: {role for role in roles if (i, role) not in meant} for i, roles in removed.items()
    }
    running = {k[:2] for k, on in zip(e.units.keys, e.units.pruned.present, strict=True) if on}
    lost = [
        (i, gemms, between) for i in removed for gemms, between in _SUBLAYERS if removed[i] & gemms
    ]
    torn = [i for i, gemms, _ in lost if here.get(i, set()) & gemms]
    hollow = [i for i, _, between in lost if any((i, role) in running for role in between)]
    if torn:
        yield caveat("partly-lost-sublayers", count=len(torn))
    elif hollow:
        yield caveat("emptied-sublayers", count=len(hollow))


def _not_called(e: Evidence, dense: Kernels, pruned: Kernels) -> frozenset[tuple[int, str]]:
    """Return (layer of the dense model, role) of the modules that only the dense side called.

    It is empty where a trace does not record calls of modules.
    """
    if not dense.modules.ran or not pruned.modules.ran:
        return frozenset()
    place = e.units.alignment.dense_layer
    called = {(place.get(i, -1 - i), role) for i, role in pruned.modules.ran}
    return dense.modules.ran - called


def _roles(dense: Kernels, pruned: Kernels) -> Iterator[Notice]:
    """Yield a caveat where fewer kernels have a role than on the dense side."""
    before, now = _known_roles(dense), _known_roles(pruned)
    if before is None or now is None or now >= before - _FALL:
        return
    # A role that is lost is lost by kernels; so count kernels: one slow op without a role changes
    # the share of time.
    (placed, unplaced), (placed_before, unplaced_before) = _placed(pruned), _placed(dense)
    if placed / (placed + unplaced) >= placed_before / (placed_before + unplaced_before) - _FALL:
        return
    # Replays without an eager trace, and a trace without modules, know of fewer roles.
    same_source = (
        dense.modules.source == pruned.modules.source and dense.is_replay == pruned.is_replay
    )
    if not same_source:
        yield caveat("other-roles", share=now, dense=before)
        return
    # Compiled code runs outside of the modules and of the ops that give roles: none is lost. Layers
    # that were removed, or another optimizer, leave no more kernels without a role than there were.
    # An op of a host trace is its own work.
    if (
        pruned.on_device
        and unplaced > unplaced_before
        and (dense.host.is_compiled or not pruned.host.is_compiled)
    ):
        yield caveat("fewer-roles", share=now, dense=before)


def _without_experts(kernels: Kernels) -> pl.DataFrame:
    """Return the rows without those of experts.

    How often these run is their number, and the choice of their router.
    """
    rows = kernels.frame[["role", "layer", "busy"]]
    return rows.filter(rows["role"] != EXPERTS) if EXPERTS in kernels.values("role") else rows


def _known_roles(kernels: Kernels) -> float | None:
    """Return the share of the busy time that has a role; None where there is no time."""
    frame = _without_experts(kernels)
    total = int(frame["busy"].sum())
    known = int(frame["busy"].filter(~is_one_of(frame["role"], UNPLACED)).sum())
    return known / total if total else None


def _placed(kernels: Kernels) -> tuple[float, float]:
    """Count the kernels of a step that have a role, or at least a layer, and the others.

    A module that a method adds to a layer (to merge tokens, a router) has no role, and lost none.
    """
    frame = _without_experts(kernels)
    placed = ~is_one_of(frame["role"], UNPLACED) | frame["layer"].is_not_null()
    known = int(placed.sum())
    return known / kernels.num_steps, (len(frame) - known) / kernels.num_steps


def _unequal(name: str, kernels: Kernels) -> Notice | None:
    """Return a caveat where the steps of a side hold unequal numbers of kernels."""
    if len(_without_experts(kernels)) < len(kernels.frame):
        return None  # how many kernels run is the choice of a router
    ends = unequal_steps(kernels, spread=_SPREAD)
    return None if ends is None else caveat("unequal-steps", name, fewest=ends[0], most=ends[1])


def unequal_steps(kernels: Kernels, *, spread: float = 0.0) -> tuple[int, int] | None:
    """Return the fewest and the most kernels of a step; None where they are about equal.

    A finding names every difference; a verdict has a caveat from one that moves its means.

    Args:
        kernels: The kernels of a side.
        spread: The difference that counts as equal, as a share of the most. It is 0.02 at least
            where
            the trace does not say where steps begin: an op more or less is where they were cut.
    """
    if kernels.windows.are_cut:
        spread = max(spread, _SPREAD)
    low, high = min(kernels.kernels_per_step), max(kernels.kernels_per_step)
    return (low, high) if high - low > spread * high else None
