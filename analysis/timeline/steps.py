"""The steps of a trace: host windows, and which device events and ops lie in them.

Our annotations (`prunescope.step#i`), else `--phase-pattern`, else those of a serving engine, else
ranges called `prefill` and `decode` (`context` and `generation`), else the frames of an engine's
iterations, else the prompts and tokens of generated text, else `ProfilerStep#i`, else ranges that
are called steps or iterations and numbered (`step_3`, `Iteration 12`), else what
`Optimizer.step#…` ends or `Optimizer.zero_grad#…` begins, else an annotation or compiled code or a
sequence of work that repeats and is no layer, else the trace is one step. Times are integer ns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from os.path import commonprefix

import numpy as np
import polars as pl

from prunescope.analysis.timeline.engines import (
    convolves,
    engine_step,
    find_iterations,
    named_phases,
    phases_named_alone,
)
from prunescope.analysis.timeline.generation import may_generate, prompts_and_tokens
from prunescope.analysis.timeline.intervals import SEQUENCE, WHOLE, Windows, innermost, outermost
from prunescope.analysis.timeline.markers import marked_steps
from prunescope.analysis.timeline.repeats import parts_of_whole_passes, repeated_sequence
from prunescope.analysis.timeline.work_sequence import work_sequence
from prunescope.analysis.trace.collect import OWN_PREFIX, OWN_STEP, Ints, are_among, unique_ids
from prunescope.analysis.trace.events import Trace
from prunescope.taxonomy.errors import PrunescopeError

__all__ = ["OWN_PREFIX", "find_windows"]

_SHOWN = 60  # characters of a name in a hint
# As users call the ranges of their loops: `step_3`, `train step 3`, `Iteration 12`, `iter=7`.
_NUMBERED = re.compile(
    r"(?:[A-Za-z]{1,20}[_ ])?(?:steps?|iter(?:ation)?s?)[ _#:=]{0,2}\d{1,9}", re.IGNORECASE
)
_PROFILER_STEP = re.compile(r"ProfilerStep#\d+$")


def find_windows(trace: Trace, *, phase_pattern: str | None = None) -> Windows:
    """The steps of a trace. Raises PrunescopeError where `phase_pattern` matches nothing."""
    annotations = trace.annotations
    notes = np.flatnonzero(annotations["module"] == 0)
    ids = annotations["name"][notes]
    distinct = {int(i): trace.names[i] for i in unique_ids(ids)}
    ignored: str | None = None
    for source, is_step in _candidates(phase_pattern, [*distinct.values()]):
        steps = [i for i, name in distinct.items() if is_step(name)]
        hits = notes[np.isin(ids, steps)]
        # Before a profiler's steps, which may hold forwards of both phases.
        if (
            source == "ProfilerStep"
            and (shown := _shown_phases(trace, notes, distinct)) is not None
        ):
            return shown
        if len(hits) and source == "pattern":
            return _picked(trace, notes, hits, distinct)
        if len(hits):
            marked = _disjoint(trace, hits, source)
            if (marked.step_of(_work(trace)) >= 0).any():
                return _of_one_phase(trace, notes, distinct, marked)
            ignored = marked.names[0]
        if source == "pattern":
            raise _without_match(trace, str(phase_pattern), set(distinct.values()))
    unmarked = _of_one_phase(trace, notes, distinct, _repeated(trace) or _whole_trace())
    return replace(unmarked, ignored=ignored)


def _of_one_phase(trace: Trace, notes: Ints, names: dict[int, str], found: Windows) -> Windows:
    """The steps, as those of one phase where most of their work was launched in annotations that
    are all called as that phase is. Where nothing marks steps, these are the steps, unless they
    hold several that repeat."""
    phases = phases_named_alone(names.values())
    hits = notes[
        np.isin(trace.annotations["name"][notes], [i for i in names if names[i] in phases])
    ]
    if not len(hits) or convolves(trace):
        return found
    ranges, work = _disjoint(trace, hits, "engine"), _work(trace)
    busy = unique_ids(ranges.step_of(work))
    called = {phases[ranges.names[i]] for i in busy.tolist() if i >= 0}
    if len(called) != 1 or found.source in ("prunescope", "engine"):
        return found
    phase = called.pop()
    of_step = found.step_of(work) >= 0
    inside = (ranges.step_of(work) >= 0) & of_step
    if 2 * inside.sum() <= of_step.sum():
        return found
    busy = busy[busy >= 0]
    if found.source in (SEQUENCE, WHOLE) and len(busy) >= len(found):
        found = Windows(ranges.start[busy], ranges.end[busy], "engine", [], are_ranges=True)
    step_names = [f"{phase}#{i} [{phase}]" for i in range(len(found))]
    return replace(found, names=step_names)


def _shown_phases(trace: Trace, notes: Ints, names: dict[int, str]) -> Windows | None:
    """The steps of a trace that shows its phases and in which no engine annotated steps: ranges
    called prefill and decode, else the frames of an engine's iterations, else generated text."""
    if (named := _named_phases(trace, notes, names)) is not None:
        return named
    if (found := find_iterations(trace)) is not None:
        return Windows(found.start, found.end, "engine", found.names)
    return _generated(trace)


