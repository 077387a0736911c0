"""The sentences of a report, shared by every format: in, a Phase or the Report; out, plain lines
with units, unescaped. Each percentage names its base, each statistic its name.
"""

from __future__ import annotations

from typing import Any

from prunescope.analysis.report import anatomy_view, numbers
from prunescope.analysis.report.beside_wall import left_out
from prunescope.analysis.report.device_sentence import named
from prunescope.analysis.report.second_opinion import second_opinion
from prunescope.analysis.report.statistic import observer, statistic
from prunescope.analysis.report.view import without_sizes
from prunescope.analysis.schema.report import (
    WHOLE_TRACE,
    FamilyVerdict,
    Finding,
    Ladder,
    Phase,
    Report,
)

FAMILIES = {
    "dense": "nothing changed between the two runs",
    "outside": "something changed, but no M, N or K of a GEMM",
    "unknown": "the shapes do not say",
}

_NO_EVIDENCE = ("timing-not-valid", "captured-step")  # findings that leave times no evidence
# Fields of a phase and of its baseline in bytes, as they are called.
MEMORY = (
    ("weight_bytes", "weights"),
    ("kv_bytes", "KV cache"),
    ("peak_memory_bytes", "peak memory"),
)

HOLDS_BOUND = "the interval holds the bound"
PAST_BOUND = "≥ 100 % of the bound: faster than the model of it allows"
NO_FINDING = "none: no rule holds here; the tables have where the time goes"

_LATE = ("host", "sync", "memcpy")  # causes of idle time before a launch that came late
_PROMISED = 1.005  # a nominal speedup from which on one was promised
_NOTABLE = 0.98  # realised ÷ predicted from which on there is no miss to explain


def title(report: Report) -> str:
    """What was measured, in one line."""
    subject = report.subject
    name = named(subject.get("name")) or named(subject.get("model")) or "report"
    facts = [named(subject.get(key)) for key in ("model", "method", "dtype")]
    facts.append(named(report.device.get("name")))
    seen = [name]
    for fact in facts:
        if fact and fact not in seen:
            seen.append(fact)
    return " · ".join(seen)


def against(report: Report) -> str:
    """What it was compared with."""
    if report.baseline is None:
        return "no baseline: shapes, bounds and kernels only; --baseline gives the ledger"
    name = named(report.baseline.get("name")) or named(report.baseline.get("model")) or "dense"
    if name == named(report.subject.get("name")):
        return f"against itself ({name})"
    return f"against {name}"


def heading(name: str, phase: Phase) -> str:
    """The name of a phase, and of a bare trace the kind of phase that it turned out to be."""
    kind = phase.phase_kind["kind"] if phase.phase_kind else "unknown"
    is_said = kind in ("unknown", name) or name.endswith(f"-{kind}")  # rank0-decode
    return name if is_said else f"{name} ({kind})"


def setup(phase: Phase) -> str:
    """Steps, samples, sparsity: what the numbers of the phase are made of."""
    whole = phase.steps == 1 and WHOLE_TRACE in phase.notes
    steps = f"{phase.steps} profiled step{'s' * (phase.steps != 1)}"
    facts = ["the whole trace as one step" if whole else steps]
    if timed := phase.unprofiled_ns:
        seats = f" in {len(timed.placements)} placements" if timed.placements else ""
        seats += (
            f", each with {numbers.time(cost)} besides them"
            if (cost := timed.placement_cost_ns)
            else ""
        )
        facts.append(f"{len(timed.samples)} unprofiled samples{seats}")
    names = {"nominal": "nominal s", "parameters": "parameters", "flop": "FLOPs", "bytes": "bytes"}
    removed = [
        f"{names.get(key, key)} {numbers.percent(share)}"
        for key, share in phase.sparsity.items()
        if share is not None
    ]
    if removed:
        facts.append("removed: " + ", ".join(removed))
    return " · ".join(facts)


def headline(phase: Phase) -> str:
    """What the phase comes to, and that shapes come from a config where some do; first of all, that
    no step was timed, or that the timing is not valid, where it is so."""
    sides = [phase.shapes, phase.baseline.shapes if phase.baseline else {}]
    modelled = any(shares.get("model") for shares in sides)
    text = "" if is_valid(phase) or captured(phase) else "timing not valid: "
    return text + _outcome(phase) + (", shapes from the model's config" if modelled else "")


