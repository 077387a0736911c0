"""Series of a history: which commits move the time of a step beyond its noise, by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import prunescope
from prunescope.analysis.history.history_file import append_lines, check_history, read_lines
from prunescope.analysis.history.measured_lines import step_interval
from prunescope.analysis.history.series import level_before, series_of
from prunescope.analysis.report.history_tables import change_lines, openmetrics
from prunescope.analysis.schema.history import History, HistoryLine, HistorySeries
from prunescope.analysis.wording.sentence import sentence
from prunescope.taxonomy.errors import PrunescopeError
from tests.chrome import chrome, k, op, save, step


def line(commit: str, ms: float, half: float | None = 0.1, **values: Any) -> HistoryLine:
    """A line of 8 steps of `ms`, with an interval of ± `half` ms."""
    ci95 = None if half is None else [(ms - half) * 1e6, (ms + half) * 1e6]
    given = {
        "commit": commit, "time": "2026-11-29T00:00:00Z", "subject": f"{commit}.json.gz",
        "model": "qwen3-8b", "device": "mi300x", "phase": "decode", "step_ns": ms * 1e6,
        "ci95": ci95, "steps": 8, "valid": True,
    }  # fmt: skip
    return HistoryLine(**{**given, **values})


def only(*lines: HistoryLine) -> HistorySeries:
    (series,) = series_of(lines)
    return series


def six_steps(slower: float) -> list[Any]:
    """Six steps of 1 to 1.002 ms, or so much slower."""
    times = [round(1000 * slower) + number % 3 for number in range(6)]
    product = ("aten::mm", [4, 4], [4, 4])
    return [step(number, op(*product, kernels=[k(us=us)])) for number, us in enumerate(times)]


def test_a_commit_that_is_slower_is_named() -> None:
    """10.0 and 10.1 ± 0.1 are one level, 10.05 ± 0.07; 11 ± 0.1 is 9.5 % above it."""
    series = only(line("a", 10), line("b", 10.1), line("c", 11), line("d", 11.05))
    (change,) = series.changes
    assert (change.commit, change.before_ns, change.after_ns) == ("c", 10.05e6, 11e6)
    assert change.change == pytest.approx(0.0945, abs=1e-4)
    # 0.1 and half of √2 · 0.1, together 0.1225, of 10.05
    assert change.noise == pytest.approx(0.01219, abs=1e-5)
    assert [point.state for point in series.points] == ["level", "level", "changed", "level"]
    assert series.level_ns == pytest.approx(11.025e6)
    assert "c: 9.5 % slower, 10.050 ms → 11.000 ms" in change_lines(series)[0]


def test_a_commit_within_the_noise_is_not() -> None:
    series = only(line("a", 10, half=0.5), line("b", 10.6, half=0.5), line("c", 9.8, half=0.5))
    assert not series.changes
    assert change_lines(series) == ["no commit changed the time of a step beyond its noise"]


def test_without_intervals_nothing_is_decided_before_a_commit_was_measured_twice() -> None:
    once = only(line("a", 10, None), line("b", 12, None))
    assert [point.state for point in once.points] == ["level", "undecided"] and not once.changes
    times = ("a", 10), ("a", 10.02), ("b", 12), ("b", 12.02)
    twice = [line(commit, ms, None, subject=f"{commit}{ms}") for commit, ms in times]
    assert [change.commit for change in only(*twice).changes] == ["b"]
    # the same trace, analysed again, is no second measurement
    again = only(*[line("a", 10, None)] * 2, *[line("b", 12, None)] * 2)
    assert not again.changes and again.points[0].lines == 2 and again.points[0].ci95 is None


def test_the_spread_of_a_level_is_its_noise_where_it_is_wider() -> None:
    """Three commits at 10, 10.4 and 9.6, each ± 0.01: 10.5 is no change; s is 0.4, t is 4.3."""
    before = (line("a", 10, 0.5), line("b", 10.4, 0.5), line("c", 9.6, 0.5))
    assert not only(*before, line("d", 11, 0.01)).changes
    assert [change.commit for change in only(*before, line("d", 13, 0.01)).changes] == ["d"]


def test_what_is_not_valid_is_in_no_level() -> None:
    series = only(
        line("a", 10), line("b", 20, valid=False, reasons=["timing not valid"]), line("c", 10)
    )
    assert [point.state for point in series.points] == ["level", "invalid", "level"]
    assert not series.changes


def test_another_model_pruning_device_phase_or_batch_is_a_series_of_its_own() -> None:
    """10 ms at 800 tokens a second are 8 tokens a step. Labels of OpenMetrics tell all apart."""
    lines = [
        line("a", 10),
        line("a", 3, phase="prefill"),
        line("b", 3, phase="trace", kind="decode"),
        line("b", 7, pruning="static-nk 0.5"),
        line("b", 10, tokens_per_s=800.0),
        line("b", 10, tokens_per_s=1600.0),
        line("c", 20, tokens_per_s=800.0),
    ]
    series = series_of(lines)
    assert [(one.phase, one.pruning, one.tokens) for one in series] == [
        ("decode", None, None), ("prefill", None, None), ("trace (decode)", None, None),
        ("decode", "static-nk 0.5", None), ("decode", None, 8), ("decode", None, 16),
    ]  # fmt: skip
    text = openmetrics(History(series=series))
    samples = [row.rsplit(" ", 1)[0] for row in text.splitlines() if not row.startswith("#")]
    assert len(samples) == len(set(samples))


def test_the_interval_of_one_line_is_shown_as_it_was_measured() -> None:
    """The ends of a median's interval are not symmetric."""
    series = only(line("a", 10, ci95=[9.9e6, 10.4e6]))
    assert series.points[0].ci95 == [9.9e6, 10.4e6]


