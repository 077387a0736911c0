"""The words of caveats on a verdict, and of reasons why a pair is no pruning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from prunescope.taxonomy.dtypes import QUANTISED
from prunescope.taxonomy.words import percent, when

_SHOWN = 4  # names that are counted in a sentence


def most_common(counts: Mapping[str, int]) -> str:
    """Return the four most common names, with their counts, and how many there are of others."""
    shown = Counter(counts).most_common(_SHOWN)
    rest = sum(counts.values()) - sum(count for _, count in shown)
    names = ", ".join(f"{name} × {count}" for name, count in shown)
    return f"{names} and {rest} more" if rest else names


def _formats(dense: str, pruned: str, *, unpacked: bool) -> str:
    if unpacked:
        copied = f"stored in {pruned} and copied to {dense} before their GEMMs"
        return f"the weights are {copied}: quantisation"
    what = "quantisation" if pruned in QUANTISED else "another number format"
    return f"the GEMMs run in {pruned}, the dense ones in {dense}: {what}"


def _replaced(gemms: int, others: Sequence[tuple[str, int]]) -> str:
    instead = ", ".join(f"{name} × {count}" for name, count in others)
    places = (
        f"other ops stand in their places ({instead})" if instead else "nothing is in their places"
    )
    return (
        f"none of the {gemms} GEMMs of the linears is in the pruned trace, {places}: quantised, "
        "fused or compiled kernels; no pruning removes all of them"
    )


def _other_units(counts: Mapping[str, int], *, change: str, some_unknown: bool) -> str:
    moved = "no GEMM of known shape moved" if some_unknown else "no GEMM moved"
    return f"{moved}; {sum(counts.values())} units {change}: {most_common(counts)}"


_CAPTURED = (
    "{side}: {captured:,} of {count:,} kernel launches were captured into a graph and did not run"
)
WORDS: dict[str, str | Callable[..., str]] = {
    # -- caveats --
    "lost-kernels": lambda side, lost, count, last: (
        f"{side}: {lost} of {count} kernel launches have no kernel in the trace"
        + when(0 < last < lost, f", {last:,} of them the last ones")
        + when(last == lost, ": the last ones, whose kernels had not run when the profiler stopped")
    ),
    "coverage-above-flop": (
        "the coverage bound ({coverage:.2f}×) is above the FLOP ratio ({flop:.2f}×): what was "
        "removed took more of the dense time than of its FLOPs"
    ),
    "cut-off": "{side}: the file is cut off, and what stood behind the cut is missing",
    "captured-step": _CAPTURED,
    "captured-launches": _CAPTURED,
    "no-gemm": "{side}: the trace holds no GEMM at all",
    "no-linear": "{side}: the trace holds no GEMM of a linear",
    "partly-lost-sublayers": (
        "{count} attention or MLP sublayers lost some GEMMs and kept others, as no pruning of "
        "layers does"
    ),
    "emptied-sublayers": (
        "{count} attention or MLP sublayers lost their GEMMs and still run what stands between them"
    ),
    "fewer-roles": ("{share:percent} of busy time has a role, {dense:percent} in the dense trace"),
    "other-roles": (
        "the roles of the two traces come from different sources ({share:percent} of busy time has "
        "one, {dense:percent} in the dense trace): GEMMs without a role are paired by order"
    ),
    "unequal-steps": "{side}: steps hold {fewest} to {most} kernels",
    "other-widths": lambda widths: (
        f"{', '.join(f'{name} {old:g} → {new:g}' for name, (old, new) in widths.items())}: all "
        "differ and no run says what was pruned: this may be another model of the same kind"
    ),
    "other-config": (
        "{side}: the config that its shapes come from may be that of another model: tiles do not "
        "fit it"
    ),
    # -- reasons why a pair is no pruning --
    "work-of-all-ranks": (
        "summed over the ranks ({pruned} and {dense}, each as the one traced), the GEMMs do "
        "{share:percent} of the dense FLOPs; compare equal numbers of ranks, or sums over the "
        "traces of all ranks"
    ),
    "replaced-linears": _replaced,
    "other-formats": lambda **formats: f"{_formats(**formats)}, not pruning",
    "formats-besides": lambda **formats: f"{_formats(**formats)} besides: times are of both",
    "larger-gemms": lambda roles: (
        f"GEMMs are larger than the dense ones, none is smaller: {most_common(roles)}"
    ),
    "moved-besides": lambda roles: (
        f"besides the inputs, weights of other sizes: N or K of {most_common(roles)}"
    ),
    "other-attention": "attention runs as {pruned:list} instead of {dense:list}",
    "other-activation": "the activation op differs: {pruned:list} instead of {dense:list}",
    "other-units": _other_units,
    "called-more-often": "no GEMM moved; the pruned side calls some ops more often: {ops:notices}",
    "and-more": "{count} more",
    "unread-work": lambda side, share, ops: (
        f"of {percent(share, 1)} of the busy time of the {side} side it is not known what it "
        f"multiplies ({', '.join(ops)}: no shapes, or no work model)"
    ),
}
