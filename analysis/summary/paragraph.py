"""The answer of a phase in one paragraph.

In: a Phase of the Report. Out: plain sentences with units: what was promised, what came of it, what
takes the difference, and the change that would pay most.

The paragraph states of times only what their intervals and noise allow: a row of the ledger without
evidence is no cause, and where the runs do not compare, or the timing is not valid, that is the
answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from statistics import fmean

import msgspec

from prunescope.analysis.schema.pair_comparison import OWN_CONFIG
from prunescope.analysis.schema.report import (
    INVALID_TIMES,
    LATE_RANK,
    NOT_COMPARABLE,
    NOT_VALID,
    SIDE_CAVEATS,
    UNCERTAIN_CONFIG,
    Finding,
    Phase,
    Row,
    is_beyond_noise,
)
from prunescope.analysis.summary.evidence import ledger_invalid_reasons
from prunescope.analysis.summary.headline import FAMILIES, headline
from prunescope.analysis.summary.labels import label_of
from prunescope.taxonomy import numbers
from prunescope.taxonomy.families import known
from prunescope.taxonomy.family import Family
from prunescope.taxonomy.recorder import NSYS, recorder_called
from prunescope.taxonomy.words import when

FEW_PHASES = 3  # of more (ranks), each has a row, and the one to read first comes first
_CAUSES = 3  # rows of the ledger, or kinds of work, that are named
_MOST = 0.5  # of the time of GEMMs: with less of it in roles or shapes, the answer lacks them
_EXACT_NS = 0.5  # recorded times are whole nanoseconds: less is nothing to explain
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
    "coverage": ("work that the pruning never touched", "work that shrank more than promised"),
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
_SCORES_KEYS = "added-estimator"  # the finding on what scores keys
_OF_SHAPES = ("kernel_efficiency", "not_explained")  # a shape that is not known may be the cause
# What most of a row may be besides kernels and gaps of the model's own, by the finding on it.
_EXPLAINED_BY = {"interrupted-ops": "interrupted calls", "long-gap": "single long gaps"}


def summary(phase: Phase, late: Finding | None = None) -> str:
    """Return the answer of a phase in one paragraph.

    Args:
        phase: The phase; times are of one step.
        late: The finding on the rank that this one waits for, by `waits_for`; None without one.

    Returns:
        The headline, then the reasons, as whole sentences.
    """
    return " ".join(filter(None, outcome_and_reasons(phase, late)))


def outcome_and_reasons(phase: Phase, late: Finding | None = None) -> tuple[str, str]:
    """Return the first sentence of the paragraph, which formats set off, and the others.

    Args:
        phase: The phase.
        late: The finding on the rank that this one waits for. Its change is the one to make first,
            before any of this rank.
    """
    return f"{headline(phase)}.", " ".join(map(_sentence, _reasons(phase, late)))


def sort_for_reading(phases: Mapping[str, Phase]) -> dict[str, Phase]:
    """Return all phases, the one that answers for all first where there are many.

    It comes first too where one is a rank that the others wait for; the rest keep their order.
    """
    if len(phases) <= FEW_PHASES and not any(phase.finding(LATE_RANK) for phase in phases.values()):
        return dict(phases)
    first = first_to_read(phases)
    return {first: phases[first], **phases}


def waits_for(phase: Phase, phases: Mapping[str, Phase]) -> Finding | None:
    """Return the finding on the rank among `phases` that this one waits for.

    None where there is none, and for that rank itself.
    """
    if phase.finding(LATE_RANK):
        return None
    return next(filter(None, (ranked.finding(LATE_RANK) for ranked in phases.values())), None)


def first_to_read(phases: Mapping[str, Phase]) -> str:
    """Return the name of the one of many phases (ranks, kinds of iterations) to read first.

    It is the rank that the others wait for, else the phase with the lowest ratio, else the longest.
    """

    def order(name: str) -> tuple[bool, float, float]:
        phase = phases[name]
        ratio = phase.ladder.realised if phase.ladder is not None else None
        return (
            phase.finding(LATE_RANK) is None,
            math.inf if ratio is None else ratio,
            -phase.wall_ns,
        )

    return min(phases, key=order)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}{'' if text.endswith(('.', '?')) else '.'}"


def _reasons(phase: Phase, late: Finding | None) -> Iterator[str]:
    """Yield the sentences below the headline, without their capitals and full stops."""
    yield from unread_work(phase)
    if phase.ladder is None:
        yield from _largest_kinds(phase)
    elif phase.is_speedup:
        yield from refused_configs(phase)
        yield from _family(phase)  # read from shapes, whatever the times are
        yield from moved_convolutions(phase)
        if not phase.invalid_times:
            yield from _spread(phase)
        if phase.ledger and not phase.invalid_times and not side_caveats(phase):
            if disturbed := ledger_invalid_reasons(phase):
                yield f"no row of the ledger is evidence: {', '.join(disturbed)}"
            else:
                yield from _causes(phase, phase.ledger)
    yield from few_roles(phase)
    if late is not None and late.change:
        yield f"first fix what the others wait for, {late.change}"
    else:
        yield from _changes(phase)


def _how_to_record_modules(phase: Phase) -> str:
    """Return how to record modules, by what the trace was recorded with."""
    if phase.profiler == NSYS:
        return f"record {recorder_called(NSYS).modules}, or trace with torch.profiler and stacks"
    return _MODULES


def few_roles(phase: Phase) -> Iterator[str]:
    """Yield a hint to record modules where most GEMMs of a model with attention have no role.

    Only a trace with ops and without modules gets it. Modules without attention or a head identify
    no roles either, and neither may the names of those that were recorded.
    """
    whole = sum(gemm.busy_ns for gemm in phase.gemms)
    named = sum(gemm.busy_ns for gemm in phase.gemms if gemm.role != "unknown")
    has_attention = "attention" in phase.busy_by_kind
    lacks_modules = not phase.has_modules and any(gemm.op for gemm in phase.gemms)
    if has_attention and lacks_modules and named < _MOST * whole:
        share = numbers.percent(numbers.share_of(named, whole), decimals=0)
        is_fast = any(_FAST_PATH in f"{row.op} {row.name}" for row in phase.kernels)
        change = _SLOW_PATH if is_fast else _how_to_record_modules(phase)
        yield f"only {share} of the time of GEMMs has a role: {change}"


def refused_configs(phase: Phase) -> Iterator[str]:
    """Yield why a side takes no shapes from the given config, and which config it needs."""
    for lack in phase.comparison.one_sided if phase.comparison else ():
        if lack.refused is not None:
            yield f"for {lack.trace} {lack.refused}: {OWN_CONFIG[lack.missing]}"


def _family(phase: Phase) -> Iterator[str]:
    """Yield the family that the shapes show, or why they show none."""
    verdict = phase.family
    if verdict is None:
        return
    if verdict.id in FAMILIES:
        if verdict.by_order:
            perhaps = f", perhaps {verdict.alternatives[0]}" if verdict.alternatives else ""
            unidentified = f"the order of kernels does not identify the family{perhaps}"
            yield f"{unidentified}: {_how_to_record_modules(phase)}"
        elif verdict.id == "outside" and verdict.evidence and not side_caveats(phase):
            yield f"{FAMILIES['outside']}: {verdict.evidence[0]}"
        elif verdict.id == "unknown" and not phase.lacks_sizes:  # else the headline says it
            yield from _few_shapes(phase)
        return
    confidence = numbers.percent(verdict.confidence, decimals=0)
    has_sizes = any(n is not None for gemm in phase.gemms for n in (gemm.m, gemm.n, gemm.k))
    signs = "the shapes are those" if has_sizes else "the calls that were removed are those"
    text = f"{signs} of {verdict.id} (confidence {confidence})"
    yield f"{text}: {verdict.evidence[0]}" if verdict.evidence else text


def unread_work(phase: Phase) -> Iterator[str]:
    """Yield how much work of the device is not read, where any is not: no time holds it."""
    for notice in phase.notices:
        if notice.kind == "unread-device-work":
            count, ns = notice.numbers["count"], notice.numbers["ns"]
            yield (
                f"{count:,} events of the device ({numbers.brief_time(ns)}) are not read, and in "
                "none of these times"
            )


def moved_convolutions(phase: Phase) -> Iterator[str]:
    """Yield how many convolutions went or came, and how many have other shapes, and which."""
    for moved in phase.moved:
        if moved.axis in ("gone", "added"):
            is_are = "are" if moved.count > 1 else "is"
            yield f"{moved.count} of {moved.of} convolutions {is_are} {moved.axis}"
    others = [moved for moved in phase.moved if moved.dense]
    if others:
        count = sum(moved.count for moved in others)
        axes = " or ".join(moved.axis for moved in others)
        before, after = (
            "×".join(map(str, side[1])) for side in (others[0].dense, others[0].pruned)
        )
        example = when(before != after, f": a weight of {before} → {after}")
        yield f"{count} of {others[0].of} convolutions have other shapes ({axes}{example})"


def _few_shapes(phase: Phase) -> Iterator[str]:
    """Yield a sentence if few shapes of GEMMs are known, and therefore no family."""
    sized = sum(gemm.busy_ns for gemm in phase.gemms if gemm.n is not None)
    whole = sum(gemm.busy_ns for gemm in phase.gemms)
    if sized < _MOST * whole:
        share = numbers.percent(numbers.share_of(sized, whole), decimals=0)
        yield (
            f"the family is unknown, as only {share} of the time of GEMMs has shapes: record them "
            "on both sides (record_shapes=True)"
        )


def _causes(phase: Phase, rows: list[Row]) -> Iterator[str]:
    """Yield the causes of the difference between the promised and the measured step."""
    by_name = {row.row: row for row in rows}
    dense, promised, pruned = by_name["dense"], by_name["promised"].ns, by_name["pruned"]
    if promised is None or pruned.ns is None or phase.nothing_moved:
        return
    if phase.lacks_sizes:  # the dense time would stand for what its FLOPs give
        return
    over = pruned.ns - promised
    reference = f"the {numbers.time(promised)} {_meaning_of_promise(phase)}"
    if abs(over) < _EXACT_NS:
        yield f"the step takes exactly {reference}"
        return
    longer = f"{numbers.time(abs(over))} {'longer' if over > 0 else 'shorter'}"
    text = f"the step takes {numbers.time(pruned.ns)}, {longer} than {reference}"
    if why := no_excess(phase, dense.moves_ns, promised, pruned):
        yield f"{text}, which is no evidence: {why}"
        return
    changes = [
        row
        for row in rows
        if row.effect in ("loss", "gain") and abs(row.moves_ns) >= _LEAST * abs(over)
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
    """Yield the range of the steps' times of a ratio without an interval.

    Only sides whose range is not small compared with the difference of the two are named.
    """
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


def no_excess(phase: Phase, dense_ns: float, promised_ns: float, pruned: Row) -> str:
    """Return why the time of a step above the promised one is no evidence; empty where it is."""
    if (expected := _overlapping(phase, promised_ns, dense_ns)) is not None:
        low, high = map(numbers.time, expected)
        return f"at that ratio single dense steps take {low} to {high}, and so do pruned ones"
    # The interval is that of the speedup, whose samples took turns, at the dense time: it includes
    # 0 where that of the speedup includes the promised one. Without one, the noise of the step.
    ci95 = phase.ladder.realised_ci95 if phase.ladder is not None else None
    excess = Row(row="excess", ns=pruned.moves_ns - promised_ns, noise_ns=pruned.noise_ns)
    if ci95 and min(ci95) > 0:
        ends = [dense_ns / ci95[1] - promised_ns, dense_ns / ci95[0] - promised_ns]
        excess = Row(row="excess", ns=excess.ns, ci95=ends)
    if is_beyond_noise(excess):
        return ""
    if excess.ci95:
        return "the interval of the speedup includes the promised one"
    return _why_quiet(excess)


def _overlapping(phase: Phase, promised: float, dense: float) -> tuple[float, float] | None:
    """Return the shortest and the longest dense step at the promised ratio, ns, where both overlap.

    They overlap where, without an interval, some pruned step is no longer than one of them, and
    another no shorter: single steps then tell no difference. None where they do not.
    """
    has_interval = phase.ladder is not None and phase.ladder.realised_ci95 is not None
    steps = [] if has_interval or phase.unprofiled_ns is not None else phase.step_ns
    dense_steps = phase.baseline.step_ns if phase.baseline else []
    if len(steps) < 2 or not dense_steps or dense <= 0:
        return None
    expected = [ns * promised / dense for ns in dense_steps]
    low, high = min(expected), max(expected)
    return (low, high) if min(steps) <= high and low <= max(steps) else None


def _why_quiet(row: Row) -> str:
    """Return why a row is no evidence."""
    if row.ci95 and row.ci95[0] <= 0 <= row.ci95[1]:
        return "its interval includes 0"
    return f"it is inside twice its noise (±{numbers.time(row.noise_ns)})"


def _unproven(rows: list[Row], most: float) -> Iterator[str]:
    """Yield the largest row without evidence, if it would be a larger cause than any named."""
    quiet = [row for row in rows if row.effect == "quiet" and abs(row.moves_ns) > most]
    for row in sorted(quiet, key=_size)[:1]:
        change = numbers.time(row.ns, signed=True)
        yield f"no evidence, as {_why_quiet(row)}: {label_of(row)} {change}"


def _meaning_of_promise(phase: Phase) -> str:
    """Return whence the promised time is: the nominal sparsity, the FLOPs, or the dense step."""
    if phase.has_promise:
        return "promised"
    has_flops = phase.ladder is not None and phase.ladder.flop is not None
    return "that its FLOPs give" if has_flops else "of the dense step"


def _size(row: Row) -> float:
    return -abs(row.moves_ns)


def _explanation(phase: Phase, row: Row) -> str:
    """Return the cause of most of a row by a finding, or by the FLOPs; empty without one."""
    for finding in phase.findings:
        accounts = finding.accounts_for
        ns = 0.0 if accounts is msgspec.UNSET else accounts.get(row.row, 0.0)
        is_most = ns * row.moves_ns > 0 and 2 * abs(ns) >= abs(row.moves_ns)
        if finding.id in _EXPLAINED_BY and is_most:
            return f"mostly {_EXPLAINED_BY[finding.id]}{when(ns < 0, ' of the dense run')}"
    flop = phase.ladder.flop if phase.ladder is not None else None
    if row.row == "roofline_shift" and flop is not None and flop <= 1:
        return _MORE_FLOPS[row.moves_ns < 0]
    return ""


def _cause(phase: Phase, row: Row, dense: Row) -> str:
    """Return a row in plain words, with its label, its time and its largest part.

    `work that the pruning did not touch (coverage) +1.296 ms, +20.4 % of the dense step (largest
    part: gaps kept, +1.048 ms)`.
    """
    words = words_of_cause(phase, row)
    share = numbers.percent(numbers.share_of(row.ns, dense.ns), signed=True)
    change = numbers.time(row.ns, signed=True)
    text = f"{words} ({label_of(row)}) {change}, {share} of the dense step"
    part = row.largest_part
    if part is not None and part.ns * row.moves_ns > 0 and is_beyond_noise(part):
        text += f" (largest part: {part.name}, {numbers.time(part.ns, signed=True)})"
    return text


def words_of_cause(phase: Phase, row: Row) -> str:
    """Return a row of the ledger in plain words: what lost the time, or what saved it."""
    if words := _explanation(phase, row):
        return words
    if row.row == "kernel_efficiency" and _is_communication(row):
        return "communication that takes longer" if row.moves_ns > 0 else "shorter communication"
    if row.row in _OF_SHAPES and phase.is_mostly_of_unknown_keys(row):
        return _KEYS_UNKNOWN[row.moves_ns < 0]
    return _IN_WORDS[row.row][row.moves_ns < 0]


def _is_communication(row: Row) -> bool:
    """Return whether most of a row is communication, whose time depends on the other ranks."""
    comm = sum(part.ns for part in row.parts if part.cls == "comm")
    return comm * row.moves_ns > 0 and 2 * abs(comm) > abs(row.moves_ns)


def _largest_kinds(phase: Phase) -> Iterator[str]:
    """Yield the kinds on which a step alone spends most of its busy time."""
    kinds = sorted(phase.busy_by_kind.items(), key=lambda item: -item[1])
    shown = [
        f"{kind} {numbers.time(phase.scale_to_step(ns))} ({numbers.percent(share, decimals=0)})"
        for kind, ns in kinds[:_CAUSES]
        if (share := numbers.share_of(ns, phase.busy_ns)) is not None and share >= _LEAST
    ]
    if shown:
        yield f"most of the busy time: {', '.join(shown)}"


def recommended_changes(phase: Phase) -> list[Finding]:
    """Return the findings whose changes end the paragraph; none where none has a change.

    It is the first in the order of findings: a critical one without a gain, else the one that would
    gain most, whatever its severity, else a warning. One that leaves the times no evidence comes
    first, and behind it the first that is critical whatever the times are.
    Where a finding says that the sides are uncertain, it stands alone: other advice would be of
    another comparison.
    """
    if (caveats := side_caveats(phase)) and not phase.invalid_times:
        return caveats[:1]
    advice = [finding for finding in phase.findings if finding.change]
    invalid = [finding for finding in phase.invalid_times if finding.change][:1]
    # Where times are not valid, what is critical by a measured time alone is a warning.
    critical = [
        finding
        for finding in advice
        if finding.severity == "critical" and finding.id not in INVALID_TIMES
    ]
    if invalid:
        return invalid + critical[:1]
    worth = [finding for finding in advice if finding.predicted_ns or finding.severity != "info"]
    # Nothing is known of a gain before the two runs compare; and what all ranks wait for comes
    # before the communication in which they wait.
    return sorted(worth, key=lambda f: (f.id != NOT_COMPARABLE, f.id != LATE_RANK, f.order))[:1]


def side_caveats(phase: Phase) -> list[Finding]:
    """Return the findings that the sides may be swapped, or of another config than was given."""
    return [finding for finding in phase.findings if finding.id in SIDE_CAVEATS]


def _changes(phase: Phase) -> Iterator[str]:
    """Yield the changes that end the paragraph.

    Where times are not valid, what the shapes say of the gain, and what to change all the same,
    stand behind the change that mends them.
    """
    if not phase.invalid_times:
        caveats = side_caveats(phase)[:1]
        # The headline says that of a config.
        yield from (caveat.text for caveat in caveats if caveat.id != UNCERTAIN_CONFIG)
        yield from map(_with_gain, recommended_changes(phase))
        return
    sure = [_no_gain(phase)] if keeps_shapes(phase) else [*_kept_shares(phase), *_scoring(phase)]
    for finding in recommended_changes(phase):
        if finding.id in INVALID_TIMES:
            yield f"first: {finding.change}"
        else:
            sure.append(str(finding.change))
    if sure:
        yield f"whatever the times are: {'; '.join(sure)}"


def _is_whole_step(phase: Phase) -> bool:
    """Return whether the step shows all GEMMs: one that was captured or cut off does not."""
    return all(finding.id == NOT_VALID for finding in phase.invalid_times)


def keeps_shapes(phase: Phase) -> bool:
    """Return whether every dense GEMM runs in the pruned step, in the same shape and format.

    Where products were added that choose what later steps leave out, or a family does, those steps
    have other shapes.
    """
    if not _is_whole_step(phase) or not phase.is_speedup or phase.has_two_formats:
        return False
    if phase.pairing is None or phase.pairing.removed or phase.moved:
        return False
    if abs(phase.sparsity.get("flop") or 0.0) >= _SAME:  # work of another kind moved or went
        return False
    seen = known(phase.family.ids) if phase.family is not None else []
    axes = {gemm.axis for gemm in phase.gemms if gemm.role != "adapter"}
    return axes == {"none"} and not _choose_at_run_time(seen)


def _scoring(phase: Phase) -> Iterator[str]:
    """Yield the added GEMMs where some score keys, and how to have fewer.

    They run whatever time they take.
    """
    scores = phase.finding(_SCORES_KEYS)
    added = [gemm for gemm in phase.gemms if gemm.axis == "added" and gemm.role != "adapter"]
    if scores is not None and added:
        number = sum(gemm.count for gemm in added)
        roles = ", ".join(dict.fromkeys(gemm.role for gemm in added))
        gemms = f"{number:g} GEMMs a step are added ({roles}), with those that score keys"
        yield f"{gemms}: {scores.change}"


def _choose_at_run_time(families: Iterable[Family]) -> bool:
    """Return whether one of the families chooses at run time what it leaves out."""
    return any(family.is_dynamic or family.scorer for family in families)


def _kept_shares(phase: Phase) -> Iterator[str]:
    """Yield the shares of the dense FLOPs and bytes that a known family keeps by its shapes.

    Nothing of a step that is not whole, or of sides that do not compare.
    """
    removed = phase.sparsity.get("flop")
    if phase.family is None or phase.family.id in FAMILIES or removed is None:
        return
    is_comparable = phase.is_speedup and not phase.has_two_formats and not side_caveats(phase)
    if not is_comparable or not _is_whole_step(phase):
        return
    shares_removed = [("FLOPs", removed), ("bytes", phase.sparsity.get("bytes"))]
    kept = [(name, share) for name, share in shares_removed if share is not None]
    shares = " and ".join(
        f"{numbers.percent(1 - share)} of the dense {name}" for name, share in kept
    )
    is_unchanged = len(kept) == len(shares_removed) and all(abs(share) < _SAME for _, share in kept)
    is_unchanged = is_unchanged and not phase.moved
    has_no_gain = is_unchanged and not _choose_at_run_time(known(phase.family.ids))
    yield f"by its shapes a step keeps {shares}" + when(
        has_no_gain, ", so no gain is to be expected"
    )


def _no_gain(phase: Phase) -> str:
    families = known(phase.family.ids) if phase.family is not None else []
    is_zeroed = any(family.zeroes_weights for family in families)
    why = "zeros leave every GEMM" if is_zeroed else "every GEMM is left"
    return f"{why} in the shape of its dense one, so no gain is to be expected"


def _with_gain(finding: Finding) -> str:
    """Return the change of a finding with its largest possible gain, where that is known."""
    if finding.id in SIDE_CAVEATS:
        return f"first: {finding.change}"
    if finding.severity != "critical" and finding.predicted_ns:
        gain = numbers.time(finding.predicted_ns)
        return f"what would gain most: {finding.change} (at most {gain} a step)"
    return f"what to change: {finding.change}"
