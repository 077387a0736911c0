"""The terminal view: what it says, at several widths, without colour, in ASCII, under attack."""

from __future__ import annotations

import io
import re
from pathlib import Path

import msgspec
import pytest
from rich.cells import cell_len
from rich.console import Console

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report.gemm_table import gemm_table
from prunescope.analysis.report.html import render_html
from prunescope.analysis.report.listings import verdict
from prunescope.analysis.report.markdown import render_markdown
from prunescope.analysis.report.notebook import render_notebook
from prunescope.analysis.report.terminal import TerminalReport, print_report
from prunescope.analysis.schema.report import Finding, Report
from prunescope.analysis.summary.labels import LADDER, LEDGER, NOT_EXPLAINED
from tests.analysis.report import example


def shown(
    report: Report,
    width: int = 80,
    *,
    encoding: str = "utf-8",
    colour: bool = False,
    full: bool = True,
) -> str:
    raw = io.BytesIO()
    console = Console(
        file=io.TextIOWrapper(raw, encoding=encoding, write_through=True), width=width,
        color_system="truecolor" if colour else None, force_terminal=colour,
    )  # fmt: skip
    print_report(report, console, full=full)
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
@pytest.mark.parametrize("report", [example.two_phases(), example.alone()], ids=["pair", "alone"])
def test_no_line_is_wider_than_the_terminal(report: Report, width: int) -> None:
    lines = shown(report, width).splitlines()
    assert max(cell_len(line) for line in lines) <= width


@pytest.mark.parametrize("width", [80, 120])
def test_the_view_answers_the_question_first(width: int) -> None:
    text = shown(example.two_phases(), width)
    head = text[: text.index("Ladder")]
    assert "1.16× realised [1.14×, 1.17×] of 1.33× promised" in head
    assert "95.6 % of the roofline bound" in head
    assert "family static-nk (confidence 93 %)" in head
    assert "99.8 % has a kind" in head
    assert "median" in head and "95 % bootstrap interval" in head


@pytest.mark.parametrize("width", [80, 120])
def test_ladder_and_ledger_rows_stand_in_order(width: int) -> None:
    text = shown(example.two_phases(), width)
    ladder, ledger = text.index("\nLadder"), text.index("\nLedger")
    for start, labels in ((ladder, LADDER), (ledger, LEDGER)):
        named = [label for row, (label, _) in labels.items() if row != NOT_EXPLAINED]
        places = [text.index(f"\n {label} ", start) for label in named]
        assert places == sorted(places)


@pytest.mark.parametrize("width", [80, 120])
def test_a_ledger_row_has_time_share_bar_interval_and_noise(width: int) -> None:
    text = shown(example.two_phases(), width)
    row = next(line for line in text.splitlines() if line.startswith(" coverage  "))
    for part in ("+9.20", "+6.6 %", "█", "[8.90, 9.60]", "±0.11"):  # 9.2 of 140 = 6.6 %
        assert part in row
    assert "lm_head untouched +7.10 ms" in text


def test_at_80_columns_no_interval_of_the_ledger_leaves_in_silence() -> None:
    """The bar, which says nothing that the numbers do not, leaves before the interval; what leaves
    beside it is named."""
    report = example.two_phases()
    for row in report.phases["prefill"].ledger or []:
        row.ns, row.ci95 = row.ns * 1000, [row.ns * 999, row.ns * 1001]
        row.noise_ns = row.noise_ns and row.noise_ns * 1000
    for full in (True, False):
        ledger = shown(report, full=full).split("\nLedger")[1].split("\nFindings")[0]
        assert "95 % interval" in ledger
        narrow = shown(report, 60, full=full).split("\nLedger")[1].split("\nFindings")[0]
        assert "95 % interval" in narrow


def test_gains_and_losses_differ_without_colour() -> None:
    lines = shown(example.two_phases()).splitlines()
    gain = next(line for line in lines if line.startswith(" added work"))
    assert "−1.50" in gain and "░" in gain and "█" not in gain


def test_a_row_inside_twice_its_noise_is_no_evidence() -> None:
    text = shown(example.two_phases())
    note = "no evidence (inside twice the noise, or an interval that includes 0): shape "
    assert note in " ".join(text.split())
    assert "↳ shape" not in text


