"""The headline and the lines below it: promise, caveats, statistic, coverage."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from rich.console import Console

import prunescope
from prunescope.analysis.findings.context import Context
from prunescope.analysis.findings.trust import no_speedup
from prunescope.analysis.frontier import frontier
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report import comparison, gemm_table, sentences, titles
from prunescope.analysis.report.comparison import render_comparison
from prunescope.analysis.report.html import render_html
from prunescope.analysis.report.latex import render_latex
from prunescope.analysis.report.ledger_view import ledger_table, readable_interval
from prunescope.analysis.report.listings import read_runs, traced
from prunescope.analysis.report.markdown import render_markdown
from prunescope.analysis.report.notebook import brief, render_notebook
from prunescope.analysis.report.pair_figures import ledger_figure
from prunescope.analysis.report.pareto_tables import render_pareto
from prunescope.analysis.report.sentences import coverage
from prunescope.analysis.report.terminal import print_report
from prunescope.analysis.schema.comparison import Comparison
from prunescope.analysis.schema.notice import note
from prunescope.analysis.schema.report import (
    FamilyVerdict,
    Finding,
    KernelRow,
    Ladder,
    Pairing,
    Phase,
    Report,
)
from prunescope.analysis.schema.sides import Unprofiled
from prunescope.analysis.summary.headline import headline
from prunescope.analysis.wording.sentence import sentence
from prunescope.taxonomy.runs.run import Placement
from prunescope.taxonomy.runs.run_blocks import Until
from tests.analysis.decoder import Layer, census, decoder, write_pair
from tests.analysis.finding_cases import FULL, found, model, of_pair
from tests.analysis.pareto_points import point
from tests.analysis.report import example
from tests.analysis.run_folder import write_run
from tests.analysis.test_compare import rows
from tests.chrome import chrome, k, op, save, step
from tests.together.test_pareto import whole

NONE_ADDED = Pairing(matched=362, removed=0, added=0, alignment="number")


def compared(family: str, **ladder: object) -> Phase:
    """A phase of unmoved GEMMs at 1.43× [1.38, 1.50], and nothing promised."""
    plain = {"nominal": 1.0, "flop": 1.0, "coverage": 1.0, "roofline": 1.0, "busy": 1.4,
             "realised": 1.43, "realised_ci95": [1.38, 1.5], "share_of_bound": 1.43}  # fmt: skip
    unmoved = [g for g in example.gemms(512) if g.axis == "none"]
    return example.phase(
        family=FamilyVerdict(
            id=family, confidence=1.0, evidence=["no GEMM moved"], alternatives=["dense"]
        ),
        ladder=msgspec.convert({**plain, **ladder}, Ladder),
        gemms=unmoved, pairing=NONE_ADDED,
    )  # fmt: skip


def test_two_captures_of_one_model_have_no_speedup() -> None:
    line = headline(compared("dense", realised=1.03, realised_ci95=[1.01, 1.05]))
    assert line == (
        "nothing was pruned: 1.03× [1.01×, 1.05×] is the noise between two captures, no speedup"
    )
    wide = headline(compared("dense", realised=1.2, realised_ci95=[0.9, 1.6]))
    assert wide.startswith("nothing was pruned: 1.20× [0.90×, 1.60×] is the noise between two")


def test_noise_has_a_size() -> None:
    """An interval from 1.38 on is more than two captures of one program differ by."""
    phase = compared("dense")
    assert headline(phase) == (
        "nothing was pruned: 1.43× [1.38×, 1.50×] is more than noise and no speedup of a pruning"
    )
    phase.findings.append(
        Finding(id="unexplained-difference", severity="warning", evidence=[], change=None,
                predicted_ns=None, text="no shape moved", rows=["kernel efficiency -2.000 ms"])
    )  # fmt: skip
    assert headline(phase).endswith("of a pruning: kernel efficiency -2.000 ms")
    once = headline(compared("dense", realised_ci95=None))
    assert once.startswith(
        "nothing was pruned: 1.43× (no interval: fewer than five steps, or one sample) is more"
    )


def test_what_was_promised_is_still_said() -> None:
    line = headline(compared("dense", nominal=2.0))
    assert line.endswith("is more than noise and no speedup of a pruning; 2.00× was promised")


def test_shapes_that_cannot_tell_say_so() -> None:
    small = {"realised": 1.03, "realised_ci95": [1.01, 1.05]}
    line = headline(compared("unknown", **small))
    assert line.startswith("the shapes show no pruning: 1.03× [1.01×, 1.05×] is the noise between")
    assert line.endswith("two captures, or what a trace does not show")


@pytest.mark.parametrize("what", ["a GEMM moved", "work was added", "no GEMM is known"])
def test_an_unknown_that_moved_keeps_its_speedup(what: str) -> None:
    phase = compared("unknown")
    if what == "a GEMM moved":
        phase.gemms = example.gemms(512)
    elif what == "work was added":
        phase.pairing = Pairing(matched=362, removed=0, added=3, alignment="number")
    else:
        phase.gemms = []
    assert headline(phase).startswith("1.43× realised [1.38×, 1.50×] of 1.00× promised")


SAMPLES = {"dense": [143_000, 144_000, 142_000], "pruned": [100_000, 101_000, 99_000]}


@pytest.mark.parametrize("apart", [True, False])
def test_captures_that_differ_by_more_than_their_interval_are_a_warning(
    tmp_path: Path, *, apart: bool
) -> None:
    """143 against 100 µs of one model: no speedup of that size is evidence on this machine."""
    trace = decoder([Layer()] * 4)
    run = write_pair(
        tmp_path / "r", trace, trace, both_census=census(0.0), dense_samples_ns=SAMPLES["dense"],
        samples_ns=SAMPLES["pruned" if apart else "dense"],
    )  # fmt: skip
    report = analyze(run).report
    said = [w for w in report.warnings if "nothing was pruned" in w]
    assert headline(report.phases["prefill"]).startswith("nothing was pruned: 1.")
    if apart:
        assert said[0].startswith(
            "prefill: nothing was pruned, and the two captures differ by 1.43× ["
        )
    else:
        assert said == []


def test_a_bare_pair_of_one_model(tmp_path: Path) -> None:
    one, other = (save(decoder([Layer()] * 4), tmp_path / f"{n}.json") for n in "ab")
    line = headline(analyze(one, baseline=other).report.phases["trace"])
    assert line.startswith("the shapes show no pruning: 1.00×")


def test_an_interval_that_holds_one_leads() -> None:
    phase = compared("static-nk", nominal=2.0, roofline=1.2, realised_ci95=[0.9, 2.2])
    phase.findings = [
        Finding(id="no-speedup", severity="critical", text="no speedup", evidence=[], change=None,
                predicted_ns=None)
    ]  # fmt: skip
    assert headline(phase) == (
        "1.43× [0.90×, 2.20×] is indistinguishable from no speedup: the interval includes 1×; "
        "2.00× was promised"
    )
    assert "no speedup beyond noise, static-nk" in brief(
        msgspec.structs.replace(example.two_phases(), phases={"prefill": phase})
    )


def test_more_than_the_bound_is_said_of_the_interval() -> None:
    """Only a whole interval above the bound says that the model of it is wrong."""
    more: dict[str, Any] = {"nominal": 2.0, "roofline": 1.2, "share_of_bound": 1.19}
    line = headline(compared("static-nk", **more, realised_ci95=[1.1, 1.6]))
    assert line.endswith("119.0 % of the roofline bound (the interval includes the bound)")
    line = headline(compared("static-nk", **more, realised_ci95=[1.3, 1.6]))
    assert line.endswith("(the bound has no interval)")  # a speedup of samples, over few steps
    more["share_of_bound_ci95"] = [1.05, 1.3]
    line = headline(compared("static-nk", **more, realised_ci95=[1.3, 1.6]))
    assert line.endswith("(≥ 100 % of the bound: faster than the roofline model allows)")


def test_a_bare_trace_is_headed_by_the_phase_that_it_is() -> None:
    report = example.alone()
    (name, phase), *_ = report.phases.items()
    phase.phase_kind = {"kind": "unknown", "evidence": "no linears"}
    assert titles.heading(name, phase) == name
    phase.phase_kind["kind"] = name
    assert titles.heading(name, phase) == name
    assert titles.heading(f"rank0-{name}", phase) == f"rank0-{name}"
    phase.phase_kind["kind"] = "training"
    assert titles.heading(name, phase) == f"{name} (training)"
    assert f"\n## {name} (training)\n" in render_markdown(report)
    assert f"<h2>{name} (training)</h2>" in render_html(report)


BUSY = Finding(
    id="timing-not-valid", severity="critical", text="timing not valid: something else ran",
    evidence=["10 of 10 samples disturbed"], change=None, predicted_ns=None,
)  # fmt: skip


def disturbed() -> Report:
    report = example.two_phases()
    for phase in report.phases.values():
        phase.findings.insert(0, BUSY)
    return report


def realised(phase: Phase) -> str:
    assert phase.ladder is not None
    return f"{phase.ladder.realised:.2f}"


def in_terminal(report: Report) -> str:
    to = io.StringIO()
    print_report(
        report,
        Console(file=to, width=100, force_terminal=True, color_system="truecolor"),
        full=True,
    )
    return re.sub(r"\x1b\[[\d;]*m", "", to.getvalue())


def shortly(report: Report) -> str:
    return repr(msgspec.convert(msgspec.to_builtins(report), prunescope.Report))


FORMATS: dict[str, Callable[[Report], str]] = {
    "md": render_markdown, "html": render_html, "tex": render_latex, "notebook": render_notebook,
    "terminal": in_terminal, "repr": shortly,
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_no_speedup_stands_before_the_caveat(name: str) -> None:
    report = disturbed()
    text = FORMATS[name](report)
    assert text.lower().index("timing not valid") < min(
        (text.index(r) for p in report.phases.values() if (r := realised(p)) in text),
        default=len(text),
    )
    assert not re.search(r"\d× realised|<b>\d|\*\*\d|textbf\{\d", text)


def test_no_reason_is_given_for_a_time_that_is_not_valid() -> None:
    phase = example.phase()
    phase.predicted = {  # type: ignore[typeddict-item]
        "family": "static-nk", "ladder": {"flop": 2.0},
        "miss": {"ratio": 0.7, "largest": "launch_idle",
                 "terms": [{"name": "launch_idle", "ratio": 0.8, "says": "why"}]},
    }  # fmt: skip
    assert "realised is 70 % of that, mostly by launch and idle" in sentences.predicted(phase)
    phase.findings.insert(0, BUSY)
    assert "FLOPs 2.00×" in sentences.predicted(phase)
    assert "realised" not in sentences.predicted(phase)


def test_a_comparison_marks_the_ratio_and_says_why() -> None:
    good, bad = rows(2)
    bad.critical = [BUSY.id]
    found = Comparison(tool="t", baseline=None, rows=[good, bad])
    table = comparison.comparison_table(found)
    at = [column.title for column in table.columns].index("realised")
    assert [cells[at].text for cells in table.rows] == ["1.25×", "1.25× ?"]
    for text in (comparison.render_markdown(found), comparison.render_html(found),
                 comparison.render_latex(found), render_comparison(found)):  # fmt: skip
        assert "? timing not valid" in re.sub(r"\s+", " ", text)
    good_alone = Comparison(tool="t", baseline=None, rows=[good])
    assert "timing not valid" not in comparison.render_markdown(good_alone)


def test_points_of_a_sweep_are_marked_and_the_note_comes_first() -> None:
    bad = point("static-m", 1.3, 0.1, timing_valid=False)
    found = whole([bad, point("static-nk", 1.2, 0.2)])
    text = render_pareto(found)
    assert "| 1.30× ? |" in text and "| 1.20× |" in text
    assert "? timing not valid" in text
    (cell,) = found.phases["prefill"].cells
    cell.winners = frontier.winners([bad], batch=1, prompt_len=512)
    assert re.search(r"\| static-m \| 1\.30× \? \|", render_pareto(found))
    report = disturbed()
    assert report.phases["prefill"].invalid_times
    assert not example.two_phases().phases["prefill"].invalid_times


def test_an_interval_that_says_nothing_is_left_out_and_drawn_nowhere() -> None:
    """Two placements far apart: Student's t of one degree of freedom stretches them beyond all."""
    phase = example.phase()
    rows = phase.ledger or []
    for row in rows:
        row.ci95 = [-2e17, 7e7] if row.row == "dense" else [row.moves_ns - 1e6, row.moves_ns + 1e6]
    pruned = next(row for row in rows if row.row == "pruned")
    pruned.ci95 = [-1.0, 2e8]  # a wall below zero
    shown = {row.row: readable_interval(row, rows) for row in rows}
    assert shown["dense"] is None and shown["pruned"] is None
    assert shown["coverage"] is not None
    table = ledger_table(phase)
    assert table is not None
    assert "intervals too wide to be of use are not shown" in " ".join(table.notes)
    at = [column.title for column in table.columns].index("95 % interval")
    assert [cells[at].text == "–" for cells in table.rows] == [
        row.row in ("dense", "pruned") for row in rows
    ]
    low, high = ledger_figure(phase, "prefill").axes[0].get_xlim()
    assert -1e3 < low < high < 1e3  # ms