def is_valid(phase: Phase) -> bool:
    """Whether nothing was seen that makes times of the phase no evidence."""
    return all(finding.id not in _NO_EVIDENCE for finding in phase.findings)


def captured(phase: Phase) -> str:
    """That no step was timed, for a graph captured most of it; empty where none did."""
    found = next((one for one in phase.findings if one.id == "captured-step"), None)
    return f"no step was timed ({'; '.join(found.evidence)})" if found is not None else ""


def _outcome(phase: Phase) -> str:
    """Realised against promised; where nothing was pruned, that the ratio is noise; where the sides
    do not compare, why; without a baseline, the step and how busy it is."""
    if why := captured(phase):
        ratio = (
            f", and {numbers.ratio(phase.ladder.realised)} is no speedup" if phase.ladder else ""
        )
        return f"{why}: the rest took {numbers.time(phase.wall_ns)}{ratio}"
    if phase.ladder is None:
        share = numbers.share_of(phase.busy_ns, phase.wall_ns)
        text = f"{numbers.time(phase.wall_ns)} a step, busy {numbers.percent(share)} of the wall"
        earlier = any(finding.id == "earlier-work" for finding in phase.findings)
        return text + ", much of which is earlier work, most likely" * earlier
    ladder = phase.ladder
    ratio = f"{numbers.ratio(ladder.realised)}{_interval(ladder)}"
    if why := _not_comparable(phase):
        return f"{ratio} is no speedup: {why}"
    if not is_valid(phase):
        return f"{ratio} is no evidence, for the samples vary too much or were disturbed"
    if without_sizes(phase):
        why = "no shapes, so what was pruned is unknown (capture again with record_shapes=True)"
        return f"{why}: {ratio} is the ratio of the two traces"
    if _nothing_moved(phase):
        return _noise(phase, ladder)
    if holds_one(phase):
        text = f"{ratio} cannot be told from no speedup: the interval holds 1×"
        return f"{text}; {_was_promised(phase, ladder)}"
    return _realised(phase, ladder)


def _realised(phase: Phase, ladder: Ladder) -> str:
    """A speedup of what was promised, and the share of its bound."""
    text = f"{numbers.ratio(ladder.realised)} realised{_interval(ladder)}"
    if ladder.nominal is not None:
        text += f" of {numbers.ratio(ladder.nominal)} "
        text += "promised" if _has_promise(phase) else "that its FLOPs allow"
    if ladder.share_of_bound is not None:
        text += f", {numbers.percent(ladder.share_of_bound)} of the roofline bound"
        text += _shares(ladder.share_of_bound_ci95)
        if ladder.share_of_bound > 1.005:
            text += f" ({_beyond(ladder)})"
    return text


def holds_one(phase: Phase) -> bool:
    """Whether a speedup was looked for and the interval holds none too."""
    return any(finding.id == "no-speedup" for finding in phase.findings)


def _beyond(ladder: Ladder) -> str:
    """What more than the bound means: nothing, where the interval holds the bound."""
    return HOLDS_BOUND if ladder.holds_bound else PAST_BOUND


def _not_comparable(phase: Phase) -> str:
    """Which settings differed between the runs; empty if none."""
    if phase.is_speedup:
        return ""
    lines = [line for f in phase.findings if f.id == "not-comparable" for line in f.evidence]
    return f"not comparable ({'; '.join(lines[:3])})"


def _nothing_moved(phase: Phase) -> bool:
    """Nothing was pruned, or nothing that shapes and kernels show."""
    verdict, pairs = phase.family, phase.pairing
    if verdict is None or verdict.id != "unknown" or pairs is None:
        return verdict is not None and verdict.id == "dense"
    unmoved = bool(phase.gemms) and all(gemm.axis == "none" for gemm in phase.gemms)
    return unmoved and not pairs.added and not pairs.removed


