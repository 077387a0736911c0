"""An op, a finding and a device that nobody has heard of: a function, a function, a row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import prunescope
from prunescope.analysis.device import hardware
from prunescope.analysis.findings import registry
from prunescope.analysis.findings.context import Context
from prunescope.analysis.findings.registry import Found, finding
from prunescope.analysis.ops import matmul
from prunescope.analysis.ops.call import MODELS, USUAL_KINDS, OpCall, Work, op_model
from prunescope.analysis.ops.work import work_of
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report.markdown import render_markdown
from prunescope.cli import app
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.gemm import Gemm
from tests.chrome import chrome, k, op, save, step

TRACES = Path(__file__).resolve().parents[2] / "traces"
OP = "zebra::weave"
# The row that would stand in analysis/device/devices.json; the sheet's units.
DEVICE: dict[str, Any] = {
    "name": "zebra-1", "aliases": ["Stripes Zebra One 40GB"], "vendor": "stripes",
    "architecture": "hopper", "dense_tflop_per_s": {"bf16": 100, "fp32": 10}, "gb_per_s": 1000,
    "memory_gb": 40, "sm": 50, "source": "https://example.org/zebra.pdf", "verified": False,
}  # fmt: skip


@pytest.fixture
def _zebra() -> Iterator[None]:
    """The function that would stand in analysis/ops/serving.py."""

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


def test_a_finding_is_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.registered()  # imports the modules, which register in the table that stays
    monkeypatch.setattr(registry, "FINDINGS", dict(registry.FINDINGS))

    @finding("stripes", "info")
    def stripes(c: Context) -> Found | None:
        """Report that the phase has stripes."""
        return Found(text=f"{len(c.phase.gemms)} stripes", evidence=[])

    report = analyze(next(TRACES.glob("tiny-*"))).report
    for phase in report.phases.values():
        assert phase.findings[-1].text == f"{len(phase.gemms)} stripes"
    assert f"{len(phase.gemms)} stripes" in render_markdown(report)
    rules = ["findings.stripes == 1", "findings.info >= 1"]
    assert prunescope.check(report, require=rules).passed
    with pytest.raises(RuntimeError, match="'stripes'"):
        finding("stripes", "info")(stripes)


@pytest.fixture
def _zebra_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table with the row at its end, read as at start-up."""
    table = hardware._table()
    table["devices"].append(DEVICE)
    monkeypatch.setattr(hardware, "DEVICES", hardware._load(table))
    monkeypatch.setattr(hardware, "_BY_NAME", hardware._index())
    monkeypatch.setattr(hardware, "_BY_WORDS", hardware._index_of_words())


@pytest.fixture
def zebra_trace(tmp_path: Path) -> Path:
    """A GEMM on the device, under the name that kineto writes."""
    gemm = op("aten::mm", [64, 512], [512, 256], kernels=[k(us=10, name="ampere_sgemm_128x64_nn")])
    trace = chrome(step(0, gemm))
    trace["deviceProperties"] = [{"id": 0, "name": DEVICE["aliases"][0]}]
    return save(trace, tmp_path / "zebra.json")


def test_without_its_row_a_device_has_no_peaks(zebra_trace: Path) -> None:
    with pytest.raises(PrunescopeError, match="no device is called 'zebra-1'"):
        hardware.find_device("zebra-1")
    assert analyze(zebra_trace).report.device["peaks"] is None


@pytest.mark.usefixtures("_zebra_one")
def test_a_device_is_one_row(zebra_trace: Path) -> None:
    for name in ("zebra-1", "ZEBRA-1", "Stripes Zebra One 40GB", "Stripes Zebra-One (40GB)"):
        assert hardware.find_device(name).name == "zebra-1"
    used = analyze(zebra_trace).report.device
    assert (used["name"], used["source"], used["measured"]) == ("zebra-1", DEVICE["source"], False)
    assert used["peaks"] is not None
    assert used["peaks"]["dense_flop_per_s"] == {"bf16": 1e14, "fp32": 1e13}
    assert used["peaks"]["byte_per_s"] == 1e12
    listed = CliRunner().invoke(app, ["devices", "--json", "-"])
    assert json.loads(listed.stdout)["devices"][-1]["name"] == "zebra-1"
    shown = CliRunner().invoke(app, ["devices"]).stdout
    assert [row for row in shown.splitlines() if "zebra-1" in row]
