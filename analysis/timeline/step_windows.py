"""The steps of a trace: host windows, and which device events and ops lie in them.

Steps are our annotations (`prunescope.step#i`), else those of `--phase-pattern`, else those of a
serving engine, else ranges called `prefill` and `decode` (`context` and `generation`), else the
frames of an engine's iterations, else the prompts and tokens of generated text, else
`ProfilerStep#i`, else ranges that are called steps or iterations and numbered (`step_3`, `Iteration
12`), else what `Optimizer.step#…` ends or `Optimizer.zero_grad#…` begins, else an annotation or
compiled code or a sequence of work that repeats and is no layer; else the trace is one step. Times
are integer ns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from os.path import commonprefix

import numpy as np
import polars as pl
from msgspec.structs import replace

from prunescope.analysis.timeline.engine_steps import (
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
from prunescope.analysis.trace.collector import OWN_PREFIX, OWN_STEP, Ints, are_among, unique_ids
from prunescope.analysis.trace.trace_columns import Trace
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.lazy_pattern import lazy_pattern
from prunescope.taxonomy.words import shortened, when

__all__ = ["OWN_PREFIX", "find_windows"]
_SHOWN = 60  # characters of a name in a hint
# As users call the ranges of their loops: `step_3`, `train step 3`, `Iteration 12`, `iter=7`.
_NUMBERED = lazy_pattern(
    r"(?:[A-Za-z]{1,20}[_ ])?(?:steps?|iter(?:ation)?s?)[ _#:=]{0,2}\d{1,9}", re.IGNORECASE
)
_PROFILER_STEP = lazy_pattern(r"ProfilerStep#\d+$")


def find_windows(trace: Trace, *, phase_pattern: str | None = None) -> Windows:
    """Find the steps of a trace.

    Args:
        trace: The trace.
        phase_pattern: A regular expression for the annotations that are steps; None takes the first
            source of steps that the trace has.

    Returns:
        The host windows of the steps.

    Raises:
        PrunescopeError: `phase_pattern` is invalid or matches no annotation.
    """
    annotations = trace.annotations
    notes = np.flatnonzero(annotations["module"] == 0)
    ids = annotations["name"][notes]
    distinct = {int(i): trace.names[i] for i in unique_ids(ids)}
    without_work: list[str] = []
    for source, is_step in _step_sources(phase_pattern, [*distinct.values()]):
        steps = [i for i, name in distinct.items() if is_step(name)]
        hits = notes[np.isin(ids, steps)]
        # Before a profiler's steps, which may hold forwards of both phases.
        if source == "ProfilerStep" and (phases := _shown_phases(trace, notes, distinct)):
            return phases
        if len(hits) and source == "pattern":
            return _pick(trace, notes, hits, distinct)
        if len(hits):
            marked, empty = _with_work(trace, _make_windows(trace, hits, source))
            if len(marked):
                return replace(
                    _name_by_phase(trace, notes, distinct, marked), without_work=tuple(empty)
                )
            without_work = empty
        if source == "pattern":
            raise _explain_no_match(trace, str(phase_pattern), set(distinct.values()))
    unmarked = _name_by_phase(trace, notes, distinct, _find_unmarked(trace))
    return replace(unmarked, without_work=tuple(without_work))


def _with_work(trace: Trace, windows: Windows) -> tuple[Windows, list[str]]:
    """Keep the windows in which work was launched, and return the names of the others.

    A step is work: a loop that ends before its profiler does leaves a window without any, and
    counts and means over it would be of no step.
    """
    worked = unique_ids(windows.step_of(_work_times(trace)))
    worked = worked[worked >= 0]
    if len(worked) == len(windows):
        return windows, []
    empty = sorted({*range(len(windows))} - {*worked.tolist()})
    kept = replace(
        windows,
        start=windows.start[worked],
        end=windows.end[worked],
        names=[windows.names[i] for i in worked.tolist()],
    )
    return kept, [windows.names[i] for i in empty]


def _name_by_phase(trace: Trace, notes: Ints, names: dict[int, str], windows: Windows) -> Windows:
    """Name the steps after one phase, if most of their work ran in annotations named like it.

    All annotations that are named like phases have to be of that one. Where nothing marks steps,
    these annotations are the steps, unless they hold several that repeat.
    """
    phases = phases_named_alone(names.values())
    hits = notes[
        np.isin(trace.annotations["name"][notes], [i for i in names if names[i] in phases])
    ]
    if not len(hits) or convolves(trace):
        return windows
    ranges, work = _make_windows(trace, hits, "engine"), _work_times(trace)
    busy = unique_ids(ranges.step_of(work))
    called = {phases[ranges.names[i]] for i in busy.tolist() if i >= 0}
    if len(called) != 1 or windows.source in ("prunescope", "engine"):
        return windows
    phase = called.pop()
    of_step = windows.step_of(work) >= 0
    inside = (ranges.step_of(work) >= 0) & of_step
    if 2 * inside.sum() <= of_step.sum():
        return windows
    busy = busy[busy >= 0]
    if windows.source in (SEQUENCE, WHOLE) and len(busy) >= len(windows):
        windows = Windows(ranges.start[busy], ranges.end[busy], "engine", [], are_ranges=True)
    step_names = [f"{phase}#{i} [{phase}]" for i in range(len(windows))]
    return replace(windows, names=step_names)


def _shown_phases(trace: Trace, notes: Ints, names: dict[int, str]) -> Windows | None:
    """Return the steps of a trace that shows its phases and in which no engine annotated steps.

    They are ranges called prefill and decode, else the frames of an engine's iterations, else
    generated text; None without any.
    """
    steps = _named_phases(trace, notes, names) or find_iterations(trace)
    if steps is not None or not may_generate(trace):
        return steps
    work = work_sequence(trace)
    return prompts_and_tokens(trace, work, parts_of_whole_passes(trace, work))


def _named_phases(trace: Trace, notes: Ints, names: dict[int, str]) -> Windows | None:
    """Return the annotations that are called prefill and decode, if work was launched in both."""
    for phases in named_phases(names.values()):
        work = np.sort(_work_times(trace))
        ids = [i for i, name in names.items() if name in phases]
        hits = notes[np.isin(trace.annotations["name"][notes], ids)]
        begin = trace.annotations["ts"][hits]
        end = begin + trace.annotations["dur"][hits]
        busy = np.searchsorted(work, end) > np.searchsorted(work, begin)
        windows = _make_windows(trace, hits[busy], "engine")
        if len({phases[name] for name in windows.names}) > 1:
            called = [
                f"{name.split()[0].rstrip('0123456789_#:=[]()')}#{i} [{phases[name]}]"
                for i, name in enumerate(windows.names)
            ]
            return replace(windows, names=called, are_ranges=True)
    return None


def _work_times(trace: Trace) -> Ints:
    """Return when the host launched what ran, ns.

    These are the calls and ops that the device's events name; in a trace of the host alone, all
    ops.
    """
    if not trace.on_device:
        return trace.ops["ts"]
    ops, device = trace.ops, trace.device
    by_op = are_among(ops["external"], device["external"][device["external"] >= 0])
    return np.concatenate([trace.launches["ts"][trace.launches_named], ops["ts"][by_op]])


def _explain_no_match(trace: Trace, pattern: str, notes: set[str]) -> PrunescopeError:
    """Return the error for a pattern that matches no annotation: ops it matches, or near names."""
    ops = [trace.names[i] for i in unique_ids(trace.ops["name"]).tolist()]
    if matched := matching(pattern, ops):
        name = shortened(min(matched), _SHOWN)
        return PrunescopeError(
            f"--phase-pattern {pattern!r} matches ops ({name}), and no annotation of the trace",
            hint="steps are annotations: put the calls of a step into a range of its own "
            "(torch.cuda.nvtx.range, record_function)",
        )
    seen = ", ".join(_nearest(pattern, notes)) or "none"
    return PrunescopeError(
        f"no annotation of the trace matches --phase-pattern {pattern!r}",
        hint=f"the nearest of its {len(notes)} annotations: {seen}",
    )


def explain_nothing_picked(trace: Trace, windows: Windows, pattern: str) -> PrunescopeError:
    """Return the error for annotations in which no work was launched, and name the others."""
    work = trace.launches if trace.on_device else trace.ops
    notes = trace.annotations
    spans = {name: notes[name][notes["module"] == 0] for name in ("ts", "dur", "thread", "name")}
    around = innermost(spans, work["thread"], work["ts"])
    names = {trace.names[i] for i in unique_ids(spans["name"][around[around >= 0]]).tolist()}
    there = ", ".join(_nearest(pattern, names)) or "none"
    return PrunescopeError(
        f"{trace.source.name}: nothing ran {when(trace.on_device, 'on the device ')}in the "
        f"{len(windows):,} annotations that --phase-pattern {pattern!r} matches",
        hint=f"annotations around the launches: {there}",
    )


def matching(pattern: str, names: Sequence[str]) -> set[str]:
    """Return the names in which a regular expression is found.

    The time is linear in their lengths, whatever the names hold. Raises PrunescopeError for an
    invalid expression.
    """
    try:
        matches_of_names = pl.Series(names, dtype=pl.String).str.contains(pattern)
    except pl.exceptions.ComputeError as error:
        why = " ".join(str(error).partition("This error occurred")[0].split())
        why = why.rpartition("error: ")[2][:200]
        raise PrunescopeError(
            f"--phase-pattern is not a regular expression ({why})",
            hint="for example --phase-pattern 'execute_context_.*'; look-around and "
            "back-references are not known",
        ) from None
    return {
        name for name, matches in zip(names, matches_of_names.to_list(), strict=True) if matches
    }


def _find_unmarked(trace: Trace) -> Windows:
    """Return the steps of a trace that no profiler marked; without any, the whole trace as one."""
    if len(trace.ops["ts"]) or len(trace.launches["ts"]):
        work = work_sequence(trace)
        steps = marked_steps(trace, work) or repeated_sequence(trace, work)
        if steps is not None:
            return steps
    low, high = np.iinfo(np.int64).min // 4, np.iinfo(np.int64).max // 4
    return Windows(np.array([low]), np.array([high]), "whole", ["trace"])


def _pick(trace: Trace, notes: Ints, hits: Ints, names: dict[int, str]) -> Windows:
    """Return the annotations that a pattern names.

    If all of them are steps of an engine or a profiler, the other steps are kept with them: the
    wall time of a step starts at the end of the step before, even if the pattern did not select
    that one.
    """
    named = _make_windows(trace, hits, "pattern")
    for _, is_step in _step_sources(None, ()):
        steps = [i for i, name in names.items() if is_step(name)]
        every = _make_windows(
            trace, notes[np.isin(trace.annotations["name"][notes], steps)], "pattern"
        )
        picked = np.flatnonzero(np.isin(every.start, named.start))
        if len(picked) and np.array_equal(every.end[picked], named.end):
            return replace(every, picked=picked)
    return named


def _step_sources(
    phase_pattern: str | None, names: Sequence[str]
) -> list[tuple[str, Callable[[str], bool]]]:
    """Return the sources of steps, each with a test of names; the first with any step decides."""
    sources: list[tuple[str, Callable[[str], bool]]] = [
        ("prunescope", lambda name: OWN_STEP.search(name) is not None),
        ("engine", lambda name: engine_step(name) is not None),
        ("ProfilerStep", lambda name: _PROFILER_STEP.search(name) is not None),
        ("numbered", lambda name: _NUMBERED.fullmatch(name) is not None),
    ]
    if phase_pattern is not None:
        sources.insert(1, ("pattern", matching(phase_pattern, names).__contains__))
    return sources


def _nearest(pattern: str, names: set[str]) -> list[str]:
    """Return at most five of the names: those that begin as the pattern does, then steps."""
    start = re.split(r"[\\^$.*+?{}\[\]|()]", pattern.lstrip("^"), maxsplit=1)[0].lower()
    steps = [is_step for _, is_step in _step_sources(None, ())]

    def distance(name: str) -> tuple[int, bool, str]:
        same = len(commonprefix([name.lower(), start]))
        return -same, not any(is_step(name) for is_step in steps), name

    return [shortened(name, _SHOWN) for name in sorted(names, key=distance)[:5]]


def _make_windows(trace: Trace, hits: Ints, source: str) -> Windows:
    """Return annotations as windows in time order, without those that start inside another one."""
    start = trace.annotations["ts"][hits]
    end = start + trace.annotations["dur"][hits]
    kept = outermost(start, end)
    names = [trace.names[i] for i in trace.annotations["name"][hits[kept]].tolist()]
    are_ranges = source in ("pattern", "numbered") and not any(map(engine_step, names))
    return Windows(start[kept], end[kept], source, names, are_ranges=are_ranges)
