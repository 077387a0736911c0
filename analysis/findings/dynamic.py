"""Dynamic families and skipped layers: whether a run really skips what it claims to skip.

In: a Context. Out: Found, or None. The claim is the run's method, or the counts in its weight
statistics; the test is M and the number of calls of its GEMMs.
"""

from __future__ import annotations

import polars as pl

from prunescope.analysis.findings.allocate import allocation
from prunescope.analysis.findings.context import Context, gains_nothing
from prunescope.analysis.findings.registry import Found, finding
from prunescope.analysis.ledger.gemms import Pair
from prunescope.analysis.verdict.evidence import matrices
from prunescope.taxonomy.families import known
from prunescope.taxonomy.family import Family
from prunescope.taxonomy.roles import MLP_ROLES
from prunescope.taxonomy.runs.run_blocks import WeightStats
from prunescope.taxonomy.words import ms, percent

_ALL = 0.999  # share from which everything counts as active
_ROUTED = ("q", "o", *MLP_ROLES)
_ATTENTION_ROLES = ("attention", "router", "estimator")  # and the choice of its blocks
_GAIN = 0.98  # of the dense time; block-sparse attention that takes more does not pay


@finding("masked-tokens", "critical")
def masked_tokens(c: Context) -> Found | None:
    """Report that tokens are masked, not removed: M of the GEMMs is unchanged."""
    counted = _counted(c, "rows")
    if counted is not None:
        if counted > _ALL:
            return None
        reason = f"the run counts {percent(counted)} of its tokens active"
    else:
        # Dropped prompt tokens leave a decode step its rows, and a single row runs or does not.
        # The method claims it: where the shapes do, fewer rows were seen.
        if c.name == "decode" or not any(family.skips_tokens for family in known([_method(c)])):
            return None
        reason = f"the run's method is {_method(c)}"
    routed = [pair for pair in c.pairs if pair.key[1] in _ROUTED]
    if not routed or not all(map(_is_as_before, routed)):
        return None
    first = routed[0].pruned
    rows = "?" if first is None or first.m is None else f"{first.m:g}"
    return Found(
        text=f"tokens are masked, not removed: M is unchanged in all {len(routed)} GEMMs",
        evidence=[reason, f"M = {rows} dense and pruned"],
        change="gather the active rows before the GEMMs and scatter the results after them",
        predicted_ns=None if counted is None else c.scale_to_step((1 - counted) * _busy(routed)),
    )


@finding("skipped-layers-executed", "critical")
def skipped_layers_executed(c: Context) -> Found | None:
    """Report that layers that the run skips, by its method or counts, are executed."""
    pairs = [pair for pair in c.pairs if pair.key[0] is not None]
    if not pairs or not all(map(_is_as_before, pairs)):
        return None
    layers = {pair.key[0] for pair in pairs}
    counted, zeroed = _counted(c, "layers"), _zeroed_layers(c)
    skips_layers = any(family.skips_layers for family in known([_method(c)]))
    s = c.phase.sparsity.get("nominal")
    if zeroed:
        line = f"output weights of layers {', '.join(map(str, zeroed[:8]))} are all zero"
        share = len(zeroed) / len(layers)
    elif counted is not None:
        if counted > _ALL:
            return None
        line = f"the run counts {percent(counted)} of its layers active"
        share = 1 - counted
    elif skips_layers and s and int(s * len(layers)):
        line = f"the run's method is {_method(c)} at s = {s:g}"
        share = s
    else:
        return None
    return Found(
        text=f"skipped layers are executed: the GEMMs of all {len(layers)} layers run at their "
        "dense shapes",
        evidence=[line],
        change="leave the layers out of the forward pass (with their norms and residual adds)",
        predicted_ns=c.scale_to_step(share * _busy(pairs)),
    )


