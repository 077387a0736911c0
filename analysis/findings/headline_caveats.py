"""Why the headline of a phase may not be that of a step.

In: a Phase of the report (ns). Out: sentences for the warnings of the report.
"""

from __future__ import annotations

from prunescope.analysis.comparison.equal_information import one_sided_text
from prunescope.analysis.findings.context import ms
from prunescope.analysis.schema.pair_comparison import SHAPES
from prunescope.analysis.schema.report import Phase

_MOST_LATE = 0.05  # of device time
_OF_TOKENS = {"attention", "embedding", "lm_head"}  # kinds and roles of a model of tokens


def phase_warnings(name: str, phase: Phase) -> list[str]:
    """Why the headline of a phase may not be that of a step."""
    said = []
    of_dense = phase.baseline.phase_kind if phase.baseline else None
    for side, kind in (("", phase.phase_kind), ("baseline: ", of_dense)):
        if kind and (doubt := kind.get("doubt")):
            said.append(f"{side}{name}: {doubt}")
    said += _apart(name, phase)
    said += [f"{name}: {f.text}" for f in phase.findings if f.id == "earlier-work"]
    late, kept = phase.late, phase.busy_ns * phase.steps
    if late["events"] and late["ns"] > _MOST_LATE * (late["ns"] + kept):
        of = late["events"] + sum(phase.kernels_per_step)
        said.append(
            f"{name}: {late['events']:,.0f} of {of:,.0f} device events have no launch in the trace "
            f"and are left out, {ms(late['ns'])} of {ms(late['ns'] + kept)}: the step below is not "
            "the whole one"
        )
    return said


def missing_shapes(
    name: str, phase: Phase, *, asked: bool = False, takes_model: bool = False
) -> list[str]:
    """What a trace without shapes cannot say, where ops ran and none of their GEMMs has sizes.
    `asked`: the trace says that shapes were recorded; `takes_model`: a config could tell them."""
    ignored = phase.comparison.one_sided if phase.comparison else ()
    if lacking := [one for one in ignored if one.kind == SHAPES]:
        return [f"{name}: {one_sided_text(one)}" for one in lacking]
    gemms = [g for g in phase.gemms if g.op is not None]
    if not gemms or any(n is not None for g in gemms for n in (g.m, g.n, g.k)):
        return []
    of_tokens = not _OF_TOKENS.isdisjoint([*phase.kinds, *(g.role for g in gemms)])
    give = ", or give --model (a decoder's config)" if takes_model and of_tokens else ""
    change = f"capture again with profile(..., record_shapes=True){give}"
    if asked:
        change = (
            "record_shapes was on, and these ops pass no tensors that a profiler sees (compiled or "
            f"custom ops): capture without torch.compile{give}"
        )
    pruned = "what was pruned, " if phase.baseline else ""
    return [f"{name}: no GEMM has shapes, so {pruned}FLOPs and bounds are unknown: {change}"]


def _apart(name: str, phase: Phase) -> list[str]:
    """Two captures of one model that differ by more than the interval of their ratio."""
    ladder, family = phase.ladder, phase.family
    if ladder is None or family is None or family.id != "dense" or not ladder.realised_ci95:
        return []
    low, high = ladder.realised_ci95
    if low <= 1 <= high:
        return []
    return [
        f"{name}: nothing was pruned, and the two captures differ by {ladder.realised:.2f}× "
        f"[{low:.2f}×, {high:.2f}×]: what moved the time shows in no size (a hook, a wait, another "
        "machine or time of day); where the sides were not traced in turns by one command, on a "
        "quiet machine, a ratio of that size is no evidence"
    ]
