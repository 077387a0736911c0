"""`prunescope check`: check a report against rules such as "prefill.realised >= 1.2".

In: a Report and rules. Out: a Check: one RuleOutcome per rule and phase (held, failed, undecided).
Intervals decide: a rule holds if the whole 95 % interval does, fails if none of it does, and is
undecided otherwise. It is undecided too if a value or the interval of a time is not known, if the
report is partial, if its times are not valid, or if its two sides do not compare. A row of the
ledger that is no evidence (`is_beyond_noise`) may as well be 0. The check passes only if every rule
was decided and holds.
"""

from __future__ import annotations

import math
import operator
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

from prunescope.analysis.findings.registry import SEVERITIES, current_id
from prunescope.analysis.report.escape import clean
from prunescope.role_rules import (
    HISTORY,
    ROLE_METRICS,
    Value,
    has_time_units,
    is_role_metric,
    phases_named,
    printed_phases,
    role_value,
)
from prunescope.taxonomy.errors import PrunescopeError, nearest
from prunescope.taxonomy.families import cutting, families
from prunescope.taxonomy.lazy_pattern import lazy_pattern
from prunescope.taxonomy.student_t import t_quantile_975
from prunescope.taxonomy.words import when

if TYPE_CHECKING:
    from prunescope.analysis.findings.registry import Registered
    from prunescope.analysis.schema.report import Ladder, Phase, Report

State = Literal["held", "failed", "undecided"]
_RULE = lazy_pattern(r"\s*([\w.\-]+)\s*(>=|<=|==|!=|>|<)\s*(.+?)\s*")
_NUMBER = lazy_pattern(
    r"([-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)\s*(%|x|×|ns|us|µs|ms|s|B|kB|MB|GB)?", re.ASCII
)
_OPS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
    "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
_UNITS = {
    "": 1.0, "x": 1.0, "×": 1.0, "%": 0.01, "ns": 1.0, "us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9,
    "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9,
}  # fmt: skip
_TIMES, _BYTES, _SPEEDS = ("ns", "us", "µs", "ms", "s"), ("B", "kB", "MB", "GB"), ("", "x", "×")
_LADDER = ("nominal", "flop", "coverage", "roofline", "busy", "realised", "share_of_bound")
_SIZES = ("weight_bytes", "kv_bytes", "peak_memory_bytes")
_REMOVED = ("nominal", "parameters", "flop", "bytes")
_ROWS = (
    "promised", "coverage", "roofline_shift", "shape", "kernel_efficiency", "added_work",
    "launch_idle", "not_explained", "pruned",
)  # fmt: skip
METRICS = (
    *_LADDER, "family", "wall", "tokens_per_s", "items_per_s", *_SIZES,
    *(f"ledger.{row}" for row in _ROWS),
    *(f"sparsity.{name}" for name in _REMOVED),
    "findings", *(f"findings.{name}" for name in SEVERITIES), HISTORY,
)  # fmt: skip
_TIMED = (
    "coverage", "roofline", "busy", "realised", "share_of_bound", "wall", "tokens_per_s",
    "items_per_s", "ledger.", "roles.", HISTORY,
)  # fmt: skip
_RATES = ("tokens_per_s", "items_per_s")
# Metrics that compare the shapes of both sides, or count findings that do.
_OF_SHAPES = ("family", "flop", "sparsity.flop", "sparsity.bytes", "findings")
# Metrics that are a ratio or difference of both sides.
_COMPARES = ("coverage", "roofline", "busy", "realised", "share_of_bound", "ledger.")
_NO_INTERVAL = "it has no interval, which takes five steps a side or unprofiled samples"
_UNKNOWN = {
    HISTORY: "the history has no valid time of another commit for this model, device, phase and "
    "number of tokens"
}
_FINDING = "findings."
_VERDICTS = ("outside", "unknown")  # of `family`, apart from the families


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule as it was typed, and its parts.

    `phase` None: every phase of the report. `measured` is the value of a rule against a history.
    """

    text: str
    phase: str | None
    metric: str
    op: str
    number: float | None  # in ns, bytes, or 1; None where the value is a word
    unit: str
    word: str
    measured: Value | None = None


@dataclass(frozen=True, slots=True)
class RuleOutcome:
    """The outcome of a rule in one phase.

    `seen` is the value with its interval, in words. `value` and `ci95` are numbers in ns, bytes or
    1 (a share of dense is 0..1); they are None for a word, and if they are not known. `link` opens
    the page of the report at what the rule is about.
    """

    rule: str
    phase: str
    state: State
    seen: str
    why: str
    value: float | None = None
    ci95: tuple[float, float] | None = None
    link: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """All verdicts. With `allow_undecided`, rules that are not decided do not count.

    `page` is the folder of the report's page, where there is one.
    """

    verdicts: tuple[RuleOutcome, ...]
    allow_undecided: bool = False
    page: str | None = None

    @property
    def passed(self) -> bool:
        """Whether every rule was decided and holds."""
        accepted = ("held", "undecided") if self.allow_undecided else ("held",)
        return all(v.state in accepted for v in self.verdicts)

    @property
    def decided(self) -> bool:
        """Whether no rule is undecided."""
        return all(v.state != "undecided" for v in self.verdicts)

    @property
    def undecided(self) -> tuple[str, ...]:
        """The rules that were not decided, each with its phase."""
        return tuple(_with_phase(v) for v in self.verdicts if v.state == "undecided")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as `--json` writes them."""
        return {
            "schema": 1,
            "passed": self.passed,
            "decided": self.decided,
            "undecided": list(self.undecided),
            "verdicts": [asdict(v) for v in self.verdicts],
        }

    def __bool__(self) -> bool:
        return self.passed


