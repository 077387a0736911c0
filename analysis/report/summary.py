"""The answer of a phase in one paragraph: what was promised, what came of it, what takes the
difference, and the change that would pay most. In: a Phase of the Report; out: plain sentences.

It says of times only what their intervals and noise allow: a row of the ledger without evidence is
no cause, and where the runs do not compare, or the timing is not valid, that is the answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from statistics import fmean

import msgspec

from prunescope.analysis.report import evidence, ledger_view, numbers, sentences
from prunescope.analysis.report.gemm_table import without_sizes
from prunescope.analysis.schema.pair_comparison import OWN_CONFIG
from prunescope.analysis.schema.report import (
    EARLIER_WORK,
    INVALID_TIMES,
    LATE_RANK,
    NOT_COMPARABLE,
    NOT_VALID,
    SIDE_CAVEATS,
    UNCERTAIN_CONFIG,
    Finding,
    Ladder,
    Phase,
    Row,
    is_beyond_noise,
)
from prunescope.taxonomy.families import known
from prunescope.taxonomy.family import Family
from prunescope.taxonomy.recorder import NSYS, recorder_called

FEW_PHASES = 3  # of more (ranks), each has a row, and the one to read first comes first
_CAUSES = 3  # rows of the ledger, or kinds of work, that are named
_ROLES = 0.5  # of the time of GEMMs: with less of it in roles, the answer lacks them
_MODULES = (
    "record modules (torch.profiler: with_stack=True, or record_function scopes as "
    "prunescope.capture makes them; NVTX ranges only with Nsight Systems)"
)
# The kernel that torch runs for the fast path of its attention, in encoder layers and alone.
_FAST_PATH = "transform_bias_rescale_qkv"
_SLOW_PATH = (
    "torch's fast path runs a whole layer as one operator, without its modules: record with "
    "torch.backends.mha.set_fastpath_enabled(False)"
)
_SAME = 5e-4  # of FLOPs and bytes: a share that prints as 0.0 %
_LEAST = 0.05  # of the difference, or of the busy time: a cause, or a kind of work, worth naming
# Rows of the ledger in plain words: where time was lost, and where it was gained.
_MORE_FLOPS = ("bytes that grew more than the FLOPs", "bytes that grew less than the FLOPs")
_IN_WORDS = {
    "coverage": ("work that the pruning did not touch", "work that shrank more than promised"),
    "roofline_shift": ("bytes that did not fall with the FLOPs", "bytes that fell with the FLOPs"),
    "shape": ("tiles and waves of the new dimensions", "tiles and waves of the new dimensions"),
    "kernel_efficiency": ("slower kernels", "faster kernels"),
    "added_work": ("kernels that only the pruned model runs", "kernels that only dense runs"),
    "launch_idle": ("longer gaps between kernels", "shorter gaps between kernels"),
    "not_explained": ("what no shapes explain", "what no shapes explain"),
}
# Of a row that is mostly attention whose keys nobody counted.
_KEYS_UNKNOWN = (
    "longer attention over a number of keys that the trace does not show",
    "shorter attention over a number of keys that the trace does not show, as with key eviction",
)
# What of a row is no kernel and no gap of the model's own, by the finding that says so.
_ESTIMATES = "added-estimator"  # the finding on what scores keys
_OF_SHAPES = ("kernel_efficiency", "not_explained")  # a shape that is not known may be the cause
_FOUND = {
    "interrupted-ops": "interrupted calls",
    "long-gap": "single long gaps",
}


def summary(phase: Phase, late: Finding | None = None) -> str:
    """The paragraph. Times are of one step, with their units. `late`: what `waits_for` gives."""
    return " ".join(filter(None, outcome_and_reasons(phase, late)))


def in_reading_order(phases: Mapping[str, Phase]) -> dict[str, Phase]:
    """All phases; the one that answers for all comes first where there are many or one is a rank
    that the others wait for, and the rest keep their order."""
    if len(phases) <= FEW_PHASES and not any(phase.finding(LATE_RANK) for phase in phases.values()):
        return dict(phases)
    first = first_to_read(phases)
    return {first: phases[first], **phases}


def waits_for(phase: Phase, phases: Mapping[str, Phase]) -> Finding | None:
    """The finding on the rank among `phases` that this one waits for; None where there is none,
    and for that rank itself."""
    every = (one.finding(LATE_RANK) for one in phases.values())
    return None if phase.finding(LATE_RANK) else next(filter(None, every), None)


def first_to_read(phases: Mapping[str, Phase]) -> str:
    """The one of many phases (ranks, kinds of iterations) to read first: the rank that the others
    wait for, else the one with the lowest ratio, else the longest."""

    def order(name: str) -> tuple[bool, float, float]:
        phase = phases[name]
        ratio = phase.ladder.realised if phase.ladder is not None else None
        return (
            phase.finding(LATE_RANK) is None,
            math.inf if ratio is None else ratio,
            -phase.wall_ns,
        )

    return min(phases, key=order)


def outcome_and_reasons(phase: Phase, late: Finding | None = None) -> tuple[str, str]:
    """The first sentence of the paragraph, which formats set off, and the others. `late`: what
    `waits_for` gives; its change is the one to make first, before any of this rank."""
    return f"{sentences.headline(phase)}.", " ".join(map(_sentence, _reasons(phase, late)))


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}{'' if text.endswith(('.', '?')) else '.'}"


def _reasons(phase: Phase, late: Finding | None) -> Iterator[str]:
    if phase.ladder is None:
        yield from _largest(phase)
    elif phase.is_speedup:
        yield from _refused(phase)
        yield from _family(phase)  # read from shapes, whatever the times are
        if not phase.invalid_times:
            yield from _spread(phase)
        if phase.ledger and not phase.invalid_times and not _side_caveats(phase):
            if disturbed := evidence.why_no_row(phase):
                yield f"no row of the ledger is evidence: {', '.join(disturbed)}"
            else:
                yield from _causes(phase, phase.ledger)
    yield from _few_roles(phase)
    if late is not None and late.change:
        yield f"first fix what the others wait for, {late.change}"
    else:
        yield from _change(phase)


def _modules(phase: Phase) -> str:
    """How to record modules, by what the trace was recorded with."""
    if phase.profiler == NSYS:
        return f"record {recorder_called(NSYS).modules}, or trace with torch.profiler and stacks"
    return _MODULES


def _few_roles(phase: Phase) -> Iterator[str]:
    """A hint to record modules, for a model with attention that was recorded with ops and without
    modules and most of whose GEMMs have no role. (Modules without attention or a head tell no roles
    either; the names of those that were recorded may tell none.)"""
    whole = sum(gemm.busy_ns for gemm in phase.gemms)
    named = sum(gemm.busy_ns for gemm in phase.gemms if gemm.role != "unknown")
    attends = "attention" in phase.busy_by_kind
    lacks = attends and not phase.has_modules and any(gemm.op for gemm in phase.gemms)
    if lacks and named < _ROLES * whole:
        share = numbers.percent(numbers.share_of(named, whole), decimals=0)
        fast = any(_FAST_PATH in f"{row.op} {row.name}" for row in phase.kernels)
        change = _SLOW_PATH if fast else _modules(phase)
        yield f"only {share} of the time of GEMMs has a role: {change}"


def _refused(phase: Phase) -> Iterator[str]:
    """Why a side takes no shapes from the config that was given, and which config it needs."""
    for one in phase.comparison.one_sided if phase.comparison else ():
        if one.refused is not None:
            yield f"for {one.trace} {one.refused}: {OWN_CONFIG[one.missing]}"


def _family(phase: Phase) -> Iterator[str]:
    verdict = phase.family
    if verdict is None:
        return
    if verdict.id in sentences.FAMILIES:
        if verdict.by_order:
            perhaps = f", perhaps {verdict.alternatives[0]}" if verdict.alternatives else ""
            unidentified = f"the order of kernels does not identify the family{perhaps}"
            yield f"{unidentified}: {_modules(phase)}"
        elif verdict.id == "unknown" and not without_sizes(phase):  # else the headline says it
            yield from _few_shapes(phase)
        return
    confidence = numbers.percent(verdict.confidence, decimals=0)
    sized = any(n is not None for gemm in phase.gemms for n in (gemm.m, gemm.n, gemm.k))
    what = "the shapes are those" if sized else "the calls that were removed are those"
    text = f"{what} of {verdict.id} (confidence {confidence})"
    yield f"{text}: {verdict.evidence[0]}" if verdict.evidence else text


def _few_shapes(phase: Phase) -> Iterator[str]:
    """A sentence if few shapes of GEMMs are known, and therefore no family."""
    sized = sum(gemm.busy_ns for gemm in phase.gemms if gemm.n is not None)
    whole = sum(gemm.busy_ns for gemm in phase.gemms)
    if sized < _ROLES * whole:
        share = numbers.percent(numbers.share_of(sized, whole), decimals=0)
        yield (
            f"the family is unknown, as only {share} of the time of GEMMs has shapes: record them "
            "on both sides (record_shapes=True)"
        )


def _causes(phase: Phase, rows: list[Row]) -> Iterator[str]:
    """The causes of the difference between the promised and the measured step."""
    by_name = {row.row: row for row in rows}
    dense, promised, pruned = by_name["dense"], by_name["promised"].ns, by_name["pruned"]
    if promised is None or pruned.ns is None or phase.nothing_moved:
        return
    if without_sizes(phase):  # the dense time would stand for what its FLOPs give
        return
    over = pruned.ns - promised
    reference = f"the {numbers.time(promised)} {_meaning(phase)}"
    if abs(over) < 0.5:  # recorded times are whole nanoseconds: there is nothing to explain
        yield f"the step takes exactly {reference}"
        return
    longer = f"{numbers.time(abs(over))} {'longer' if over > 0 else 'shorter'}"
    text = f"the step takes {numbers.time(pruned.ns)}, {longer} than {reference}"
    excess = _excess(phase.ladder, dense.moves_ns, promised, pruned)
    if (expected := _overlapping(phase, promised, dense.moves_ns)) is not None:
        low, high = map(numbers.time, expected)
        why = f"at that ratio single dense steps take {low} to {high}, and so do pruned ones"
        yield f"{text}, which is no evidence: {why}"
        return
    if not is_beyond_noise(excess):
        includes = "the interval of the speedup includes the promised one"
        why = includes if excess.ci95 else _quiet(excess)
        yield f"{text}, which is no evidence: {why}"
        return
    changes = [
        row
        for row in rows
        if ledger_view.tone(row) in ("loss", "gain") and abs(row.moves_ns) >= _LEAST * abs(over)
    ]
    causes = sorted((row for row in changes if row.moves_ns * over > 0), key=_size)[:_CAUSES]
    if not causes:
        yield f"{text}; no row of the ledger that explains it is beyond its noise"
        return
    yield f"{text}: {', '.join(_cause(phase, row, dense) for row in causes)}"
    against = sorted((row for row in changes if row.moves_ns * over < 0), key=_size)[:1]
    if against:
        yield f"against it: {_cause(phase, against[0], dense)}"
    yield from _unproven(rows, abs(causes[0].moves_ns))


def _spread(phase: Phase) -> Iterator[str]:
    """The range of the steps' times of a ratio without an interval, on the sides where it is not
    small compared with the difference of the two."""
    if phase.ladder is None or phase.ladder.realised_ci95 is not None or phase.unprofiled_ns:
        return
    sides = {"pruned": phase.step_ns, "dense": phase.baseline.step_ns if phase.baseline else []}
    if not all(sides.values()) or phase.nothing_moved:
        return
    apart = abs(fmean(sides["pruned"]) - fmean(sides["dense"]))
    ranges = [
        f"{len(ns)} {name} steps take {numbers.time(min(ns))} to {numbers.time(max(ns))}"
        for name, ns in sides.items()
        if max(ns) - min(ns) > _LEAST * apart
    ]
    if ranges:
        yield f"so few steps give no interval of the speedup: {', '.join(ranges)}"


def _overlapping(phase: Phase, promised: float, dense: float) -> tuple[float, float] | None:
    """The shortest and the longest dense step at the promised ratio, ns, where without an interval
    some step of the pruned side is no longer than one of them, and another no shorter: single steps
    then tell no difference."""
    without = phase.ladder is None or phase.ladder.realised_ci95 is None
    steps = phase.step_ns if without and phase.unprofiled_ns is None else []
    others = phase.baseline.step_ns if phase.baseline else []
    if len(steps) < 2 or not others or dense <= 0:
        return None
    expected = [ns * promised / dense for ns in others]
    low, high = min(expected), max(expected)
    return (low, high) if min(steps) <= high and low <= max(steps) else None


def _excess(ladder: Ladder | None, dense: float, promised: float, pruned: Row) -> Row:
    """The time of the step above the promised one, as a row that is evidence or not. Its interval
    is that of the speedup, whose samples took turns, at the dense time: it holds 0 where that of
    the speedup holds the promised one. Without one it has the noise of the step."""
    ci95 = ladder.realised_ci95 if ladder is not None else None
    over = pruned.moves_ns - promised
    if not ci95 or min(ci95) <= 0:
        return Row(row="excess", ns=over, noise_ns=pruned.noise_ns)
    low, high = ci95
    return Row(row="excess", ns=over, ci95=[dense / high - promised, dense / low - promised])


def _quiet(row: Row) -> str:
    """Why a row is no evidence."""
    if row.ci95 and row.ci95[0] <= 0 <= row.ci95[1]:
        return "its interval includes 0"
    return f"it is inside twice its noise (±{numbers.time(row.noise_ns)})"


def _unproven(rows: list[Row], most: float) -> Iterator[str]:
    """The largest row without evidence, where it would be a larger cause than any that is named."""
    quiet = [row for row in rows if ledger_view.tone(row) == "quiet" and abs(row.moves_ns) > most]
    for row in sorted(quiet, key=_size)[:1]:
        label = ledger_view.LEDGER[row.row][0]
        yield f"no evidence, as {_quiet(row)}: {label} {numbers.time(row.ns, signed=True)}"


def _meaning(phase: Phase) -> str:
    """The meaning of the promised time: of a nominal sparsity, of the FLOPs, or dense where neither
    is known."""
    if sentences.has_promise(phase):
        return "promised"
    known = phase.ladder is not None and phase.ladder.flop is not None
    return "that its FLOPs give" if known else "of the dense step"


def _size(row: Row) -> float:
    return -abs(row.moves_ns)


def _explanation(phase: Phase, row: Row) -> str:
    """The cause of most of a row by a finding, or by the FLOPs, in words; empty without one."""
    for finding in phase.findings:
        rows = finding.accounts_for
        ns = 0.0 if rows is msgspec.UNSET else rows.get(row.row, 0.0)
        if finding.id in _FOUND and ns * row.moves_ns > 0 and 2 * abs(ns) >= abs(row.moves_ns):
            return f"mostly {_FOUND[finding.id]}{' of the dense run' * (ns < 0)}"
    flop = phase.ladder.flop if phase.ladder is not None else None
    if row.row == "roofline_shift" and flop is not None and flop <= 1:
        return _MORE_FLOPS[row.moves_ns < 0]
    return ""


def _cause(phase: Phase, row: Row, dense: Row) -> str:
    """`work that the pruning did not touch (coverage) +1.296 ms, +20.4 % of the dense step
    (largest part: gaps kept, +1.048 ms)`."""
    label, words = ledger_view.LEDGER[row.row][0], _IN_WORDS[row.row][row.moves_ns < 0]
    explanation = _explanation(phase, row)
    words = explanation or words
    if not explanation and row.row == "kernel_efficiency" and _is_communication(row):
        words = "communication that takes longer" if row.moves_ns > 0 else "shorter communication"
    elif not explanation and row.row in _OF_SHAPES and phase.is_mostly_of_unknown_keys(row):
        words = _KEYS_UNKNOWN[row.moves_ns < 0]
    share = numbers.percent(numbers.share_of(row.ns, dense.ns), signed=True)
    text = f"{words} ({label}) {numbers.time(row.ns, signed=True)}, {share} of the dense step"
    part = ledger_view.largest(row)
    if part is not None and part.ns * row.moves_ns > 0 and is_beyond_noise(part):
        text += f" (largest part: {part.name}, {numbers.time(part.ns, signed=True)})"
    return text


def _is_communication(row: Row) -> bool:
    """Whether most of a row is communication: how long that takes depends on the other ranks."""
    comm = sum(part.ns for part in row.parts if part.cls == "comm")
    return comm * row.moves_ns > 0 and 2 * abs(comm) > abs(row.moves_ns)


def _largest(phase: Phase) -> Iterator[str]:
    """The kinds on which a step alone spends most of its busy time."""
    kinds = sorted(phase.busy_by_kind.items(), key=lambda one: -one[1])
    shown = [
        f"{kind} {numbers.time(phase.in_step(ns))} ({numbers.percent(share, decimals=0)})"
        for kind, ns in kinds[:_CAUSES]
        if (share := numbers.share_of(ns, phase.busy_ns)) is not None and share >= _LEAST
    ]
    if shown:
        yield f"most of the busy time: {', '.join(shown)}"


def recommended_changes(phase: Phase) -> list[Finding]:
    """The findings whose changes end the paragraph: a critical one, else the one that would gain
    most, else a warning; none where none has a change. One that leaves the times no evidence comes
    first, and behind it the first that is critical whatever the times are. Where a finding says
    that the sides are uncertain, it stands alone: other advice would be of another comparison."""
    if (caveats := _side_caveats(phase)) and not phase.invalid_times:
        return caveats[:1]
    advice = [finding for finding in phase.findings if finding.change]
    gains = sorted((finding for finding in advice if finding.predicted_ns), key=_gain, reverse=True)
    invalid = [finding for finding in phase.invalid_times if finding.change][:1]
    if not invalid and sentences.holds_earlier_work(phase):  # no gain is read from such times
        return [finding for finding in advice if finding.id == EARLIER_WORK]
    # Where times are not valid, what is critical by a measured time alone is a warning.
    critical = [
        finding
        for finding in advice
        if finding.severity == "critical" and finding.id not in INVALID_TIMES
    ]
    if invalid:
        return invalid + critical[:1]
    # Nothing is known of a gain before the two runs compare.
    critical.sort(key=lambda finding: finding.id != NOT_COMPARABLE)
    warnings = (finding for finding in advice if finding.severity == "warning")
    return [*critical, *gains, *warnings][:1]


def _side_caveats(phase: Phase) -> list[Finding]:
    """The findings that the sides may be swapped, or of another config than was given."""
    return [finding for finding in phase.findings if finding.id in SIDE_CAVEATS]


def _change(phase: Phase) -> Iterator[str]:
    """The changes that end the paragraph; where times are not valid, behind the one that mends
    them, what the shapes say of the gain and what to change all the same."""
    if not phase.invalid_times:
        caveats = _side_caveats(phase)[:1]
        # The headline says that of a config.
        yield from (caveat.text for caveat in caveats if caveat.id != UNCERTAIN_CONFIG)
        yield from map(_with_gain, recommended_changes(phase))
        return
    sure = [_no_gain(phase)] if _keeps_shapes(phase) else [*_shares(phase), *_scoring(phase)]
    for item in recommended_changes(phase):
        if item.id in INVALID_TIMES:
            yield f"first: {item.change}"
        else:
            sure.append(str(item.change))
    if sure:
        yield f"whatever the times are: {'; '.join(sure)}"


def _keeps_shapes(phase: Phase) -> bool:
    """Whether every GEMM of the dense step runs in the pruned one, in the same shape and format. A
    step that was captured or cut off does not show all of them. Where products were added that
    choose what later steps leave out, or a family does, those steps have others."""
    whole = all(finding.id == NOT_VALID for finding in phase.invalid_times)
    pairs, compared = phase.pairing, phase.comparison
    alike = pairs is not None and not pairs.removed
    alike = alike and (compared is None or compared.formats is None)
    seen = known(phase.family.ids) if phase.family is not None else []
    axes = {gemm.axis for gemm in phase.gemms if gemm.role != "adapter"}
    return whole and alike and phase.is_speedup and axes == {"none"} and not _choose(seen)


def _scoring(phase: Phase) -> Iterator[str]:
    """The GEMMs that were added where some score keys, and how to have fewer: they run whatever
    time they take."""
    scores = phase.finding(_ESTIMATES)
    added = [gemm for gemm in phase.gemms if gemm.axis == "added" and gemm.role != "adapter"]
    if scores is not None and added:
        number = sum(gemm.count for gemm in added)
        roles = ", ".join(dict.fromkeys(gemm.role for gemm in added))
        what = f"{number:g} GEMMs a step are added ({roles}), with those that score keys"
        yield f"{what}: {scores.change}"


def _choose(families: Iterable[Family]) -> bool:
    """Whether one of them chooses at run time what it leaves out."""
    return any(one.is_dynamic or one.scorer for one in families)


def _shares(phase: Phase) -> Iterator[str]:
    """The shares of the dense FLOPs and bytes that a known family keeps by its shapes; nothing of a
    step that is not whole, or of sides that do not compare."""
    whole = all(finding.id == NOT_VALID for finding in phase.invalid_times)
    one_format = phase.comparison is None or phase.comparison.formats is None
    removed = phase.sparsity.get("flop")
    if phase.family is None or phase.family.id in sentences.FAMILIES or removed is None:
        return
    if not (whole and one_format and phase.is_speedup) or _side_caveats(phase):
        return
    shares_removed = [("FLOPs", removed), ("bytes", phase.sparsity.get("bytes"))]
    kept = [(name, share) for name, share in shares_removed if share is not None]
    shares = " and ".join(
        f"{numbers.percent(1 - share)} of the dense {name}" for name, share in kept
    )
    text = f"by its shapes a step keeps {shares}"
    all_same = len(kept) == len(shares_removed) and all(abs(share) < _SAME for _, share in kept)
    if all_same and not _choose(known(phase.family.ids)):
        text += ", so no gain is to be expected"
    yield text


def _no_gain(phase: Phase) -> str:
    zeroed = phase.family is not None and any(one.zeroes_weights for one in known(phase.family.ids))
    why = "zeros leave every GEMM" if zeroed else "every GEMM is left"
    return f"{why} in the shape of its dense one, so no gain is to be expected"


def _with_gain(item: Finding) -> str:
    """The change with its largest possible gain, where that is known."""
    if item.id in SIDE_CAVEATS:
        return f"first: {item.change}"
    if item.severity != "critical" and item.predicted_ns:
        gain = numbers.time(_gain(item))
        return f"what would gain most: {item.change} (at most {gain} a step)"
    return f"what to change: {item.change}"


def _gain(finding: Finding) -> float:
    return finding.predicted_ns or 0.0
