"""Inputs that once ended in a traceback or in words of the machine: each is an answer in words."""

from __future__ import annotations

import csv
import gzip
import json
import time
from pathlib import Path
from typing import Any

import pytest

import prunescope
from prunescope.analysis.report.escape import clean
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.presets import preset_config
from tests.hostile.material import changed, write_pair

ROOT = Path(__file__).resolve().parents[2]
STATIC: dict[str, Any] = {"model": "tiny-llama", "method": "static-m", "sparsity": 0.5}


def said(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a command that refuses says."""
    assert prunescope.main([str(word) for word in words]) in (2, 3)
    streams = capsys.readouterr()
    assert "Traceback" not in streams.err
    return streams.out + streams.err


@pytest.mark.parametrize(
    ("path", "value", "wanted"),
    [
        (("phases", "prefill", "trace"), "../x", "trace: expected the name of a file"),
        (("variant",), "other", "variant: expected dense or pruned"),
    ],
)  # fmt: skip
def test_no_pattern_of_ours_is_in_a_message(
    path: tuple[str, ...], value: str, wanted: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    manifest = write_pair(tmp_path / "run") / "pruned" / "run.json"
    manifest.write_text(json.dumps(changed(json.loads(manifest.read_bytes()), path, value)))
    told = said(capsys, "analyze", tmp_path / "run")
    assert wanted in told and "regex" not in told and "\\A" not in told


def test_what_cannot_be_written_is_named_as_it_was_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pair(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    words = ["check", "run", "-r", "prefill.realised >= 1"]
    assert "cannot write JUnit XML: /proc/x/j.xml" in said(
        capsys, *words, "--junit", "/proc/x/j.xml"
    )
    assert "cannot write JSON: /proc/x/y.json" in said(capsys, *words, "--json", "/proc/x/y.json")
    assert "gone/x" in said(capsys, "analyze", "gone/x")
    for given in ("./gone", "gone/", ".//gone/../gone/x"):
        assert f"folder: {given}\n" in said(capsys, "analyze", given)
        assert f"there is no history {given}\n" in said(capsys, "history", given)
    assert "folder: ./run/gone.json\n" in said(
        capsys, "analyze", "run", "--baseline=./run/gone.json"
    )
    assert "folder: /dev/zero\n" in said(capsys, "analyze", "run", "--history", "/dev/zero")


@pytest.mark.parametrize(
    "call",
    [
        lambda: prunescope.trace(**STATIC, out="a\0b"),
        lambda: prunescope.predict(**STATIC, device="h100-sxm").save("a\0b"),
        lambda: prunescope.bundle(["a\0b"], out="b.zip"),
        lambda: prunescope.analyze("a\0b"),
        lambda: prunescope.predict(**STATIC, device="h100-sxm", batch=10**400),
        lambda: prunescope.sweep({"model": "tiny-llama", "families": ["static-m"],
                                  "sparsities": [10**400]}, out="s"),
        lambda: prunescope.sweep({"model": "tiny-llama", "families": ["static-m"],
                                  "sparsities": [0.5], "prompt_lens": [10**400]}, out="s"),
    ],
)  # fmt: skip
def test_python_refuses_what_the_command_line_cannot_say(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PrunescopeError):
        call()
    assert list(tmp_path.iterdir()) == []


def test_dimensions_of_any_kind(tmp_path: Path) -> None:
    events = [
        {"ph": "X", "cat": "cpu_op", "name": "aten::linear", "pid": 1, "tid": 1, "ts": 10.0 * i,
         "dur": 5.0, "args": {"Input Dims": dims}}
        for i, dims in enumerate([[[{}, "x"]], {"a": 1}, [[None]], "x", [[[1, [2]]]], [{}], 7])
    ]  # fmt: skip
    (tmp_path / "t.json").write_text(json.dumps({"traceEvents": events}))
    assert prunescope.analyze(tmp_path / "t.json").phases


def test_dimensions_of_a_whole_trace_that_hold_objects(tmp_path: Path) -> None:
    """One op alone is told apart by nothing; where all have such dimensions, they are compared."""
    (real,) = (ROOT / "traces" / "tiny-static-nk" / "pruned").glob("prefill.trace.json*")
    trace = json.loads(gzip.decompress(real.read_bytes()))
    nested = [[{"x": 1}, 2], [3], [1, [2, {"q": 3}]]]
    for key in ("Input Dims", "Concrete Inputs", "Input type", "Input Strides"):
        for event in trace["traceEvents"]:
            if event.get("cat") == "cpu_op":
                event["args"][key] = nested
        path = tmp_path / f"{key}.json"
        path.write_text(json.dumps(trace))
        assert prunescope.analyze(path).phases


def test_time_grows_with_the_threads_and_not_with_their_square(tmp_path: Path) -> None:
    def seconds(count: int) -> float:
        events = [
            {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "pid": 1, "tid": i, "ts": float(i),
             "dur": 0.5, "args": {"External id": i}}
            for i in range(count)
        ]  # fmt: skip
        path = tmp_path / f"{count}.json"
        path.write_text(json.dumps({"traceEvents": events}))
        began = time.process_time()
        prunescope.analyze(path)
        return time.process_time() - began

    few = seconds(2000)
    assert seconds(16_000) < 24 * few + 1  # by the square: 64 times as long


def test_no_cell_of_a_small_table_is_a_formula_or_hides_anything(tmp_path: Path) -> None:
    """Tables of results whose names are a stranger's: those of a history and of a prediction."""
    name = "=cmd|' /C calc'!A0\x1b[2J\0\u202e"
    line = {"commit": name, "time": "t", "phase": "decode", "step_ns": 1e6, "valid": True,
            "model": name, "device": name, "subject": "x", "steps": 8, "ci95": None}  # fmt: skip
    (tmp_path / "h.jsonl").write_text(json.dumps({"schema": 1, **line}) + "\n")
    prunescope.history(tmp_path / "h.jsonl").save(tmp_path, ["csv"])
    config = {**preset_config("tiny-llama"), "_name_or_path": name}
    (tmp_path / "=cmd").mkdir()
    (tmp_path / "=cmd" / "config.json").write_text(json.dumps(config))
    predicted = prunescope.predict(
        model=str(tmp_path / "=cmd"), method="static-m", sparsity=0.5, device="h100-sxm"
    )
    predicted.save(tmp_path, ["csv"])
    for path in tmp_path.glob("*.csv"):
        text = path.read_text("utf-8")
        assert clean(text.replace("\n", "")) == text.replace("\n", "")
        assert not [
            cell for row in csv.reader(text.splitlines()) for cell in row if cell[:1] == "="
        ]
    assert "'=cmd" in (tmp_path / "history.csv").read_text("utf-8")
