"""What a ledger says where shapes, or the peaks of the device, are not known: nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import prunescope
from prunescope.analysis.report.ledger_view import ledger_notes
from prunescope.analysis.schema.report import Phase
from tests.analysis.finding_cases import BF16
from tests.chrome import chrome, module, op, save, step

WORK = ("coverage", "roofline_shift", "shape", "kernel_efficiency")
SHAPES = ("Input Dims", "Input Strides", "Concrete Inputs", "Input type")


def model(layers: int, *, width: int = 64, us: float = 40.0) -> dict[str, Any]:
    """A CPU trace of layers of an MLP, and a head of `us`."""

    def layer(i: int) -> list[Any]:
        sizes = {"up": (width, 32), "down": (32, width)}
        return [
            module(f"model.layers.{i}.mlp.{name}_proj",
                   op("aten::mm", [8, k], [k, n], dtype=BF16, us=10 + i))
            for name, (n, k) in sizes.items()
        ]  # fmt: skip

    head = module("lm_head", op("aten::mm", [8, 32], [32, 512], dtype=BF16, us=us))
    items = [item for i in range(layers) for item in layer(i)]
    return chrome(step(0, *items, head), cpu=True)


def without_shapes(trace: dict[str, Any]) -> dict[str, Any]:
    for event in trace["traceEvents"]:
        for key in SHAPES:
            event.get("args", {}).pop(key, None)
    return trace


def compared(tmp_path: Path, dense: dict[str, Any], pruned: dict[str, Any], **options: Any) -> Any:
    a, b = save(dense, tmp_path / "dense.json"), save(pruned, tmp_path / "pruned.json")
    return prunescope.analyze(b, baseline=a, **options)


def closes(phase: Phase) -> None:
    rows = {row.row: row for row in phase.ledger or []}
    total = sum(row.moves_ns for name, row in rows.items() if name not in ("dense", "pruned"))
    assert total == pytest.approx(rows["pruned"].ns)


def unknown(phase: Phase) -> list[str]:
    return [row.row for row in phase.ledger or [] if row.ns is None]


def test_layers_that_are_gone_tell_nothing_of_those_that_remain(tmp_path: Path) -> None:
    """Four of six layers run, of half their width for all that anybody knows."""
    dense, pruned = model(6), model(4, us=15.0)
    phase = compared(tmp_path, *map(without_shapes, (dense, pruned))).phases["trace"]
    assert unknown(phase) == list(WORK)
    closes(phase)
    assert phase.ladder is not None and phase.family is not None
    assert phase.ladder.coverage is None and phase.ladder.roofline is None
    assert phase.ladder.share_of_bound is None
    assert phase.family.id == "static-m" and phase.family.confidence <= 0.5
    assert any("no change of M, N or K can be detected" in line for line in phase.family.evidence)
    assert "above-bound" not in {finding.id for finding in phase.findings}


@pytest.mark.parametrize("lacking", ["dense", "pruned"])
def test_shapes_of_one_side_tell_no_axis(tmp_path: Path, lacking: str) -> None:
    sides = {"dense": model(6), "pruned": model(5, width=48)}
    sides[lacking] = without_shapes(sides[lacking])
    report = compared(tmp_path, sides["dense"], sides["pruned"])
    phase = report.phases["trace"]
    first = report.warnings[0]
    assert "only one side recorded shapes" in first and f"{lacking}.json has none" in first
    assert "record_shapes=True" in first
    assert {gemm.axis for gemm in phase.gemms} <= {"unknown", "gone"}
    assert unknown(phase) == list(WORK)
    closes(phase)
    assert next(row for row in phase.ledger if row.row == "added_work").ns == 0
    assert phase.family is not None and phase.family.confidence <= 0.5


def test_without_peaks_there_is_no_roofline(tmp_path: Path) -> None:
    sides = model(6), model(6, width=32, us=35.0)
    phase = compared(tmp_path, *sides).phases["trace"]
    assert unknown(phase) == ["roofline_shift", "shape"]
    closes(phase)
    ladder = phase.ladder
    assert ladder is not None and ladder.coverage is not None
    assert ladder.roofline is None and ladder.share_of_bound is None
    assert ladder.roofline_ci95 is None and ladder.share_of_bound_ci95 is None
    (note, *_) = ledger_notes(phase.ledger or [])
    assert note.startswith("roofline shift, shape: unknown without the peaks")
    told = compared(tmp_path, *sides, peaks={"bf16": 1.0}, bandwidth=10.0).phases["trace"]
    assert unknown(told) == [] and told.ladder is not None and told.ladder.roofline
    assert {r.row: r.ns for r in phase.ledger or []}["coverage"] == pytest.approx(
        {r.row: r.ns for r in told.ledger or []}["coverage"]
    )


def test_a_small_known_part_promises_nothing_of_the_rest(tmp_path: Path) -> None:
    """One product of 10 us is half as wide; what an op of 90 us does, nobody knows: nothing was
    promised, and what may have shrunk is not called untouched."""

    def trace(width: int, us: float) -> dict[str, Any]:
        return chrome(
            step(0, op("mine::recurrent", [8, width], us=us),
                 op("aten::mm", [8, width], [width, 512], dtype=BF16, us=10)),
            cpu=True,
        )  # fmt: skip

    phase = compared(tmp_path, trace(64, 90), trace(32, 50)).phases["trace"]
    rows = {row.row: row for row in phase.ledger or []}
    assert rows["promised"].ns == rows["dense"].ns
    assert phase.ladder is not None
    assert phase.ladder.flop is None and phase.ladder.nominal is None
    assert not any("untouched" in part.name for part in rows["coverage"].parts)
    closes(phase)
