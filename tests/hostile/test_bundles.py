"""Bundles of strangers: `verify` says what is wrong with each, and touches nothing outside."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import prunescope
from prunescope.analysis.bundle.archive import zip_bytes
from prunescope.analysis.bundle.bundle import bundle, sums_text
from tests.hostile.case import ATTACK, TEXT_FORMATS
from tests.hostile.files import repeated
from tests.hostile.material import write_pair

Files = dict[str, bytes]
_INDEX, _REPORT = "bundle.json", "reports/run/report.json"
_TRACE = "runs/run/pruned/prefill.trace.json.gz"


def _index(files: Files, **changes: object) -> None:
    files[_INDEX] = json.dumps({**json.loads(files[_INDEX]), **changes}).encode()


def _put(name: str, data: bytes) -> Callable[[Files], None]:
    return lambda files: files.update({name: data})


CHANGES: dict[str, Callable[[Files], None]] = {
    "a run outside": lambda f: _index(f, runs=["../../../run"]),
    "an absolute run": lambda f: _index(f, runs=["/etc"]),
    "a run with a nul": lambda f: _index(f, runs=["a\0b"]),
    "a run that steers": lambda f: _index(f, runs=[ATTACK]),
    "a run of 10^6 letters": lambda f: _index(f, runs=["x" * 10**6]),
    "runs as an object": lambda f: _index(f, runs={"a": {"run": 1}}),
    "runs as a number": lambda f: _index(f, runs=5),
    "no runs": lambda f: _index(f, runs=[]),
    "runs that are not there": lambda f: _index(f, runs=["run", "gone"]),
    "an index that is no JSON": _put(_INDEX, b"{"),
    "a deep index": _put(_INDEX, b"[" * 100_000),
    "a report that is no JSON": _put(_REPORT, b"\xff{"),
    "a deep report": _put(_REPORT, b'{"a":' * 100_000),
    "a report of huge numbers": lambda f: f.update(
        {_REPORT: f[_REPORT].replace(b'"schema": 1', b'"schema": 1' + b"0" * 1000)}
    ),
    "a report of NaN": lambda f: f.update(
        {_REPORT: f[_REPORT].replace(b'"schema": 1', b'"schema": NaN')}
    ),
    "a trace that is a bomb": _put(_TRACE, repeated(b" ", 64 << 20)),
    "a trace that is none": _put(_TRACE, b"\x1f\x8b"),
    "a manifest that is none": _put("runs/run/pruned/run.json", b"[]"),
    "a file under a file": _put("runs/run/pruned/run.json/x", b""),
    "a file for a folder": _put("runs", b""),
    "a file that nobody names": _put("README.exe", b"MZ"),
}

# More files than a bundle has take nothing from what is checked.
NAMES = ("../evil", "/evil", "a/../../evil", "C:\\evil", ATTACK, "x" * 300)
NO_ZIPS = (b"", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"x" * 1000)
HARMLESS = ("a file that nobody names", "a file for a folder")


@pytest.fixture(scope="module", autouse=True)
def _no_figures() -> Iterator[None]:
    """Forged pictures are tested in analysis/bundle."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prunescope.analysis.bundle.bundle.FORMATS", TEXT_FORMATS)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("bundle")
    write_pair(folder / "run")
    with zipfile.ZipFile(bundle([folder / "run"], folder / "whole.zip")) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def told(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    before = sorted(path.parent.iterdir())
    code = prunescope.main(["verify", str(path)])
    out, err = capsys.readouterr()
    assert sorted(path.parent.iterdir()) == before
    assert "\x1b" not in out + err
    assert "Traceback" not in out + err
    return code, out


def test_a_whole_bundle_is_whole(
    whole: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "b.zip").write_bytes(zip_bytes(whole))
    assert told(tmp_path / "b.zip", capsys)[0] == 0


@pytest.mark.parametrize("name", CHANGES)
def test_a_forged_bundle_fails(
    name: str, whole: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sums are those of the forged files, so that only the content gives it away."""
    files = dict(whole)
    CHANGES[name](files)
    files["SHA256SUMS"] = sums_text(files).encode()
    (tmp_path / "b.zip").write_bytes(zip_bytes(files))
    code, out = told(tmp_path / "b.zip", capsys)
    assert code == 3 or name in HARMLESS
    assert len(out) < 3000


@pytest.mark.parametrize(
    "name", ["../evil", "/evil", "a/../../evil", "C:\\evil", ATTACK, "x" * 300]
)
def test_a_name_that_leads_out_is_refused(
    name: str, whole: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in" / "side"
    folder.mkdir(parents=True)
    (folder / "b.zip").write_bytes(zip_bytes({**whole, name: b"evil"}))
    assert told(folder / "b.zip", capsys)[0] == 3
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("data", NO_ZIPS)
def test_what_is_no_zip_is_refused(
    data: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "b.zip").write_bytes(data)
    assert told(tmp_path / "b.zip", capsys)[0] in (2, 3)


def test_an_empty_zip_is_called_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zipfile.ZipFile(tmp_path / "b.zip", "w").close()
    assert prunescope.main(["verify", str(tmp_path / "b.zip")]) == 2
    assert "b.zip is a zip without any file in it" in capsys.readouterr().err
