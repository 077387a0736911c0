"""The runs of traces/, analysed once for all tests of a process that read them. No test in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.inputs.options import Options
from prunescope.analysis.pipeline import Analysis, analyze
from prunescope.analysis.schema.report import Report, from_json, to_json

TRACES = Path(__file__).resolve().parents[1] / "traces"
# Where commands and functions call it by a name of their own.
_CALLED = ("analysis.compare_runs", "analysis.pipeline", "analysis.predict_from")
_kept: dict[object, Analysis] = {}


def report_of(name: str) -> Report:
    """The report of `traces/name`: a run, or one side of it."""
    return from_json(_json_of(name))


@cache
def _json_of(name: str) -> bytes:
    return to_json(_once(TRACES / name).report)


@pytest.fixture
def stored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are analysed once, copies of them too; each question about one has that answer."""
    _answer_once(monkeypatch)


@contextmanager
def each_once() -> Iterator[None]:
    """The same for what fixtures of a module ask."""
    with pytest.MonkeyPatch.context() as patch:
        _answer_once(patch)
        yield


def _answer_once(patch: pytest.MonkeyPatch) -> None:
    for module in _CALLED:
        patch.setattr(import_module(f"prunescope.{module}"), "analyze", _once)


def _once(candidate: Path, **asked: Any) -> Analysis:
    """`analyze` of the same files with the same options is the analysis that was made of them."""
    how = ("jobs", "engine", "on_done")  # the answer is the same
    given = {name: value for name, value in asked.items() if value is not None and name not in how}
    if given.pop("options", None) not in (None, Options()) or given or not candidate.is_dir():
        return analyze(candidate, **asked)
    whole = candidate.parent if (candidate / "run.json").is_file() else candidate
    files = ((p.relative_to(whole), p.stat()) for p in whole.rglob("*") if p.is_file())
    told = frozenset((str(name), found.st_size, found.st_mtime_ns) for name, found in files)
    key = (whole.name, candidate.name, told)
    if key not in _kept:
        _kept[key] = analyze(candidate, **asked)
    return _kept[key]
