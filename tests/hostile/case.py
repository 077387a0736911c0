"""A hostile input and how it is answered: in, a function that writes it; out, an exit code.

2: refused in one sentence, 3: read up to a cut, 0: a report. Anything else raises.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from prunescope.analysis.pipeline import Analysis, analyze
from prunescope.analysis.report.formats import FORMATS, PhaseFrames, RequestedFormats
from prunescope.analysis.report.terminal import print_report
from prunescope.analysis.schema.report import Report
from prunescope.taxonomy.errors import PrunescopeError

# What does something in a browser, in LaTeX, a spreadsheet or a terminal.
ATTACK = "<script>alert(1)</script>\\input{/etc/passwd}=cmd|' /C calc'!A0\x1b]0;owned\x07\x1b[2J"
_shown: set[bytes] = set()  # digests of the reports that were checked as JSON and on a terminal
CONTROLS = frozenset(map(chr, range(32))) - {"\n", "\r", "\t"}
TEXT_FORMATS = ("md", "html", "json", "tex", "csv")


@dataclass(frozen=True)
class Case:
    """`write` puts the input into an empty folder and returns what `analyze` is given.

    `codes`: the answers that are right; `text`: every text format is rendered too.
    """

    name: str
    write: Callable[[Path], Path]
    codes: tuple[int, ...] = (0, 2, 3)
    text: bool = False


def answer(case: Case, folder: Path) -> int:
    """The exit code of a case. Raises whatever is no PrunescopeError, and AssertionError where an
    answer is not fit to be shown."""
    subject = case.write(folder)
    try:
        done = analyze(subject)
    except PrunescopeError as error:
        assert error.problem and error.hint
        assert len(str(error)) < 2000, "an error is a sentence"
        return error.exit_code
    check_shown(done, formats=TEXT_FORMATS if case.text else ("json",))
    return 3 if done.report.partial else 0


def check_shown(done: Analysis, *, formats: tuple[str, ...]) -> None:
    """Every rendering is strict JSON or text without anything active in it. Two reports of the same
    JSON read the same: half of the cases damage what no number depends on."""
    files = _rendered(done, "json")
    seen = hashlib.sha256(files["report.json"]).digest()
    if formats == ("json",):
        if seen in _shown:
            return
        _shown.add(seen)
    for name in formats:
        files |= _rendered(done, name)
    for name, data in files.items():
        text = data.decode("utf-8")
        if name.endswith(".json"):
            json.loads(text, parse_constant=_no_constant)
        assert CONTROLS.isdisjoint(text), f"{name}: control characters"
    html = files.get("report.html", b"")
    assert b"<script>alert" not in html
    assert b"\\input{/etc" not in files.get("report.tex", b"")
    shown = on_terminal(done.report)
    assert "\x1b" not in shown and "\x07" not in shown
    for phase in done.report.phases.values():
        total = phase.busy_ns + phase.gap_ns + phase.tail_ns
        assert abs(total - phase.wall_ns) <= 1 + 1e-9 * abs(phase.wall_ns), "the wall is not closed"


def _rendered(done: Analysis, name: str) -> dict[str, bytes]:
    frames = PhaseFrames(done.frames, done.dense_frames, done.hosts())
    return FORMATS[name].render(RequestedFormats(report=done.report, name=name, frames=frames))


def on_terminal(report: Report) -> str:
    """What the command prints, without colours."""
    out = io.StringIO()
    print_report(
        report, Console(file=out, width=120, highlight=False, color_system=None), full=True
    )
    return out.getvalue()


def _no_constant(name: str) -> Any:
    raise AssertionError(f"{name} in JSON")


def plain_file(name: str, data: bytes) -> Callable[[Path], Path]:
    """A case's `write` for a single file."""

    def write(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(data)
        return path

    return write


def trace_file(trace: Any, *, packed: bool = False) -> Callable[[Path], Path]:
    """A case's `write` for a Chrome trace, encoded when the case runs."""

    def write(folder: Path) -> Path:
        made = trace() if callable(trace) else trace
        data = made if isinstance(made, bytes) else json.dumps(made).encode()
        path = folder / ("t.json.gz" if packed else "t.json")
        path.write_bytes(gzip.compress(data, 1, mtime=0) if packed else data)
        return path

    return write
