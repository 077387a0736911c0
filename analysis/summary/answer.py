"""The answer of a phase in three sentences: what happened, why, and what to do.

In: a Phase of the Report. Out: a PhaseAnswer whose parts can be said aloud. A part holds whole
sentences of at most 25 words, no bracket within a bracket, and at most LIMITS characters; the
answer has one interval, that of the speedup. Everything else stands in tables, or in the paragraph
that `--full` adds.
"""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from msgspec import UNSET

from prunescope.analysis.schema.pair_comparison import DTYPE
from prunescope.analysis.schema.report import (
    CAPTURED,
    CUT_OFF,
    NO_SPEEDUP,
    NOT_COMPARABLE,
    OTHER_TIME,
    UNCERTAIN_CONFIG,
    Finding,
    Ladder,
    LedgerPart,
    Phase,
    PhaseAnswer,
    Row,
    is_beyond_noise,
)
from prunescope.analysis.summary.causes import (
    LEAST,
    NAMED,
    SAME_RATIO,
    few_roles,
    find_moved,
    keeps_shapes,
    largest_kinds,
    moved_convolutions,
    no_excess,
    recommended_changes,
    refused_configs,
    side_caveats,
    unread_work,
    words_of_cause,
)
from prunescope.analysis.summary.evidence import ledger_invalid_reasons
from prunescope.analysis.summary.headline import FAMILIES, has_nominal
from prunescope.taxonomy import numbers
from prunescope.taxonomy.lazy_pattern import lazy_pattern
from prunescope.taxonomy.words import when

# Characters of each part; code between backticks is not counted.
LIMITS = {"verdict": 160, "why": 240, "do": 240}
MOST_WORDS = 25  # of a sentence
NOTHING = "Nothing to repair."
_MOST = 0.95  # of a row of the ledger: a part that is all of it
_CODE = lazy_pattern(r"`[^`]*`")
_STOP = lazy_pattern(r"(?<=[.:;])\s")


def answer_phase(
    phase: Phase, late: Finding | None = None, *, dense: str | None = None
) -> PhaseAnswer:
    """Answer the three questions of a reader.

    Args:
        phase: The phase; times are of one step.
        late: The finding on the rank that this one waits for; None without one.
        dense: The path of the dense run as it can be typed; None: it is not to be shown, and the
            answer has no command.

    Returns:
        The answer. `do` is None if nothing is to be done; `why` says so then.
    """
    command = "" if late is not None else _command(phase, dense)
    decides = ["what each layer should keep, by measured losses:"] if command else []
    do = _join([*_advice(phase, late), *decides], LIMITS["do"])
    if do and command:
        do = f"{do}\n{command}"
    room = LIMITS["why"] - (0 if do else len(NOTHING) + 1)
    why = _join(_reasons(phase), room)
    if not do:
        why = f"{why} {NOTHING}".strip()
    return PhaseAnswer(verdict=_join(_verdict(phase), LIMITS["verdict"]), why=why, do=do or None)


def given_answer(phase: Phase, late: Finding | None = None) -> PhaseAnswer:
    """Return the answer that a report holds, which may name a command; an older report gets one."""
    return phase.answer or answer_phase(phase, late)


def summary_of(told: PhaseAnswer) -> str:
    """Return the three parts of an answer as one text."""
    return " ".join(filter(None, (told.verdict, told.why, told.do)))


def _join(sentences: Iterable[str], most: int) -> str:
    """Join sentences, in their order, as long as they fit; the first one is cut if it is too long.

    Args:
        sentences: Sentences without capitals and full stops.
        most: Characters that the text may have, code not counted.
    """
    text = ""
    for sentence in map(_said, sentences):
        longer = f"{text} {sentence}".strip()
        if _length(longer) <= most:
            text = longer
        elif not text:
            text = f"{sentence[: most - 1].rsplit(' ', 1)[0].rstrip(',;:(')}…"
    return text


def _length(text: str) -> int:
    return len(_CODE.sub("", text))


