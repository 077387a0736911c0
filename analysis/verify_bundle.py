"""Whether a bundle is what was written, and what its traces give: in, a zip; out, plain values.

Every file is compared with its SHA-256, every report is rebuilt from the bundled traces, and the
numbers are compared. The zip is untrusted: only the run folders are unpacked, into a temporary one.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from analysis.bundle import FORMATS, INDEX, SUMS, sums_text, tool_version
from analysis.bundle_zip import read_zip
from analysis.pipeline import analyze
from analysis.report.model import to_json
from analysis.report.write import write_report
from taxonomy.errors import PrunescopeError

_CLOSE = 1e-6  # relative: the last digits of a sum may differ between machines
_LARGEST = 1 << 30  # decompressed bytes of one trace
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,120}")
_TEXT = (".md", ".csv", ".tex", ".html")
# Sentences may be worded anew by another version; their numbers stand elsewhere too.
_WORDED = frozenset({"findings", "notes", "warnings", "evidence", "says", "source", "tool"})


def verify(path: Path) -> dict[str, Any]:
    """{"ok", "checked", "failed": [{"file", "why"}]}; `checked` counts files and rebuilt reports.

    Raises PrunescopeError where there is no such file.
    """
    if not path.is_file():
        raise PrunescopeError(f"no such file: {path.name}", hint="give what `bundle -o` wrote")
    unpacked = read_zip(path)
    failed = dict(unpacked.failed)
    checked = len(unpacked.files) + len(failed)
    for name, why in _sums(unpacked.files):
        failed.setdefault(name, why)
    if not failed:
        names, problems = _rebuilt(unpacked.files)
        checked += len(names)
        failed.update(problems)
    return {
        "ok": not failed,
        "checked": checked,
        "failed": [{"file": name, "why": why} for name, why in failed.items()],
    }


def _sums(files: Mapping[str, bytes]) -> Iterator[tuple[str, str]]:
    """Files that are not as SHA256SUMS says, missing from it or from the bundle."""
    if SUMS not in files:
        yield SUMS, "missing: nothing can be checked"
        return
    lines = files[SUMS].decode("utf-8", "replace").splitlines()
    told = {line[66:]: line[:64] for line in lines if line[64:66] == "  "}
    wanted = {line[66:]: line[:64] for line in sums_text(files).splitlines()}
    for name, digest in told.items():
        if name not in wanted:
            yield name, "listed in SHA256SUMS and missing"
        elif digest != wanted[name]:
            yield name, "not the file that was bundled: its SHA-256 differs"
    for name in wanted.keys() - told.keys():
        yield name, "not listed in SHA256SUMS"
    if sums_text(files).encode() != files[SUMS] and told == wanted:
        yield SUMS, "not in the form in which it was written"


def _rebuilt(files: Mapping[str, bytes]) -> tuple[list[str], dict[str, str]]:
    """The reports that were rebuilt, and what differs."""
    failed: dict[str, str] = {}
    try:
        index = msgspec.json.decode(files.get(INDEX, b""))
        names = sorted(str(name) for name in index["runs"])
        same_tool = index["tool"] == f"prunescope {tool_version()}"
    except (msgspec.DecodeError, KeyError, TypeError, RecursionError):
        return [], {INDEX: "does not say what the bundle holds"}
    if not all(map(_FOLDER.fullmatch, names)):  # they become paths
        return [], {INDEX: "names a run that is no plain folder name"}
    there = {n.split("/")[1] for n in files if n.startswith(("runs/", "reports/"))}
    if not names or there - set(names):  # what it does not name would not be rebuilt
        return names, {INDEX: "does not name every run of the bundle"}
    with tempfile.TemporaryDirectory() as temporary:
        stage = Path(temporary).resolve()
        for name, data in files.items():
            if name.startswith("runs/"):
                if name.endswith(".gz") and not _fits(data):
                    failed[name] = "refused: expands to more than 1 GiB"
                    return names, failed
                try:
                    (stage / name).parent.mkdir(parents=True, exist_ok=True)
                    (stage / name).write_bytes(data)
                except (FileExistsError, NotADirectoryError, IsADirectoryError):
                    failed[name] = "refused: a file and a folder of one name"
                    return names, failed
        for name in names:
            failed |= _one(stage, name, files, texts=same_tool)
    return names, failed


def _one(stage: Path, name: str, files: Mapping[str, bytes], *, texts: bool) -> dict[str, str]:
    """What differs between a bundled report and the one that its traces give."""
    place = f"reports/{name}"
    bundled = files.get(f"{place}/report.json")
    if bundled is None:
        return {f"{place}/report.json": "missing"}
    try:
        done = analyze(stage / "runs" / name)
    except PrunescopeError as error:
        return {f"runs/{name}": f"cannot be analysed: {error.problem}"}
    skipped = frozenset() if texts else _WORDED
    try:
        difference = _difference(json.loads(bundled), json.loads(to_json(done.report)), skipped)
    except (ValueError, RecursionError, OverflowError):
        return {f"{place}/report.json": "is no report"}
    if difference:
        return {f"{place}/report.json": f"its traces give other numbers: {difference}"}
    if not texts:
        return {}
    formats = [f for f in FORMATS if f in ("md", "html", "tex", "csv")]
    failed = {}
    for path in write_report(done.report, stage / place, formats=formats):
        file = f"{place}/{path.name}"
        if not _same_text(files.get(file, b""), path.read_bytes()):
            failed[file] = "not what its traces give"
    return failed


def _fits(data: bytes) -> bool:
    stream, total = zlib.decompressobj(31), 0
    while data:
        try:
            total += len(stream.decompress(data, 16 << 20))
        except zlib.error:
            return True  # the loader says what is wrong with it
        if total > _LARGEST:
            return False
        data = stream.unconsumed_tail
        if stream.eof:  # another member may follow
            stream, data = zlib.decompressobj(31), stream.unused_data
    return True


def _difference(old: Any, new: Any, skipped: frozenset[str], where: str = "report") -> str | None:
    """The first value (or missing part) in which two reports differ; parts of a name in `skipped`
    are not compared."""
    if isinstance(old, str) and isinstance(new, str):
        same = _same_text(old.encode("utf-8", "replace"), new.encode("utf-8", "replace"))
        return None if same else f"{where}: {old[:60]} and {new[:60]}"
    if isinstance(old, bool) or isinstance(new, bool) or old is None or isinstance(old, str):
        return None if old == new else f"{where}: {old} and {new}"
    if isinstance(old, int | float):
        same = isinstance(new, int | float) and _close(float(old), float(new))
        return None if same else f"{where}: {old} and {new}"
    if isinstance(old, list):
        if not isinstance(new, list) or len(old) != len(new):
            return f"{where}: lists of other lengths"
        pairs = [(str(i), a, b) for i, (a, b) in enumerate(zip(old, new, strict=True))]
    elif isinstance(new, dict) and not old.keys() - new.keys():
        pairs = [(key, old[key], new[key]) for key in old if key not in skipped]
    else:
        return f"{where}: parts are missing"
    found = (_difference(a, b, skipped, f"{where}.{key}") for key, a, b in pairs)
    return next((d for d in found if d is not None), None)


def _same_text(old: bytes, new: bytes) -> bool:
    """Whether two texts agree, numbers within a rounding error."""
    a, b = (data.decode("utf-8", "replace") for data in (old, new))
    if a == b:
        return True
    if _NUMBER.sub("#", a) != _NUMBER.sub("#", b):
        return False
    pairs = zip(_NUMBER.findall(a), _NUMBER.findall(b), strict=True)
    return all(_close(float(x), float(y)) for x, y in pairs)


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=_CLOSE, abs_tol=1e-6)
