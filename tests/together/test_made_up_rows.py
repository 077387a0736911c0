"""An op and a finding that nobody has heard of: one function, and for the finding its row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from prunescope.analysis.findings import checks
from prunescope.analysis.findings.context import Context
from prunescope.analysis.ops import matmul
from prunescope.analysis.ops.call import MODELS, USUAL_KINDS
from prunescope.analysis.ops.work import OpCall, Work, op_model, work_of
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report.markdown import render_markdown
from prunescope.analysis.schema.report import Finding
from prunescope.taxonomy.gemm import Gemm

TRACES = Path(__file__).resolve().parents[2] / "traces"
OP = "zebra::mm"


@pytest.fixture
def _zebra() -> Iterator[None]:
    """The function that would stand in analysis/ops/vendor_gemm.py."""

    @op_model(OP, kind="gemm")
    def zebra(call: OpCall) -> Work:
        return matmul.mm(call)

    yield
    del MODELS[OP], USUAL_KINDS[OP]


def test_without_its_function_an_op_has_no_work() -> None:
    assert work_of(OpCall(OP, ((4, 6), (6, 5)), ("float", "float"))) is None


@pytest.mark.usefixtures("_zebra")
def test_an_op_is_one_function() -> None:
    found = work_of(OpCall(OP, ((4, 6), (6, 5)), ("float", "float")))
    assert found is not None
    assert (found.flop, found.gemms) == (2 * 4 * 5 * 6, (Gemm(4, 5, 6),))


def test_a_finding_is_one_function_and_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def stripes(c: Context) -> Finding | None:
        return Finding(
            id="stripes", severity="info", text=f"{len(c.phase.gemms)} stripes", evidence=[],
            change=None, predicted_ns=None,
        )  # fmt: skip

    monkeypatch.setattr(checks, "CHECKS", (*checks.CHECKS, stripes))
    report = analyze(next(TRACES.glob("tiny-*"))).report
    for phase in report.phases.values():
        assert phase.findings[-1].text == f"{len(phase.gemms)} stripes"
    assert f"{len(phase.gemms)} stripes" in render_markdown(report)