def _noise(phase: Phase, ladder: Ladder) -> str:
    """The ratio of two captures of what seems to be one model, which is no speedup."""
    known = phase.family is not None and phase.family.id == "dense"
    text = "nothing was pruned" if known else "the shapes show no pruning"
    text += f": {numbers.ratio(ladder.realised)}"
    text += _interval(ladder) or " (no interval: one step or sample)"
    text += " is the noise between two captures, "
    text += "no speedup" if known else "or what a trace does not show"
    if (ladder.nominal or 1.0) > _PROMISED:
        text += f"; {_was_promised(phase, ladder)}"
    return text


def _has_promise(phase: Phase) -> bool:
    """Whether anybody said a sparsity: else the first bound is that of the FLOPs."""
    return phase.sparsity.get("nominal") is not None


def _was_promised(phase: Phase, ladder: Ladder) -> str:
    nominal = numbers.ratio(ladder.nominal)
    return f"{nominal} was promised" if _has_promise(phase) else f"its FLOPs allow {nominal}"


def _interval(ladder: Ladder) -> str:
    if not ladder.realised_ci95:
        return ""
    low, high = (numbers.ratio(bound) for bound in ladder.realised_ci95)
    return f" [{low}, {high}]"


def _shares(ci95: list[float] | None) -> str:
    if not ci95:
        return ""
    low, high = (numbers.percent(end) for end in ci95)
    return f" [{low}, {high}]"


def family(verdict: FamilyVerdict | None) -> str:
    """The pruning family read from the shapes."""
    if verdict is None:
        return ""
    text = f"family {verdict.id} (confidence {numbers.percent(verdict.confidence, decimals=0)})"
    if verdict.id in FAMILIES:
        text += f", {FAMILIES[verdict.id]}"
    if len(verdict.parts) > 1:
        shares = (f"{p['id']} {numbers.percent(p['share'], decimals=0)}" for p in verdict.parts)
        text += f", of the time touched {', '.join(shares)}"
    if verdict.evidence:
        text += f": {'; '.join(verdict.evidence[: max(2, len(verdict.parts))])}"
    if verdict.alternatives:
        text += f" [or {', '.join(verdict.alternatives)}]"
    return text


def pairing(phase: Phase) -> str:
    """How dense and pruned were matched."""
    pairs = phase.pairing
    if pairs is None:
        return ""
    text = (
        f"paired by {pairs.alignment}: {pairs.matched} units matched, "
        f"{pairs.removed} removed, {pairs.added} added"
    )
    return f"{text}; {pairs.layers}" if pairs.layers else text


def coverage(phase: Phase) -> str:
    """What the analysis knows, as shares of busy time, and the largest unknown kernel where all of
    them have a share that is seen."""
    names = (("kind", "a kind"), ("work", "a work model"), ("role", "a role"))
    known = ", ".join(
        f"{numbers.percent(phase.coverage.get(key))} has {label}" for key, label in names
    )
    text = f"coverage of {numbers.time(phase.busy_ns)} busy: {known}"
    unnamed = 1 - phase.coverage.get("kind", 0.0)
    if phase.unknown_kernels and numbers.percent(unnamed) != numbers.percent(0.0):
        first = phase.unknown_kernels[0]
        text += f"; largest without a kind: {first.name} ({numbers.time(first.busy_ns)})"
    return text


def bounds(phase: Phase) -> str:
    """Busy time by what bounds it, and the idle time but for gaps before kernels that had been
    launched when the device ran dry."""
    shares = ", ".join(
        f"{numbers.percent(numbers.share_of(phase.bound.get(name), phase.busy_ns))} {name}"
        for name in ("compute", "memory", "latency", "unknown")
        if phase.bound.get(name)
    )
    text = f"bound, of busy: {shares or numbers.UNKNOWN}"
    if phase.bound.get("compute") or phase.bound.get("memory"):
        text += " (compute or memory: the larger of FLOPs ÷ peak and bytes ÷ bandwidth, whatever "
        text += "share of it is reached)"
    launch = phase.bound.get("launch")
    anatomy = phase.anatomy
    if launch and anatomy is not None and anatomy.graph_speedup is not None:
        launch = min(launch, sum(anatomy.gaps.get(name, 0.0) for name in _LATE))
    if launch:
        share = numbers.percent(numbers.share_of(launch, phase.wall_ns))
        what = "between ops" if _on_host(phase) else "idle before kernels not launched in time"
        text += f"; {what} {numbers.time(launch)} ({share} of the wall)"
        if phase.is_skewed:
            text += ", which is doubtful: the clocks of host and device are apart"
    return text