def _named_phases(trace: Trace, notes: Ints, names: dict[int, str]) -> Windows | None:
    """The annotations that are called as prefill and decode are, if work was launched in both."""
    for phases in named_phases(names.values()):
        work = np.sort(_work(trace))
        ids = [i for i, name in names.items() if name in phases]
        hits = notes[np.isin(trace.annotations["name"][notes], ids)]
        begin = trace.annotations["ts"][hits]
        end = begin + trace.annotations["dur"][hits]
        busy = np.searchsorted(work, end) > np.searchsorted(work, begin)
        found = _disjoint(trace, hits[busy], "engine")
        if len({phases[name] for name in found.names}) > 1:
            words = [name.split()[0].rstrip("0123456789_#:=[]()") for name in found.names]
            called = [
                f"{word}#{i} [{phases[name]}]"
                for i, (word, name) in enumerate(zip(words, found.names, strict=True))
            ]
            return replace(found, names=called, are_ranges=True)
    return None


def _work(trace: Trace) -> Ints:
    """When the host launched what ran: calls and ops that the device's events name, or, in a trace
    of the host alone, all ops."""
    if not trace.on_device:
        return trace.ops["ts"]
    ops, device = trace.ops, trace.device
    by_op = are_among(ops["external"], device["external"][device["external"] >= 0])
    return np.concatenate([trace.launches["ts"][trace.launches_named], ops["ts"][by_op]])


def _without_match(trace: Trace, pattern: str, notes: set[str]) -> PrunescopeError:
    """The annotations nearest to a pattern that matches none, or the ops that it matches."""
    ops = [trace.names[i] for i in unique_ids(trace.ops["name"]).tolist()]
    if found := matching(pattern, ops):
        matched = _shortened(min(found))
        return PrunescopeError(
            f"--phase-pattern {pattern!r} matches ops ({matched}), and no annotation of the trace",
            hint="steps are annotations: put the calls of a step into a range of its own "
            "(torch.cuda.nvtx.range, record_function)",
        )
    seen = ", ".join(_nearest(pattern, notes)) or "none"
    return PrunescopeError(
        f"no annotation of the trace matches --phase-pattern {pattern!r}",
        hint=f"the nearest of its {len(notes)} annotations: {seen}",
    )


def nothing_picked(trace: Trace, windows: Windows, pattern: str) -> PrunescopeError:
    """An error about annotations in which no work was launched, with those in which it was."""
    work = trace.launches if trace.on_device else trace.ops
    notes = trace.annotations
    spans = {name: notes[name][notes["module"] == 0] for name in ("ts", "dur", "thread", "name")}
    around = innermost(spans, work["thread"], work["ts"])
    names = {trace.names[i] for i in unique_ids(spans["name"][around[around >= 0]]).tolist()}
    there = ", ".join(_nearest(pattern, names)) or "none"
    return PrunescopeError(
        f"{trace.source.name}: nothing ran {'on the device ' if trace.on_device else ''}in the "
        f"{len(windows):,} annotations that --phase-pattern {pattern!r} matches",
        hint=f"annotations around the launches: {there}",
    )


