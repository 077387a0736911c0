"""The frontier of a sweep, and reports that are written and read: any points, any names."""

from __future__ import annotations

import csv
import io
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from prunescope.analysis.frontier import frontier
from prunescope.analysis.report import escape
from prunescope.analysis.schema.pareto import SweepPoint
from prunescope.analysis.schema.report import Finding, from_json, to_json
from tests.analysis.pareto_points import point
from tests.analysis.report import example

QUICK = settings(max_examples=40, deadline=None)
PAIRS = st.lists(st.tuples(st.floats(0.5, 3), st.floats(0, 2)), min_size=1, max_size=8)


def points(pairs: list[tuple[float, float]]) -> list[SweepPoint]:
    return [point(f"f{i}", speed, loss) for i, (speed, loss) in enumerate(pairs)]


@QUICK
@given(pairs=PAIRS, slower=st.floats(0.1, 1), worse=st.floats(0, 2), which=st.integers(0, 7))
def test_a_dominated_point_and_a_second_look_leave_the_frontier_as_it_is(
    pairs: list[tuple[float, float]], slower: float, worse: float, which: int
) -> None:
    every = points(pairs)
    best = frontier.frontier(every)
    assert frontier.frontier(best) == best
    speed, loss = pairs[which % len(pairs)]
    dominated = point("dominated", speed * slower * 0.999, loss + worse)
    assert frontier.frontier([*every, dominated]) == best


@QUICK
@given(pairs=PAIRS)
def test_winners_divide_all_losses_among_ever_faster_families(
    pairs: list[tuple[float, float]],
) -> None:
    ranges = frontier.winners(frontier.frontier(points(pairs)), batch=1, prompt_len=512)
    assert ranges[0].loss[0] == 0
    assert ranges[-1].loss[1] is None
    for before, after in zip(ranges, ranges[1:], strict=False):
        assert before.loss[1] == after.loss[0]
        assert before.realised <= after.realised
        assert before.family != after.family


NAMES = st.text(max_size=30) | st.sampled_from(["=1+1", "a\x1b[31mb", "x\u202ey", '"', "a,b", "-"])

CELLS = NAMES | st.integers() | st.none()


@QUICK
@given(names=st.lists(NAMES, max_size=4), ns=st.floats(0, 1e12) | st.none(),
       evidence=st.lists(NAMES, max_size=3))  # fmt: skip
def test_a_report_with_any_names_is_the_same_when_it_is_read_and_written_again(
    names: list[str], ns: float | None, evidence: list[str]
) -> None:
    report = example.two_phases()
    phase = report.phases["prefill"]
    phase.notes, report.warnings = names, names
    phase.findings = [Finding(id="left-on", severity="warning", text="".join(names),
                              evidence=evidence, change=None, predicted_ns=ns)]  # fmt: skip
    once = from_json(to_json(report))
    assert to_json(from_json(to_json(once))) == to_json(once)
    assert once.phases["prefill"].findings[0].predicted_ns == ns
    assert once.phases["decode"] == from_json(to_json(once)).phases["decode"]


@QUICK
@given(rows=st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=4), quoted=st.booleans())
def test_a_csv_gives_back_its_cells_and_none_of_them_is_a_formula(
    *, rows: list[tuple[Any, ...]], quoted: bool
) -> None:
    text = escape.csv_text(["a", "b", "c"], rows, quoted=quoted)
    head, *read = csv.reader(io.StringIO(text))
    assert head == ["a", "b", "c"]
    assert [len(row) for row in read] == [3] * len(rows)
    for cells, row in zip(read, rows, strict=True):
        for cell, value in zip(cells, row, strict=True):
            expected = (
                escape.cell(value)
                if isinstance(value, str)
                else ""
                if value is None
                else str(value)
            )
            assert cell == expected
            assert not isinstance(value, str) or not cell.startswith(("=", "+", "-", "@"))


@QUICK
@given(name=NAMES)
def test_a_name_in_typewriter_type_holds_no_active_character(name: str) -> None:
    shown = escape.latex_code(name)
    assert shown.startswith(r"\texttt{") and shown.endswith("}")
    assert shown.isascii()
    assert shown.replace(r"\{", "").replace(r"\}", "").count("{") == shown.replace(
        r"\{", ""
    ).replace(r"\}", "").count("}")
    assert not set(shown.replace("\\#", "").replace("\\$", "").replace("\\&", "").replace("\\%", "")
                   .replace("\\_", "").replace("n~=~", "")) & set("#$&%_^<>|\"`'")  # fmt: skip