def test_a_slow_commit_fails_again_where_it_is_measured_again() -> None:
    """The job of a commit that failed runs once more: its own line is no level."""
    lines = [line("a", 10), line("b", 12)]
    level = level_before(lines, line("b", 12))
    assert level is not None and level.ns == 10e6
    assert level_before(lines, line("c", 12)).ns == 12e6  # type: ignore[union-attr]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(1, 100)), min_size=1, max_size=20))
def test_any_history_has_as_many_points_as_commits_in_a_row(times: list[tuple[str, float]]) -> None:
    series = only(*[line(commit, ms) for commit, ms in times])
    assert sum(point.lines for point in series.points) == len(times)
    changed = [point.commit for point in series.points if point.state == "changed"]
    assert changed == [change.commit for change in series.changes]


def test_a_file_is_added_to_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    append_lines(path, [line("a", 10)])
    append_lines(path, [line("b", 11), line("b", 3, phase="prefill")])
    lines, notices = read_lines(path)
    assert [item.commit for item in lines] == ["a", "b", "b"] and not notices
    with path.open("ab") as file:
        file.write(b'{"schema":1,"commit":"c"')  # the process was killed
    lines, (notice,) = read_lines(path)
    assert len(lines) == 3 and "line 4 of h.jsonl is not whole" in sentence(notice)
    append_lines(path, [line("d", 12)])
    lines, (notice,) = read_lines(path)
    assert [item.commit for item in lines] == ["a", "b", "b", "d"]
    assert "line 4 of h.jsonl" in sentence(notice)
    with path.open("ab") as file:
        file.write(b'{"schema":1,"commit":3}\n')
    with pytest.raises(PrunescopeError, match="line 6"):
        read_lines(path)


def test_a_deep_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    path.write_text('{"zz": ' + "[" * 100_000 + "\n")
    with pytest.raises(PrunescopeError, match=r"h\.jsonl line 1 is not JSON"):
        read_lines(path)


def test_a_history_whose_first_line_was_cut_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    append_lines(path, [line("a", 10)])
    path.write_bytes(path.read_bytes()[:80])
    append_lines(path, [line("b", 11)])
    assert [item.commit for item in read_lines(path)[0]] == ["b"]


