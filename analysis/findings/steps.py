"""Steps that take far longer or shorter than the others of their trace.

In: a Context. Out: Found, or None. Times are ns of a step.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from prunescope.analysis.findings.context import Context
from prunescope.analysis.findings.registry import Found, finding
from prunescope.analysis.kernels.frame import Kernels
from prunescope.taxonomy.words import ms

_LEAST = 3  # steps: the median of two does not show which is odd
_NAMED = 4  # odd steps with a line of their own
_ODD, _USUAL = 0.25, 5  # of the median step; times the median distance from it


@finding("step-outlier", "warning")
def step_outlier(c: Context) -> Found | None:
    """Some steps take far longer or shorter than the others."""
    if c.phase.unprofiled_ns is not None:
        return None  # samples describe the step, and timing-not-valid names disturbed ones
    texts, lines = [], []
    for name, kernels in (("dense", c.baseline_kernels), ("pruned", c.kernels)):
        if kernels is None or not len(odd := odd_steps(kernels.linked.wall)):
            continue
        side = f"{name}: " if c.baseline is not None else ""
        profiled = "profiled " * (c.phase.unprofiled_ns is not None)
        texts.append(f"{side}{profiled}{_odd_steps(kernels, odd)}")
        lines += [f"{side}{line}" for line in _parts(kernels, odd)]
    if not texts:
        return None
    return Found(
        text=f"{'; '.join(texts)}: the mean is over both",
        evidence=lines,
        change="find out what differs in the odd steps; more steps show which are the rule, and "
        "--phase-pattern keeps the steps of one kind",
    )


def odd_steps(walls: NDArray[np.int64]) -> NDArray[np.int64]:
    """The steps whose wall (ns) is apart from the median by more than a quarter of it, and by more
    than usual steps are: five times the median of all such distances."""
    if len(walls) < _LEAST:
        return np.zeros(0, np.int64)
    middle = np.median(walls)
    apart = np.abs(walls - middle)
    return np.flatnonzero((apart > _ODD * middle) & (apart > _USUAL * np.median(apart)))


def _odd_steps(kernels: Kernels, odd: NDArray[np.int64]) -> str:
    """Which steps are odd, with their times and that of the others."""
    walls = kernels.linked.wall
    named = odd[:_NAMED].tolist()
    more = [f"{len(odd) - _NAMED} more"] if len(odd) > _NAMED else []
    others = ms(float(np.median(np.delete(walls, odd))))
    return (
        f"step{'s' * (len(odd) > 1)} {_and([*map(str, named), *more])} (of 0 to {len(walls) - 1}) "
        f"take{'s' * (len(odd) == 1)} {_and([ms(walls[step]) for step in named])}, the others "
        f"{others} (median)"
    )


def _and(parts: list[str]) -> str:
    """The parts as a sentence lists them."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _parts(kernels: Kernels, odd: NDArray[np.int64]) -> Iterator[str]:
    """The busy and idle time of the others, and of the first odd steps: either may differ."""
    busy = np.bincount(kernels.linked.step, kernels.linked.busy, minlength=len(kernels.linked.wall))
    for what, ns in (("busy", busy), ("idle", kernels.linked.wall - busy)):
        each = ", ".join(f"{ms(ns[step])} in step {step}" for step in odd[:_NAMED].tolist())
        yield f"{what}: {ms(float(np.median(np.delete(ns, odd))))} in the others (median), {each}"
