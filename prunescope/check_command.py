"""The command `check`: in, a run, trace or report.json and rules; out, a line a rule, JSON, JUnit
XML, and exit code 3 where a rule fails. Imported with the command line itself: nothing heavy here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from xml.etree import ElementTree

import typer

from prunescope.command_options import Json, Option

if TYPE_CHECKING:
    from prunescope.rules import Check

_MARKS = {"held": ("ok", "green"), "failed": ("FAILED", "bold red"), "undecided": ("?", "yellow")}


def register_check(app: typer.Typer) -> None:
    """Add `check` to the app."""
    app.command("check")(_check)


def _check(
    subject: Annotated[
        Path, typer.Argument(metavar="RUN|TRACE|REPORT.json", help="What the rules are about.")
    ],
    *,
    require: Annotated[
        list[str], Option("--require", "-r", metavar="RULE", help="PATH OP VALUE; repeatable.")
    ],
    baseline: Annotated[Path | None, Option(metavar="RUN|TRACE", help="The dense side.")] = None,
    strict: Annotated[bool, Option("--strict", help="Undecided rules fail too.")] = False,
    junit: Annotated[Path | None, Option(metavar="FILE.xml", help="JUnit XML for CI.")] = None,
    json_target: Json = None,
) -> None:
    """Hold a run to rules, as a gate of CI; exit code 3 where one fails.

    A path is a metric, or PHASE.metric: realised, nominal, flop, coverage, roofline, busy,
    share_of_bound, family, wall, tokens_per_s, weight_bytes, kv_bytes, peak_memory_bytes,
    ledger.ROW, sparsity.NAME, findings, findings.SEVERITY, findings.ID. Where the 95 % interval of
    a value holds both answers, the rule is undecided; so is every rule of a partial report, and
    one on a speedup or a ledger row where dense and pruned do not compare.

    \b
    prunescope check traces/first --require 'prefill.realised >= 1.2'
    prunescope check traces/first -r 'family == static-m' -r 'decode.ledger.added_work <= 5%'
    prunescope check traces/first/report/report.json -r 'findings.critical == 0' --junit check.xml
    """
    from rich.text import Text

    from prunescope.analysis.report.escape import clean
    from prunescope.output import check_target, emit_json, tell
    from prunescope.rules import check_report, lines, parse_rules, report_of

    check_target(json_target)
    check_target(junit)
    rules = parse_rules(require)  # a mistake in them is named before the analysis
    found = check_report(report_of(subject, baseline), rules)
    shown = Text()
    for state, line in lines(found):
        mark, style = _MARKS[state]
        shown.append(f"{mark:6} ", style).append(clean(line) + "\n")
    shown.rstrip()
    if junit is not None:
        emit_json(junit_xml(found, strict=strict), junit)
    tell(found.to_dict(), json_target, people=shown)
    if not found.passed or (strict and not found.decided):
        raise typer.Exit(3)


def junit_xml(check: Check, *, strict: bool) -> bytes:
    """One test case a verdict; what is undecided is skipped, or with `strict` a failure."""
    from prunescope.analysis.report.escape import clean

    bad = ("failed", "undecided") if strict else ("failed",)
    failures = sum(v.state in bad for v in check.verdicts)
    skipped = sum(v.state == "undecided" for v in check.verdicts) if not strict else 0
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
        said = clean(f"{verdict.state}: {verdict.seen}{' ' * bool(verdict.why)}{verdict.why}")
        if verdict.state in bad:
            ElementTree.SubElement(case, "failure", message=said)
        elif verdict.state == "undecided":
            ElementTree.SubElement(case, "skipped", message=said)
    text: bytes = ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)
    return text + b"\n"