def parse_rules(texts: Sequence[str]) -> tuple[Rule, ...]:
    """Parse rules.

    Args:
        texts: The rules, each `PATH OP VALUE`.

    Returns:
        The rules, in the same order.

    Raises:
        PrunescopeError: There is none, or one is not a rule; the hint has the right form or the
            nearest name.
    """
    if not texts:
        raise PrunescopeError("no rule is given", hint="--require 'prefill.realised >= 1.2'")
    return tuple(_parse_rule(text) for text in texts)


def _parse_rule(text: str) -> Rule:
    """Parse one rule."""
    matched = _RULE.fullmatch(text)
    if matched is None:
        raise PrunescopeError(
            f"{text!r} is no rule",
            hint="PATH OP VALUE, as in 'prefill.realised >= 1.2' or "
            f"'family == {cutting('heads', 'channels')}'",
        )
    path, op, value = matched.groups()
    phase, metric = _split_path(path)
    number = _NUMBER.fullmatch(value)
    if number and not math.isfinite(float(number[1])):
        raise PrunescopeError(
            f"{text!r}: {number[1]} is too large to compare with", hint="give a finite number"
        )
    is_word = metric == "family"
    if is_word != (number is None) or (is_word and op not in ("==", "!=")):
        raise PrunescopeError(
            f"{text!r}: {metric} cannot be compared like that",
            hint="family takes == or != and a family id; all else takes a number",
        )
    if is_word:
        _check_families(text, value)
    unit = (number[2] or "") if number else ""
    if number and unit not in _metric_units(metric):
        raise PrunescopeError(
            f"{text!r}: {metric} {f'has no unit {unit!r}' if unit else 'needs a unit'}",
            hint=f"one of {', '.join(u or 'a plain number' for u in _metric_units(metric))}",
        )
    return Rule(
        text=" ".join(text.split()),
        phase=phase,
        metric=metric,
        op=op,
        unit=unit,
        word=value,
        number=float(number[1]) * _UNITS[unit] if number else None,
    )


def _check_families(text: str, value: str) -> None:
    """Raise PrunescopeError for a family that does not exist: `!=` would always hold."""
    names = (*(family.id for family in families()), *_VERDICTS)
    for name in value.split("+"):
        if name not in names:
            raise PrunescopeError(
                f"{text!r}: no family is called {name!r}",
                hint=f"nearest: {nearest(name, names)}; `prunescope families` lists all",
            )