def _said(text: str) -> str:
    """Return a sentence as it is said: with a capital and a full stop, short enough to be heard.

    A sentence with too many words, or with brackets in brackets, loses its brackets, and then what
    follows its last colons.
    """
    if _is_long(text) or _nests(text):
        text = _without_brackets(text)
    while _is_long(text) and ": " in text:
        text = text.rpartition(": ")[0]
    if _is_long(text):
        text = " ".join(text.split()[:MOST_WORDS]).rstrip(",;:") + " …"
    text = text.strip()
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '?', '…', ':')) else '.'}"


def _is_long(text: str) -> bool:
    return any(len(part.split()) > MOST_WORDS for part in _STOP.split(_CODE.sub("", text)))


def _nests(text: str) -> bool:
    return re.search(r"\([^()]*\(", text) is not None


def _without_brackets(text: str) -> str:
    """Return a sentence without what stands in round brackets, at any depth."""
    kept, depth = [], 0
    for letter in text:
        depth += letter == "("
        if not depth:
            kept.append(letter)
        depth -= letter == ")" and depth > 0
    return re.sub(r"\s+(?=[,.;:]|$)|\s+(?=\s)", "", "".join(kept))


# What happened.


def _verdict(phase: Phase) -> Iterator[str]:
    """Yield the outcome of a phase, then what keeps it from being evidence."""
    ladder = phase.ladder
    if phase.finding(CAPTURED) is not None:
        yield "no step was timed, as a graph captured most kernel launches"
        yield f"the rest took {numbers.brief_time(phase.wall_ns)}"
    elif damage := phase.finding(CUT_OFF):
        yield damage.text
        if ladder is None:
            yield f"what is left takes {numbers.brief_time(phase.wall_ns)} a step"
        else:
            yield f"{numbers.ratio(ladder.realised)} is no speedup"
    else:
        if phase.finding(UNCERTAIN_CONFIG):
            yield "the config may be that of another model: tiles do not fit it"
        yield from _step_alone(phase) if ladder is None else _ratio(phase, ladder)
        yield from unread_work(phase)


def _ratio(phase: Phase, ladder: Ladder) -> Iterator[str]:
    """Yield the ratio of two whole steps, as the speedup that it is or is not."""
    ratio = f"{numbers.ratio(ladder.realised)}{_interval(ladder)}"
    if not phase.is_speedup:
        yield from _not_comparable(phase, ratio)
    elif phase.invalid_times:
        is_sampled = phase.unprofiled_ns is not None
        samples = "the samples vary too much or were disturbed"
        yield f"timing not valid: {samples if is_sampled else 'the steps were interrupted'}"
        yield f"{numbers.ratio(ladder.realised)} is no evidence"
    elif phase.lacks_sizes:
        yield "without shapes, what was pruned is unknown"
        yield f"{ratio} is the ratio of the two traces"
    elif phase.nothing_moved:
        yield _unmoved(phase, ladder, ratio)
    elif phase.finding(NO_SPEEDUP):
        yield f"no measurable speedup: {ratio}{_promise(phase, ladder)}"
    else:
        yield _realised(phase, ladder)


def _step_alone(phase: Phase) -> Iterator[str]:
    """Yield the time of a step without a baseline, and how busy it is."""
    step = phase.step_time_ns
    share = numbers.share_of(phase.scale_to_step(phase.busy_ns), step)
    busy = numbers.percent(share, decimals=0)
    invalid = when(bool(phase.invalid_times), "timing not valid: ")
    yield f"{invalid}a step takes {numbers.brief_time(step)}, busy {busy} of the wall"
    if phase.earlier_work_ns > 0:
        earlier = numbers.brief_time(phase.earlier_work_ns * phase.steps)
        which = "it" if phase.steps == 1 else "the first step"
        yield f"{earlier} before {which} are left out: earlier work, most likely"


def _not_comparable(phase: Phase, ratio: str) -> Iterator[str]:
    """Yield that the ratio is no speedup, and the first setting that differs."""
    compared = phase.comparison
    kinds = {difference.kind for difference in compared.differences} if compared else set()
    if compared is not None and compared.formats is not None and DTYPE in kinds:
        dense, pruned = compared.formats
        yield f"not comparable as a pruning: GEMMs in {pruned} against {dense}"
    else:
        yield "the two sides are not comparable"
    yield f"{ratio} is no speedup"