def test_gemms_show_what_moved() -> None:
    text = shown(example.two_phases())
    row = next(line for line in text.splitlines() if line.startswith(" gate "))
    for part in (
        "N",
        "75 %",
        "512",
        "1536→1152",
        "576",
        "30",
        "comp",
        "21.300",
        "18.300",
        "+3.000",
    ):
        assert part in row


def test_closure_is_in_whole_ns_over_all_steps() -> None:
    text = " ".join(shown(example.two_phases()).split())
    # 5 steps of 100 + 20 + 1 ms
    assert (
        "closure: busy + gaps + trailing idle = wall: 500,000,000 + 100,000,000 + 5,000,000 = "
        "605,000,000 ns, summed over 5 steps" in text
    )
    broken = example.two_phases()
    broken.phases["prefill"].tail_ns += 1
    assert "≠ wall" in (text := " ".join(shown(broken).split()))
    assert "(difference 5 ns)" in text


def test_a_trace_alone_has_no_ladder_and_says_why() -> None:
    text = shown(example.alone())
    assert "Ladder" not in text and "Ledger" not in text and "promised" not in text
    assert "no baseline" in text and "Busy time by kind" in text
    assert "carry-over: 509 events, 14.760 ms" in text
    assert "profiler overhead: unknown" in text


def test_more_than_the_bound_is_said() -> None:
    text = " ".join(shown(example.two_phases()).split())
    assert "100.8 % of the roofline bound (the interval includes the bound)" in text
    wide = " ".join(shown(example.two_phases(), 160).split())
    assert "efficiency" in wide and "! ≥ 100 % of the roofline" in wide
    assert "! ≥ 100 % of the roofline" not in text  # whose column has no room there


def test_ascii_terminals_get_ascii() -> None:
    for report in (example.two_phases(), example.alone(example.HOSTILE)):
        assert shown(report, encoding="ascii").isascii()


@pytest.mark.parametrize("width", [80, 120])
def test_hostile_strings_are_visible_and_inert(width: int) -> None:
    text = shown(example.hostile(example.two_phases()), width)
    assert "\x1b" not in text
    assert r"\x1b[31m" in text and "<img src=x onerror" in text
    assert max(cell_len(line) for line in text.splitlines()) <= width
    # With colour on, the only escapes are rich's own: those that set a style, and links never.
    assert "\x1b]8" not in shown(example.hostile(example.alone()), width, colour=True)


def test_markup_in_names_is_text() -> None:
    report = example.alone("[red]gemm[/red] [link=http://evil]x[/link]")
    assert "[red]gemm[/red] [link=" in shown(report, 120)


def test_a_report_is_one_renderable() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(TerminalReport(example.two_phases()))
    assert "realised" in console.file.getvalue()  # type: ignore[attr-defined]


def test_intervals_and_noise_have_columns_only_where_known() -> None:
    report = example.two_phases()
    for phase in report.phases.values():
        for row in phase.ledger or []:
            row.ci95 = row.noise_ns = None
    text = shown(report, 120)
    assert "95 % interval" not in text and "noise\n" not in text
    assert "no interval and no noise: they need more than one step" in text


def test_walls_are_never_called_noise() -> None:
    report = example.two_phases()
    for row in report.phases["prefill"].ledger or []:
        row.noise_ns = 1e12
    text = " ".join(shown(report).split())
    assert "includes 0): coverage, roofline shift, shape" in text


def of_ranks(late: str | None) -> Report:
    """Eight ranks with the phase of the example; one of them may be late."""
    (phase, *_) = example.two_phases().phases.values()
    finding = Finding(
        id="straggler",
        severity="warning",
        text="it holds the other ranks up",
        evidence=[],
        change=None,
        predicted_ns=None,
    )
    held = msgspec.structs.replace(phase, findings=[finding, *phase.findings])
    phases = {f"rank{i}": held if f"rank{i}" == late else phase for i in range(8)}
    return msgspec.structs.replace(example.two_phases(), phases=phases)


def test_of_many_ranks_each_has_a_row_and_the_late_one_its_answer() -> None:
    text = shown(of_ranks("rank5"), full=False)
    assert "below: rank5, which the others wait for; the other 7: --full" in text
    assert all(f"\n rank{i} " in text for i in range(8))
    assert text.count("Ladder") == 1
    assert "it holds the other ranks up" in text
    assert len(text.splitlines()) <= 45 + 20
    assert "the slowest" in shown(of_ranks(None), full=False)
    full = shown(of_ranks("rank5"), full=True)
    assert full.count("Ladder") == 8
    assert "rank5, which the others wait for" in full.partition("Ladder")[0]
    assert full.index("\nrank5 ─") < full.index("\nrank0 ─")


