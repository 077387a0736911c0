"""The appendix: how it was measured, as the page has it, and the checklist of a conference."""

from __future__ import annotations

import datetime
import re

import msgspec
import pytest

from prunescope.analysis.report.appendix import setting_table
from prunescope.analysis.report.checklist import (
    AUTHORS,
    NO,
    YES,
    checklist,
    report_checklist,
    sweep_checklist,
)
from prunescope.analysis.report.html import render_html
from prunescope.analysis.report.latex import latex_files
from prunescope.analysis.report.markdown import render_markdown
from prunescope.analysis.report.measured import lines
from prunescope.analysis.report.pareto_tables import render_pareto
from prunescope.analysis.report.view import Table
from prunescope.analysis.schema.report import Finding, Report
from prunescope.analysis.schema.workload import PhaseWorkload
from tests.analysis.report import example
from tests.analysis.results_pareto import study
from tests.stored import report_of

WORKLOAD = PhaseWorkload(
    batch=4, prompt_len=512, context=512, dtype="bf16", mode="eager", device="AMD EPYC", threads=2,
    on_host=True, new_tokens=512, attention="sdpa", cache="dynamic", logits="last", warmup=3,
    order="alternating", inputs="random token ids", seed=7, placements=8, disturbed=1,
    clocks_hz={"core_hz": [2.6e9, 2.5e9]},
)  # fmt: skip


def run() -> Report:
    report = example.two_phases()
    report.subject |= {"argv": ["trace", "--model", "m"], "versions": {"torch": "2.13"},
                       "seeds": {"inputs": 7}}  # fmt: skip
    for phase in report.phases.values():
        phase.workload = WORKLOAD
    return report


def answers(table: Table) -> dict[int, tuple[str, str]]:
    return {
        int(row[0].text.partition(".")[0]): (row[1].text, row[2].text) for row in table.rows
    }  # fmt: skip


def test_the_appendix_has_order_clocks_and_warm_up() -> None:
    report = run()
    table = setting_table("prefill", report.phases["prefill"], report)
    facts = {row[0].text: row[1].text for row in table.rows}
    assert facts["order of samples"] == "alternating: dense and pruned in turns"
    assert facts["clocks"] == "clocks: core 2.60 GHz before, 2.50 GHz after"
    assert facts["warm-up"] == "3 samples discarded" and facts["disturbed"].startswith("1 sample ")
    assert facts["token ids"] == "random token ids, seed 7"
    assert "batch 4, 512 tokens, bf16, AMD EPYC, 2 threads" in facts["setting"]
    text = latex_files(report)["table-measured-prefill.tex"]
    assert r"\begin{table*}" in text and "core 2.60 GHz before" in text
    page = [line for line in lines(report.phases["prefill"]) if line.startswith("run: ")]
    assert page == [
        "run: order of samples: alternating; 3 samples discarded as warm-up; clocks: core 2.60 GHz "
        "before, 2.50 GHz after"
    ]
    for line in lines(report.phases["prefill"]):
        assert text.count(r"\item") >= 8 and line[:12].replace("%", r"\%") in text


def test_what_a_trace_does_not_tell_is_not_there() -> None:
    report = example.alone()
    (name,) = report.phases
    table = setting_table(name, report.phases[name], report)
    assert {"clocks", "warm-up", "command"}.isdisjoint(row[0].text for row in table.rows)
    assert not any(line.startswith("run: ") for line in lines(report.phases[name]))


def test_the_checklist_is_dated_and_whole() -> None:
    known = checklist()
    assert [entry["number"] for entry in known["items"]] == list(range(1, 17))
    assert datetime.date.fromisoformat(known["read"]) and known["source"].startswith("https://")
    (note,) = report_checklist(run()).notes
    assert known["read"] in note and known["source"] in note


def test_a_checklist_says_what_the_run_knows_and_no_more() -> None:
    known = answers(report_checklist(run()))
    assert known[4] == (YES, "model SmolLM2-135M; prunescope trace --model m; seeds: inputs 7; "
                             "torch 2.13")  # fmt: skip
    assert known[7][0] == YES and "ratio of medians, n = 20" in known[7][1]
    assert known[8][0] == AUTHORS and "2 threads" in known[8][1]
    assert all(known[number] == (AUTHORS, "") for number in (1, 3, 9, 10, 11, 13, 14, 15, 16))
    bare = answers(report_checklist(example.alone()))
    assert bare[4][0] == NO and bare[7][0] == NO


def test_results_that_are_no_evidence_are_counted() -> None:
    report = run()
    invalid = Finding(id="timing-not-valid", severity="critical", text="x", evidence=[],
                      change=None, predicted_ns=None)  # fmt: skip
    report.phases["decode"] = msgspec.structs.replace(report.phases["decode"], findings=[invalid])
    answer, reason = answers(report_checklist(report))[7]
    assert answer == NO and reason.startswith("1 of 2 results are valid")
    assert answers(sweep_checklist(study()))[7][1].startswith("15 of 16 results are valid")
    assert "Checklist of NeurIPS 2025" in render_pareto(study())


def test_the_sentence_is_on_the_pages_and_a_file_of_its_own() -> None:
    report = report_of("tiny-static-nk")
    for name, phase in report.phases.items():
        assert phase.answer is not None and phase.answer.sentence is not None
        begin = phase.answer.sentence[:40]
        text = latex_files(report)[f"sentence-{name}.tex"]
        assert text.startswith(begin) and text.endswith("%\n") and text.count("\n") == 1
        assert begin in render_markdown(report) and begin in render_html(report)


@pytest.mark.parametrize("kind", ["table-measured-", "checklist"])
def test_hostile_strings_stay_text(kind: str) -> None:
    files = latex_files(example.hostile(run()))
    text = next(text for name, text in files.items() if name.startswith(kind))
    assert text.isascii() and r"\input{x}" not in text and "<img" not in text
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    longest = max(re.findall(r"[A-Za-z0-9]+", text), key=len)
    assert len(longest) < 40


def test_tables_of_a_paper_have_the_digits_of_their_intervals() -> None:
    """[8.90, 9.60] ms bears hundredths; [1.22, 1.24] thousandths."""
    text = latex_files(run())["table-ledger-prefill.tex"]
    assert "coverage & +9.20 & +6.6 & [8.90, 9.60]" in text
    text = latex_files(run())["table-ladder-prefill.tex"]
    assert "coverage bound & 1.230 & [1.220, 1.240]" in text