def _on_host(phase: Phase) -> bool:
    """Whether ops ran on the CPU of the trace: it has no launches, and no graph spares any."""
    anatomy = phase.anatomy
    if anatomy is None or anatomy.graph_speedup is not None or phase.is_skewed:
        return False
    return all(not ns for cause, ns in anatomy.gaps.items() if cause not in ("host", "tail"))


def closure(phase: Phase) -> str:
    """Busy + gap + tail = wall in whole ns over all kept steps, with what is left over."""
    parts = (phase.busy_ns, phase.gap_ns, phase.tail_ns, phase.wall_ns)
    busy, gap, tail, wall = (round(ns * phase.steps) for ns in parts)
    off = busy + gap + tail - wall
    return (
        f"closure over {phase.steps} step{'s' * (phase.steps != 1)}: Σ busy {numbers.whole(busy)} "
        f"+ Σ gap {numbers.whole(gap)} + tail {numbers.whole(tail)} "
        f"{'≠' if off else '='} wall {numbers.whole(wall)} ns (off by {numbers.whole(off)} ns)"
    )


def throughput(phase: Phase) -> str:
    """Tokens a second and memory, dense beside pruned where both are known."""
    dense = phase.baseline
    facts = []
    if phase.tokens_per_s is not None:
        before = dense.tokens_per_s if dense else None
        facts.append(_pair(before, phase.tokens_per_s, numbers.rate, "tokens/s"))
    for key, label in MEMORY:
        now = getattr(phase, key)
        if now is not None:
            facts.append(_pair(getattr(dense, key, None), now, numbers.size, label))
    return " · ".join(facts)


def _pair(dense: Any, now: float, form: Any, label: str) -> str:
    before = f"{form(dense)} → " if isinstance(dense, (int, float)) else ""
    return f"{label} {before}{form(now)}"


def finding(item: Finding) -> str:
    """The diagnosis with its change and what the change is predicted to save."""
    text = item.text
    if item.change:
        text += f" → {item.change}"
    if item.predicted_ns is not None:
        text += f" (at most {numbers.time(item.predicted_ns)} a step)"
    return text


def predicted(phase: Phase) -> str:
    """The theory's ladder on the run's peaks, and where the realised one falls short of it."""
    said = phase.predicted
    if said is None:
        return ""
    names = {"flop": "FLOPs", "coverage": "coverage", "roofline": "roofline"}
    bounds = ", ".join(
        f"{label} {numbers.ratio(said['ladder'].get(key))}" for key, label in names.items()
    )
    text = f"predicted for {said['family']} on these peaks: {bounds}"
    miss = said.get("miss")
    if miss is None or not is_valid(phase) or not phase.is_speedup:
        return text
    text += f"; realised is {numbers.percent(miss['ratio'], decimals=0)} of that"
    worst = next((term for term in miss["terms"] if term["name"] == miss["largest"]), None)
    if miss["ratio"] < _NOTABLE and worst is not None:
        label = {"launch_idle": "launch and idle"}.get(worst["name"], worst["name"])
        text += f", mostly by {label.replace('_', ' ')} ×{worst['ratio']:.2f} ({worst['says']})"
    return text


def warnings(report: Report) -> list[str]:
    """What the reader must know first: the report's own warnings, which name what is partial."""
    unnamed = report.partial and not report.warnings
    return ["this report is of a part of what ran"] if unnamed else report.warnings


def opening(phase: Phase) -> list[str]:
    """The lines below the headline."""
    said = (predicted(phase), statistic(phase), family(phase.family), setup(phase), coverage(phase))
    return [line for line in said if line]


def measured(phase: Phase) -> list[str]:
    """How the numbers were taken, and that they close."""
    lines = [
        throughput(phase),
        bounds(phase),
        pairing(phase),
        closure(phase),
        observer(phase),
        *anatomy_view.lines(phase),
        *left_out(phase),
        *phase.notes,
        *second_opinion(phase),
    ]
    return [line for line in lines if line]
