"""The code of repairs in a report of a trace, which cannot be run again: not proven there."""

from __future__ import annotations

import ast
import io
import re
from pathlib import Path

import msgspec
from rich.console import Console

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report.html import render_html
from prunescope.analysis.report.markdown import render_markdown
from prunescope.analysis.report.sentences import code_to_try
from prunescope.analysis.report.terminal import print_report
from prunescope.analysis.schema.report import Report

STORY = Path(__file__).resolve().parents[3] / "traces" / "stories" / "masks"


def masked() -> Report:
    return analyze(STORY / "masked.json.gz", baseline=STORY / "dense.json.gz").report


def printed(report: Report, *, full: bool) -> str:
    console = Console(file=io.StringIO(), width=80)
    print_report(report, console, full=full)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_every_format_has_the_same_code() -> None:
    report = masked()
    finding = next(iter(report.phases.values())).finding("added-mask")
    assert finding is not None and finding.repairs == ["remove-parametrisations", "bake-masks"]

    markdown = render_markdown(report)
    (code,) = re.findall(r"```python\n(.*?)```", markdown, re.DOTALL)
    ast.parse(code)
    assert "def repair(model):" in code
    full = printed(report, full=True)
    assert all(line in full for line in code.splitlines() if line.strip())
    brief = printed(report, full=False)
    assert "def repair" not in brief and "not proven here" in brief
    page = render_html(report)
    assert "def repair(model):" in page and "not proven here" in page


def test_faults_that_come_together_are_repaired_together() -> None:
    """Masks come before adapters, in whatever order the findings stand."""
    phase = next(iter(masked().phases.values()))
    masks = phase.finding("added-mask")
    assert masks is not None
    adapters = msgspec.structs.replace(masks, id="added-adapter", repairs=["merge-adapters"])
    aside = msgspec.structs.replace(masks, severity="info", repairs=["sdpa"])
    code = code_to_try(msgspec.structs.replace(phase, findings=[adapters, masks, aside]))
    assert code is not None
    assert code[0].startswith("Code to try for added-adapter, added-mask (not proven here")
    assert 0 < code[1].index("model = bake_masks(") < code[1].index("model = merge_adapters(")
    assert "use_sdpa" not in code[1]


def test_a_report_without_a_repair_has_no_code() -> None:
    report = analyze(STORY / "removed.json.gz", baseline=STORY / "dense.json.gz").report
    assert "not proven here" not in render_markdown(report)