def _unmoved(phase: Phase, ladder: Ladder, ratio: str) -> str:
    """Return what the ratio of two captures of one model shows: noise, or no pruning."""
    is_dense = phase.family is not None and phase.family.id == "dense"
    nothing = "nothing was pruned" if is_dense else "the shapes show no pruning"
    promised = has_nominal(phase, ladder) and (ladder.nominal or 1) > 1 + SAME_RATIO
    promise = when(promised, f"; {numbers.ratio(ladder.nominal)} was promised")
    if ladder.is_noise:
        return f"{nothing}: {ratio} is the noise between two captures{promise}"
    return f"{nothing}: {ratio} is more than noise, and no speedup of a pruning{promise}"


def _realised(phase: Phase, ladder: Ladder) -> str:
    """Return the speedup next to the promised one."""
    promise = _promise(phase, ladder)
    ratio = numbers.ratio(ladder.realised)
    if (ladder.realised or 1) > 1 + SAME_RATIO:
        return f"{ratio} faster{_interval(ladder)}{promise}"
    if (ladder.realised or 1) < 1 - SAME_RATIO:
        return f"slower: {ratio}{_interval(ladder)}{promise}"
    return f"as fast as the dense step: {ratio}{_interval(ladder)}{promise}"


def _promise(phase: Phase, ladder: Ladder) -> str:
    """Return how the promised speedup compares, as the end of a sentence."""
    if not has_nominal(phase, ladder):
        return ""
    nominal, ci95 = numbers.ratio(ladder.nominal), ladder.realised_ci95
    if not phase.has_promise and abs((ladder.nominal or 1) - 1) < SAME_RATIO:
        return ", with as many FLOPs as the dense step"
    is_inside = ci95 is not None and ci95[0] <= (ladder.nominal or 0) <= ci95[1]
    if phase.has_promise:
        if is_inside:
            return f"; the promised {nominal} lies inside the interval"
        is_more = (ladder.realised or 0) > (ladder.nominal or 0)
        return f"; {nominal} was promised" if is_more else f" of the promised {nominal}"
    return f"; its FLOPs allow {nominal}" + when(is_inside, ", which lies inside the interval")


def _interval(ladder: Ladder) -> str:
    ci95 = ladder.realised_ci95
    return f" {numbers.interval(ci95, '{:.2f}'.format)}" if ci95 else ""


# Why.


def _reasons(phase: Phase) -> Iterator[str]:
    """Yield the causes of the outcome, the most telling first."""
    if captured := phase.finding(CAPTURED):
        yield from captured.evidence
    elif phase.ladder is None or phase.finding(CUT_OFF):
        yield from _largest_kinds(phase)
    elif not phase.is_speedup:
        yield from _differences(phase)
    elif caveats := side_caveats(phase):
        yield from (finding.text for finding in caveats)
    else:
        yield from refused_configs(phase)
        yield from _zeros(phase)
        yield from _timeless(phase) if phase.invalid_times else _timed(phase)


def _timeless(phase: Phase) -> Iterator[str]:
    """Yield what the shapes say, whatever the times are."""
    yield from _family(phase)
    yield from moved_convolutions(phase)
    yield from _kept(phase)


def _timed(phase: Phase) -> Iterator[str]:
    """Yield what the rows of the ledger say of the difference from the promise."""
    rows = phase.ledger or []
    if phase.nothing_moved:
        if phase.finding(OTHER_TIME) is not None:
            yield from (_cost(phase, row) for row in find_moved(rows, 0)[:2])
        return
    if not phase.has_promise:
        yield from _family(phase)
    yield from moved_convolutions(phase)
    if phase.lacks_sizes or not rows:
        return
    if reasons := ledger_invalid_reasons(phase):
        yield f"no row of the ledger is evidence: {', '.join(reasons)}"
    else:
        yield from _causes(phase, rows)


