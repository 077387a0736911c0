"""What is said of quantised pairs, of compiled ones and of products that were added."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import prunescope
from prunescope.analysis.comparison.differences import other_formats
from prunescope.analysis.report.ledger_view import ladder_table
from prunescope.analysis.report.titles import title
from prunescope.analysis.schema.report import Phase, Report
from prunescope.analysis.summary.evidence import (
    NOT_COMPARABLE,
    bound_reasons,
    ledger_reasons,
    phase_reasons,
)
from prunescope.analysis.summary.headline import headline
from prunescope.analysis.summary.paragraph import summary
from prunescope.rules import check_report, parse_rules
from tests.analysis.decoder import write_pair
from tests.analysis.finding_cases import found, layers, mm, pointwise, report
from tests.chrome import chrome, module, op, save, step

M, K, INT8 = 64, 256, "signed char"


def linear(us: float, *, int8: bool) -> Any:
    if int8:
        shapes = ([M, K], [], [], [K, K], [K])
        dtypes = (INT8, "Scalar", "Scalar", INT8, "float")
        return op("onednn::qlinear_pointwise", *shapes, dtypes=dtypes, us=us)
    return op("aten::addmm", [K], [M, K], [K, K], [], [], us=us)


def quantised(tmp_path: Path, sparsity: float | None) -> Phase:
    """Four equal linears a step, of 400 us in fp32 and of 100 us in int8."""
    sides = [(400, False), (100, True)]
    traces = [
        chrome(*[step(i, *[linear(us, int8=int8)] * 4) for i in range(2)], cpu=True)
        for us, int8 in sides
    ]
    paths = [save(t, tmp_path / f"{n}.json") for t, n in zip(traces, "ab", strict=True)]
    return prunescope.analyze(paths[1], baseline=paths[0], sparsity=sparsity).phases["trace"]


def test_flops_at_two_rates_allow_no_speedup(tmp_path: Path) -> None:
    """4 × 400 us against 4 × 100 us of as many FLOPs: 4×, which no FLOPs at one rate allow."""
    phase = quantised(tmp_path, None)
    assert phase.comparison is not None and phase.comparison.formats == ("fp32", "int8")
    assert headline(phase).startswith(
        "not comparable as a pruning: GEMMs in int8 against fp32; 4.00× is no speedup"
    )
    assert "FLOPs allow" not in headline(phase)
    assert "What to change: quantise the dense model too, to int8" in summary(phase)


def test_nothing_realised_is_a_share_of_flops_at_two_rates(tmp_path: Path) -> None:
    table = ladder_table(quantised(tmp_path, None))
    assert table is not None
    column = [column.title for column in table.columns].index("share realised")
    assert {row[column].text for row in table.rows} == {"–"}


def test_a_promise_stays_one(tmp_path: Path) -> None:
    assert headline(quantised(tmp_path, 0.5)).endswith("4.00× is no speedup; 2.00× was promised")


def in_formats(tmp_path: Path, *formats: tuple[str, str], us: float = 200) -> Report:
    """Run six steps of one linear per format, dense and pruned.

    A dense step takes 400 us and a pruned one `us`.
    """
    paths = []
    for side, whole in enumerate((400, us)):
        linears = [
            op("aten::mm", [M, K], [K, K], dtypes=(pair[side],) * 2, us=whole / len(formats))
            for pair in formats
        ]
        trace = chrome(*[step(i, *linears) for i in range(6)], cpu=True)
        paths.append(save(trace, tmp_path / f"{side}.json"))
    return prunescope.analyze(paths[1], baseline=paths[0])


HALVES = ("c10::Half", "c10::BFloat16")


@pytest.mark.parametrize("us", [200, 400])
def test_formats_that_differ_are_a_difference_everywhere(tmp_path: Path, us: float) -> None:
    """bf16 against fp16, at 2× and at 1×, is a difference that every output tells.

    No gate passes, pictures are hatched, and the paragraph begins with it.
    """
    report = in_formats(tmp_path, HALVES, us=us)
    phase = report.phases["trace"]
    assert phase.comparison is not None and not phase.is_speedup
    (difference,) = phase.comparison.differences
    assert (difference.kind, difference.dense, difference.pruned) == ("dtype", "fp16", "bf16")
    checked = check_report(report, parse_rules(["realised >= 0.9"]))
    assert checked.verdicts[0].state == "undecided"
    assert phase_reasons(phase)[0] == ledger_reasons(phase)[0] == NOT_COMPARABLE
    assert bound_reasons(phase)["realised"][0] == NOT_COMPARABLE
    text = summary(phase)
    assert text.startswith("not comparable as a pruning: GEMMs in bf16 against fp16; ")
    assert text.endswith("What to change: compare with a dense model that runs in bf16.")


@pytest.mark.parametrize(
    ("formats", "setting"),
    [
        ([("fp32", "tf32")], ("fp32", "tf32")),  # all of them: a flag
        ([("fp32", "tf32"), ("fp32", "fp32")], None),  # some of them: picked for their shapes
        ([("bf16", "fp8"), ("bf16", "bf16")], ("bf16", "fp8")),
        ([("bf16", "bf16")], None),
    ],
)
def test_tf32_for_some_shapes_is_no_setting(
    formats: list[tuple[str, str]], setting: tuple[str, str] | None
) -> None:
    assert other_formats(set(formats)) == setting


def test_ops_tell_the_format_of_a_run_whose_manifest_names_that_of_its_parameters(
    tmp_path: Path,
) -> None:
    """A captured model in fp32 whose up has half its rows and whose linears are packed in int8."""

    def linear_of(n: int, *, int8: bool) -> Any:
        if not int8:
            return op("aten::addmm", [n], [M, K], [K, n], [], [], us=100)
        shapes = ([M, K], [], [], [K, n], [n])
        dtypes = (INT8, "Scalar", "Scalar", INT8, "float")
        return op("onednn::qlinear_pointwise", *shapes, dtypes=dtypes, us=100)

    def model(n: int, *, int8: bool) -> Any:
        scopes = [
            module(f"model.layers.{i}.mlp.up_proj", linear_of(n, int8=int8)) for i in range(4)
        ]
        return chrome(*[step(i, *scopes) for i in range(2)], cpu=True)

    dense, pruned = model(K, int8=False), model(K // 2, int8=True)
    report = prunescope.analyze(write_pair(tmp_path, dense, pruned, both_dtype="fp32") / "pruned")
    phase = report.phases["prefill"]
    assert phase.comparison is not None and not phase.is_speedup
    (difference,) = phase.comparison.differences
    assert (difference.kind, difference.dense, difference.pruned) == ("dtype", "fp32", "int8")
    assert "GEMMs in int8 against fp32; 1.00× is no speedup" in headline(phase)
    assert any(finding.id == "not-comparable" for finding in phase.findings)
    assert " · int8 products, fp32 else · " in title(report)


def test_added_products_are_no_routing(tmp_path: Path) -> None:
    """A second product of 100 us in each of two layers."""
    up = ("mlp.up_proj", mm())
    told = report(tmp_path, layers(up), layers(up, ("mlp.extra", mm(n=512))))
    finding = found(told, "added-work")
    assert finding is not None and finding.change is not None
    assert finding.predicted_ns == pytest.approx(2 * 100_000)
    assert "GEMMs" in finding.change
    assert "routing" not in finding.change and "gather" not in finding.change


def test_added_pointwise_work_is_to_be_fused(tmp_path: Path) -> None:
    up = ("mlp.up_proj", mm())
    more = ("mlp.up_proj", [mm(), pointwise("aten::sin", [512, 4096], us=30)])
    finding = found(report(tmp_path, layers(up), layers(more)), "added-work")
    assert finding is not None and finding.change is not None
    assert finding.change.startswith("fuse the pointwise kernels named")
    assert finding.change.endswith(" (the largest: elementwise_kernel)")
