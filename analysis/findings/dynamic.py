"""Dynamic families and skipped layers: whether a run really skips what it claims to skip.

In: a Context. Out: Found, or None. The claim is the run's method, or the counts in its weight
statistics; the test is M and the number of calls of its GEMMs.
"""

from __future__ import annotations

import polars as pl

from prunescope.analysis.findings.allocate import allocation
from prunescope.analysis.findings.context import Context, gains_nothing
from prunescope.analysis.findings.registry import Found, finding
from prunescope.analysis.kernels.frame import Kernels
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
    """Tokens are masked, not removed: M of the GEMMs is unchanged."""
    counted = _counted(c, "rows")
    # Dropped prompt tokens leave a decode step its rows, and a single row runs or does not.
    # The method claims it: where the shapes do, fewer rows were seen.
    tokens = any(one.skips_tokens for one in known([_method(c)]))
    by_tokens = counted is None and tokens and c.name != "decode"
    if not by_tokens and (counted is None or counted > _ALL):
        return None
    routed = [p for p in c.pairs or [] if p.key[1] in _ROUTED]
    if not routed or not all(_as_before(p) for p in routed):
        return None
    reason = (
        f"the run counts {percent(counted)} of its tokens active"
        if counted is not None
        else f"the run's method is {_method(c)}"
    )
    return Found(
        text=f"tokens are masked, not removed: M is unchanged in all {len(routed)} GEMMs",
        evidence=[reason, f"M = {_first_m(routed)} dense and pruned"],
        change="gather the active rows before the GEMMs and scatter the results after them",
        predicted_ns=None
        if counted is None
        else c.in_step((1 - counted) * sum(map(_busy, routed))),
    )


@finding("skipped-layers-executed", "critical")
def skipped_layers_executed(c: Context) -> Found | None:
    """Layers that the run skips, by its method or counts, are executed."""
    pairs = [p for p in c.pairs or [] if p.key[0] is not None]
    if not pairs or not all(_as_before(p) for p in pairs):
        return None
    counted = _counted(c, "layers")
    zeroed = _zeroed_layers(c)
    s = c.phase.sparsity.get("nominal")
    if zeroed:
        lines = [f"output weights of layers {', '.join(map(str, zeroed[:8]))} are all zero"]
    elif counted is not None:
        if counted > _ALL:
            return None
        lines = [f"the run counts {percent(counted)} of its layers active"]
    elif _method_skips_layers(c) and s and int(s * len({p.key[0] for p in pairs})):
        lines = [f"the run's method is {_method(c)} at s = {s:g}"]
    else:
        return None
    layers = {p.key[0] for p in pairs}
    share = len(zeroed) / len(layers) if zeroed else 1 - counted if counted is not None else s or 0
    return Found(
        text=f"skipped layers are executed: the GEMMs of all {len(layers)} layers run at their "
        "dense shapes",
        evidence=lines,
        change="leave the layers out of the forward pass (with their norms and residual adds)",
        predicted_ns=c.in_step(share * sum(map(_busy, pairs))),
    )


@finding("reads-all-weights", "warning")
def reads_all_weights(c: Context) -> Found | None:
    """A batch of routed tokens reads almost all weights, though each token is routed to few."""
    s = c.phase.sparsity.get("nominal")
    rows = c.phase_run.tokens_per_step if c.phase_run else None
    routing = next((one for one in _families(c) if one.routes_rows), None)
    if routing is None or not s or not rows or c.name != "decode":
        return None
    read = 1 - s**rows
    if read - (1 - s) < 0.2:
        return None
    return Found(
        text=f"{_in_a_sentence(routing)} at B = {rows} reads {percent(read, 1)} of the routed "
        f"weights in a decode step: 1 − s^B with s = {s:g}",
        evidence=[
            f"FLOPs fall to {percent(1 - s)}, weight bytes to {percent(read, 1)} only, and decode "
            "is bound by weight bytes"
        ],
        change="route all tokens of a sequence equally, serve smaller batches, or prune statically"
        + allocation(c),
    )


@finding("below-break-even", "critical", needs_valid_times=True, compares=True)
def below_break_even(c: Context) -> Found | None:
    """Block-sparse attention takes as long as dense attention."""
    dense = c.in_dense_step(_attention_ns(c.phase.baseline.roles)) if c.phase.baseline else 0.0
    pruned = c.in_step(_attention_ns(c.phase.roles))
    blocks = any(one.skips_blocks for one in _families(c))
    if not blocks or not dense or pruned < _GAIN * dense or c.baseline_kernels is None:
        return None
    if not gains_nothing(c, _attention(c.baseline_kernels), _attention(c.kernels), least=_GAIN):
        return None
    keys = f" at {c.phase_run.context} keys" if c.phase_run else ""
    return Found(
        text=f"block-sparse attention does not pay{keys}: with its estimator it takes "
        f"{ms(pruned)}, dense attention {ms(dense)}",
        evidence=[_break_even(c) or "the break-even context is longer than this one"],
        change="use dense attention below the break-even context, larger blocks, or fewer blocks",
        predicted_ns=pruned - dense if pruned > dense else None,
        explains_roles=frozenset(_ATTENTION_ROLES),
    )


def _attention_ns(roles: dict[str, float]) -> float:
    return float(sum(roles.get(role, 0.0) for role in _ATTENTION_ROLES))


def _attention(kernels: Kernels) -> pl.DataFrame:
    return kernels.frame.filter(pl.col("role").is_in(_ATTENTION_ROLES))


def _break_even(c: Context) -> str:
    context = c.phase.predicted["break_even"].get("context") if c.phase.predicted else None
    if not context:
        return ""
    return f"by the roofline it gains from {context['from']} keys on, without the estimator's cost"


def _method(c: Context) -> str | None:
    pruning = c.side.run.pruning if c.side.run else None
    return pruning.method if pruning else None


def _families(c: Context) -> list[Family]:
    """The families of the run's method, if known, and of the verdict."""
    return known([_method(c), *(c.phase.family.ids if c.phase.family else ())])


def _method_skips_layers(c: Context) -> bool:
    return any(one.skips_layers for one in known([_method(c)]))


def _in_a_sentence(one: Family) -> str:
    return one.title[:1].lower() + one.title[1:]


def _as_before(p: Pair) -> bool:
    """Whether a GEMM has its dense shape and runs as often as in the dense run."""
    both = p.dense is not None and p.pruned is not None
    return both and p.axis == "none" and p.pruned.count >= 0.99 * p.dense.count  # type: ignore[union-attr]


def _busy(p: Pair) -> float:
    return p.pruned.busy if p.pruned is not None else 0.0


def _first_m(pairs: list[Pair]) -> str:
    first = pairs[0].pruned
    return "?" if first is None or first.m is None else f"{first.m:g}"


def _counted(c: Context, unit: str) -> float | None:
    """The active share, 0..1, that the run's modules counted in this phase; None without counts."""
    counted = c.evidence.counted(unit) if c.evidence else None
    return counted[0] / counted[1] if counted else None


def _zeroed_layers(c: Context) -> list[int]:
    """Layers whose o or down weight is all zero in the pruned run and was not in the dense one."""

    def zero(stats: WeightStats | None) -> set[tuple[int, str]]:
        return {
            (m.layer, m.role)
            for m in matrices(stats)
            if m.role in ("o", "down") and m.layer is not None and (m.zeros or 0) > 0.9999
        }

    e = c.evidence
    return sorted({i for i, _ in zero(e.stats_pruned) - zero(e.stats_dense)}) if e else []