def matching(pattern: str, names: Sequence[str]) -> set[str]:
    """The names in which a regular expression is found: in time linear in their lengths, whatever
    the names hold.

    Raises PrunescopeError where it is none.
    """
    try:
        found = pl.Series(names, dtype=pl.String).str.contains(pattern)
    except pl.exceptions.ComputeError as error:
        why = " ".join(str(error).partition("This error occurred")[0].split())
        why = why.rpartition("error: ")[2][:200]
        raise PrunescopeError(
            f"--phase-pattern is no regular expression ({why})",
            hint="for example --phase-pattern 'execute_context_.*'; look-around and "
            "back-references are not known",
        ) from None
    return {name for name, matches in zip(names, found.to_list(), strict=True) if matches}


def _generated(trace: Trace) -> Windows | None:
    """The prompts and tokens of generated text, if the trace holds both."""
    if not may_generate(trace):
        return None
    work = work_sequence(trace)
    return prompts_and_tokens(trace, work, parts_of_whole_passes(trace, work))


def _repeated(trace: Trace) -> Windows | None:
    """At least two steps of a trace that no profiler marked."""
    if not len(trace.ops["ts"]) and not len(trace.launches["ts"]):
        return None
    work = work_sequence(trace)
    return marked_steps(trace, work) or repeated_sequence(trace, work)


def _whole_trace() -> Windows:
    low, high = np.iinfo(np.int64).min // 4, np.iinfo(np.int64).max // 4
    return Windows(np.array([low]), np.array([high]), "whole", ["trace"])


def _picked(trace: Trace, notes: Ints, hits: Ints, names: dict[int, str]) -> Windows:
    """The annotations that a pattern names; with the other steps, where all of them are steps
    of an engine or a profiler. The wall time of a step starts at the end of the previous step, even
    if the pattern did not select that one."""
    named = _disjoint(trace, hits, "pattern")
    for _, is_step in _candidates(None, ()):
        steps = [i for i, name in names.items() if is_step(name)]
        every = _disjoint(trace, notes[np.isin(trace.annotations["name"][notes], steps)], "pattern")
        picked = np.flatnonzero(np.isin(every.start, named.start))
        if len(picked) and np.array_equal(every.end[picked], named.end):
            return replace(every, picked=picked)
    return named


def _candidates(
    phase_pattern: str | None, names: Sequence[str]
) -> list[tuple[str, Callable[[str], bool]]]:
    """Sources of steps, the first that has any decides."""
    found: list[tuple[str, Callable[[str], bool]]] = [
        ("prunescope", lambda name: OWN_STEP.search(name) is not None),
        ("engine", lambda name: engine_step(name) is not None),
        ("ProfilerStep", lambda name: _PROFILER_STEP.search(name) is not None),
        ("numbered", lambda name: _NUMBERED.fullmatch(name) is not None),
    ]
    if phase_pattern is not None:
        found.insert(1, ("pattern", matching(phase_pattern, names).__contains__))
    return found


def _nearest(pattern: str, names: set[str]) -> list[str]:
    """At most five of the names, shortened: those that begin as the pattern does, then steps."""
    start = re.split(r"[\\^$.*+?{}\[\]|()]", pattern.lstrip("^"), maxsplit=1)[0].lower()
    steps = [is_step for _, is_step in _candidates(None, ())]

    def far(name: str) -> tuple[int, bool, str]:
        same = len(commonprefix([name.lower(), start]))
        return -same, not any(is_step(name) for is_step in steps), name

    return [_shortened(name) for name in sorted(names, key=far)[:5]]


def _shortened(name: str) -> str:
    return name if len(name) <= _SHOWN else f"{name[: _SHOWN - 1]}…"


def _disjoint(trace: Trace, hits: Ints, source: str) -> Windows:
    """Windows in time order; one that starts inside the window before it is not a step."""
    start = trace.annotations["ts"][hits]
    end = start + trace.annotations["dur"][hits]
    kept = outermost(start, end)
    names = [trace.names[i] for i in trace.annotations["name"][hits[kept]].tolist()]
    are_ranges = source in ("pattern", "numbered") and not any(map(engine_step, names))
    return Windows(start[kept], end[kept], source, names, are_ranges=are_ranges)
