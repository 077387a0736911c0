"""Figures and annotated traces of a bundle are rebuilt and compared, and told apart where not."""

from __future__ import annotations

import gzip
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest

import prunescope
from prunescope.analysis.bundle import bundle as bundling
from prunescope.analysis.bundle.archive import zip_bytes
from prunescope.analysis.bundle.verify import verify
from tests.analysis.bundle.rebuilt_once import write_formats_once
from tests.analysis.bundle.test_bundle import (
    evidence,
    failed,
    make,
    members,
    no_figures,
    rewritten,
)

Files = dict[str, bytes]
PLACE = "reports/my-run"
__all__ = ["evidence", "no_figures"]  # fixtures


def svg(files: Files) -> str:
    name = f"{PLACE}/ladder-prefill.svg"
    assert b"1.49" in files[name]
    files[name] = files[name].replace(b"1.49", b"1.94")
    return name


def png(files: Files) -> str:
    name = f"{PLACE}/ladder-prefill.png"
    files[name] = files[f"{PLACE}/ledger-prefill.png"]
    return name


def pixels(files: Files) -> str:
    """Of the same size, one corner black."""
    from matplotlib.image import imread, imsave

    name, out = f"{PLACE}/ladder-prefill.png", io.BytesIO()
    shown = imread(io.BytesIO(files[name])).copy()
    shown[:40, :40, :3] = 0
    imsave(out, shown, format="png")
    files[name] = out.getvalue()
    return name


def perfetto(files: Files) -> str:
    name = f"{PLACE}/trace-prefill.perfetto.json.gz"
    trace = json.loads(gzip.decompress(files[name]))
    one = next(e for e in trace["traceEvents"] if e.get("ph") == "X")
    one["dur"] *= 3
    files[name] = gzip.compress(json.dumps(trace).encode(), mtime=0)
    return name


def gone(files: Files) -> str:
    name = f"{PLACE}/ladder-prefill.svg"
    del files[name]
    return name


def test_what_is_drawn_differs_though_the_sums_were_redone(evidence: Path, tmp_path: Path) -> None:
    """Each change is found, those of one bundle all at once: every figure is drawn in each case."""
    for changes in ((svg, png, perfetto), (gone, pixels)):
        changed: list[str] = []

        def each(files: Files, changes: Any = changes, changed: list[str] = changed) -> None:
            changed.extend(change(files) for change in changes)

        path = rewritten(evidence, tmp_path / "a.zip", each)
        assert sorted(failed(path)) == sorted(changed)


def test_packed_anew_it_is_the_same(evidence: Path, tmp_path: Path) -> None:
    def packed(files: Files) -> None:
        name = f"{PLACE}/trace-prefill.perfetto.json.gz"
        files[name] = gzip.compress(gzip.decompress(files[name]), 1, mtime=0)

    assert failed(rewritten(evidence, tmp_path / "a.zip", packed)) == {}


OTHER = "matplotlib 0.1"


def forged(files: Files) -> None:
    """The versions that bundle.json records, and README.md repeats."""
    index = json.loads(files["bundle.json"])
    old = index["drawn_with"].encode()
    assert old in files["README.md"]
    files["README.md"] = files["README.md"].replace(old, OTHER.encode())
    files["bundle.json"] = (json.dumps({**index, "drawn_with": OTHER}, indent=1) + "\n").encode()


def forged_tool(files: Files) -> None:
    text = files["bundle.json"].decode()
    files["bundle.json"] = text.replace('"prunescope ', '"prunescope 9').encode()


