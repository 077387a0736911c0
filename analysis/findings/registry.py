"""The registry of findings: each is one function with one decorator.

In: functions decorated with `@finding`. Out: `registered()`, all of them in the order in which
findings of equal severity and gain are shown. The modules of findings, which need polars, are
imported when that list is first read.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar, get_args

from msgspec import Struct, field

from prunescope.analysis.schema.report import Allocation

Severity = Literal["critical", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)

# A new module of findings gets its row here; a new finding in one of them needs none.
MODULES = (
    "validity", "removed", "memory", "dynamic", "shape", "host", "interruptions", "idle",
    "losses", "added", "experts", "trust", "equal_work", "communication", "largest", "stragglers",
)  # fmt: skip

# Ids of earlier versions, in stored reports and in rules of `prunescope check`, and today's.
OLD_IDS = {
    "observer-effect": "profiler-overhead", "spill": "carry-over", "odd-step": "step-outlier",
    "clocks-apart": "clock-skew", "held-back": "stream-blocked", "graph-holes": "graph-idle",
    "cut-off": "truncated-trace", "wave-step": "same-waves", "host-lead": "late-first-launch",
    "clock-trouble": "unsteady-clocks", "weights-remade": "weights-recomputed",
    "same-shapes-other-time": "unexplained-difference",
}  # fmt: skip


class Found(Struct, frozen=True, kw_only=True):
    """The result of a finding's function: a sentence, its evidence, one change and its gain.

    `also`: what else to do, and what to know of the change. `allocate`: the allocation that the
    change leads to.

    `predicted_ns`: the gain of the change, ns a step; None where it is unknown. `about_ns`: the
    time that it is about, where that is neither its gain nor what it explains. `severity`: where
    it is lower than the registered one. `explains_roles`: the roles, or the names of kernels
    without a role, whose time the finding is about; `largest-cost` leaves these out.
    `explains_rows_ns`: for rows of the ledger that the finding is the cause of, how much of them it
    explains, ns a step with their sign; the summary then names no other cause. In report.json it is
    called `accounts_for`. `rows`:
    the rows that hold a difference whose cause it does not know, with their times.
    """

    text: str
    evidence: list[str]
    change: str | None = None
    also: Sequence[str] = ()
    allocate: Allocation | None = None
    predicted_ns: float | None = None
    about_ns: float | None = None
    severity: Severity | None = None
    explains_roles: frozenset[str] = frozenset()
    explains_rows_ns: dict[str, float] = field(default_factory=dict)
    rows: list[str] | None = None


class Registered(Struct, frozen=True, kw_only=True):
    """A finding's function with its id, its highest severity, and the conditions of `finding`."""

    id: str
    severity: Severity
    check: Callable[..., Found | None]
    needs_valid_times: bool
    needs_one_clock: bool
    compares: bool
    reads: Literal["phase", "findings", "ranks"]

    @property
    def summary(self) -> str:
        """What the finding says: the function's summary line without its "Report that"."""
        says = (self.check.__doc__ or "").partition("\n")[0].removeprefix("Report that ")
        return says[:1].upper() + says[1:]


FINDINGS: dict[str, Registered] = {}
_Check = TypeVar("_Check", bound=Callable[..., Found | None])


def finding(
    id: str,
    severity: Severity,
    *,
    needs_valid_times: bool = False,
    needs_one_clock: bool = False,
    compares: bool = False,
    reads: Literal["phase", "findings", "ranks"] = "phase",
) -> Callable[[_Check], _Check]:
    """Register a function as the finding `id`.

    The summary line of the function's docstring begins with "Report that"; what follows is the row
    of the finding in docs/findings.md.

    Args:
        id: The id in reports and in rules of `prunescope check`.
        severity: The highest severity that the finding may have; the function may return a lower
            one.
        needs_valid_times: The finding rests on a measured time. Where times are not valid, a
            critical one is a warning, and one that is registered as a warning is information.
        needs_one_clock: The finding states which of host and device waited for the other. It is
            unreliable where their clocks differ, and left out of a graph capture.
        compares: The finding states what pruning did to the dense step. It is left out where a
            difference between the runs hides that (`Phase.shows_pruning`).
        reads: What the function takes: a Context ("phase"), a Context whose `explained` holds what
            the other findings explain ("findings"), or a Late rank among several ("ranks").

    Returns:
        A decorator that registers the function and returns it unchanged.

    Raises:
        RuntimeError: Another function is registered as this finding.
    """

    def register(check: _Check) -> _Check:
        if id in FINDINGS:
            raise RuntimeError(f"two functions are registered as the finding {id!r}")
        FINDINGS[id] = Registered(
            id=id,
            severity=severity,
            check=check,
            needs_valid_times=needs_valid_times,
            needs_one_clock=needs_one_clock,
            compares=compares,
            reads=reads,
        )
        return check

    return register


def registered() -> list[Registered]:
    """Return all findings: by module in the order of MODULES, and in a module by line.

    Findings of other modules follow.
    """
    for name in MODULES:
        importlib.import_module(f"{__package__}.{name}")
    order = {f"{__package__}.{name}": i for i, name in enumerate(MODULES)}
    return sorted(FINDINGS.values(), key=lambda rule: order.get(rule.check.__module__, len(order)))


def current_id(id: str) -> str:
    """Return today's id of a finding that an earlier version may have named otherwise."""
    return OLD_IDS.get(id, id)