@finding("reads-all-weights", "warning")
def reads_all_weights(c: Context) -> Found | None:
    """Report that routed tokens read almost all weights, though each is routed to few."""
    s = c.phase.sparsity.get("nominal")
    rows = c.phase_run.tokens_per_step if c.phase_run else None
    routing = next((family for family in _families(c) if family.routes_rows), None)
    if routing is None or not s or not rows or c.name != "decode":
        return None
    read = 1 - s**rows
    if read - (1 - s) < 0.2:
        return None
    return Found(
        text=f"{routing.title[:1].lower()}{routing.title[1:]} at B = {rows} reads "
        f"{percent(read, 1)} of the routed weights in a decode step: 1 − s^B with s = {s:g}",
        evidence=[
            f"FLOPs fall to {percent(1 - s)}, weight bytes to {percent(read, 1)} only, and decode "
            "is bound by weight bytes"
        ],
        change="route all tokens of a sequence equally, serve smaller batches, or prune statically",
        allocate=allocation(c),
    )


@finding("below-break-even", "critical", needs_valid_times=True, compares=True)
def below_break_even(c: Context) -> Found | None:
    """Report that block-sparse attention takes as long as dense attention."""
    dense = (
        c.scale_to_dense_step(_attention_ns(c.phase.baseline.roles)) if c.phase.baseline else 0.0
    )
    pruned = c.scale_to_step(_attention_ns(c.phase.roles))
    skips_blocks = any(family.skips_blocks for family in _families(c))
    if not skips_blocks or not dense or pruned < _GAIN * dense or c.baseline_kernels is None:
        return None
    rows = [
        kernels.frame.filter(pl.col("role").is_in(_ATTENTION_ROLES))
        for kernels in (c.baseline_kernels, c.kernels)
    ]
    if not gains_nothing(c, *rows, least=_GAIN):
        return None
    keys = f" at {c.phase_run.context} keys" if c.phase_run else ""
    line = "the break-even context is longer than this one"
    context = c.phase.predicted["break_even"].get("context") if c.phase.predicted else None
    if context:
        line = (
            f"by the roofline it gains from {context['from']} keys on, without the estimator's cost"
        )
    return Found(
        text=f"block-sparse attention does not pay{keys}: with its estimator it takes "
        f"{ms(pruned)}, dense attention {ms(dense)}",
        evidence=[line],
        change="use dense attention below the break-even context, larger blocks, or fewer blocks",
        predicted_ns=pruned - dense if pruned > dense else None,
        explains_roles=frozenset(_ATTENTION_ROLES),
    )


def _attention_ns(roles: dict[str, float]) -> float:
    return float(sum(roles.get(role, 0.0) for role in _ATTENTION_ROLES))


def _method(c: Context) -> str | None:
    pruning = c.side.run.pruning if c.side.run else None
    return pruning.method if pruning else None


def _families(c: Context) -> list[Family]:
    """Return the families of the run's method, if known, and of the verdict."""
    return known([_method(c), *(c.phase.family.ids if c.phase.family else ())])


def _is_as_before(pair: Pair) -> bool:
    """Return whether a GEMM has its dense shape and runs as often as in the dense run."""
    old, new = pair.dense, pair.pruned
    if old is None or new is None or pair.axis != "none":
        return False
    return new.count >= 0.99 * old.count


def _busy(pairs: list[Pair]) -> float:
    return sum(pair.pruned.busy for pair in pairs if pair.pruned is not None)


def _counted(c: Context, unit: str) -> float | None:
    """Return the active share, 0..1, that the run's modules counted; None without counts."""
    counted = c.evidence.counted(unit) if c.evidence else None
    return counted[0] / counted[1] if counted else None


def _zeroed_layers(c: Context) -> list[int]:
    """Return the layers whose o or down weight is all zero in the pruned run alone."""

    def zeroed(stats: WeightStats | None) -> set[tuple[int, str]]:
        return {
            (matrix.layer, matrix.role)
            for matrix in matrices(stats)
            if matrix.role in ("o", "down")
            and matrix.layer is not None
            and (matrix.zeros or 0) > 0.9999
        }

    if c.evidence is None:
        return []
    alone = zeroed(c.evidence.stats_pruned) - zeroed(c.evidence.stats_dense)
    return sorted({layer for layer, _ in alone})
