"""The outcome of `check` for a terminal and as Markdown, and the options that `analyze` shares."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunescope.analysis.report.escape import clean, markdown
from prunescope.output_options import CheckOptions
from prunescope.taxonomy.atomic_write import append_file

if TYPE_CHECKING:
    from rich.text import Text

    from prunescope.rules import Check, RuleOutcome

_MARKS = {"held": "✅ held", "failed": "❌ failed", "undecided": "❔ undecided"}


_LOOKS = {"held": ("ok", "green"), "failed": ("FAILED", "bold red"), "undecided": ("?", "yellow")}


def outcome_text(outcome: Check, *, tells_undecided: bool) -> Text:
    """Return the verdicts as lines with marks, and which rules were not decided."""
    from rich.text import Text

    from prunescope.rules import verdict_lines

    shown = Text()
    for state, line in verdict_lines(outcome):
        mark, style = _LOOKS[state]
        shown.append(f"{mark:6} ", style).append("\n".join(map(clean, line.split("\n"))) + "\n")
    if outcome.undecided and tells_undecided:
        count = f"{len(outcome.undecided)} of {len(outcome.verdicts)}"
        shown.append(f"{count} not decided: {clean('; '.join(outcome.undecided))}\n")
    shown.rstrip()
    return shown


def summary_text(outcome: Check) -> str:
    """Return the verdicts as a Markdown table."""
    rows = [
        f"| {_MARKS[verdict.state]} | {markdown(verdict.rule)} | {markdown(verdict.phase)} "
        f"| {markdown(verdict.seen)} | {markdown(_why(outcome, verdict))} |"
        for verdict in outcome.verdicts
    ]
    passed = "all rules hold" if outcome.passed else "not all rules hold"
    head = [
        f"### prunescope check: {passed}",
        "",
        "| | rule | phase | is | |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*head, *rows, ""]) + "\n"


def _why(outcome: Check, verdict: RuleOutcome) -> str:
    """Return why a rule is as it is, with a link into the page where it did not hold."""
    shows = outcome.page is not None and verdict.state != "held"
    return " ".join([verdict.why, *([f"{outcome.page}/{verdict.link}"] if shows else [])])


def write_outcome(outcome: Check, *, junit: Path | None, summary: Path | None) -> None:
    """Write the verdicts as JUnit XML, and append them to a Markdown file, as CI shows it."""
    from prunescope.output import write_target
    from prunescope.rules import junit_xml

    if junit is not None:
        write_target(junit_xml(outcome), junit)
    if summary is not None:
        append_file(summary, summary_text(outcome).encode())


def given_options(options: CheckOptions) -> dict[str, Any]:
    """Return the options that `prunescope.check` takes of a command's."""
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
