"""Steps of a trace without any marker: the sequence of work that repeats and is no layer.

In: a Trace and its work in order. Out: windows of the steps (host ns), or None.

A layer repeats as a step does. Every part of a step, unlike a layer, holds a lookup of tokens
before several attentions, more attentions, convolutions or scans than a layer has (and a lookup,
where the trace has any), or a backward pass. Equal parts without these stay one step.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from prunescope.analysis.ops.kernel_kinds import kernel_kind, op_kind
from prunescope.analysis.timeline.intervals import SEQUENCE, Windows
from prunescope.analysis.timeline.work_sequence import NEARLY_ALL, WorkSequence, host_span
from prunescope.analysis.trace.collector import Ints
from prunescope.analysis.trace.trace_columns import Trace

# When something was called (ns), and the least number of calls in a step; several may be needed.
Sign = list[tuple[Ints, int]]
_LOOKUP = "aten::embedding"
# A layer mixes tokens once or twice (its own, those of an encoder), a residual block of a
# convolutional network four times (three convolutions, and one in the shortcut).
_MIXERS, _OF_A_LAYER = ("attention", "softmax", "conv", "scan"), 4
_ATTENTIONS_OF_A_LAYER = 2
_TRIES = 4  # names that occur equally often; the first that begins a step is enough


def repeated_sequence(trace: Trace, work: WorkSequence) -> Windows | None:
    """Return the smallest parts of a trace that repeat and are no layers; None without any.

    Together they hold nearly all of its time.
    """
    for windows in parts_of_whole_passes(trace, work):
        if work.share_of_time(windows) >= NEARLY_ALL and work.are_alike(windows):
            return windows
    return None


def parts_of_whole_passes(trace: Trace, work: WorkSequence) -> Iterator[Windows]:
    """Yield parts of a trace that begin alike and are no layers, the most of them first.

    Whether they do the same work, and how much of the trace they hold, is not examined.
    """
    signs = _find_signs(trace, work)
    most = max(min(len(at) // least for at, least in sign) for sign in signs)
    distinct, row = work.kinds
    count = np.bincount(row, minlength=len(distinct))
    for often in sorted({int(n) for n in count if 2 <= n <= most}, reverse=True):
        for start in _find_beginnings(work, np.flatnonzero(count == often)):
            windows = _make_windows(trace, work, start)
            # The begins do not rise where threads launch side by side.
            if (np.diff(windows.start) > 0).all() and any(
                _occurs_in_each(windows, s) for s in signs
            ):
                yield windows


def _find_signs(trace: Trace, work: WorkSequence) -> list[Sign]:
    """Return the signs of a step: work that no layer holds.

    A layer may look up its positions, and then has one attention. A group of layers with attention
    and of others with scans, as hybrid models repeat it, has many mixers: only the lookup
    distinguishes it from a step.
    """
    distinct, row = work.kinds
    kinds = [op_kind(name, None) for name in (trace.names[i] for i in distinct)]
    kinds = [
        kernel_kind(trace.names[i]) if kind == "unknown" else kind
        for i, kind in zip(distinct, kinds, strict=True)
    ]
    mixes = [
        work.begin[np.array([kind == mixer for kind in kinds], bool)[row]] for mixer in _MIXERS
    ]
    lookups = (_begins_of_ops(trace, _LOOKUP), 1)
    many: Sign = [(np.concatenate(mixes), _OF_A_LAYER + 1)]
    attended: Sign = [(mixes[0], _ATTENTIONS_OF_A_LAYER + 1)]
    attention, softmax, _, scan = (len(at) > 0 for at in mixes)
    if len(lookups[0]) or (scan and (attention or softmax)):
        many.append(lookups)
        attended.append(lookups)
    return [
        *([lookups, (at, 2)] for at in mixes),
        many,
        attended,
        [(work.begin[work.ends_with("_backward")], 1)],
    ]


def _begins_of_ops(trace: Trace, name: str) -> Ints:
    """Return when ops of that name began, ns."""
    ids = [i for i, known in enumerate(trace.names) if known == name]
    return np.sort(trace.ops["ts"][np.isin(trace.ops["name"], ids)])


def _occurs_in_each(windows: Windows, sign: Sign) -> bool:
    """Return whether every window holds each of the calls as often as the sign asks for."""
    for at, least in sign:
        step = windows.step_of(at)
        if (np.bincount(step[step >= 0], minlength=len(windows)) < least).any():
            return False
    return True


def _find_beginnings(work: WorkSequence, names: Ints) -> Iterator[Ints]:
    """Yield the first rows of the parts that begin with each of the names, the earliest first.

    The first row is as far before the name as the rows are the same in all parts.
    """
    _, row = work.kinds
    order = np.argsort(row, kind="stable")
    low = np.searchsorted(row[order], names)
    high = np.searchsorted(row[order], names, side="right")
    groups = sorted((order[a:b] for a, b in zip(low, high, strict=True)), key=lambda at: int(at[0]))
    for at in groups[:_TRIES]:
        yield at - work.equal_before(at)


def _make_windows(trace: Trace, work: WorkSequence, start: Ints) -> Windows:
    """Return the windows from each of the rows to the next one.

    The last window is as long as the one before it if their rows are the same; else it ends with
    the trace.
    """
    _, row = work.kinds
    begin = work.begin[start]
    length = int(start[-1] - start[-2])
    stop = int(start[-1]) + length
    same = np.array_equal(row[start[-2] : start[-1]], row[start[-1] : stop])
    last = int(work.begin[stop]) if same and stop < len(row) else host_span(trace)[1]
    names = [f"step {i}" for i in range(len(start))]
    return Windows(begin, np.append(begin[1:], last), SEQUENCE, names)