def test_files_and_a_notebook_begin_with_the_late_rank_too() -> None:
    report = of_ranks("rank5")
    for text in (render_markdown(report), render_html(report), render_notebook(report)):
        first = text.index("below: rank5, which the others wait for")
        late = text.index("it holds the other ranks up")
        assert first < late < text.rindex("rank0")


@pytest.mark.parametrize("width", [120, 200])
def test_beside_a_long_name_no_number_is_cut(width: int) -> None:
    """The largest part of a row folds; a name longer than its column loses its middle."""
    report = example.two_phases()
    kernel = f"ncclDevKernel_AllReduce_Sum_bf16_RING_LL({'ncclDevKernelArgsStorage<4096ul>' * 4})"
    ledger = report.phases["prefill"].ledger
    assert ledger is not None
    for row in ledger:
        for part in row.parts:
            part.evidence = [f"dense {kernel}: 0.078 ms in 8 of 0.162 ms in all"]
    text = shown(report, width, full=False)
    assert text.count("0.078") == text.count("0.162") > 0
    assert not re.search(r"\d…|…\d", text)
    assert max(cell_len(line) for line in text.splitlines()) <= width


def test_the_answer_stands_below_one_line_and_peaks_and_notes_behind_it() -> None:
    report = msgspec.structs.replace(example.two_phases(), warnings=["half of it was lost"])
    text = shown(report, 120, full=False)
    first, *_ = text.splitlines()
    assert ", against " in first
    assert len(text[: text.index("1.16× faster")].splitlines()) <= 3
    assert text.index("1.16× faster") < text.index("\ndevice ") < text.index("! half of it was")


def test_an_mlp_without_a_gate_is_in_no_group_of_gates() -> None:
    """Of an encoder, a vision transformer, a UNet; with a gate beside it, up is of that group."""
    phase = example.two_phases().phases["prefill"]
    up = example.gemm("up", "gate_up", None, 64, 256, 64)

    def groups(*roles: str) -> list[str]:
        phase.gemms = [msgspec.structs.replace(up, role=role) for role in roles]
        table = gemm_table(phase)
        at = [column.title for column in table.columns].index("group")
        return [row[at].text for row in table.rows]

    assert groups("up") == ["up"]
    assert groups("gate", "up") == ["gate_up", "gate_up"]


@pytest.mark.parametrize(
    ("finding", "tables"), [("timing-not-valid", ["GEMMs"]), ("truncated-trace", [])]
)
def test_times_that_are_no_evidence_are_not_shown_first(finding: str, tables: list[str]) -> None:
    """Their ladder and ledger stand in the full report; a step that was cut off has no shapes."""
    report = example.two_phases()
    cause = Finding(id=finding, severity="critical", text="x", evidence=[], change="y",
                    predicted_ns=None)  # fmt: skip
    phase = msgspec.structs.replace(report.phases["prefill"], findings=[cause])
    report.phases = {"prefill": phase}
    assert headings(shown(report, full=False)) == tables
    assert {"Ladder", "Ledger"} <= set(headings(shown(report)))
    page = render_html(report)
    assert page.index("<details><summary>Ladder and ledger of times") < page.index("<h3>Ladder")


def headings(text: str) -> list[str]:
    found = re.findall(r"^(Ladder|Ledger|GEMMs)", text, re.M)
    return list(dict.fromkeys(found))


def test_a_verdict_has_a_command_on_a_line_of_its_own() -> None:
    report = analyze(Path(__file__).parents[3] / "traces" / "tiny-static-m").report
    for phase in report.phases.values():
        phase.summary = "Faster. Decide what to keep:\nprunescope allocate --model \x1b m"
    console = Console(width=100, file=io.StringIO())
    console.print(verdict(report, name="static-m", folder=Path("demo/static-m")))
    lines = [line.strip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert lines.count("prunescope allocate --model \\x1b m") == len(report.phases)
    assert not any("\\x0a" in line for line in lines)
