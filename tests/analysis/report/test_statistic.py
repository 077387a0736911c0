"""What a speedup is a ratio of, and whether placement in memory was drawn: of both sides."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from prunescope.analysis.findings.context import Context
from prunescope.analysis.findings.trust import no_speedup
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report import sentences
from prunescope.analysis.report.latex import render_latex
from prunescope.analysis.report.listings import read_runs, traced
from prunescope.analysis.schema.report import Phase
from prunescope.analysis.schema.sides import Unprofiled
from prunescope.taxonomy.run import Placement
from tests.analysis.report import example
from tests.analysis.run_folder import write_run
from tests.chrome import chrome, k, op, step

MS = 10**6
NOT_DRAWN = "was not drawn, which alone moves a model by 1 to 3 %"


def samples(placements: int, each: int = 2) -> Unprofiled:
    """An old run, of twelve samples, has no placements."""
    count = placements * each or 12
    plain = {"median": 121 * MS, "mean": 121 * MS, "ci95": [120 * MS, 122 * MS],
             "samples": [121 * MS] * count}  # fmt: skip
    return msgspec.convert(
        plain | ({"seatings": [each] * placements} if placements else {}), Unprofiled
    )


def compared(dense: int, pruned: int) -> Phase:
    phase = example.phase(unprofiled_ns=samples(pruned))
    assert phase.baseline is not None
    phase.baseline.unprofiled_ns = samples(dense)
    return phase


def test_both_drawn() -> None:
    assert sentences.statistic(compared(8, 8)) == (
        "ratio of means over 8 placements, of the medians of 16 unprofiled samples in all; "
        "95 % interval over placements"
    )
    assert sentences.statistic(compared(5, 8)) == (
        "ratio of the mean over 5 placements of the medians of 10 unprofiled samples (dense) to "
        "the mean over 8 placements of the medians of 16 unprofiled samples (pruned); "
        "95 % interval over placements"
    )


@pytest.mark.parametrize(
    ("requested", "why"),
    [
        (5, "5 placements were requested; more were added while the interval was wider than 8 %"),
        (16, "16 placements were requested; --repeats and --max-placements allow no more"),
    ],
)
def test_other_placements_than_were_requested(requested: int, why: str) -> None:
    phase = compared(8, 8)
    assert phase.unprofiled_ns is not None
    phase.unprofiled_ns.placements_requested = requested
    assert why in sentences.statistic(phase)


def test_an_old_baseline_beside_a_new_run() -> None:
    assert sentences.statistic(compared(0, 8)) == (
        "ratio of the median of 12 unprofiled samples (dense) to the mean over 8 placements of the "
        "medians of 16 unprofiled samples (pruned); 95 % bootstrap interval; "
        f"placement in memory of dense {NOT_DRAWN}"
    )


def test_a_new_baseline_beside_an_old_run() -> None:
    text = sentences.statistic(compared(8, 0))
    assert text.startswith("ratio of the mean over 8 placements of the medians of 16")
    assert text.endswith(f"placement in memory of pruned {NOT_DRAWN}")


def test_two_old_runs() -> None:
    assert sentences.statistic(compared(0, 0)) == (
        f"ratio of the medians of 12 unprofiled samples; 95 % bootstrap interval; "
        f"placement in memory {NOT_DRAWN}"
    )


@pytest.mark.parametrize(("placements", "says"), [(0, True), (8, False)])
def test_a_run_alone(placements: int, says: bool) -> None:
    plain = {"ladder": None, "ledger": None, "baseline": None}
    phase = example.phase(**plain, unprofiled_ns=samples(placements))
    want = (
        "121.00 ms a step without the profiler, the median of 12 unprofiled samples; "
        f"placement in memory {NOT_DRAWN}"
    )
    assert sentences.statistic(phase) == (want if says else "")
    assert (want in sentences.opening(phase)) == says


def test_a_trace_alone_says_nothing_of_placement() -> None:
    (phase,) = example.alone().phases.values()
    assert sentences.statistic(phase) == ""


@pytest.mark.parametrize(("dense", "over"), [(8, "over 8 placements"), (0, "of the medians")])
def test_the_finding_says_the_same(dense: int, over: str) -> None:
    phase = compared(dense, 8)
    assert phase.ladder is not None
    phase.ladder.realised_ci95 = [0.9, 1.2]
    found = no_speedup(Context(phase=phase, own=None, caveats=[]))  # type: ignore[arg-type]
    assert found is not None
    assert over in found.evidence[0]
    assert ("(dense)" in found.evidence[0]) == (dense == 0)
    if not dense:
        assert found.evidence == [
            "95 % bootstrap interval of the median of 12 unprofiled samples (dense) ÷ the mean "
            "over 8 placements of the medians of 16 unprofiled samples (pruned)"
        ]


def test_samples_of_both_sides_are_the_ratio_of_a_ledger_that_is_as_profiled() -> None:
    """The caption, its n and the finding say so too."""
    phase = compared(8, 8)
    phase.domain = "profiled"
    assert phase.ladder is not None
    phase.ladder.realised_ci95 = [0.9, 1.2]
    assert sentences.statistic(phase).startswith("ratio of means over 8 placements")
    assert "n = 16 unprofiled samples in 8 placements." in latex_of(phase)
    found = no_speedup(Context(phase=phase, own=None, caveats=[]))  # type: ignore[arg-type]
    assert found is not None and found.evidence == ["95 % interval over 8 placements"]
    assert phase.baseline is not None
    phase.baseline.unprofiled_ns = None
    assert "profiled (no unprofiled samples entered the ratio)" in sentences.statistic(phase)
    assert "n = 5." in latex_of(phase)


@pytest.mark.parametrize(
    ("placements", "n"), [(0, "n = 12."), (8, "n = 16 unprofiled samples in 8 placements.")]
)
def test_a_caption_of_a_run_alone_counts_its_samples(placements: int, n: str) -> None:
    more = {"ladder": None, "baseline": None, "domain": "profiled"}
    assert n in latex_of(example.phase(**more, unprofiled_ns=samples(placements)))


def latex_of(phase: Phase) -> str:
    report = msgspec.structs.replace(example.two_phases(), phases={"prefill": phase})
    return render_latex(report).replace("~", " ")


def test_what_trace_shows_is_the_time_of_the_report(tmp_path: Path) -> None:
    """Two placements: the geometric mean of 1 and 4 ms is 2 ms, the median of all samples 4."""
    fields = {"samples_ns": [MS, 4 * MS, 4 * MS, 4 * MS],
              "placements": [Placement(samples=1, steps=1),
                             Placement(samples=3, steps=0)]}  # fmt: skip
    wide = op("aten::mm", [512, 256], [256, 704], dtype="c10::BFloat16", kernels=[k(us=40)])
    write_run(tmp_path / "dense", chrome(step(0, wide)), phase_fields=fields)
    runs = read_runs(tmp_path)
    console = Console(file=StringIO(), width=200, record=True)
    console.print(traced(tmp_path, runs))
    told = analyze(tmp_path / "dense").report.phases["prefill"].unprofiled_ns
    assert told is not None
    assert runs["dense"].phases["prefill"].time_ns == pytest.approx(told.median)
    assert told.median == pytest.approx(2 * MS)
    assert "2.000 ms" in console.export_text()