def _split_path(path: str) -> tuple[str | None, str]:
    """Split a path into its phase (None: all phases) and its metric."""
    if path in METRICS or path.startswith(_FINDING) or is_role_metric(path):
        _check_finding(path)
        return None, path
    phase, _, metric = path.partition(".")
    _check_finding(metric)
    is_known = metric in METRICS or metric.startswith(_FINDING) or is_role_metric(metric)
    if not is_known:
        raise PrunescopeError(
            f"no metric is called {metric or path!r}",
            hint=f"nearest: {nearest(metric or path, (*METRICS, *ROLE_METRICS))}",
        )
    return phase, metric


def _check_finding(metric: str) -> None:
    """Raise PrunescopeError for a finding that does not exist, whose count would always be 0."""
    name = current_id(metric.removeprefix(_FINDING))
    if not metric.startswith(_FINDING) or name in SEVERITIES:
        return
    from prunescope.analysis.findings.registry import registered  # imports polars

    names = (*SEVERITIES, *(finding.id for finding in registered()))
    if name not in names:
        raise PrunescopeError(
            f"no severity and no finding is called {name!r}",
            hint=f"nearest: {nearest(name, names)}",
        )


def _metric_units(metric: str) -> tuple[str, ...]:
    """Return the units that the number of a metric may have."""
    if metric in ("share_of_bound", HISTORY) or metric.startswith("sparsity."):
        return ("", "%")
    if metric.startswith("roles."):
        return _TIMES if has_time_units(metric) else ("", "%")
    if metric in _LADDER:
        return _SPEEDS
    if metric == "wall":
        return _TIMES
    if metric.startswith("ledger."):
        return ("%", *_TIMES)
    return _BYTES if metric in _SIZES else ("",)


def check_report(
    report: Report,
    rules: Sequence[Rule],
    changes: Mapping[str, Value] | None = None,
    *,
    allow_undecided: bool = False,
    page: str | None = None,
) -> Check:
    """Check a report against rules.

    Args:
        report: The report.
        rules: The rules, by `parse_rules`.
        changes: How much longer a step of each phase takes than its history says.
        allow_undecided: Whether the check passes though some rules are not decided.
        page: The folder of the report's page, for links; None without one.

    Returns:
        The verdict on each rule in each phase.

    Raises:
        PrunescopeError: A rule names a phase that the report does not have, the report has no
            phase (no rule would be about anything), its two sides are not what their folders say,
            or, with `allow_undecided`, nothing that the rules ask for is known.
    """
    if not report.phases:
        raise PrunescopeError(
            "the report has no phase: there is nothing to check",
            hint="analyze the run again: its report.json has prefill, decode or both",
        )
    from prunescope.analysis.schema.report import MISLABELLED

    for phase in report.phases.values():
        if (contradiction := phase.finding(MISLABELLED)) is not None:
            raise PrunescopeError(contradiction.text, hint=contradiction.change or "")
    verdicts = []
    for rule in rules:
        names = list(report.phases)
        if rule.phase is not None:
            names = phases_named(rule.phase, report.phases)
        if not names:
            raise PrunescopeError(
                f"{rule.text!r}: the report has no phase {rule.phase!r}",
                hint=f"it has {', '.join(printed_phases(report.phases))}",
            )
        for name in names:
            measured = (changes or {}).get(name) if rule.metric == HISTORY else None
            verdicts.append(_judge(replace(rule, measured=measured), name, report))
    if allow_undecided:
        _require_something(report, rules)
    return Check(tuple(verdicts), allow_undecided, page)


def _has_quantity(rule: Rule, report: Report) -> Iterator[bool]:
    """Yield for each phase of a rule whether it has the quantity, decided or not."""
    for name, phase in report.phases.items():
        if rule.phase is None or name in phases_named(rule.phase, report.phases):
            yield (
                phase.family if rule.number is None else _value_and_ends(rule, phase)[0]
            ) is not None


