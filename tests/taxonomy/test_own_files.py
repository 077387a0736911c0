"""A file of ours that a command cannot use is named, with the command that takes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunescope import main
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.own_files import own_document, refuse_own_file

QUALITY = {"schema": 1, "weights": {"dense": "a"}, "tasks": None, "dense": {}, "pruned": {}}
LLAMA = ["--model", "llama-3.1-8b", "--device", "h100-sxm"]


@pytest.mark.parametrize(
    "words",
    [
        ["analyze", "q.json"],
        ["analyze", "q.json", "--baseline", "q.json"],
        ["predict", "--model", "q.json", "--device", "h100-sxm"],
        ["predict", "--from-run", "q.json"],
        ["predict", "--rank", *LLAMA, "--losses", "q.json"],
        ["families", "--architecture", "q.json"],
        ["pareto", "q.json"],
        ["verify", "q.json"],
        ["bundle", "q.json", "-o", "q.zip"],
        ["sweep", "q.json", "--out", "s"],
        ["predict", "--model", "qwen3-30b-a3b", "--device", "h100-sxm", "--routing", "q.json"],
        ["check", "q.json", "-r", "realised >= 1"],
    ],
)
def test_the_quality_of_a_sweep_is_named_by_every_command(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q.json").write_text(json.dumps(QUALITY))
    assert main(words) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "is the quality of a model: losses, and no times" in said
    assert "give the sweep's folder to `prunescope pareto`" in said


def test_files_of_ours_and_of_others(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    run = json.loads((root / "traces/tiny-static-m/dense/run.json").read_text())
    assert own_document(run) == ("is the manifest of a run", "give the run's folder")
    sweep = own_document({"schema": 1, "config": {}, "notes": [], "results": []})
    assert sweep is not None and sweep[0] == "lists the results of a sweep"
    assert own_document({"traceEvents": []}) is None
    assert own_document([]) is None
    (tmp_path / "deep.json").write_text("[" * 100_000)
    refuse_own_file(tmp_path / "deep.json")
    refuse_own_file(tmp_path)
    (tmp_path / "q.json").write_text(json.dumps(QUALITY))
    with pytest.raises(PrunescopeError, match="q.json is the quality"):
        refuse_own_file(tmp_path / "q.json")
