"""The verification of a bundle, by checksums and by rebuilding it, both ways.

In: a zip. Out: plain values. Every file is compared with its SHA-256. Reports, figures and
annotated traces are rebuilt from the bundled traces and compared: numbers within a rounding error,
pixels within what another processor rounds, and nothing may be missing, added, or there twice.
A text that agrees so, and not to the byte, is listed as not compared, and the result is partial.
Manifests and traces are as `bundle` writes them: read and written again, they are the same. What
a bundle says about the versions that wrote it decides nothing: all is rebuilt. If another version
wrote other bytes, the file is listed as not compared, and the result is partial; labels of figures
are compared all the same. The zip is untrusted: only the run folders are unpacked, into a temporary
folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from prunescope.analysis.bundle.archive import read_zip
from prunescope.analysis.bundle.bundle import (
    INDEX,
    OTHERS,
    SUMS,
    BundledRun,
    BundleIndex,
    WrittenRun,
    index_text,
    label_prefixes,
    read_card,
    sums_text,
    texts,
    tool_version,
    trimmed_digest,
    write_formats,
    written_runs,
)
from prunescope.analysis.bundle.differences import difference, same_text
from prunescope.analysis.bundle.edited import with_edited
from prunescope.analysis.bundle.same_files import (
    content_digest,
    is_to_the_byte,
    is_whole_pdf,
    is_whole_png,
    read_json,
    runs_code,
    same_labels,
    same_packed,
    same_pdf,
    same_pixels,
)
from prunescope.analysis.bundle.samples import on_trust
from prunescope.analysis.bundle.study import STUDIES, STUDY, judged, read_study, study_files
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report.figures import plotted_with
from prunescope.analysis.schema.report import Report, to_json
from prunescope.taxonomy.atomic_write import scratch_folder
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import UnknownVersion, decode
from prunescope.taxonomy.lazy_pattern import lazy_pattern
from prunescope.taxonomy.own_files import refuse_own_file
from prunescope.taxonomy.runs.run import CARD, MANIFEST, Run, read_run

_HINT = "give the .zip that `prunescope bundle -o` wrote"
Written = WrittenRun | PrunescopeError | None
FIGURES = (".svg", ".png", ".pdf")
_FOLDER = lazy_pattern(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,120}")
_ACTIVE = lazy_pattern(
    rb"<(?:[\w-]+:)?(?:script|foreignObject|iframe|animate|set|handler)\b|javascript:|<!ENTITY"
    rb"|[\s\"'/]on[a-z]+\s*=|(?:href|src)\s*=\s*[\"'](?!#|data:image/png)|@import|url\((?![\"']?#)"
    rb"|<\?xml-stylesheet",
    re.IGNORECASE,
)
_ROUNDED = (
    "the same but for layout or last digits, as another processor may round them, or an editor"
)
# Every other file is a text.
_SAME = {".gz": same_packed, ".png": same_pixels, ".pdf": same_pdf}


def verify(path: Path) -> dict[str, Any]:
    """Verify a bundle.

    Unprofiled samples are in no trace. An entry for each phase (`on_trust`) therefore tells whether
    the profiled steps allow their speedup.

    Args:
        path: The bundle.

    Returns:
        A dictionary of these keys. "ok" tells whether no file is wrong, "partial" whether some were
        not compared. "checked" counts all files, "rebuilt" those that were rebuilt from the traces
        and compared; the others are inputs of the rebuild, whose checksums alone are compared.
        "not_compared" and "failed" list {"file", "why"}. "samples_on_trust" has the entries of the
        phases. "samples_agree" is False if one of them does not agree, and None if none can be
        judged.

    Raises:
        PrunescopeError: There is no such file, or it is no zip, or an empty one.
    """
    _check_file(path)
    unpacked = read_zip(path)
    failed = dict(unpacked.failed)
    if not unpacked.files and not failed:
        raise PrunescopeError(f"{path} is a zip without any file in it", hint=_HINT)
    checked = len(unpacked.files.keys() | failed.keys())
    if unpacked.repacked:
        failed = {
            name: f"{why}: {_explain_repacked(unpacked.repacked)}" for name, why in failed.items()
        }
    rebuilt: set[str] = set()
    apart: dict[str, str] = {}
    trusted: list[dict[str, Any]] = []
    if unpacked.files or not failed:
        for name, why in _wrong_sums(unpacked.files):
            if (
                name not in failed or name in unpacked.files
            ):  # if it could be read, this reason is better
                failed[name] = why
    if not failed:
        rebuilt, apart, problems, trusted = _rebuild_all(unpacked.files)
        failed.update(problems)
    judged = [phase["agree"] for phase in trusted if phase["agree"] is not None]
    return {
        "ok": not failed,
        "partial": bool(apart),
        "checked": checked,
        "rebuilt": len(rebuilt),
        "not_compared": _list_reasons(apart),
        "failed": _list_reasons(failed),
        "samples_on_trust": trusted,
        "samples_agree": all(judged) if judged else None,
    }


def _list_reasons(reasons: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"file": name, "why": why} for name, why in reasons.items()]


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise PrunescopeError(f"{path} is a folder, not a zip", hint=_HINT)
    if not path.is_file():
        raise PrunescopeError(f"no such file: {path}", hint=_HINT)
    refuse_own_file(path)
    with path.open("rb") as file:
        if file.read(2) != b"PK":  # a damaged bundle still begins like one
            raise PrunescopeError(f"{path} is no bundle: no readable zip", hint=_HINT)


def _explain_repacked(files: Mapping[str, bytes]) -> str:
    """Return whether the content of a recompressed zip matches its sums, and what to do next."""
    wrong = dict(_wrong_sums(files))
    if wrong:
        name, why = next(iter(wrong.items()))
        return f"its content does not match SHA256SUMS either ({name}: {why})"
    return (
        "its content matches SHA256SUMS; ask for the zip as it was written, or unzip it and "
        "`prunescope analyze` each folder in its runs/"
    )


def _wrong_sums(files: Mapping[str, bytes]) -> Iterator[tuple[str, str]]:
    """Yield files that do not match SHA256SUMS, or are missing from it or from the bundle."""
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


def _rebuild_all(
    files: Mapping[str, bytes],
) -> tuple[set[str], dict[str, str], dict[str, str], list[dict[str, Any]]]:
    """Rebuild the files of a bundle, and compare them.

    Returns:
        The files that were rebuilt, those that could not be compared, those that differ, with
        reasons, and the samples that are taken on trust.
    """
    try:
        hint = "bundle the runs again"
        index = decode(files.get(INDEX, b""), BundleIndex, where=INDEX, hint=hint)
    except UnknownVersion:
        raise
    except PrunescopeError:
        return set(), {}, {INDEX: "does not say what the bundle holds"}, []
    if wrong := _wrong_index(files, index):
        return set(), {}, wrong, []
    names = list(index.runs)
    with scratch_folder() as stage:
        rebuild = _Rebuild(files, stage.resolve(), tool=index.tool, plotted=index.drawn_with)
        rebuild.unpack()
        rebuild.read_runs(names)
        for name, written in zip(names, rebuild.written(label_prefixes(names)), strict=False):
            rebuild.check_report(name, label_prefixes(names)[name], written)
        rebuild.check_shared(anonymous=index.anonymous)
        if not rebuild.failed:
            rebuild.check_unknown()
    listed = {**index.outputs, **index.inputs}
    failed = with_edited(files, listed, rebuild.runs, rebuild.failed)
    return rebuild.done, rebuild.apart, failed, list(on_trust(rebuild.reports))


def _wrong_index(files: Mapping[str, bytes], index: BundleIndex) -> dict[str, str]:
    """Return what prevents a rebuild, by file: an index of other files, or a file that runs."""
    names = list(index.runs)
    if not all(map(_FOLDER.fullmatch, names)):  # they become paths
        return {INDEX: "names a run that is no plain folder name"}
    there = {n.split("/")[1] for n in files if n.startswith(("runs/", "reports/"))}
    if not names or there - set(names):  # what it does not name would not be rebuilt
        return {INDEX: "does not name every run of the bundle"}
    listed = index.inputs.keys() | index.outputs.keys()
    if index.outputs:  # bundles of older versions list their inputs alone
        why = dict.fromkeys(files, "no part of a bundle: not listed in bundle.json")
        why |= dict.fromkeys(listed, "listed in bundle.json and missing")
        if wrong := (files.keys() ^ listed) - {INDEX, SUMS}:
            return {name: why[name] for name in sorted(wrong)}
    active = [n for n, data in files.items() if n.endswith(".svg") and _ACTIVE.search(data)]
    active += [n for n, data in files.items() if n.endswith(".pdf") and runs_code(data)]
    return dict.fromkeys(active, "refused: a figure that runs a script")


class _Rebuild:
    """The rebuild of a bundle from its traces.

    `done` are the files that were compared, `apart` those that could not be, and `failed` those
    that differ. Files that differ are `apart` if another version of this tool (`tool`) wrote them,
    and figures if other versions plotted them (`plotted`).
    """

    def __init__(self, files: Mapping[str, bytes], stage: Path, *, tool: str, plotted: str) -> None:
        self.files, self.stage, self.tool, self.plotted = files, stage, tool, plotted
        self.same_tool = tool == f"prunescope {tool_version()}"
        self.content: dict[str, str] = {}  # SHA-256 of unpacked traces
        self.reports: dict[str, Report] = {}
        self.runs: dict[str, dict[str, Run]] = {}
        self.studies: set[str] = set()  # the files that say what sweeps planned
        self.done: set[str] = set()
        self.apart: dict[str, str] = {}
        self.failed: dict[str, str] = {}

    def unpack(self) -> None:
        """Unpack the run folders, and nothing else."""
        for name, data in self.files.items():
            if not name.startswith("runs/"):
                continue
            try:
                if name.endswith(".gz"):
                    self.content[name] = content_digest(data)
                (self.stage / name).parent.mkdir(parents=True, exist_ok=True)
                (self.stage / name).write_bytes(data)
            except (FileExistsError, NotADirectoryError, IsADirectoryError):
                self.failed[name] = "refused: a file and a folder of one name"
            except ValueError as error:
                self.failed[name] = f"refused: it {error}"

    def read_runs(self, names: Sequence[str]) -> None:
        """Read the manifests of the runs."""
        for name in () if self.failed else names:
            try:
                manifests = sorted((self.stage / "runs" / name).glob(f"*/{MANIFEST}"))
                self.runs[name] = {m.parent.name: read_run(m.parent) for m in manifests}
            except PrunescopeError as error:
                self.failed[f"runs/{name}"] = f"cannot be analysed: {error.problem}"
                return

    def written(self, prefixes: Mapping[str, str]) -> Iterator[Written]:
        """Yield what processes rebuild of each of several runs, and None for a run alone.

        Where the first wrong run is known, the others are left.
        """
        if self.failed or len(prefixes) == 1:
            yield from () if self.failed else (None,)
            return
        tasks = [
            BundledRun(
                folder=str(self.stage / "runs" / name),
                target=str(self.stage / "reports" / name),
                label_prefix=prefix,
                traces=[str(self.stage / trace) for trace in self._traces(name)],
            )
            for name, prefix in prefixes.items()
        ]
        for written in written_runs(tasks):
            yield written
            if self.failed:
                return

    def check_report(self, name: str, prefix: str, written: Written) -> None:
        """Compare the report of a run, with its figures and annotated traces, with a rebuilt one.

        Args:
            name: The run.
            prefix: The prefix of its labels in LaTeX.
            written: What another process rebuilt; None: it is rebuilt here.
        """
        place = f"reports/{name}"
        try:
            if isinstance(written, PrunescopeError):
                raise written
            self._check_inputs(name, {} if written is None else written.trimmed)
            done = analyze(self.stage / "runs" / name) if written is None else written
        except PrunescopeError as error:
            self.failed[f"runs/{name}"] = f"cannot be analysed: {error.problem}"
            return
        self.reports[name] = done.report
        self._compare_report(f"{place}/report.json", to_json(done.report))
        if self.failed:
            return
        if isinstance(done, WrittenRun):
            paths = list(map(Path, done.files))
        else:
            paths = write_formats(done, self.stage / place, prefix)
        for path in paths:
            if path.name != "report.json":
                self._compare(f"{place}/{path.name}", path.read_bytes(), "not what its traces give")

    def check_shared(self, *, anonymous: bool) -> None:
        """Rebuild and compare the files that follow from all runs."""
        if self.failed:
            return
        wanted = self._studies()
        if self.failed:
            return
        wanted |= texts(
            self.reports,
            self.runs,
            anonymous=anonymous,
            plotted=self.plotted,
            others=[name for name in self.files if name.startswith(OTHERS)],
        )
        wanted[INDEX] = index_text(
            self.files, self.reports, anonymous=anonymous, plotted=self.plotted
        )
        for name, text in wanted.items():
            self._compare(name, text, "not what the bundled runs give")

    def _studies(self) -> dict[str, bytes]:
        """Return the files of the studies, rebuilt from the bundled runs."""
        rebuilt: dict[str, bytes] = {}
        for name in sorted(self.files):
            if not (name.startswith(STUDIES) and name.endswith(f"/{STUDY}")):
                continue
            try:
                study = read_study(self.files[name], name)
                pareto = judged(study, self.stage, lambda path: self.reports[path.parent.name])
            except (PrunescopeError, KeyError) as error:
                self.failed[name] = f"cannot be judged: {str(error)[:80]}"
                continue
            self.studies.add(name)
            rebuilt |= study_files(name.split("/")[1], pareto)
        return rebuilt

    def check_unknown(self) -> None:
        """Refuse each file that this version neither writes nor rebuilds from."""
        others = {name for name in self.files if name.startswith(OTHERS)}
        sources = {SUMS, *self._inputs(), *self.studies, *others}
        for name in sorted(self.files.keys() - sources - self.done - self.apart.keys()):
            self.failed[name] = "no part of a bundle"

    def _inputs(self) -> Iterator[str]:
        """Yield the names of the manifests and of the traces that they name."""
        for name, variants in self.runs.items():
            for variant, run in variants.items():
                yield f"runs/{name}/{variant}/{MANIFEST}"
                if run.pruning is not None and run.pruning.saved:
                    yield f"runs/{name}/{variant}/{CARD}"
                for phase in run.phases.values():
                    for trace in filter(None, (phase.trace, phase.eager_trace)):
                        yield f"runs/{name}/{variant}/{trace}"

    def _traces(self, run_name: str) -> list[str]:
        """Return the names of the traces of a run that its manifests name."""
        inputs = (name for name in self._inputs() if name.startswith(f"runs/{run_name}/"))
        return [name for name in inputs if name in self.content]

    def _check_inputs(self, run_name: str, trimmed: Mapping[str, str]) -> None:
        """Check that the manifests and traces of a run are as `bundle` writes them.

        They hold nothing that no analysis reads, and nothing twice: what is read, written again,
        gives the same. `trimmed` has the digests, by path, of traces that were trimmed elsewhere.
        """
        for variant, run in self.runs[run_name].items():
            name = f"runs/{run_name}/{variant}/{MANIFEST}"
            if run.to_json().encode() != self.files[name]:
                self._differs(name, "not in the form in which it was written")
            self._check_card(f"runs/{run_name}/{variant}/{CARD}", run)
        for name in self._traces(run_name):
            path = self.stage / name
            if (trimmed.get(str(path)) or trimmed_digest(path)) != self.content[name]:
                self._differs(name, "not in the form in which it was written")

    def _check_card(self, name: str, run: Run) -> None:
        """Check that the card of a saved model names the weights that the run saved."""
        if name not in self.files:
            return
        card = read_card(self.stage / name)
        digests = ((run.pruning and run.pruning.saved) or {}).get("weights") or {}
        if card is None or card.encode() != self.files[name]:
            self._differs(name, "not in the form in which it was written")
        elif not all(str(digest) in card for digest in digests.values()):
            self.failed[name] = "names other weights than run.json"

    def _differs(self, name: str, why: str) -> None:
        """Note a file that differs, which is no mistake of one that another version wrote."""
        if self.same_tool:
            self.failed[name] = why
        else:
            self.apart[name] = f"written by {self.tool}, which verifies it: {why}"

    def _compare(self, name: str, wanted: bytes, why: str) -> None:
        ending, data = PurePosixPath(name).suffix, self.files.get(name)
        if data is None:
            self._differs(name, "missing")
        elif _SAME.get(ending, same_text)(data, wanted):
            self._agrees(name, is_exact=ending in (".png", ".pdf") or is_to_the_byte(data, wanted))
        elif self.same_tool and ending in FIGURES and self.plotted != plotted_with():
            self.apart[name] = f"plotted with {self.plotted}, here is {plotted_with()}"
            is_right = {
                ".svg": lambda: same_labels(data, wanted),
                ".png": lambda: is_whole_png(data),
                ".pdf": lambda: is_whole_pdf(data),
            }
            if not is_right[ending]():
                self.failed[name] = why
        else:
            self.done.add(name)
            self._differs(name, why)

    def _compare_report(self, name: str, wanted: bytes) -> None:
        self.done.add(name)
        if name not in self.files:
            self._differs(name, "missing")
            return
        try:
            differs = difference(read_json(self.files[name]), read_json(wanted))
        except (ValueError, RecursionError, OverflowError) as error:
            self.failed[name] = f"is no report: {str(error)[:80]}"
            return
        if differs:
            self._differs(name, f"its traces give other numbers: {differs}")
        else:
            self._agrees(name, is_exact=self.files[name] == wanted)

    def _agrees(self, name: str, *, is_exact: bool) -> None:
        """Note a file that says the same, which is compared as a whole if each sign is the same."""
        self.done.add(name)
        if not is_exact:
            self.apart[name] = _ROUNDED
