"""Steps by annotations that PyTorch or a user's loop leaves, where no profiler marked any.

In: a Trace and its work in order. Out: windows of the steps (host ns), or None. A step ends with
`Optimizer.step#…`; else it begins with `Optimizer.zero_grad#…`; else it is an annotation that
repeats, holds nearly all of the device's time and is not named after a layer; else it begins with a
compiled region, if these hold nearly all of the device's time.
"""

from __future__ import annotations

import re
from collections import defaultdict

import numpy as np

from prunescope.analysis.timeline.intervals import (
    ANNOTATION,
    COMPILED,
    UPDATE,
    ZERO_GRAD,
    Windows,
)
from prunescope.analysis.timeline.work_sequence import NEARLY_ALL, WorkSequence, host_span
from prunescope.analysis.trace.collector import Ints
from prunescope.analysis.trace.trace_columns import Trace
from prunescope.taxonomy.lazy_pattern import lazy_pattern

_UPDATE, _ZERO = "Optimizer.step#", "Optimizer.zero_grad#"
_OPTIMIZERS = 4  # most updates an iteration: a generator and a discriminator have two
_NUMBER = lazy_pattern(r"\d+")
# Code that torch.compile made: its call in Python; within that, or alone in a backward pass, the
# call of a compiled graph.
COMPILED_CODE = ("Torch-Compiled Region", "## Call CompiledFxGraph")
# PyTorch's own annotations, and those that are named after a part of a model.
_NO_STEP = lazy_pattern(
    r"^(?:prunescope\.|Optimizer\.|nccl:|gloo:|c10d|enumerate\(DataLoader\)|## Call Compiled"
    r"|Torch-Compiled Region)"
    r"|layer|block|stage|expert|att(?:n|ention)|mlp|ffn|norm|embed|encoder|decoder|(?<![a-z])h\.\d",
    re.IGNORECASE,
)


def marked_steps(trace: Trace, work: WorkSequence) -> Windows | None:
    """Return the windows of at least two steps, by the first of these marks; None without any."""
    return (
        _steps_by_update(trace, work)
        or _steps_by_zero_grad(trace)
        or _steps_by_annotation(trace, work)
        or _steps_by_compiled_code(trace, work)
    )


def _steps_by_update(trace: Trace, work: WorkSequence) -> Windows | None:
    """End a step with each update of the weights; the first step begins with the trace.

    If several optimizers take turns, a step ends with the update of the last one.
    """
    start, end, names = _outermost_spans(trace, _UPDATE)
    if len(end) < 2:
        return None
    begin = np.concatenate(([min(host_span(trace)[0], start[0])], end[:-1]))
    windows = Windows(begin, end, UPDATE, names)
    for together in range(1, _OPTIMIZERS + 1):
        count = len(end) // together
        if count < 2:
            break
        last = np.arange(together - 1, count * together, together)
        grouped = Windows(begin[last - together + 1], end[last], UPDATE, [names[i] for i in last])
        if work.are_alike(grouped):
            return grouped
    return windows


def _steps_by_zero_grad(trace: Trace) -> Windows | None:
    """Begin a step with each clearing of the gradients."""
    start, end, names = _outermost_spans(trace, _ZERO)
    if len(start) < 2:
        return None
    return Windows(start, np.append(start[1:], host_span(trace)[1]), ZERO_GRAD, names)


def _steps_by_annotation(trace: Trace, work: WorkSequence) -> Windows | None:
    """Return the spans of the annotation that repeats least often, as steps.

    Its spans have to follow one another and hold nearly all of the device's time. What repeats more
    often is a part of a step.
    """
    notes = trace.annotations
    groups: dict[str, list[int]] = defaultdict(list)
    for row in np.flatnonzero(notes["module"] == 0).tolist():
        name = trace.names[notes["name"][row]]
        if _NO_STEP.search(name) is None:
            groups[_NUMBER.sub("#", name)].append(row)
    candidates: list[Windows] = []
    for rows in groups.values():
        if len(rows) < 2:
            continue
        at = np.array(rows)[np.argsort(notes["ts"][rows], kind="stable")]
        start, end = notes["ts"][at], notes["ts"][at] + notes["dur"][at]
        names = [trace.names[i] for i in notes["name"][at]]
        windows = Windows(start, end, ANNOTATION, names, are_ranges=True)
        if (start[1:] >= end[:-1]).all() and work.share_of_time(windows) >= NEARLY_ALL:
            candidates.append(windows)
    return min(candidates, key=lambda steps: (len(steps), int(steps.start[0])), default=None)


def _steps_by_compiled_code(trace: Trace, work: WorkSequence) -> Windows | None:
    """Begin a step with each call of the compiled region that comes first.

    Compiled regions have to hold nearly all of the time, and all parts have to do the same work. A
    compiled layer repeats as a compiled model does, but the work of the model around its layers (a
    head behind the last one) is then in some parts only: so as much has to run outside of the
    regions in each part.
    """
    start, end, names = _outermost_spans(trace, COMPILED_CODE, in_ops=True)
    first = np.flatnonzero([name == names[0] for name in names])
    if len(first) < 2:
        return None
    begin = start[first]
    named = [names[i] for i in first]
    windows = Windows(begin, np.append(begin[1:], host_span(trace)[1]), COMPILED, named)
    regions = Windows(start, end, COMPILED, names)
    part = windows.step_of(work.begin)
    outside = np.bincount(
        part[(part >= 0) & (regions.step_of(work.begin) < 0)], minlength=len(windows)
    )
    same = (outside == outside[0]).all() and work.are_alike(windows)
    return windows if same and work.share_of_time(regions) >= NEARLY_ALL else None


def _outermost_spans(
    trace: Trace, begin: str | tuple[str, ...], *, in_ops: bool = False
) -> tuple[Ints, Ints, list[str]]:
    """Return start, end and name of the annotations whose name begins so, without those in another.

    With `in_ops` ops count too, as which some versions of PyTorch record them.
    """
    notes, ops = trace.annotations, trace.ops
    named = np.array([name.startswith(begin) for name in trace.names], bool)
    if not named.any():
        none = np.zeros(0, np.int64)
        return none, none, []
    tables = [(notes, np.flatnonzero((notes["module"] == 0) & named[notes["name"]]))]
    if in_ops:
        tables.append((ops, np.flatnonzero(named[ops["name"]])))
    start, length, name = (
        np.concatenate([table[column][rows] for table, rows in tables])
        for column in ("ts", "dur", "name")
    )
    end = start + length
    order = np.lexsort((-end, start))
    reached = np.maximum.accumulate(np.concatenate(([np.iinfo(np.int64).min], end[order])))[:-1]
    outer = order[start[order] >= reached]
    return start[outer], end[outer], [trace.names[i] for i in name[outer]]
