"""Traces as continuous integration keeps them: zstd, tar, zip, one in another; bombs of each."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.trace import unpack
from prunescope.analysis.trace.load import load
from prunescope.analysis.trace.rank_files import find_traces
from prunescope.analysis.trace.unpack import members
from prunescope.taxonomy.errors import PrunescopeError
from tests.hostile.material import decoder

zstandard = pytest.importorskip("zstandard", reason="the package zstandard is not installed")
PLAIN = json.dumps(decoder(layers=1)).encode()
PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress,
}  # fmt: skip


def tar(files: dict[str, bytes], *odd: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for entry in odd:
            archive.addfile(entry)
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("inner", PACK)
@pytest.mark.parametrize("outer", ["", ".gz", ".zst"])
def test_a_trace_in_a_tar_is_the_trace(tmp_path: Path, inner: str, outer: str) -> None:
    inside = {"logs/readme.txt": b"x" * 5000, f"out/t.json{inner}": PACK[inner](PLAIN)}
    path = written(tmp_path / f"t.tar{outer}", PACK[outer](tar(inside)))
    whole = load(written(tmp_path / "t.json", PLAIN))
    assert load(path).device["ts"].tolist() == whole.device["ts"].tolist()
    assert not load(path).source.cut


@pytest.mark.parametrize("inner", PACK)
def test_a_trace_in_a_zip_or_packed_alone(tmp_path: Path, inner: str) -> None:
    packed = PACK[inner](PLAIN)
    alone = load(written(tmp_path / f"t.json{inner}", packed))
    inside = load(written(tmp_path / "t.zip", zipped({f"a/t.json{inner}": packed})))
    assert len(alone.device["ts"]) == len(inside.device["ts"]) > 0


def test_ranks_in_a_tar(tmp_path: Path) -> None:
    files = {f"run/rank{i}.json.zst": PACK[".zst"](PLAIN) for i in (1, 0)}
    path = written(tmp_path / "ranks.tar.gz", gzip.compress(tar(files)))
    assert members(path) == ["run/rank0.json.zst", "run/rank1.json.zst"]
    assert list(find_traces(path).parts) == ["rank0", "rank1"]
    assert list(analyze(path).report.phases) == ["rank0", "rank1"]


def test_frames_of_zstd_follow_one_another(tmp_path: Path) -> None:
    half = len(PLAIN) // 2
    data = PACK[".zst"](PLAIN[:half]) + PACK[".zst"](PLAIN[half:])
    assert len(load(written(tmp_path / "t.json.zst", data)).device["ts"])


def test_a_cut_zstd_is_read_up_to_the_cut(tmp_path: Path) -> None:
    compress = zstandard.ZstdCompressor().compressobj()
    text = json.dumps(decoder(layers=4)).encode()
    data = compress.compress(text) + compress.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    assert load(written(tmp_path / "t.json.zst", data)).source.cut is True


def test_without_a_library_zstd_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(unpack.importlib, "import_module", none)
    with pytest.raises(PrunescopeError, match="needs the package zstandard"):
        load(written(tmp_path / "t.json.zst", PACK[".zst"](PLAIN)))


BOMB = b" " * (24 << 20)


@pytest.mark.parametrize("name", ["zst", "tar.zst", "tar.gz", "zip", "before"])
def test_bombs_are_refused(tmp_path: Path, name: str) -> None:
    """24 MiB of spaces: in a trace, in the trace of an archive, and in a file before the trace."""
    files = {"a.txt": BOMB, "t.json": PLAIN} if name == "before" else {"t.json": BOMB}
    data = {
        "zst": lambda: PACK[".zst"](BOMB),
        "tar.zst": lambda: PACK[".zst"](tar(files)),
        "tar.gz": lambda: gzip.compress(tar(files)),
        "zip": lambda: zipped({"t.json.zst": PACK[".zst"](BOMB)}),
        "before": lambda: PACK[".zst"](tar(files)),
    }[name]()
    with pytest.raises(PrunescopeError, match="unpacks to more than 200 times"):
        analyze(written(tmp_path / f"t.{name}", data))


def test_names_of_a_tar_lead_nowhere(tmp_path: Path) -> None:
    """Links, devices and hidden files are no traces; a path out of the folder is but a name."""
    odd = []
    for name, kind in (("a.json", tarfile.SYMTYPE), ("b.json", tarfile.LNKTYPE),
                       ("c.json", tarfile.CHRTYPE), ("d.json", tarfile.FIFOTYPE)):  # fmt: skip
        odd.append(tarfile.TarInfo(name))
        odd[-1].type, odd[-1].linkname = kind, "/etc/passwd"
    path = written(tmp_path / "t.tar", tar({"._x.json": b"", "../../evil.json": PLAIN}, *odd))
    assert members(path) == ["../../evil.json"]
    assert len(load(path).device["ts"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.tar"]


def test_a_file_with_holes_is_no_trace(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("t.json")
    entry.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1",
                         "GNU.sparse.size": "99999999999", "GNU.sparse.map": "0,0"}  # fmt: skip
    path = written(tmp_path / "t.tar", tar({}, entry))
    with pytest.raises(PrunescopeError, match="holds no trace"):
        load(path)


def test_a_cut_or_damaged_tar(tmp_path: Path) -> None:
    """Of a cut tar all but the last MiB is read; where a header is broken, nothing is."""
    trace = decoder(layers=1)
    trace["traceEvents"] += [{"ph": "C", "name": "x" * 1000}] * 3000
    data = tar({"t.json": json.dumps(trace).encode()})
    assert load(written(tmp_path / "t.tar", data[: 2 << 20])).source.cut
    broken = bytearray(data)
    broken[148:156] = b"xxxxxxxx"  # the checksum
    with pytest.raises(PrunescopeError, match="not a readable tar"):
        load(written(tmp_path / "b.tar", bytes(broken)))


def test_a_tar_of_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "_MAX_ENTRIES", 5)
    path = written(tmp_path / "t.tar", tar({f"{i}.txt": b"" for i in range(6)}))
    with pytest.raises(PrunescopeError, match="more than 5 files"):
        load(path)