def _require_something(report: Report, rules: Sequence[Rule]) -> None:
    """Refuse a whole report that lacks what every rule asks for.

    No rule would be decided, and a gate would pass on nothing.

    Raises:
        PrunescopeError: No rule can be decided.
    """
    # A history begins empty: its first measurement decides nothing, and is no mistake.
    is_first = any(rule.metric == HISTORY for rule in rules)
    if report.partial or is_first or any(any(_has_quantity(rule, report)) for rule in rules):
        return
    absent = dict.fromkeys(f"{rule.metric} is not known" for rule in rules)
    is_alone = all(phase.ladder is None for phase in report.phases.values())
    raise PrunescopeError(
        f"no rule can be checked: {'; '.join(absent)}",
        hint="compare with the dense run: --baseline RUN|TRACE"
        if is_alone
        else "ask for what the report has; `prunescope analyze` shows it",
    )


def _judge(rule: Rule, name: str, report: Report) -> RuleOutcome:
    """Return the outcome of a rule in one phase."""
    phase = report.phases[name]
    state, seen, why = (_judge_word if rule.number is None else _judge_number)(rule, phase)
    value, low, high = (None, None, None) if rule.number is None else _value_and_ends(rule, phase)
    if state == "undecided" and value is None and phase.baseline is None and _compares(rule):
        why += ": there is no dense run to compare with, which --baseline names"
    if why := "the report is partial" if report.partial else _caveat(rule, phase) or why:
        state = "undecided"
    ci95 = None if low is None or high is None else (low, high)
    return RuleOutcome(rule.text, name, state, seen, why, value, ci95, _link(rule, name, report))


def _link(rule: Rule, name: str, report: Report) -> str:
    """Return the link into the page that shows what a rule is about."""
    from prunescope.analysis.report.titles import page_link

    head, _, rest = rule.metric.partition(".")
    if head == "ledger":
        return page_link(report, name, "ledger", rest)
    if head == "roles":
        return page_link(report, name, "role", rest.rpartition(".")[0])
    if head == "findings" and rest and rest not in SEVERITIES:
        return page_link(report, name, "finding", current_id(rest))
    return page_link(report, name)


def _compares(rule: Rule) -> bool:
    """Return whether a rule is about both sides."""
    return rule.metric.startswith((*_COMPARES, *_OF_SHAPES, "nominal", "sparsity."))


def _counted_finding(rule: Rule) -> Registered | None:
    """Return the finding that a rule counts; None where it counts no single one."""
    name = current_id(rule.metric.removeprefix(_FINDING))
    if not rule.metric.startswith(_FINDING) or name in SEVERITIES:
        return None
    from prunescope.analysis.findings.registry import registered  # imports polars

    return next((finding for finding in registered() if finding.id == name), None)


def _caveat(rule: Rule, phase: Phase) -> str:
    """Return why a phase decides nothing for a rule; "" if it does."""
    counted = _counted_finding(rule)
    if counted is not None and counted.compares and phase.baseline is None:
        return "only a comparison finds it, and there is no dense run, which --baseline names"
    hides = rule.metric.startswith(_OF_SHAPES) and not phase.shows_pruning
    on_times = counted is not None and counted.needs_valid_times
    compares_times = rule.metric.startswith(_COMPARES) or (
        counted is not None and counted.compares and on_times
    )
    if hides or (compares_times and not phase.is_speedup):
        differences = phase.comparison.differences if phase.comparison else ()
        kinds = ", ".join(difference.kind for difference in differences)
        return f"dense and pruned do not compare{when(bool(kinds), f' (other {kinds})')}"
    if not (on_times or rule.metric.startswith(_TIMED)) or _is_empty_row(rule, phase):
        return ""
    invalid = phase.invalid_times
    return f"its times are not valid: {invalid[0].text}" if invalid else ""


