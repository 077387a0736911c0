"""Verifies a bundle by checksums and by rebuilding it: in, a zip; out, plain values.

Every file is compared with its SHA-256; reports, figures and annotated traces are rebuilt from the
bundled traces and compared: numbers within a rounding error, pixels within what another processor
rounds. What a bundle says of the versions that wrote it decides nothing: all is rebuilt, and where
another version wrote other bytes, the file is listed as not compared, and the result is partial;
labels of figures are compared all the same. The zip is untrusted: only the run folders are
unpacked, into a temporary one.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from prunescope.analysis.bundle.archive import read_zip
from prunescope.analysis.bundle.bundle import (
    FRONTIER,
    INDEX,
    SUMS,
    BundleIndex,
    inputs_of,
    label_prefixes,
    sums_text,
    texts,
    tool_version,
    write_formats,
)
from prunescope.analysis.bundle.differences import difference, same_text
from prunescope.analysis.bundle.edited import with_edited
from prunescope.analysis.bundle.frontier import without_places
from prunescope.analysis.bundle.samples import on_trust
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report.figures import most_apart, plotted_with
from prunescope.analysis.schema.report import Report, to_json
from prunescope.taxonomy.atomic_write import scratch_folder
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import UnknownVersion, decode
from prunescope.taxonomy.own_files import refuse_own_file
from prunescope.taxonomy.run import MANIFEST, Run, read_run

_LARGEST = 1 << 30  # decompressed bytes of one trace
_PNG_HEAD = 33  # bytes of signature and header: the size and the kind of pixels
_SHADE = 0.04  # of full brightness
_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,120}")
_NUMBERS = ("samples.csv", "environment.json", "frontier.csv")  # whatever version wrote them
_ACTIVE = re.compile(rb"<script|javascript:|\son[a-z]+\s*=", re.IGNORECASE)
_PLOTTED = (".svg", ".png")
_LABEL = re.compile(rb"<text\b[^<>]*>([^<]*)</text>")
# Another version may word sentences differently; their numbers stand elsewhere too.
_WORDED = frozenset(
    {"findings", "notes", "notices", "warnings", "evidence", "says", "source", "tool"}
)


def fits(data: bytes) -> bool:
    """Whether a gzipped file expands to at most 1 GiB."""
    stream, total = zlib.decompressobj(31), 0
    while data:
        try:
            total += len(stream.decompress(data, 16 << 20))
        except zlib.error:
            return True  # the loader reports what is wrong with it
        if total > _LARGEST:
            return False
        data = stream.unconsumed_tail
        if stream.eof:  # another member may follow
            stream, data = zlib.decompressobj(31), stream.unused_data
    return True


def same_packed(old: bytes, new: bytes) -> bool:
    """Whether two gzipped JSON files hold the same."""
    if old == new:
        return True
    if not fits(old):
        return False
    try:
        a, b = gzip.decompress(old), gzip.decompress(new)
        return a == b or difference(json.loads(a), json.loads(b), frozenset()) is None
    except (OSError, EOFError, ValueError, RecursionError, OverflowError, zlib.error):
        return False


def same_pixels(old: bytes, new: bytes) -> bool:
    """Whether two PNG files show the same; how they are packed may differ."""
    if old == new:
        return True
    if old[:_PNG_HEAD] != new[:_PNG_HEAD]:  # of another size: nothing of it is unpacked
        return False
    apart = most_apart(old, new)
    return apart is not None and apart <= _SHADE


def same_labels(old: bytes, new: bytes) -> bool:
    """Whether two SVG files have the same texts, numbers within a rounding error: what a figure
    says stays the same where another matplotlib places it elsewhere."""
    return same_text(*(b"\n".join(_LABEL.findall(data)) for data in (old, new)))


_SAME = {".gz": same_packed, ".png": same_pixels}  # every other file is a text


def verify(path: Path) -> dict[str, Any]:
    """{"ok", "partial", "checked", "rebuilt", "not_compared": [{"file", "why"}],
    "failed": [{"file", "why"}], "samples_on_trust": [...], "samples_agree"}: whether no file is
    wrong, whether something was not compared, how many files, how many of them were rebuilt from
    the traces and compared, which ones could not be, and what is wrong. The other files are inputs
    of the rebuild; only their checksums are compared. Unprofiled samples are in no trace: an entry
    a phase (`on_trust`) says whether the profiled steps allow their speedup. `samples_agree`: False
    where one of them does not, None where nothing could be judged.

    Raises PrunescopeError where there is no such file, or one that is no zip at all.
    """
    _check_file(path)
    unpacked = read_zip(path)
    failed = dict(unpacked.failed)
    checked = len(unpacked.files.keys() | failed.keys())
    if unpacked.repacked:
        failed = {name: f"{why}: {_repacked(unpacked.repacked)}" for name, why in failed.items()}
    rebuilt: set[str] = set()
    apart: dict[str, str] = {}
    trusted: list[dict[str, Any]] = []
    if unpacked.files or not failed:
        for name, why in _sums(unpacked.files):
            if name not in failed or name in unpacked.files:  # it could be read: a better reason
                failed[name] = why
    if not failed:
        rebuilt, apart, problems, trusted = _rebuilt(unpacked.files)
        failed.update(problems)
    judged = [one["agree"] for one in trusted if one["agree"] is not None]
    return {
        "ok": not failed,
        "partial": bool(apart),
        "checked": checked,
        "rebuilt": len(rebuilt),
        "not_compared": _listed(apart),
        "failed": _listed(failed),
        "samples_on_trust": trusted,
        "samples_agree": all(judged) if judged else None,
    }


def _listed(reasons: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"file": name, "why": why} for name, why in reasons.items()]


def _check_file(path: Path) -> None:
    hint = "give the .zip that `prunescope bundle -o` wrote"
    if path.is_dir():
        raise PrunescopeError(f"{path.name} is a folder, not a zip", hint=hint)
    if not path.is_file():
        raise PrunescopeError(f"no such file: {path.name}", hint=hint)
    refuse_own_file(path)
    with path.open("rb") as file:
        if file.read(2) != b"PK":  # a damaged bundle still begins like one
            raise PrunescopeError(f"{path.name} is no bundle: no readable zip", hint=hint)


def _repacked(files: Mapping[str, bytes]) -> str:
    """Whether the content of a recompressed zip still matches its checksums, and what to do
    next."""
    wrong = dict(_sums(files))
    if wrong:
        name, why = next(iter(wrong.items()))
        return f"its content does not match SHA256SUMS either ({name}: {why})"
    return (
        "its content matches SHA256SUMS; ask for the zip as it was written, or unzip it and "
        "`prunescope analyze` each folder in its runs/"
    )


def _sums(files: Mapping[str, bytes]) -> Iterator[tuple[str, str]]:
    """Files that do not match SHA256SUMS, missing from it or from the bundle."""
    if SUMS not in files:
        yield SUMS, "missing: nothing can be checked"
        return
    lines = files[SUMS].decode("utf-8", "replace").splitlines()
    listed = {line[66:]: line[:64] for line in lines if line[64:66] == "  "}
    wanted = {line[66:]: line[:64] for line in sums_text(files).splitlines()}
    for name, digest in listed.items():
        if name not in wanted:
            yield name, "listed in SHA256SUMS and missing"
        elif digest != wanted[name]:
            yield name, "not the file that was bundled: its SHA-256 differs"
    for name in wanted.keys() - listed.keys():
        yield name, "not listed in SHA256SUMS"
    if sums_text(files).encode() != files[SUMS] and listed == wanted:
        yield SUMS, "not in the form in which it was written"


def _rebuilt(
    files: Mapping[str, bytes],
) -> tuple[set[str], dict[str, str], dict[str, str], list[dict[str, Any]]]:
    """The files that were rebuilt, those that could not be compared, what differs, and the samples
    that are taken on trust."""
    try:
        hint = "bundle the runs again"
        index = decode(files.get(INDEX, b""), BundleIndex, where=INDEX, hint=hint)
    except UnknownVersion:
        raise
    except PrunescopeError:
        return set(), {}, {INDEX: "does not say what the bundle holds"}, []
    names = list(index.runs)
    if not all(map(_FOLDER.fullmatch, names)):  # they become paths
        return set(), {}, {INDEX: "names a run that is no plain folder name"}, []
    there = {n.split("/")[1] for n in files if n.startswith(("runs/", "reports/"))}
    if not names or there - set(names):  # what it does not name would not be rebuilt
        return set(), {}, {INDEX: "does not name every run of the bundle"}, []
    active = [n for n, data in files.items() if n.endswith(".svg") and _ACTIVE.search(data)]
    if active:
        return set(), {}, dict.fromkeys(active, "refused: a figure that runs a script"), []
    with scratch_folder() as stage:
        rebuild = _Rebuild(files, stage.resolve(), tool=index.tool, plotted=index.drawn_with)
        rebuild.unpack()
        for name in names:
            rebuild.report(name, label_prefixes(names)[name])
        rebuild.shared(anonymous=index.anonymous)
        if not rebuild.failed:
            rebuild.rest()
    failed = with_edited(files, index.inputs, rebuild.runs, rebuild.failed)
    return rebuild.done, rebuild.apart, failed, list(on_trust(rebuild.reports))


class _Rebuild:
    """Rebuilds the files of a bundle from its traces: `done` were compared, `apart` could not be,
    `failed` differ. Files that another version of this tool (`tool`) wrote may differ in words, and
    figures of other versions of what plots (`plotted`) in positions: they are `apart` then. Numbers
    are compared whatever the versions."""

    def __init__(self, files: Mapping[str, bytes], stage: Path, *, tool: str, plotted: str) -> None:
        self.files, self.stage, self.tool, self.plotted = files, stage, tool, plotted
        self.same_tool = tool == f"prunescope {tool_version()}"
        self.reports: dict[str, Report] = {}
        self.runs: dict[str, dict[str, Run]] = {}
        self.done: set[str] = set()
        self.apart: dict[str, str] = {}
        self.failed: dict[str, str] = {}

    def unpack(self) -> None:
        """The run folders, and nothing else."""
        for name, data in self.files.items():
            if not name.startswith("runs/"):
                continue
            if name.endswith(".gz") and not fits(data):
                self.failed[name] = "refused: expands to more than 1 GiB"
                return
            try:
                (self.stage / name).parent.mkdir(parents=True, exist_ok=True)
                (self.stage / name).write_bytes(data)
            except (FileExistsError, NotADirectoryError, IsADirectoryError):
                self.failed[name] = "refused: a file and a folder of one name"
                return

    def report(self, name: str, prefix: str) -> None:
        """The report of a run, with its figures and annotated traces."""
        place, folder = f"reports/{name}", self.stage / "runs" / name
        if self.failed or self._lacks(f"{place}/report.json"):
            return
        try:
            manifests = sorted(folder.glob(f"*/{MANIFEST}"))
            self.runs[name] = {m.parent.name: read_run(m.parent) for m in manifests}
            done = analyze(folder)
        except PrunescopeError as error:
            self.failed[f"runs/{name}"] = f"cannot be analysed: {error.problem}"
            return
        self.reports[name] = done.report
        self._compare_json(f"{place}/report.json", to_json(done.report))
        if self.failed:
            return
        for path in write_formats(done, self.stage / place, prefix):
            if path.name != "report.json":
                self._compare(f"{place}/{path.name}", path.read_bytes(), "not what its traces give")

    def shared(self, *, anonymous: bool) -> None:
        """The files that follow from all runs."""
        if self.failed:
            return
        wanted = texts(
            self.reports,
            self.runs,
            anonymous=anonymous,
            plotted=self.plotted,
            inputs=inputs_of(self.files),
        )
        for name, text in wanted.items():
            self._compare(name, text, "not what the bundled runs give")

    def rest(self) -> None:
        """Each of the other files, but for what all is rebuilt from: this version wrote none of
        them, another one may have."""
        sources = {SUMS}
        for name, variants in self.runs.items():
            for variant, run in variants.items():
                traces = [t for p in run.phases.values() for t in (p.trace, p.eager_trace) if t]
                sources |= {f"runs/{name}/{variant}/{file}" for file in (MANIFEST, *traces)}
        for name in sorted(self.files.keys() - sources - self.done - self.apart.keys()):
            if self.same_tool:
                self.failed[name] = "no part of a bundle"
            else:
                self.apart[name] = f"written by {self.tool}"

    def _lacks(self, name: str) -> bool:
        if name not in self.files:
            self.failed[name] = "missing"
        return name in self.failed

    def _compare(self, name: str, wanted: bytes, why: str) -> None:
        ending, found = PurePosixPath(name).suffix, self.files.get(name)
        may_differ = not self.same_tool and name not in _NUMBERS
        if found is not None and name == FRONTIER and not self.same_tool:
            found, wanted = without_places(found), without_places(wanted)
        if found is None:
            if not may_differ:
                self.failed[name] = "missing"
        elif _SAME.get(ending, same_text)(found, wanted):
            self.done.add(name)
        elif may_differ:
            self.apart[name] = f"written by {self.tool}"
        elif ending in _PLOTTED and self.plotted != plotted_with():
            self.apart[name] = f"plotted with {self.plotted}, here is {plotted_with()}"
            if ending == ".svg" and not same_labels(found, wanted):
                self.failed[name] = why
        else:
            self.done.add(name)
            self.failed[name] = why

    def _compare_json(self, name: str, wanted: bytes) -> None:
        self.done.add(name)
        skipped = frozenset() if self.same_tool else _WORDED
        try:
            differs = difference(json.loads(self.files[name]), json.loads(wanted), skipped)
        except (ValueError, RecursionError, OverflowError):
            self.failed[name] = "is no report"
            return
        if differs:
            self.failed[name] = f"its traces give other numbers: {differs}"
