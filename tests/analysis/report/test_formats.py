"""Formats by name, and files written whole or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from prunescope.analysis.report import markdown
from prunescope.analysis.report.formats import (
    FORMATS,
    Format,
    PhaseFrames,
    RequestedFormats,
    shows_hosts,
)
from prunescope.analysis.report.write import DEFAULT_FORMATS, check_formats, write_report
from prunescope.taxonomy.errors import PrunescopeError
from tests.analysis.report import example
from tests.analysis.report.drawn import drawn_once
from tests.analysis.report.example import two_phases

__all__ = ["drawn_once"]


def test_a_row_is_a_format(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def render(asked: RequestedFormats) -> dict[str, bytes]:
        return {f"report.{asked.name}": " ".join(asked.report.phases).encode()}

    monkeypatch.setitem(FORMATS, "txt", Format(render))
    report = two_phases()
    (path,) = write_report(report, tmp_path / "out", formats=("txt",))
    assert path.read_text() == " ".join(report.phases) != ""
    assert not shows_hosts(["txt"])


def test_the_formats_that_there_are() -> None:
    assert set(DEFAULT_FORMATS) < set(FORMATS)
    check_formats(tuple(FORMATS))
    assert shows_hosts(["md", "perfetto"])
    with pytest.raises(PrunescopeError, match="txt") as caught:
        check_formats(("txt",))
    assert "perfetto" in str(caught.value.hint)


ROOT = Path(__file__).resolve().parents[3]
FRAME = pl.DataFrame({"step": [0], "start": [0], "duration": [5], "name": ["k"]})
FRAMES = {"prefill": FRAME, "decode": FRAME}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.usefixtures("drawn_once")
def test_all_formats_are_written_and_listed(tmp_path: Path) -> None:
    paths = write_report(
        example.two_phases(), tmp_path / "r", formats=FORMATS, frames=PhaseFrames(FRAMES)
    )
    assert {p.name for p in paths} == names(tmp_path / "r")
    assert {"report.md", "report.html", "report.json", "report.tex", "ledger.csv",
            "data-dictionary.csv", "kernels-prefill.parquet", "ladder-decode.svg",
            "ledger-prefill.pdf"} <= names(tmp_path / "r")  # fmt: skip
    assert names(tmp_path) == {"r"}


def test_the_default_formats(tmp_path: Path) -> None:
    write_report(example.alone(), tmp_path / "a" / "r")
    assert names(tmp_path / "a" / "r") == {"report.md", "report.json", "report.html"}


def test_matplotlib_is_imported_for_figures_only(tmp_path: Path) -> None:
    """The default formats draw without it. In a process of its own, that has imported nothing."""
    code = (
        "import sys; from pathlib import Path; import prunescope\n"
        "run, one, other = map(Path, sys.argv[1:])\n"
        "words = ['analyze', str(run), '--phase', 'decode', '--out', str(one)]\n"
        "assert prunescope.main(words) == 0\n"
        "assert 'matplotlib' not in sys.modules\n"
        "from tests.analysis.report import example\n"
        "from prunescope.analysis.report.write import write_report\n"
        "r = example.alone()\n"
        "write_report(r, other, formats=('md', 'html', 'json', 'tex', 'csv'))\n"
        "assert 'matplotlib' not in sys.modules\n"
        "assert 'torch' not in sys.modules\n"
        "write_report(r, other, formats=('svg',))\n"
        "assert 'matplotlib' in sys.modules\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    words = [ROOT / "traces" / "tiny-static-nk", tmp_path / "r", tmp_path / "other"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], cwd=ROOT,
                          capture_output=True, text=True, timeout=120, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert names(tmp_path / "r") == {"report.md", "report.json", "report.html"}
    assert "<svg" in (tmp_path / "r" / "report.html").read_text(encoding="utf-8")


def test_an_unknown_format_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(PrunescopeError, match=r"unknown format 'htm'(.|\n)*html(.|\n)*parquet"):
        write_report(example.alone(), tmp_path / "r", formats=("md", "htm"))
    assert names(tmp_path) == set()


def test_parquet_needs_frames(tmp_path: Path) -> None:
    with pytest.raises(PrunescopeError, match="kernels frame"):
        write_report(example.alone(), tmp_path / "r", formats=("md", "parquet"))
    assert names(tmp_path) == set()


def test_files_of_others_stay_and_ours_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "report.md").write_text("old")
    write_report(example.alone(), tmp_path, formats=("md",))
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "report.md").read_text().startswith("# trace.json.gz")
    assert names(tmp_path) == {"notes.txt", "report.md"}


def test_a_failure_while_rendering_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr(markdown, "render_markdown", fail)
    with pytest.raises(ZeroDivisionError):
        write_report(example.alone(), tmp_path / "r", formats=("json", "md"))
    assert names(tmp_path) == set()


def test_a_failure_while_replacing_restores_the_old_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "r"
    write_report(example.two_phases(), folder, formats=("md", "html"))
    old = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "mine").mkdir()  # so that the folder cannot be replaced as a whole
    replace = Path.replace

    def full_disk(self: Path, target: Path) -> Path:
        if self.parent.name.endswith(".partial") and target.name == "report.json":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(PrunescopeError, match="No space left"):
        write_report(example.alone(), folder, formats=("md", "html", "json"))
    (folder / "mine").rmdir()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == old
    assert names(tmp_path) == {"r"}


def test_a_target_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r").write_text("a file")
    with pytest.raises(PrunescopeError, match="it is a file"):
        write_report(example.alone(), tmp_path / "r", formats=("md",))
    assert (tmp_path / "r").read_text() == "a file"


def test_a_folder_in_the_way_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report.json").mkdir()
    with pytest.raises(PrunescopeError, match=r"report\.json is a folder"):
        write_report(example.alone(), tmp_path, formats=("md", "json"))
    assert names(tmp_path) == {"report.json"}


def test_hostile_phases_stay_in_the_folder(tmp_path: Path) -> None:
    report = example.two_phases()
    phases = list(report.phases.values())
    report.phases = {"../../evil": phases[0], "..//..//evil": phases[1]}
    paths = write_report(report, tmp_path / "r", formats=("svg",))
    assert {p.name for p in paths} == {
        "ladder-evil.svg", "ledger-evil.svg", "ladder-evil-2.svg", "ledger-evil-2.svg",
    }  # fmt: skip
    assert names(tmp_path) == {"r"}
