"""A trace read by several processes is the trace that one of them reads."""

from __future__ import annotations

import gzip
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from prunescope.analysis.trace import reader, workers
from prunescope.analysis.trace.load import load
from prunescope.analysis.trace.reader import NotSharedError
from prunescope.analysis.trace.shares import join_shares, read_share

TRACES = sorted((Path(__file__).parents[3] / "traces").rglob("*.trace.json.gz"))[:2]


def event(i: int, **more: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": "cpu_op", "name": f"aten::op{i % 7}", "pid": 1, "tid": i % 3,
            "ts": i * 10.5, "dur": 3.25, "args": {"External id": i, "Input Dims": [[i % 5, 2]]},
            **more}  # fmt: skip


def write(path: Path, events: list[dict[str, Any]], **meta: Any) -> Path:
    text = json.dumps({"schemaVersion": 1, "traceEvents": events, **meta}, indent=1)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def together(path: Path, count: int) -> Any:
    parts = [read_share(path, None, index=i, count=count) for i in range(count)]
    return join_shares(path, None, parts)


def assert_same(path: Path, joined: Any) -> None:
    alone = join_shares(path, None, [read_share(path, None, index=0, count=1)])
    assert alone is not None and joined is not None
    for name in ("names", "threads", "calls", "grids"):
        assert list(getattr(joined[1], name).items()) == list(getattr(alone[1], name).items())
    for group, table in alone[1].tables.items():
        assert np.array_equal(joined[1].tables[group].together(), table.together()), group
    assert joined[1].dropped == alone[1].dropped
    assert joined[1].stacks == alone[1].stacks
    assert joined[0] == alone[0]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("suffix", ["json", "json.gz"])
def test_shares_together_are_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, suffix: str
) -> None:
    monkeypatch.setattr(reader, "BLOCK", 2048)
    events = [event(i, **({"name": 5} if i == 50 else {})) for i in range(200)]
    events += [event(i, cat="python_function", dur=90.0 + i) for i in range(20)]
    path = write(tmp_path / f"t.{suffix}", events, deviceProperties=[{"id": 0}])
    joined = together(path, count)
    assert_same(path, joined)
    assert joined[0].malformed == 1
    assert joined[1].stacks == 20
    assert joined[0].meta == {"schemaVersion": 1, "deviceProperties": [{"id": 0}]}


@pytest.mark.parametrize("path", TRACES, ids=lambda p: p.parent.name)
def test_real_traces_in_shares(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "BLOCK", 16 << 10)
    assert_same(path, together(path, 3))


def test_a_boundary_inside_a_string_is_for_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first share finds out; the other one, which skips that block, cannot."""
    monkeypatch.setattr(reader, "BLOCK", 2048)
    path = write(tmp_path / "t.json", [event(i, odd="},{" * 500) for i in range(40)])
    with pytest.raises(NotSharedError):
        read_share(path, None, index=0, count=2)
    assert len(load(path).ops["ts"]) == 40


def test_a_cut_file_in_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "BLOCK", 2048)
    path = write(tmp_path / "t.json", [event(i) for i in range(100)])
    path.write_bytes(path.read_bytes()[:-900])
    joined = together(path, 2)
    assert_same(path, joined)
    assert joined[0].cut


def test_shares_of_two_files_are_no_trace(tmp_path: Path) -> None:
    path = write(tmp_path / "t.json", [event(i) for i in range(4)])
    part = read_share(path, None, index=0, count=1)
    assert join_shares(path, None, [part, part]) is None
    assert join_shares(path, None, [part[:20]]) is None


def test_workers_read_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "t.json", [event(i) for i in range(100)])
    alone = load(path)
    monkeypatch.setattr(workers, "count_for", lambda _: 2)
    assert workers.shares_of(path) is not None
    both = load(path)
    assert both.names == alone.names and both.calls == alone.calls
    assert all(np.array_equal(both.ops[name], alone.ops[name]) for name in alone.ops)
    path.write_text("[]", encoding="utf-8")  # nothing in it: one process words why
    with pytest.raises(Exception, match="no device events and no host ops"):
        load(path)


def test_a_worker_that_does_not_start_leaves_it_to_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "t.json", [event(i) for i in range(9)])
    monkeypatch.setattr(workers, "count_for", lambda _: 2)
    for executable in (str(tmp_path / "none"), "/bin/false"):
        monkeypatch.setattr(sys, "executable", executable)
        assert workers.shares_of(path) is None
        assert len(load(path).ops["ts"]) == 9


def test_workers_find_an_editable_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found by a hook of site, not by sys.path, and workers begin without site."""
    path = write(tmp_path / "t.json", [event(i) for i in range(9)])
    monkeypatch.setattr(workers, "count_for", lambda _: 2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p and not holds_us(p)])
    assert workers.shares_of(path) is not None


def holds_us(place: str) -> bool:
    return (Path(place) / "prunescope").is_dir()


def test_small_files_and_single_cores_have_no_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(b"[")
    assert workers.count_for(path) == workers.count_for(tmp_path / "none") == 0
    with path.open("ab") as file:
        file.truncate(100 << 20)
    monkeypatch.setattr(workers, "cores", lambda: 8)
    assert workers.count_for(path) == 3
    monkeypatch.setattr(workers, "cores", lambda: 1)
    assert workers.count_for(path) == 0


def test_a_pipe_is_worth_no_workers(tmp_path: Path) -> None:
    """Nobody writes to it: to open it would wait for ever."""
    os.mkfifo(tmp_path / "t.json")
    assert workers.count_for(tmp_path / "t.json") == 0


def test_the_largest_traces_of_a_run_begin_before_its_options_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of those of both runs of a folder; not the eager passes, nor what is no run."""
    for run, names in (("dense", ("decode", "prefill")), ("pruned", ("decode", "decode.eager"))):
        (tmp_path / run).mkdir()
        (tmp_path / run / "run.json").touch()
        for name in names:
            size = 10 if name == "prefill" else 20
            (tmp_path / run / f"{name}.trace.json.gz").write_bytes(bytes(size))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "decode.trace.json.gz").write_bytes(bytes(99))
    begun: list[Path] = []
    monkeypatch.setattr(workers, "_begun", {})

    def begin(path: Path, *, early: bool) -> object:
        assert early
        begun.append(path)
        return SimpleNamespace(stop=lambda: None)

    monkeypatch.setattr(workers, "begin", begin)
    workers.begin_early([str(tmp_path), "--device", "h100-sxm"])
    large = [tmp_path / run / "decode.trace.json.gz" for run in ("dense", "pruned")]
    assert begun == large
    begun.clear()
    workers._begun.clear()
    workers.begin_early([str(tmp_path / "dense"), str(tmp_path / "other")])
    assert begun[:2] == [large[0], tmp_path / "dense" / "prefill.trace.json.gz"]
