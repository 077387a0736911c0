"""The answer of a phase in one paragraph.

In: a Phase of the Report. Out: plain sentences with units: what was promised, what came of it, what
takes the difference, and the change that would pay most.

The paragraph states of times only what their intervals and noise allow: a row of the ledger without
evidence is no cause, and where the runs do not compare, or the timing is not valid, that is the
answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from statistics import fmean

from prunescope.analysis.schema.report import (
    INVALID_TIMES,
    LATE_RANK,
    SIDE_CAVEATS,
    UNCERTAIN_CONFIG,
    Finding,
    Phase,
    Row,
    is_beyond_noise,
)
from prunescope.analysis.summary.causes import (
    LEAST,
    LEAST_KNOWN,
    NAMED,
    SAME_SHARE,
    choose_at_run_time,
    few_roles,
    find_moved,
    how_to_record_modules,
    is_whole_step,
    keeps_shapes,
    largest_kinds,
    moved_convolutions,
    no_excess,
    recommended_changes,
    refused_configs,
    side_caveats,
    unread_work,
    why_quiet,
    words_of_cause,
)
from prunescope.analysis.summary.evidence import ledger_invalid_reasons
from prunescope.analysis.summary.headline import FAMILIES, headline
from prunescope.analysis.summary.labels import label_of
from prunescope.taxonomy import numbers
from prunescope.taxonomy.families import known
from prunescope.taxonomy.words import when

FEW_PHASES = 3  # of more (ranks), each has a row, and the one to read first comes first
_EXACT_NS = 0.5  # recorded times are whole nanoseconds: less is nothing to explain
_SCORES_KEYS = "added-estimator"  # the finding on what scores keys


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
    elif phase.family is not None and phase.family.id == "outside":
        yield from phase.family.evidence[1:2]  # what moved besides what the headline names
    yield from few_roles(phase)
    if late is not None and late.change:
        yield f"first fix what the others wait for, {late.all_changes}"
    else:
        yield from _changes(phase)


def _family(phase: Phase) -> Iterator[str]:
    """Yield the family that the shapes show, or why they show none."""
    verdict = phase.family
    if verdict is None:
        return
    if verdict.id in FAMILIES:
        if verdict.by_order:
            perhaps = f", perhaps {verdict.alternatives[0]}" if verdict.alternatives else ""
            unidentified = f"the order of kernels does not identify the family{perhaps}"
            yield f"{unidentified}: {how_to_record_modules(phase)}"
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


def _few_shapes(phase: Phase) -> Iterator[str]:
    """Yield a sentence if few shapes of GEMMs are known, and therefore no family."""
    sized = sum(gemm.busy_ns for gemm in phase.gemms if gemm.n is not None)
    whole = sum(gemm.busy_ns for gemm in phase.gemms)
    if sized < LEAST_KNOWN * whole:
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
    changes = find_moved(rows, over)
    causes = [row for row in changes if row.moves_ns * over > 0][:NAMED]
    if not causes:
        yield f"{text}; no row of the ledger that explains it is beyond its noise"
        return
    yield f"{text}: {', '.join(_cause(phase, row, dense) for row in causes)}"
    against = [row for row in changes if row.moves_ns * over < 0]
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
        if max(ns) - min(ns) > LEAST * apart
    ]
    if ranges:
        yield f"so few steps give no interval of the speedup: {', '.join(ranges)}"


def _unproven(rows: list[Row], most: float) -> Iterator[str]:
    """Yield the largest row without evidence, if it would be a larger cause than any named."""
    quiet = [row for row in rows if row.effect == "quiet" and abs(row.moves_ns) > most]
    for row in sorted(quiet, key=_size)[:1]:
        change = numbers.time(row.ns, signed=True)
        yield f"no evidence, as {why_quiet(row)}: {label_of(row)} {change}"


def _meaning_of_promise(phase: Phase) -> str:
    """Return whence the promised time is: the nominal sparsity, the FLOPs, or the dense step."""
    if phase.has_promise:
        return "promised"
    has_flops = phase.ladder is not None and phase.ladder.flop is not None
    return "that its FLOPs give" if has_flops else "of the dense step"


def _size(row: Row) -> float:
    return -abs(row.moves_ns)


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


def _largest_kinds(phase: Phase) -> Iterator[str]:
    """Yield the kinds on which a step alone spends most of its busy time."""
    shown = [f"{kind} {numbers.time(ns)} ({share})" for kind, ns, share in largest_kinds(phase)]
    if shown:
        yield f"most of the busy time: {', '.join(shown)}"


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
            yield f"first: {finding.all_changes}"
        else:
            sure.append(finding.all_changes)
    if sure:
        yield f"whatever the times are: {'; '.join(sure)}"


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
        yield f"{gemms}: {scores.all_changes}"


def _kept_shares(phase: Phase) -> Iterator[str]:
    """Yield the shares of the dense FLOPs and bytes that a known family keeps by its shapes.

    Nothing of a step that is not whole, or of sides that do not compare.
    """
    removed = phase.sparsity.get("flop")
    if phase.family is None or phase.family.id in FAMILIES or removed is None:
        return
    is_comparable = phase.is_speedup and not phase.has_two_formats and not side_caveats(phase)
    if not is_comparable or not is_whole_step(phase):
        return
    shares_removed = [("FLOPs", removed), ("bytes", phase.sparsity.get("bytes"))]
    kept = [(name, share) for name, share in shares_removed if share is not None]
    shares = " and ".join(
        f"{numbers.percent(1 - share)} of the dense {name}" for name, share in kept
    )
    is_unchanged = len(kept) == len(shares_removed) and all(
        abs(share) < SAME_SHARE for _, share in kept
    )
    is_unchanged = is_unchanged and not phase.moved
    has_no_gain = is_unchanged and not choose_at_run_time(known(phase.family.ids))
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
        return f"first: {finding.all_changes}"
    if finding.severity != "critical" and finding.predicted_ns:
        gain = numbers.time(finding.predicted_ns)
        return f"what would gain most: {finding.all_changes} (at most {gain} a step)"
    return f"what to change: {finding.all_changes}"
