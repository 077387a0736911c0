"""Which rank a trace is of: by what it says, else by its name; and ranks that are not there."""

from __future__ import annotations

from pathlib import Path

import pytest

import prunescope
from prunescope.analysis.pipeline import analyze
from tests.analysis.trace.test_ranks import rank_trace
from tests.chrome import save


@pytest.mark.parametrize("behind", [False, True], ids=["in front", "behind the events"])
def test_the_rank_in_the_trace_counts_before_names(tmp_path: Path, *, behind: bool) -> None:
    """SGLang's names of two axes: tensor parallel 0 and 1, each for two data parallel ranks."""
    for rank in range(4):
        trace = rank_trace(5, 5, rank=rank)
        if behind:
            trace = {"traceEvents": trace.pop("traceEvents"), **trace}
        save(trace, tmp_path / f"17-TP-{rank % 2}-DP-{rank // 2}.trace.json.gz")
    report = analyze(tmp_path).report
    assert report.warnings == []
    assert not report.partial
    names = [f"rank{i}" for i in range(4)]
    if behind:
        names = [f"17-TP-{tp}-DP-{dp}" for tp in (0, 1) for dp in (0, 1)]
    assert list(report.phases) == names


def test_a_name_of_two_axes_alone_tells_no_rank(tmp_path: Path) -> None:
    for tp, dp in ((0, 0), (0, 1), (1, 0), (1, 1)):
        save(rank_trace(5, 5), tmp_path / f"17-TP-{tp}-DP-{dp}.trace.json.gz")
    assert analyze(tmp_path).report.warnings == []


def test_jobs_of_one_rank_each_go_by_their_names(tmp_path: Path) -> None:
    for rank in (0, 1):
        trace = rank_trace(5, 5, rank=0)
        trace["distributedInfo"]["world_size"] = 1
        save(trace, tmp_path / f"rank{rank}.json")
    report = analyze(tmp_path).report
    assert list(report.phases) == ["rank0", "rank1"]
    assert report.warnings == []


def test_one_trace_under_the_names_of_two_ranks_is_noticed(tmp_path: Path) -> None:
    for rank in (0, 1):
        save(rank_trace(5, 5, rank=0), tmp_path / f"rank{rank}.json")
    report = analyze(tmp_path).report
    assert any("several traces of rank 0" in w for w in report.warnings)
    assert any("lacks rank 1, 2, 3 of 4" in w for w in report.warnings)


def test_ranks_of_the_baseline_that_are_not_compared_are_not_missing(tmp_path: Path) -> None:
    dense, pruned = tmp_path / "d", tmp_path / "p"
    for folder, ranks in ((dense, 4), (pruned, 2)):
        folder.mkdir()
        for rank in range(ranks):
            save(rank_trace(5, 5, rank=rank), folder / f"rank{rank}.json")
    report = analyze(pruned, baseline=dense).report
    assert report.partial
    assert report.warnings == [
        "rank2, rank3: on one side only, left out",
        "p lacks rank 2, 3 of 4: statements on ranks are about the others",
    ]


def test_a_folder_that_lacks_a_rank_is_partial(tmp_path: Path) -> None:
    for rank in (0, 1, 3):
        save(rank_trace(5, 5, rank=rank), tmp_path / f"rank{rank}.json")
    assert analyze(tmp_path).report.partial
    assert prunescope.main(["analyze", str(tmp_path)]) == 3
    save(rank_trace(5, 5, rank=2), tmp_path / "rank2.json")
    assert prunescope.main(["analyze", str(tmp_path)]) == 0