def _is_empty_row(rule: Rule, phase: Phase) -> bool:
    """Return whether a row of the ledger is 0 because nothing is in it: no time decides that."""
    return rule.metric.startswith("ledger.") and _value_and_ends(rule, phase) == (0, 0, 0)


def _judge_word(rule: Rule, phase: Phase) -> tuple[State, str, str]:
    """Return state, value in words and reason of a rule on the family."""
    if phase.family is None or phase.family.id == "unknown":
        return "undecided", "unknown", "the family is not known"
    same = frozenset(rule.word.split("+")) == phase.family.ids
    return "held" if same == (rule.op == "==") else "failed", phase.family.id, ""


def _judge_number(rule: Rule, phase: Phase) -> tuple[State, str, str]:
    """Return state, value in words and reason of a rule on a number."""
    value, low, high = _value_and_ends(rule, phase)
    if value is None or rule.number is None:
        return "undecided", "–", _UNKNOWN.get(rule.metric, f"{rule.metric} is not known")
    seen = _format_value(value, rule)
    why = "the 95 % interval contains the threshold"
    if low is not None and high is not None:
        seen += f" [{_format_value(low, rule)}, {_format_value(high, rule)}]"
    elif _needs_interval(rule, phase):
        return "undecided", seen, _NO_INTERVAL
    else:
        low = high = value
    if _is_row_within_noise(rule, phase):
        if not low <= 0 <= high:
            why = "the row is inside twice its noise, and may as well be 0"
        low, high = min(low, 0.0), max(high, 0.0)
    answers = {_OPS[rule.op](end, rule.number) for end in (low, high)}
    if rule.op in ("==", "!=") and low < rule.number < high:
        answers = {True, False}
    if len(answers) > 1:
        return "undecided", seen, why
    return "held" if answers == {True} else "failed", seen, ""


def _needs_interval(rule: Rule, phase: Phase) -> bool:
    """Return whether a single value decides nothing: a time, or a ratio of times.

    Times of roles have no interval; they need as many steps as one takes, or samples.
    """
    from prunescope.analysis.ledger.noise import LEAST_STEPS  # imports numpy

    if is_role_metric(rule.metric):
        return phase.unprofiled_ns is None and phase.steps < LEAST_STEPS
    return rule.metric.startswith(_TIMED)


def _is_row_within_noise(rule: Rule, phase: Phase) -> bool:
    """Return whether a rule is about a change of the ledger that is indistinguishable from 0."""
    from prunescope.analysis.schema.report import is_beyond_noise

    name = rule.metric.removeprefix("ledger.")
    if name == rule.metric or name in ("promised", "pruned"):  # walls
        return False
    return any(row.row == name and not is_beyond_noise(row) for row in phase.ledger or ())


def _value_and_ends(rule: Rule, phase: Phase) -> tuple[float | None, float | None, float | None]:
    """Return the value of a metric and the ends of its interval, each None if unknown."""
    ladder, metric = phase.ladder, rule.metric
    head, _, name = metric.partition(".")
    if metric in _LADDER:
        if ladder is None:
            return None, None, None
        return _with_ends(_interval_ends(ladder, metric), getattr(ladder, metric))
    if metric == HISTORY:
        return rule.measured or (None, None, None)
    if head == "roles":
        return role_value(metric, phase), None, None
    if metric == "wall":
        return _step_time(phase)
    if metric in _RATES:
        return _rate(phase, getattr(phase, metric))
    if head == "ledger":
        return _row_values(name, phase, as_share=rule.unit == "%")
    if head == "sparsity":
        return phase.sparsity.get(name), None, None
    if head == "findings":
        asked = current_id(name)
        among = (f for f in phase.findings if asked in ("", f.severity, current_id(f.id)))
        return float(sum(1 for _ in among)), None, None
    value: float | None = getattr(phase, metric)
    return value, None, None


def _rate(phase: Phase, rate: float | None) -> tuple[float | None, float | None, float | None]:
    """Return a rate and the ends of its interval, which are those of the time of a step."""
    time, low, high = _step_time(phase)
    if rate is None or low is None or high is None or not low > 0:
        return rate, None, None
    return rate, rate * time / high, rate * time / low


