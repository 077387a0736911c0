"""What a command refuses before it works, and how it says which of its arguments was meant."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import prunescope
from prunescope.analysis.named_runs import describe_left_out, find_runs
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report import sentences, titles
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.tracer.capture.runs import check_out
from tests.analysis.run_folder import write_pair
from tests.chrome import chrome, k, op, save, step


def trace(us: float = 10, steps: int = 1) -> dict[str, Any]:
    mm = op("aten::mm", [64, 64], [64, 64], kernels=[k(us=us)])
    return chrome(*(step(i, mm) for i in range(steps)))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["analyze", ""], "argument 2 is empty"),
        (["analyze", "x.json", "--format", ""], "argument 4 is empty"),
        (["analyze", "x.json", "--out="], "--out has no value"),
        (["analyze", "x.json", "--out", "r", "--format", " , "], "--format names no format"),
    ],
)
def test_an_empty_argument_is_no_path_and_no_default(
    args: list[str], says: str, capsys: pytest.CaptureFixture[str],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    save(trace(), tmp_path / "x.json")
    assert prunescope.main(args) == 2
    assert says in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_an_unknown_format_is_told_before_the_analysis(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The trace is none at all, and the format is what is told."""
    (tmp_path / "x.json").write_text("no trace")
    args = ["analyze", str(tmp_path / "x.json"), "--out", str(tmp_path / "r"), "--format", "pdff"]
    assert prunescope.main(args) == 2
    assert "unknown format 'pdff'" in capsys.readouterr().err


def test_the_python_api_takes_no_empty_path() -> None:
    with pytest.raises(PrunescopeError, match="is empty"):
        prunescope.analyze("")


def test_a_folder_below_a_file_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PrunescopeError, match="cannot be made: file is a file"):
        check_out(tmp_path / "file" / "sub" / "deep", overwrite=False)
    check_out(tmp_path / "new" / "deep", overwrite=False)
    assert not (tmp_path / "new").exists()


def test_an_error_says_which_side_it_is_about(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    good, bad = save(trace(), tmp_path / "a" / "t.json"), tmp_path / "b" / "t.json"
    with pytest.raises(PrunescopeError) as missing:
        analyze(good, baseline=bad)
    assert missing.value.problem == "baseline: no such file or folder: t.json"
    with pytest.raises(PrunescopeError, match="no such file or folder: raw/nope.json"):
        analyze(Path("raw/nope.json"))
    bad.write_text("no trace")
    with pytest.raises(PrunescopeError, match="^baseline: t.json"):
        analyze(good, baseline=bad)
    with pytest.raises(PrunescopeError, match="^t.json"):
        analyze(bad, baseline=good)


def test_two_traces_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for name in ("dense", "pruned"):
        (tmp_path / name).mkdir()
        save(trace(), tmp_path / name / "t.json")
    report = analyze(tmp_path / "pruned" / "t.json", baseline=tmp_path / "dense" / "t.json").report
    assert titles.title(report).startswith("pruned/t.json")
    assert titles.against(report) == "against dense/t.json"
    one = tmp_path / "dense" / "t.json"
    assert titles.against(analyze(one, baseline=one).report) == "against itself (t.json)"


def test_what_a_comparison_leaves_out_is_named(tmp_path: Path) -> None:
    write_pair(tmp_path / "runs" / "a", trace(), trace(5))
    loose = save(trace(), tmp_path / "runs" / "loose.json")
    (tmp_path / "runs" / "sweep.json").write_text('{"schema": 1, "results": []}')
    os.mkfifo(tmp_path / "runs" / "pipe.json")  # to open it would wait for ever
    folder = tmp_path / "runs"
    assert [f.name for f in find_runs([folder])] == ["a"]
    (note,) = describe_left_out([folder])
    assert note.startswith("runs/ holds 1 traces next to its runs (loose.json)")
    assert describe_left_out([folder / "a"]) == []
    assert describe_left_out([loose]) == []
    assert describe_left_out([folder / "a", folder / "a" / "pruned"]) == [
        "a is named 2 times: counted once"
    ]


def test_a_bare_pair_of_several_steps_has_an_interval(tmp_path: Path) -> None:
    dense, pruned = save(trace(10, 5), tmp_path / "d.json"), save(trace(5, 5), tmp_path / "p.json")
    phase = analyze(pruned, baseline=dense).report.phases["trace"]
    assert phase.ladder is not None and phase.ladder.realised_ci95 is not None
    low, high = phase.ladder.realised_ci95
    assert low <= phase.ladder.realised <= high
    assert "95 % bootstrap interval over 5 profiled steps" in sentences.statistic(phase)
    one = analyze(save(trace(5), tmp_path / "o.json"), baseline=save(trace(), tmp_path / "q.json"))
    ladder = one.report.phases["trace"].ladder
    assert ladder is not None and ladder.realised_ci95 is None
    assert "interval" not in sentences.statistic(one.report.phases["trace"])


def test_families_lists_the_presets_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert prunescope.main(["families"]) == 0
    assert "tiny-llama" in capsys.readouterr().out
    assert prunescope.main(["trace", "--help"]) == 0
    assert "prunescope families" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["families"], ["families", "--architecture", "tiny-llama"], ["devices"]]
)
def test_json_of_listings_goes_where_it_is_told_to(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*more: str, code: int = 0) -> str:
        assert prunescope.main([words[0], *more]) == code
        return capsys.readouterr().out

    bare, path = said(*words[1:], "--json"), tmp_path / "x.json"
    assert bare.startswith("{")
    assert said(*words[1:], "--json", "-") == bare == said("--json", *words[1:])
    assert said(*words[1:], "--json", str(path)) == said(*words[1:])
    assert path.read_text() == bare
    said(*words[1:], "--json", str(tmp_path / "no" / "x.json"), code=2)
