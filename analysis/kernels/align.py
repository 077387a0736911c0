"""Aligns two runs of names in order: in, names here and there; out, the place there of each here.

Myers, "An O(ND) Difference Algorithm and Its Variations" (1986): the fewest names left out, in time
that grows with their number. The layers of a model repeat: a search for the longest equal run would
move all of them by a layer where one kernel is missing.
"""

from __future__ import annotations

from collections import Counter
from difflib import SequenceMatcher

import numpy as np

from prunescope.analysis.trace.load import NONE, Ints

_MOST = 400  # left out on both sides; its square is the time and memory of the search
_COMPARED = 1 << 20  # equal pairs of names that a search for the longest runs may look at


def align(here: list[str], there: list[str]) -> Ints:
    """For every name of `here` its index in `there`, growing, -1 where it is left out."""
    out = np.full(len(here), NONE)
    both = min(len(here), len(there))
    head = next((i for i in range(both) if here[i] != there[i]), both)
    rest = both - head
    tail = next((i for i in range(rest) if here[-1 - i] != there[-1 - i]), rest)
    out[:head] = np.arange(head)
    out[len(here) - tail :] = np.arange(len(there) - tail, len(there))
    middle = here[head : len(here) - tail], there[head : len(there) - tail]
    for i, j in _middle(*middle):
        out[head + i] = head + j
    return out


def _middle(here: list[str], there: list[str]) -> list[tuple[int, int]]:
    """Pairs of equal names."""
    shared = set(here) & set(there)
    a = [i for i, name in enumerate(here) if name in shared]
    b = [j for j, name in enumerate(there) if name in shared]
    x, y = [here[i] for i in a], [there[j] for j in b]
    found = _fewest(x, y)
    if found is None:
        found = _longest_runs(x, y)
    return [(a[i], b[j]) for i, j in found]


def _fewest(x: list[str], y: list[str]) -> list[tuple[int, int]] | None:
    """The pairs that leave out the fewest names; None where those are more than _MOST."""
    reach = {1: 0}  # on the diagonal i - j: the furthest i that is reached
    seen: list[dict[int, int]] = []
    for left_out in range(min(_MOST, len(x) + len(y)) + 1):
        seen.append(dict(reach))
        for diagonal in range(-left_out, left_out + 1, 2):
            i = _step(reach, diagonal, left_out)
            while i < len(x) and 0 <= i - diagonal < len(y) and x[i] == y[i - diagonal]:
                i += 1
            reach[diagonal] = i
            if i >= len(x) and i - diagonal >= len(y):
                return _back(seen, len(x), len(y))
    return None


def _step(reach: dict[int, int], diagonal: int, left_out: int) -> int:
    """Where a diagonal begins: one name of `there` left out more, or one of `here`."""
    down = diagonal == -left_out or (
        diagonal != left_out and reach[diagonal - 1] < reach[diagonal + 1]
    )
    return reach[diagonal + 1] if down else reach[diagonal - 1] + 1


def _back(seen: list[dict[int, int]], i: int, j: int) -> list[tuple[int, int]]:
    """The equal names on the way back from the end."""
    pairs: list[tuple[int, int]] = []
    for left_out in range(len(seen) - 1, -1, -1):
        diagonal = i - j
        begin = _step(seen[left_out], diagonal, left_out)
        while i > begin and j > 0:
            i, j = i - 1, j - 1
            pairs.append((i, j))
        down = begin == seen[left_out].get(diagonal + 1)
        i, j = (begin, begin - diagonal - 1) if down else (begin - 1, begin - diagonal)
    return pairs


def _longest_runs(x: list[str], y: list[str]) -> list[tuple[int, int]]:
    """Pairs of equal names of two runs that differ in much; none where that would take long."""
    count = Counter(y)
    if sum(count[name] for name in x) > _COMPARED:
        return []
    matcher = SequenceMatcher(None, x, y, autojunk=False)
    return [
        (here + k, there + k)
        for here, there, size in matcher.get_matching_blocks()
        for k in range(size)
    ]