def test_the_terminal_names_intervals_that_it_leaves_out() -> None:
    """In the ladder and in the ledger."""
    report = example.two_phases()
    phase = report.phases["prefill"]
    assert phase.ladder is not None
    said = "intervals too wide to be of use are not shown"
    assert said not in " ".join(in_terminal(report).split())
    phase.ladder.realised_ci95 = [0.01, 186.0]
    for row in phase.ledger or []:
        row.ci95 = [-2e17, 2e17]
    assert " ".join(in_terminal(report).split()).count(said) >= 2


# Every MLP is half as wide; attention stays.
HALF = replace(FULL, f=FULL.f // 2)


def test_what_nobody_promised_is_what_the_flops_allow(tmp_path: Path) -> None:
    alone = of_pair(tmp_path, model(FULL), model(HALF))
    asked = of_pair(tmp_path, model(FULL), model(HALF), 0.5)
    assert "of 1.49× that its FLOPs allow" in headline(alone)
    assert "of 2.00× promised" in headline(asked)
    # Without the finding that its interval holds 1×:
    sure = [msgspec.structs.replace(phase, findings=[]) for phase in (alone, asked)]
    assert "of 1.49× that its FLOPs allow" in headline(sure[0])
    assert "of 2.00× promised" in headline(sure[1])
    assert not any("promised" in headline(phase) for phase in (alone, sure[0]))


def test_a_net_saving_names_what_offsets_it(tmp_path: Path) -> None:
    """A quarter is promised of all: the MLPs lose half, more than that; the rest loses nothing."""
    phase = of_pair(tmp_path, model(FULL), model(HALF), 0.25)
    row = next(row for row in phase.ledger or [] if row.row == "coverage")
    less = -sum(part.ns for part in row.parts if part.ns < 0)
    kept = sum(part.ns for part in row.parts if part.ns > 0)
    assert less > 0
    assert kept - less == pytest.approx(row.ns, abs=1)
    finding = found(phase, "coverage-limited")
    assert finding is not None
    assert "other work shrank more and gives" in finding.text
    shown = finding.text.split()[3]  # untouched work costs N µs
    assert float(shown) == pytest.approx(
        kept / 1e6 if " ms of" in finding.text else kept / 1e3, rel=1e-3
    )


def test_what_a_table_of_kernels_leaves_out_is_time(tmp_path: Path) -> None:
    phase = of_pair(tmp_path, model(FULL), model(HALF))
    rows = phase.kernels
    busy = sum(row.busy_ns for row in rows)
    assert gemm_table.kernel_table(rows, busy).notes == []
    (note,) = gemm_table.kernel_table(rows, busy, top=1).notes
    assert "not shown" in note
    # A report that was cut at its largest rows says the same, though it shows every row it has.
    cut: list[KernelRow] = [msgspec.structs.replace(rows[0], busy_ns=busy * 0.4)]
    (note,) = gemm_table.kernel_table(cut, busy).notes
    assert "60.0 % of busy" in note


MS = 10**6
NOT_DRAWN = "was not randomised, which alone moves a model by 1 to 3 %"


def samples(placements: int, each: int = 2) -> Unprofiled:
    """An old run, of twelve samples, has no placements."""
    count = placements * each or 12
    plain = {"median": 121 * MS, "mean": 121 * MS, "ci95": [120 * MS, 122 * MS],
             "samples": [121 * MS] * count}  # fmt: skip
    return msgspec.convert(
        plain | ({"seatings": [each] * placements} if placements else {}), Unprofiled
    )


def compared_placements(dense: int, pruned: int) -> Phase:
    phase = example.phase(unprofiled_ns=samples(pruned))
    assert phase.baseline is not None
    phase.baseline.unprofiled_ns = samples(dense)
    return phase


def test_both_drawn() -> None:
    assert sentences.statistic(compared_placements(8, 8)) == (
        "ratio of geometric means over 8 placements, of the medians of 16 unprofiled samples in "
        "all; 95 % interval over placements"
    )
    assert sentences.statistic(compared_placements(5, 8)) == (
        "ratio of the geometric mean over 5 placements of the medians of 10 unprofiled samples "
        "(dense) to the geometric mean over 8 placements of the medians of 16 unprofiled samples "
        "(pruned); 95 % interval over placements"
    )


@pytest.mark.parametrize(
    ("requested", "why"),
    [
        (5, "5 placements were requested; more were added while the interval was wider than 8 %"),
        (16, "16 placements were requested; --repeats and --max-placements allow no more"),
    ],
)
def test_other_placements_than_were_requested(requested: int, why: str) -> None:
    phase = compared_placements(8, 8)
    assert phase.unprofiled_ns is not None
    phase.unprofiled_ns.placements_requested = requested
    assert why in sentences.statistic(phase)


@pytest.mark.parametrize(
    ("reached", "looks", "said"),
    [
        (0.0174, 2, "±1.7 % reached in 2 looks, for which the interval is widened"),
        (0.031, 1, "±3.1 % reached in 1 look, for which the interval is widened"),
        (0.031, 0, "±3.1 % reached"),  # in blocks
        (None, 0, "no interval reached"),
    ],
)
@pytest.mark.parametrize("of", ["speedup", "time"])
def test_the_interval_that_was_requested_and_reached(
    reached: float | None, looks: int, said: str, of: Literal["speedup", "time"]
) -> None:
    phase = compared_placements(8, 8)
    assert phase.unprofiled_ns is not None
    before = sentences.statistic(phase)
    phase.unprofiled_ns.until = Until(
        asked=0.02, reached=reached, of=of, looks=looks, ended="narrow"
    )
    what = {"speedup": "the speedup", "time": "the time of a step"}[of]
    assert sentences.statistic(phase) == f"{before}; ±2 % of {what} was requested, and {said}"


@pytest.mark.parametrize(
    ("ended", "why"),
    [("limit", "allow no more than 8 placements"), ("disturbed", "other work disturbed samples"),
     ("blocks", "do not fit into memory together, and 8 placements were measured")],
)  # fmt: skip
def test_a_note_says_why_an_interval_is_wider_than_requested(ended: str, why: str) -> None:
    told = note("until-missed", asked=0.02, reached=0.031, of="speedup", ended=ended, placements=8)
    text = sentence(told)
    assert text.startswith("--until 2%: the speedup is known to ±3.1 %: ") and why in text


def test_an_old_baseline_beside_a_new_run() -> None:
    assert sentences.statistic(compared_placements(0, 8)) == (
        "ratio of the median of 12 unprofiled samples (dense) to the geometric mean over 8 "
        "placements of the medians of 16 unprofiled samples (pruned); 95 % bootstrap interval; "
        f"placement in memory of dense {NOT_DRAWN}"
    )


def test_a_new_baseline_beside_an_old_run() -> None:
    text = sentences.statistic(compared_placements(8, 0))
    assert text.startswith("ratio of the geometric mean over 8 placements of the medians of 16")
    assert text.endswith(f"placement in memory of pruned {NOT_DRAWN}")


def test_two_old_runs() -> None:
    assert sentences.statistic(compared_placements(0, 0)) == (
        f"ratio of the medians of 12 unprofiled samples; 95 % bootstrap interval; "
        f"placement in memory {NOT_DRAWN}"
    )


def test_one_sample_is_no_plural() -> None:
    one = Unprofiled(median=5.0, mean=5.0, ci95=[5.0, 5.0], samples=[5])
    assert one.in_words == "the median of 1 unprofiled sample"


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
    phase = compared_placements(dense, 8)
    assert phase.ladder is not None
    phase.ladder.realised_ci95 = [0.9, 1.2]
    found = no_speedup(Context(phase=phase, candidate=None, caveats=[]))  # type: ignore[arg-type]
    assert found is not None
    assert over in found.evidence[0]
    assert ("(dense)" in found.evidence[0]) == (dense == 0)
    if not dense:
        assert found.evidence == [
            "95 % bootstrap interval of the median of 12 unprofiled samples (dense) ÷ the "
            "geometric mean over 8 placements of the medians of 16 unprofiled samples (pruned)"
        ]


def test_samples_of_both_sides_are_the_ratio_of_a_ledger_that_is_as_profiled() -> None:
    """The caption, its n and the finding say so too."""
    phase = compared_placements(8, 8)
    phase.time_base = "profiled"
    assert phase.ladder is not None
    phase.ladder.realised_ci95 = [0.9, 1.2]
    assert sentences.statistic(phase).startswith("ratio of geometric means over 8 placements")
    assert "over 8 placements of medians, n = 16 unprofiled samples a side" in latex_of(phase)
    found = no_speedup(Context(phase=phase, candidate=None, caveats=[]))  # type: ignore[arg-type]
    assert found is not None and found.evidence == ["95 % interval over 8 placements"]
    assert phase.baseline is not None
    phase.baseline.unprofiled_ns = None
    assert "profiled (no unprofiled samples entered the ratio)" in sentences.statistic(phase)
    assert "n = 5 profiled steps" in latex_of(phase)


@pytest.mark.parametrize(
    ("placements", "n"),
    [
        (0, "Median of n = 12 unprofiled samples."),
        (8, "Geometric mean over 8 placements of medians of n = 16 unprofiled samples."),
    ],
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


@pytest.mark.parametrize(("kind", "named"), [(0.998, True), (0.9996, False), (1 - 4e-6, False)])
def test_a_kernel_without_a_kind_is_named_where_its_share_is_seen(kind: float, named: bool) -> None:
    """0.04 % reads as 0.0 %: then 100.0 % has a kind, and nothing is without one."""
    phase = example.two_phases().phases["prefill"]
    assert phase.unknown_kernels
    phase = msgspec.structs.replace(phase, coverage={**phase.coverage, "kind": kind})
    assert ("largest without a kind: " in coverage(phase)) == named