@pytest.mark.parametrize("content", ["[1]", "{}", "text", '{"schema": 2}'])
def test_no_line_is_added_to_another_file(content: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(PrunescopeError):
        append_lines(path, [line("a", 10)])
    assert path.read_text() == content
    with pytest.raises(PrunescopeError, match="folder"):
        check_history(tmp_path)


def test_secrets_and_paths_stay_out_of_a_history(tmp_path: Path) -> None:
    append_lines(
        tmp_path / "h", [line("a", 10, subject="/home/alice/t.json", model="/data/alice/m")]
    )
    assert "alice" not in (tmp_path / "h").read_text()


def test_openmetrics() -> None:
    """Each family has its TYPE, UNIT (the end of its name) and HELP; the text ends with # EOF."""
    rates = {"tokens_per_s": 800.0}, {"tokens_per_s": 8 / 0.012}
    series = series_of([line("a", 10, **rates[0]), line('b"\n', 12, **rates[1])])
    text = openmetrics(History(series=series))
    assert text.endswith("# EOF\n")
    assert (
        'prunescope_step_seconds{model="qwen3-8b",device="mi300x",phase="decode",tokens="8",commit="b\\"'
        in text
    )
    assert re.search(r"prunescope_step_changed\{.*\} 1\n", text)
    for name, unit in re.findall(r"# UNIT (\w+) (\w+)", text):
        assert name.endswith(unit)
    for sample in (row for row in text.splitlines() if not row.startswith("#")):
        assert re.fullmatch(r'\w+\{(\w+="(\\.|[^"\\])*",?)+\} \S+', sample)


def test_the_interval_of_a_step_takes_five_steps(tmp_path: Path) -> None:
    """10, 11, 12, 13 and 14 us, and the gaps: t(4) is 2.776, s is 1.581, so ± 1.963 us."""
    for count, has_interval in ((4, False), (5, True)):
        steps = [
            step(i, op("aten::mm", [4, 4], [4, 4], kernels=[k(us=10 + i)])) for i in range(count)
        ]
        report = prunescope.analyze(save(chrome(*steps), tmp_path / f"{count}.json"))
        (phase,) = report.phases.values()
        assert (step_interval(phase) is not None) is has_interval


def test_five_commits_with_a_slower_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third commit is 20 % slower; CI names it."""
    path = tmp_path / "h.jsonl"
    for number, slower in enumerate((1.0, 1.0, 1.2, 1.2, 1.2)):
        steps = six_steps(slower)
        monkeypatch.setenv("GITHUB_SHA", f"{number}" * 40)
        report = prunescope.analyze(save(chrome(*steps), tmp_path / f"{number}.json"))
        report.append_to_history(path, model="made-up")
    history = prunescope.history(path)
    ((change,),) = (series.changes for series in history.series)
    assert change.commit == "2" * 12 and change.change == pytest.approx(0.2, abs=0.01)
    assert len(history.table) == 5
    names = {file.name for file in history.save(tmp_path / "out", ["md", "csv", "json", "svg"])}
    assert names == {"history.md", "history.csv", "history.json", "history.svg"}
    text = (tmp_path / "out" / "history.md").read_text()
    assert "slower" in text and "222222222222" in text


def test_a_gate_against_a_history(tmp_path: Path) -> None:
    """The first measurement decides nothing; one that is 20 % slower fails, an equal one holds."""
    path, rule = tmp_path / "h.jsonl", "history <= 5%"

    def state(slower: float) -> str:
        steps = six_steps(slower)
        trace = save(chrome(*steps), tmp_path / f"{slower}.json")
        outcome = prunescope.check(trace, require=rule, history=path, commit=str(slower))
        return outcome.verdicts[0].state

    assert [state(slower) for slower in (1.0, 1.01, 1.2)] == ["undecided", "held", "failed"]
