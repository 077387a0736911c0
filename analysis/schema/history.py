"""The lines of a history file, and the series that are read from them, as plain values.

Times are ns of a step; intervals are of 95 %. Null is unknown.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from prunescope.taxonomy.formats import Block, Interval, Name, Number

Reasons = Annotated[list[Name], Meta(max_length=64)]


class HistoryLine(Block, kw_only=True):
    """One phase of one measurement: a line of the file.

    `commit` is what was measured, `time` when the line was written (UTC). `step_ns` is the time of
    a step as the report gives it, and `valid` whether it is evidence of how long a step takes;
    `reasons` says why not. `pruning` is the method and sparsity of a pruned run. `speedup` is dense
    over pruned, of a pair.
    """

    schema: Literal[1] = 1
    tool: Name = ""
    commit: Name | None
    time: Name
    subject: Name
    model: Name | None
    pruning: Name | None = None
    device: Name | None
    versions: dict[str, str] = {}
    phase: Name
    kind: Name | None = None
    step_ns: Annotated[float, Meta(gt=0, lt=1e30)]
    ci95: Interval | None
    steps: int
    tokens_per_s: Number | None = None
    speedup: Number | None = None
    speedup_ci95: Interval | None = None
    valid: bool
    reasons: Reasons = []


class HistoryPoint(msgspec.Struct, kw_only=True):
    """All valid lines of one commit in a series, as one measurement.

    `ns` is their mean, or null where no line is valid. `change` is how much longer a step takes
    than at the level before, as a share of it; `state` is "level" (within the noise), "changed",
    "undecided" (no interval) or "invalid".
    """

    commit: str | None
    time: str
    lines: int
    ns: float | None
    ci95: list[float] | None
    change: float | None = None
    state: str


class HistoryChange(msgspec.Struct, kw_only=True):
    """A change beyond the noise: the commit at which the level of a series moved."""

    commit: str | None
    before_ns: float
    after_ns: float
    change: float  # a share of the level before; above 0: slower
    noise: float  # half of the 95 % interval of the difference, as a share of the level before


class HistorySeries(msgspec.Struct, kw_only=True):
    """The commits of one model, pruning, device, phase and number of tokens, the oldest first.

    `tokens` are those of a step, null where that is unknown. `level_ns` is the level of the last
    commits.
    """

    model: str | None
    device: str | None
    phase: str
    pruning: str | None = None
    tokens: int | None = None
    points: list[HistoryPoint]
    changes: list[HistoryChange]
    level_ns: float | None = None
    level_ci95: list[float] | None = None
    tokens_per_s: float | None = None  # of the last valid line
    speedup: float | None = None  # likewise


class History(msgspec.Struct, kw_only=True):
    """All series of a file."""

    schema: int = 1
    tool: str = "prunescope history"
    series: list[HistorySeries]
    notes: list[str] = []