def _largest_kinds(phase: Phase) -> Iterator[str]:
    """Yield the kinds on which a step alone spends most of its busy time."""
    named = [
        f"{_plain_name(kind)} {numbers.brief_time(ns)} ({share})"
        for kind, ns, share in largest_kinds(phase)
    ]
    if named:
        yield f"most of the busy time: {', '.join(named)}"


def _differences(phase: Phase) -> Iterator[str]:
    """Yield the settings that differ, as the finding on them words them."""
    finding = phase.finding(NOT_COMPARABLE)
    yield from finding.evidence if finding is not None else ()


def _family(phase: Phase) -> Iterator[str]:
    """Yield the family that the shapes show, or that they show none."""
    verdict = phase.family
    if verdict is None or phase.lacks_sizes:
        return
    if verdict.id not in FAMILIES:
        yield f"the shapes are those of {verdict.id}"
    elif verdict.id == "outside":
        yield "what changed is no pruning of M, N or K"


def _kept(phase: Phase) -> Iterator[str]:
    """Yield what share of the FLOPs the shapes keep, which holds whatever the times are."""
    removed = phase.sparsity.get("flop")
    if keeps_shapes(phase):
        yield "every GEMM has the shape of its dense one, so no gain is to be expected"
    elif removed is not None and phase.family is not None and phase.family.id not in FAMILIES:
        yield f"by its shapes a step keeps {numbers.percent(1 - removed, decimals=0)} of the FLOPs"


def _zeros(phase: Phase) -> Iterator[str]:
    if phase.finding("zeros-in-dense") is not None:
        yield "the pruned weights are stored dense, so every GEMM multiplies by its zeros"


def _causes(phase: Phase, rows: Sequence[Row]) -> Iterator[str]:
    """Yield what keeps the step from the promised one, or that nothing measurable does."""
    by_name = {row.row: row for row in rows}
    dense, promised, pruned = by_name["dense"], by_name["promised"].ns, by_name["pruned"]
    if promised is None or pruned.ns is None:
        return
    over = pruned.ns - promised
    if no_excess(phase, dense.moves_ns, promised, pruned):
        yield from _limit(phase, by_name["coverage"])
        return
    moved = find_moved(rows, over)
    along = [row for row in moved if row.moves_ns * over > 0]
    if not along:
        yield "no row of the ledger is beyond its noise"
        yield from _limit(phase, by_name["coverage"])
        return
    yield _cost(phase, along[0], with_parts=True)
    yield from (_cost(phase, row) for row in along[1:2])
    yield from (_cost(phase, row) for row in moved if row.moves_ns * over < 0)
    yield from _limit(phase, by_name["coverage"], named=False)


def _limit(phase: Phase, coverage: Row, *, named: bool = True) -> Iterator[str]:
    """Yield the speedup that this pruning allows, with the work that did not shrink."""
    ladder = phase.ladder
    bound = ladder and (ladder.roofline or ladder.coverage)
    if ladder is None or not bound or ladder.nominal is None or bound > ladder.nominal - SAME_RATIO:
        return
    lost = [_part_name(part) for part in coverage.parts if part.effect == "loss"]
    names = _listed(list(dict.fromkeys(lost))[:NAMED])
    untouched = f": {names} did not shrink" if named and names else ""
    yield f"this pruning allows about {numbers.ratio(bound)}{untouched}"


def _cost(phase: Phase, row: Row, *, with_parts: bool = False) -> str:
    """Return what a row costs or saves, with its largest parts."""
    words, is_gain = words_of_cause(phase, row), row.moves_ns < 0
    text = (
        f"{numbers.brief_time(abs(row.moves_ns))} {'are saved by' if is_gain else 'go to'} {words}"
    )
    parts = [
        (name, ns)
        for name, ns in _largest_parts(phase, row)
        if abs(ns) >= 2 * LEAST * abs(row.moves_ns)
    ][:2]
    named = [(name, ns) for name, ns in parts if not _repeats(name, words)]
    if not with_parts or not named:
        return text
    # Parts that are as much as the row, or more, as others make up for them: their times confuse.
    is_less = all(abs(ns) < _MOST * abs(row.moves_ns) for _, ns in named)
    listed = [f"{name}{when(is_less, f' ({numbers.brief_time(abs(ns))})')}" for name, ns in named]
    return f"{text}, above all {_listed(listed)}"


