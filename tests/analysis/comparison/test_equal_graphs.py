"""Launches on one side and graph replays on the other, of one model, without shapes or modules."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Phase
from prunescope.analysis.summary.headline import headline
from tests.analysis.trace.test_nsys import GRAPH, kernel, launch, made, process
from tests.nsys import Export

_GEMM, _NORM = "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_cublas", "rms_norm_f32"
_FLASH = "pytorch_flash::flash_fwd_kernel<float>"
# Of a layer, with their ns: q, k, v, attention, o, gate, up, down.
_LAYER = [(_NORM, 10), *[(_GEMM, 100)] * 3, (_FLASH, 80), (_GEMM, 100), (_NORM, 10),
          *[(_GEMM, 300)] * 3]  # fmt: skip
_STEPS, _LAYERS, _GAP = 6, 4, 20
_STEP = 100_000  # ns from one to the next


def eager(export: Export) -> None:
    _fill(export, "eager")


def nodes(export: Export) -> None:
    _fill(export, "nodes")


def whole_graphs(export: Export) -> None:
    _fill(export, "whole")


def _fill(export: Export, how: str) -> None:
    """The kernels of each step, launched one by one or by a graph, whose kernels are recorded or
    are one interval."""
    for i in range(_STEPS):
        begin = at = (i + 1) * _STEP
        corr = 100 * (i + 1)
        if how != "eager":
            launch(export, begin - 500, begin - 400, corr=corr, name="cudaGraphLaunch")
        for place, (name, ns) in enumerate(_LAYER * _LAYERS):
            if how == "eager":
                corr += 1
                launch(export, begin - 500 + 10 * place, begin - 495 + 10 * place, corr=corr)
            if how != "whole":
                node = {"graphNodeId": 1 + place} if how == "nodes" else {}
                kernel(export, at, at + ns, corr=corr, name=name, **node)
            at += ns + _GAP
        if how == "whole":
            row = {"start": begin, "end": at - _GAP, "correlationId": corr, "streamId": 7,
                   "globalPid": process(7), "graphId": 3}  # fmt: skip
            export.add(GRAPH, [row])


def compared(tmp_path: Path, dense: object, pruned: object) -> Phase:
    files = [made(tmp_path / f"{name}.sqlite", fill)  # type: ignore[arg-type]
             for name, fill in (("dense", dense), ("pruned", pruned))]  # fmt: skip
    return analyze(files[1], baseline=files[0]).report.phases["trace"]


@pytest.mark.parametrize("sides", [(eager, nodes), (nodes, eager)])
def test_replays_of_what_the_other_side_launches_are_no_added_work(
    sides: tuple[object, object], tmp_path: Path
) -> None:
    phase = compared(tmp_path, *sides)
    assert phase.ledger is not None
    rows = {row.row: row.ns for row in phase.ledger}
    assert (rows["added_work"], rows["launch_idle"], rows["not_explained"]) == (0, 0, 0)
    assert "added-work" not in {finding.id for finding in phase.findings}
    assert any("replays a graph" in note for note in phase.notes)


def test_graphs_recorded_whole_say_nothing_of_their_work(tmp_path: Path) -> None:
    phase = compared(tmp_path, whole_graphs, whole_graphs)
    assert phase.ladder is not None
    assert phase.ladder.coverage is None
    rows = {row.row: row.ns for row in phase.ledger or ()}
    assert (rows["coverage"], rows["kernel_efficiency"]) == (None, None)
    assert rows["not_explained"] == 0
    assert headline(phase).startswith("no shapes, so what was pruned is unknown")


@pytest.mark.parametrize("other", [eager, nodes])
@pytest.mark.parametrize("swapped", [False, True])
def test_graphs_recorded_whole_do_not_compare_with_kernels(
    other: object, swapped: bool, tmp_path: Path
) -> None:
    sides = (other, whole_graphs) if swapped else (whole_graphs, other)
    phase = compared(tmp_path, *sides)
    rows = {row.row: row.ns for row in phase.ledger or ()}
    assert rows["added_work"] == 0
    assert "CUDA graphs: " in headline(phase)
    assert "is no speedup: not comparable" in headline(phase)
    assert phase.comparison is not None
    assert not phase.comparison.one_sided