def _step_time(phase: Phase) -> tuple[float, float | None, float | None]:
    """Return the time of a step and the ends of its interval, ns; None if it has none.

    Without samples it is the mean over profiled steps, with Student's interval over five or more.
    """
    from prunescope.analysis.ledger.noise import LEAST_STEPS  # imports numpy

    if (timed := phase.unprofiled_ns) is not None:
        return timed.median, timed.ci95[0], timed.ci95[1]
    walls = phase.step_ns
    if len(walls) < LEAST_STEPS:
        return phase.wall_ns, None, None
    half = t_quantile_975(len(walls) - 1) * statistics.stdev(walls) / math.sqrt(len(walls))
    return phase.wall_ns, phase.wall_ns - half, phase.wall_ns + half


def _interval_ends(ladder: Ladder, metric: str) -> Sequence[float]:
    """Return the ends of the interval of a bound or of `share_of_bound`; none if unknown."""
    is_share = metric == "share_of_bound"
    return (ladder.share_interval() if is_share else ladder.interval_of(metric)) or ()


def _with_ends(
    ends: Sequence[float], value: float | None
) -> tuple[float | None, float | None, float | None]:
    """Return a value with the ends of its interval, each None without an interval."""
    return (value, ends[0], ends[1]) if len(ends) == 2 else (value, None, None)


def _row_values(
    name: str, phase: Phase, *, as_share: bool
) -> tuple[float | None, float | None, float | None]:
    """Return the time of a row of the ledger and its ends, in ns or as shares of the dense time."""
    rows = {row.row: row for row in phase.ledger or ()}
    value = rows[name].ns if name in rows else None
    if value is None:
        return None, None, None
    per = rows["dense"].moves_ns if as_share else 1.0
    return _with_ends([end / per for end in rows[name].ci95 or ()], value / per)


def _format_value(value: float, rule: Rule) -> str:
    """Format a number in the unit of the rule."""
    ratio = rule.metric in _LADDER and rule.unit in _SPEEDS
    unit = "×" if ratio else f" {rule.unit}" if rule.unit else ""
    return f"{value / _UNITS[rule.unit]:.4g}{unit}"


def verdict_lines(check: Check) -> Iterator[tuple[State, str]]:
    """Yield a state and a line for each verdict, for people, with a link where one did not hold."""
    for verdict in check.verdicts:
        why = f": {verdict.why}" if verdict.why else ""
        link = f"\n       {check.page}/{verdict.link}"
        link = when(verdict.state != "held" and check.page is not None, link)
        yield verdict.state, f"{_with_phase(verdict)}  is {verdict.seen}{why}{link}"


def _with_phase(verdict: RuleOutcome) -> str:
    """Return the rule with its phase, if its text does not name it."""
    named = verdict.rule.startswith(f"{verdict.phase}.")
    return verdict.rule if named else f"{verdict.rule} ({verdict.phase})"


def junit_xml(check: Check) -> bytes:
    """Return JUnit XML with one test case per verdict.

    An undecided verdict is a failure, or skipped where the check allows it.
    """
    skipped = len(check.undecided) if check.allow_undecided else 0
    bad = ("failed",) if check.allow_undecided else ("failed", "undecided")
    failures = sum(v.state in bad for v in check.verdicts)
    suite = ElementTree.Element(
        "testsuite",
        name="prunescope check",
        tests=str(len(check.verdicts)),
        failures=str(failures),
        skipped=str(skipped),
    )
    for verdict in check.verdicts:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"prunescope.{clean(verdict.phase)}",
            name=clean(verdict.rule),
        )
        outcome = clean(f"{verdict.state}: {verdict.seen} {verdict.why}".rstrip())
        if verdict.state in bad:
            ElementTree.SubElement(case, "failure", message=outcome)
        elif verdict.state == "undecided":
            ElementTree.SubElement(case, "skipped", message=outcome)
    text: bytes = ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)
    return text + b"\n"
