"""Ranks and runs in processes of their own: the bytes of one process; a bad file is a line."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.compare_runs import compare
from prunescope.analysis.inputs.options import Options
from prunescope.analysis.pipeline import Analysis, analyze
from prunescope.analysis.pool import jobs_for, run_tasks
from prunescope.analysis.schema.comparison import to_json as comparison_json
from prunescope.analysis.schema.encode import json_bytes, packed, unpacked
from prunescope.analysis.schema.report import Report, to_json
from prunescope.taxonomy.errors import PrunescopeError
from tests.analysis.pool_case import die_or_double
from tests.hostile.material import decoder

SLOW = 2


def slowed(trace: dict[str, Any]) -> dict[str, Any]:
    """Every kernel takes 20 % longer, and those behind it begin later."""
    out, shift = copy.deepcopy(trace), 0.0
    kernels = [e for e in out["traceEvents"] if e.get("cat") == "kernel"]
    for event in sorted(kernels, key=lambda e: e["ts"]):
        event["ts"] += shift
        shift += 0.2 * event["dur"]
        event["dur"] *= 1.2
    return out


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six ranks of one program: one slow, one no trace, one cut off before its kernels."""
    folder = tmp_path_factory.mktemp("ranks")
    trace = decoder(layers=1)
    for number in range(6):
        own = slowed(trace) if number == SLOW else trace
        text = json.dumps({**own, "distributedInfo": {"rank": number, "world_size": 6}})
        (folder / f"rank{number}.json").write_text(text, encoding="utf-8")
    whole = (folder / "rank5.json").read_text(encoding="utf-8")
    (folder / "rank4.json").write_text("<html>", encoding="utf-8")
    (folder / "rank5.json").write_text(whole[: whole.index("cat") + 300], encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def both(ranks: Path) -> tuple[Analysis, Analysis]:
    return analyze(ranks), analyze(ranks, jobs=2)


def test_two_processes_give_the_bytes_of_one(both: tuple[Analysis, Analysis]) -> None:
    alone, shared = both
    assert to_json(shared.report) == to_json(alone.report)
    assert list(shared.frames) == list(alone.frames) == [f"rank{i}" for i in range(4)]
    assert all(shared.frames[name].equals(alone.frames[name]) for name in alone.frames)


def test_the_slow_rank_is_found_and_bad_files_are_lines(both: tuple[Analysis, Analysis]) -> None:
    report = both[1].report
    found = [n for n, phase in report.phases.items() for f in phase.findings
             if f.id == "straggler"]  # fmt: skip
    assert found == [f"rank{SLOW}"]
    assert sum("rank4" in line for line in report.warnings) >= 1
    assert sum(line.startswith("rank5 is left out") for line in report.warnings) == 1
    assert report.partial


def test_against_a_baseline_of_ranks(ranks: Path, tmp_path: Path) -> None:
    """A good rank, the slow one and one that is no trace, each against its own."""
    for number in (1, SLOW, 4):
        shutil.copy(ranks / f"rank{number}.json", tmp_path)
    alone = analyze(tmp_path, baseline=tmp_path)
    assert set(alone.report.phases) == {"rank1", f"rank{SLOW}"}
    assert to_json(analyze(tmp_path, baseline=tmp_path, jobs=2).report) == to_json(alone.report)


def test_all_ranks_bad_is_the_error_of_one_process(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"rank{number}.json").write_text('{"traceEvents":[{"ph":"M"}]}')
    with pytest.raises(PrunescopeError) as one:
        analyze(tmp_path)
    with pytest.raises(PrunescopeError) as two:
        analyze(tmp_path, jobs=2)
    assert str(one.value) == str(two.value)


def test_runs_are_compared_in_processes(ranks: Path) -> None:
    subjects = [ranks / f"rank{i}.json" for i in (0, SLOW, 4, 1)]
    alone = compare(subjects, options=Options(sparsity=0.25))
    shared = compare(subjects, options=Options(sparsity=0.25), jobs=2)
    assert comparison_json(shared) == comparison_json(alone)
    assert [failure.run for failure in shared.failed] == ["rank4.json"]
    assert {n: to_json(r) for n, r in shared.reports.items()} == {
        n: to_json(r) for n, r in alone.reports.items()
    }


def test_numbers_come_as_they_were_sent(both: tuple[Analysis, Analysis]) -> None:
    report = both[0].report
    again = unpacked(packed(report), Report)
    assert json_bytes(again) == json_bytes(report)


def test_a_process_that_dies_fails_its_task_alone() -> None:
    first, died, last = run_tasks(die_or_double, ["a", "die", "b"], str, jobs=1)
    assert (first, last) == ("aa", "bb")
    assert isinstance(died, PrunescopeError) and "died" in died.problem


@pytest.mark.parametrize("to_all", [True, False], ids=["the group", "the command"])
def test_an_interrupted_pool_ends_at_once_and_without_a_word(tmp_path: Path, to_all: bool) -> None:
    """Ctrl-C is sent to every process of the terminal; `kill -INT` to one. Tasks take a minute."""
    code = (
        "import sys\nfrom prunescope.analysis.pool import run_tasks\n"
        "from tests.analysis.pool_case import begin_and_sleep\n"
        "list(run_tasks(begin_and_sleep, sys.argv[1:], str, jobs=2))\n"
    )
    begun = [tmp_path / str(i) for i in range(4)]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, begun)],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while not all(path.exists() for path in begun[:2]) and process.poll() is None:
        time.sleep(0.02)
    (os.killpg if to_all else os.kill)(process.pid, signal.SIGINT)
    told = process.communicate(timeout=30)[1]
    assert told.count("KeyboardInterrupt") == 1  # of the command itself
    assert "serve" not in told
    assert not any(path.exists() for path in begun[2:])
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody is left


@pytest.mark.slow
def test_the_workers_of_ray_give_the_bytes_of_one_process(
    both: tuple[Analysis, Analysis], ranks: Path
) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    alone, there = both[0], analyze(ranks, engine="ray")
    assert to_json(there.report) == to_json(alone.report)
    assert all(there.frames[name].equals(alone.frames[name]) for name in alone.frames)
    subjects = [ranks / f"rank{i}.json" for i in (0, SLOW, 4, 1)]
    local = compare(subjects, options=Options(sparsity=0.25))
    shared = compare(subjects, options=Options(sparsity=0.25), engine="ray")
    assert comparison_json(shared) == comparison_json(local)


def test_an_engine_that_is_not_there_is_a_sentence(
    ranks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PrunescopeError, match="unknown engine 'slurm'"):
        analyze(ranks, engine="slurm")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PrunescopeError, match="--engine ray needs ray"):
        analyze(ranks, engine="ray")


def test_processes_are_begun_where_they_are_worth_it() -> None:
    assert jobs_for(3, []) == 3
    assert jobs_for(None, [1 << 20] * 4) == 1
    assert jobs_for(None, [1 << 20] * 9) >= 1