@pytest.fixture
def draws_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine draws every figure a little to the right, with the same texts."""

    def drawn(*args: Any) -> list[Path]:
        paths = write_formats_once(*args)
        for path in paths:
            if path.suffix == ".svg":
                path.write_bytes(
                    re.sub(rb'(<(?:path d="M|use x=")) ?', rb"\g<1>9", path.read_bytes())
                )
            if path.suffix == ".png":
                path.write_bytes(path.read_bytes()[:33])
        return paths

    monkeypatch.setattr("prunescope.analysis.bundle.verify.write_formats", drawn)


def test_a_forged_version_changes_nothing_that_is_compared(evidence: Path, tmp_path: Path) -> None:
    """Everything is drawn again and compared, whatever the bundle says of who drew it."""
    for forge in (forged, forged_tool):
        path = rewritten(evidence, tmp_path / "a.zip", forge)
        result = verify(path)
        left = {one["file"] for one in result["not_compared"]}
        # The words of another version name that version.
        assert result["ok"] and left <= {"README.md", "CITATION.cff", "bundle.json"}
        changed: list[str] = []

        def each(files: Files, changed: list[str] = changed) -> None:
            changed.extend(change(files) for change in (svg, pixels))

        result = verify(rewritten(path, tmp_path / "b.zip", each))
        told = {one["file"] for one in (*result["failed"], *result["not_compared"])}
        assert told >= set(changed)
        assert result["partial"] or not result["ok"]
    assert prunescope.main(["verify", str(tmp_path / "b.zip")]) == 3


@pytest.mark.usefixtures("draws_otherwise")
def test_figures_that_cannot_be_drawn_again_are_a_partial_result(
    evidence: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = rewritten(evidence, tmp_path / "a.zip", forged)
    result = verify(path)
    apart = {one["file"] for one in result["not_compared"]}
    assert result["ok"] and result["partial"]
    assert apart == {n for n in members(evidence) if n.endswith((".svg", ".png"))}
    sources = [n for n in members(evidence) if n.startswith("runs/")]
    assert result["checked"] == result["rebuilt"] + len(apart) + len(sources) + 1  # SHA256SUMS
    assert prunescope.main(["verify", str(path)]) == 3
    told = capsys.readouterr().out
    assert f"{len(apart)} not compared" in told and f"plotted with {OTHER}" in told
    assert "partial: " in told
    assert prunescope.main(["verify", str(path), "--allow-undrawn"]) == 0
    assert "ok: " in capsys.readouterr().out
    assert failed(evidence)  # of the version that is here: a figure that differs is wrong


@pytest.mark.usefixtures("draws_otherwise")
def test_numbers_in_figures_are_compared_whatever_draws(evidence: Path, tmp_path: Path) -> None:
    changed: list[str] = []

    def both(files: Files) -> None:
        changed.append(svg(files))
        forged(files)

    path = rewritten(evidence, tmp_path / "a.zip", both)
    assert list(failed(path)) == changed
    assert prunescope.main(["verify", str(path), "--allow-missing-figures"]) == 3


def test_what_another_version_wrote_is_rebuilt_where_it_can_be(
    evidence: Path, tmp_path: Path
) -> None:
    def both(files: Files) -> None:
        forged_tool(files)
        name = f"{PLACE}/report.md"
        files[name] = files[name].replace(b"1.49", b"9.99")

    path = rewritten(evidence, tmp_path / "a.zip", both)
    result = verify(path)
    assert f"{PLACE}/report.md" in {one["file"] for one in result["not_compared"]}
    assert result["partial"] and prunescope.main(["verify", str(path)]) == 3


def test_a_figure_that_is_gone_fails_whatever_draws(
    evidence: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunescope.analysis.bundle.verify.plotted_with", lambda: OTHER)
    path = rewritten(evidence, tmp_path / "a.zip", gone)
    assert failed(path) == {f"{PLACE}/ladder-prefill.svg": "missing"}


def test_all_is_rebuilt_or_what_it_is_rebuilt_from(evidence: Path) -> None:
    result = verify(evidence)
    sources = [n for n in members(evidence) if n.startswith("runs/")]
    assert result["checked"] == result["rebuilt"] + len(sources) + 1  # SHA256SUMS


def test_a_file_that_was_added_is_named_so(evidence: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(evidence.read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("evil.sh", "rm -rf")
    assert failed(path) == {"evil.sh": "not listed in SHA256SUMS"}


@pytest.mark.usefixtures("no_figures")
def test_two_runs_have_no_label_in_common(tmp_path: Path) -> None:
    runs = [make(tmp_path / name) for name in ("my_run", "other.run")]
    files = members(bundling.bundle(runs, tmp_path / "e.zip"))
    labels = [
        line.rpartition(r"\label{")[2].partition("}")[0]
        for name, data in files.items()
        if name.endswith("report.tex")
        for line in data.decode().splitlines()
        if r"\label{" in line
    ]
    assert len(labels) == len(set(labels)) > 6
    assert "fig:my-run-ladder-prefill" in labels
    assert failed(tmp_path / "e.zip") == {}


def test_runs_whose_names_make_one_label_are_counted() -> None:
    assert bundling.label_prefixes(["a_b", "a-b", "c"]) == {
        "a_b": "run-1", "a-b": "run-2", "c": "run-3"
    }  # fmt: skip


def test_an_unknown_file_fails(evidence: Path, tmp_path: Path) -> None:
    """Also one that the sums list: it would pass for evidence."""
    files = members(evidence)
    files[f"{PLACE}/more.svg"] = b"<svg/>"
    files["SHA256SUMS"] = bundling.sums_text(files).encode()
    (tmp_path / "a.zip").write_bytes(zip_bytes(files))
    assert failed(tmp_path / "a.zip") == {
        f"{PLACE}/more.svg": "no part of a bundle: not listed in bundle.json"
    }