def _repeats(name: str, words: str) -> bool:
    """Return whether the words of a row name a part of it already."""
    return name.removesuffix(" kernels") in words.split()


def _largest_parts(phase: Phase, row: Row) -> list[tuple[str, float]]:
    """Return the parts that move as their row does, the largest first.

    Parts of one name are one, as a role may have parts of several classes; so are masked GEMMs.
    """
    parts = [p for p in row.parts if p.ns * row.moves_ns > 0 and is_beyond_noise(p)]
    sparse = {gemm.role for gemm in phase.gemms if gemm.axis == _MASKED}
    masked = list(dict.fromkeys(_part_name(part) for part in parts if part.role in sparse))
    joined = f"{_MASKED} GEMMs of {_listed(masked)}"
    costs: dict[str, float] = defaultdict(float)
    for part in parts:
        name = _part_name(part)
        costs[joined if len(masked) > 1 and name in masked else name] += part.ns
    return sorted(costs.items(), key=lambda part: -abs(part[1]))


def _part_name(part: LedgerPart) -> str:
    """Return the role of a part, its class where nothing identifies the role, or its name."""
    if part.role == "unknown" and part.cls is not None:
        return f"{_plain_name(part.cls)} kernels"
    return _plain_name(part.role or part.name)


_MASKED = "2:4"  # the axis of a GEMM whose weight is masked
_PLAIN = {
    "gaps kept": "gaps",
    "comm": "communication",
    "comm, exposed": "exposed communication",
}


def _plain_name(name: str) -> str:
    return _PLAIN.get(name, name)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


# What to do.


def _advice(phase: Phase, late: Finding | None) -> Iterator[str]:
    """Yield the change that is worth making, then what else to do, as sentences."""
    if late is not None and late.change:
        yield f"first fix what the others wait for, {late.change}"
        yield from _also(late)
        return
    if phase.ladder is not None and phase.lacks_sizes and phase.is_speedup:
        yield "capture again with shapes, or give --model CONFIG for the trace of a GPU"
    if not recommended_changes(phase):
        yield from few_roles(phase)
    for finding in _advised(phase):
        yield finding.change or ""
        yield from _also(finding)
        if finding.predicted_ns and finding.severity != "critical" and not phase.invalid_times:
            yield f"this saves at most {numbers.brief_time(finding.predicted_ns)} a step"


def _advised(phase: Phase) -> Iterator[Finding]:
    """Yield the findings whose changes the answer names: none that matters if nothing is missed."""
    for finding in recommended_changes(phase):
        if finding.severity == "critical" or not _keeps_its_promise(phase):
            yield finding


def _also(finding: Finding) -> list[str]:
    return [] if finding.also is UNSET else finding.also


def _command(phase: Phase, dense: str | None) -> str:
    """Return the command that decides what each layer keeps; empty where none can be typed."""
    wanted = [f.allocate for f in _advised(phase) if f.allocate is not UNSET]
    if not wanted or dense is None or wanted[0].model is None:
        return ""
    words = ["prunescope", "allocate", "--from-run", dense, "--model", wanted[0].model]
    words += ["--speedup", f"{wanted[0].speedup:.2f}", "--phase", wanted[0].phase]
    return shlex.join(words)


def _keeps_its_promise(phase: Phase) -> bool:
    """Return whether nothing is missed: the interval includes the promise, or all is noise."""
    ladder = phase.ladder
    if ladder is not None and phase.nothing_moved and not phase.has_promise:
        return ladder.is_noise
    if ladder is None or ladder.nominal is None or ladder.realised_ci95 is None:
        return False
    low, high = ladder.realised_ci95
    return phase.is_speedup and not phase.invalid_times and low <= ladder.nominal <= high
