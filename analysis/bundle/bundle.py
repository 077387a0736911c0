"""Evidence to attach to a paper.

In: run folders. Out: one zip that `verify` can check. It holds trimmed traces, manifests, raw
samples, reports with their figures and data, a README and SHA-256 sums. The same runs give the same
bytes. Nothing is written if a check fails.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from prunescope.analysis.bundle.anonymise import Scrubber, names_of, trace_strings
from prunescope.analysis.bundle.archive import zip_bytes
from prunescope.analysis.bundle.frontier import frontier_csv
from prunescope.analysis.bundle.secrets import suspicious
from prunescope.analysis.bundle.study import (
    STUDIES,
    STUDY,
    Study,
    judged,
    read_studies,
    study_files,
)
from prunescope.analysis.bundle.text import Origin, Runs, environment_json, readme, samples_csv
from prunescope.analysis.bundle.trim import trim, trimmed_json
from prunescope.analysis.inputs.open import locate, recorded_baseline
from prunescope.analysis.inputs.options import Options
from prunescope.analysis.named_runs import NamedRun, find_runs
from prunescope.analysis.pipeline import Analysis, analyze
from prunescope.analysis.pool import run_tasks
from prunescope.analysis.report.figures import plotted_with
from prunescope.analysis.report.formats import PhaseFrames
from prunescope.analysis.report.write import write_report
from prunescope.analysis.schema.report import Report
from prunescope.analysis.trace.workers import cores
from prunescope.taxonomy.atomic_write import scratch_folder, write_file
from prunescope.taxonomy.citations import citation_cff, tool_citation
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import changed, plain
from prunescope.taxonomy.own_files import refuse_own_file
from prunescope.taxonomy.runs.run import CARD, MANIFEST, PhaseRun, Run, read_run
from prunescope.taxonomy.runs.run_blocks import BaselineRef
from prunescope.taxonomy.scrub import holds_token, scrub
from prunescope.taxonomy.timings import part
from prunescope.taxonomy.words import when

SUMS, INDEX, FRONTIER = "SHA256SUMS", "bundle.json", "frontier.csv"
# What the authors add, as it is: the source of their method, and the wheel of this tool.
SOURCE, INSTALL = "source/", "install/"
OTHERS = (SOURCE, INSTALL)
_INPUTS = ("runs/", *OTHERS)
_MOST_BYTES = 64 << 20  # of a file that is added
# All formats can be rebuilt and compared. A PDF cannot be scanned, and svg holds the same texts.
FORMATS = ("md", "json", "tex", "csv", "svg", "png", "pdf")
# They need the kernels frames, which would make the tables of csv too large.
FRAMED = ("html", "perfetto")
_MOST_CARD = 1 << 20
# The paper that the evidence belongs to cites itself.
_CITE = "If you use this evidence, please cite its paper, and the tool."
_TEXT = (".md", ".html", ".json", ".tex", ".csv", ".svg", ".cff", "SUMS")


class BundleIndex(msgspec.Struct, kw_only=True):
    """The file bundle.json, which tells what a bundle holds.

    `runs` names the phases of each run. `inputs` has the SHA-256 of each run.json, trace and
    study.json, from which all else is rebuilt, and of what the authors added; `outputs` that of all
    else but this file and SHA256SUMS. Bundles of older versions have none of one or both.
    """

    schema: Literal[1] = 1
    tool: str
    anonymous: bool
    formats: list[str] = []
    drawn_with: str = "None"
    runs: dict[str, list[str]]
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}


def bundle(
    runs: Sequence[Path],
    out: Path,
    *,
    sources: Sequence[Path] = (),
    wheel: Path | None = None,
    anonymous: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write the evidence of runs into one zip, whole or not at all.

    Args:
        runs: Run folders, or folders of them. Of a sweep the tables and figures of the article are
            bundled, too.
        out: The zip to write.
        sources: Files to add, such as the source of a method.
        wheel: The wheel of this tool, for reviewers to install; None for its address alone.
        anonymous: Whether to remove what names people, hosts, paths and accounts.
        overwrite: Whether to replace an existing zip.

    Returns:
        The path of the zip.

    Raises:
        PrunescopeError: A subject is no run or is damaged, a file to add cannot be read, the zip
            cannot be written or exists, or, with `anonymous`, something suspicious is left.
    """
    _check_target(out, overwrite=overwrite)
    named = find_runs(runs)
    if not named:
        raise PrunescopeError("no run to bundle", hint="name the folder that `trace --out` wrote")
    folders = {_slug(i, run, anonymous=anonymous): _variants(run) for i, run in enumerate(named, 1)}
    if len(folders) < len(named):
        raise PrunescopeError(
            "two runs would have one name in the bundle", hint="rename one of their folders"
        )
    files = [p for v in folders.values() for folder in v.values() for p in _files(folder)]
    scrubber = Scrubber(names_of(files)) if anonymous else None
    others = _others(sources, wheel)
    pruned = {v["pruned"].resolve(): name for name, v in folders.items() if "pruned" in v}
    studies = read_studies(runs, pruned, scrubber)
    with scratch_folder() as stage:
        content = _build(folders, studies, stage.resolve(), scrubber, others)
    if scrubber is not None:
        _refuse_suspicious(content, scrubber)
    _write_zip(out, zip_bytes(content))
    return out


def sums_text(files: Mapping[str, bytes]) -> str:
    """Return SHA256SUMS of all files but itself, in the form of sha256sum."""
    names = sorted(name for name in files if name != SUMS)
    return "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in names)


def index_text(
    files: Mapping[str, bytes],
    reports: Mapping[str, Report],
    *,
    anonymous: bool,
    plotted: str,
) -> bytes:
    """Return bundle.json, which lists all other files of the bundle but SHA256SUMS.

    Args:
        files: The files of the bundle.
        reports: The reports by run.
        anonymous: Whether the bundle is anonymous.
        plotted: The versions that the figures were plotted with.
    """
    sums = {name: hashlib.sha256(files[name]).hexdigest() for name in sorted(files)}
    index = BundleIndex(
        tool=f"prunescope {tool_version()}",
        anonymous=anonymous,
        formats=[*FORMATS, *FRAMED],
        drawn_with=plotted,
        runs={name: list(report.phases) for name, report in reports.items()},
        inputs={name: digest for name, digest in sums.items() if _is_input(name)},
        outputs={
            name: digest
            for name, digest in sums.items()
            if not _is_input(name) and name not in (INDEX, SUMS)
        },
    )
    return (json.dumps(plain(index), indent=1) + "\n").encode()


def _is_input(name: str) -> bool:
    """Return whether a file is one that others are rebuilt from, or that the authors added."""
    return name.startswith(_INPUTS) or (name.startswith(STUDIES) and name.endswith(f"/{STUDY}"))


def tool_version() -> str:
    """Return the installed version; "0+source" if the package is run from a checkout."""
    try:
        return importlib.metadata.version("prunescope")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"


def _check_target(target: Path, *, overwrite: bool) -> None:
    if target.suffix.lower() != ".zip":
        raise PrunescopeError(
            f"cannot write {target}: a bundle is a zip",
            hint=f"for example -o {target.stem or 'evidence'}.zip",
        )
    taken = target.exists() and (not target.is_file() or not zipfile.is_zipfile(target))
    folder = target.absolute().parent
    if taken or not folder.is_dir():
        why = "is a file" if folder.exists() else "does not exist"
        raise PrunescopeError(
            f"cannot write {target}: "
            + ("it exists and is no zip" if taken else f"its folder {folder.name} {why}"),
            hint="name a .zip file in an existing folder with -o",
        )
    if target.exists() and not overwrite:
        raise PrunescopeError(
            f"{target.name} exists", hint="give another -o FILE.zip, or replace it with --overwrite"
        )


def _others(sources: Sequence[Path], wheel: Path | None) -> dict[str, bytes]:
    """Return the files that the authors add, from path in the bundle to bytes.

    Raises:
        PrunescopeError: One cannot be read, is too large or no wheel, holds a secret, or two have
            one name.
    """
    files: dict[str, bytes] = {}
    wanted = [(SOURCE, path) for path in sources]
    wanted += [] if wheel is None else [(INSTALL, wheel)]
    for folder, path in wanted:
        name = f"{folder}{re.sub(r'[^A-Za-z0-9._+-]+', '-', scrub(path.name)).lstrip('.-+')}"
        try:
            is_small = path.is_file() and path.stat().st_size <= _MOST_BYTES
            data = path.read_bytes() if is_small else None
        except OSError:
            data = None
        if data is None or name in files or name == folder:
            why = "two files have that name" if name in files else "no file of at most 64 MiB"
            raise PrunescopeError(f"cannot add {path}: {why}", hint="name each file to add once")
        if folder == SOURCE:
            _check_source(path, data)
        files[name] = data
    if wheel is not None and (
        not wheel.name.startswith("prunescope-") or not zipfile.is_zipfile(wheel)
    ):
        raise PrunescopeError(
            f"{wheel.name} is no wheel of prunescope",
            hint="build one with `pip wheel --no-deps`, or leave --wheel out",
        )
    return files


def _check_source(path: Path, data: bytes) -> None:
    """Refuse a file in which a token is, or could be and not be found."""
    try:
        has_token = holds_token(data.decode())
    except UnicodeDecodeError:
        raise PrunescopeError(
            f"cannot add {path}: it is no UTF-8 text, which is searched for secrets",
            hint="add the source itself, not packed",
        ) from None
    if has_token:
        raise PrunescopeError(
            f"cannot add {path}: it holds a token, a key or a password",
            hint="take it out of the file",
        )


def _slug(i: int, named: NamedRun, *, anonymous: bool) -> str:
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", scrub(named.name)).strip("-")[:80]
    return f"run-{i}" if anonymous or not plain else plain


def _variants(named: NamedRun) -> dict[str, Path]:
    """Return the folders of a run and its dense baseline."""
    folder = locate(named.path)
    if not (folder / MANIFEST).is_file():
        refuse_own_file(named.path)
        raise PrunescopeError(
            f"{named.name} is a trace, not a run: its workload and device are unknown",
            hint="capture a run with `prunescope trace`, or around your own loop with "
            "prunescope.capture",
        )
    run = read_run(folder)
    variants = {run.variant: folder}
    if (dense := recorded_baseline(folder, run)) is not None:
        variants["dense"] = dense
    return dict(sorted(variants.items()))


def _files(folder: Path) -> list[Path]:
    """Return the manifest of a run and the traces that it names."""
    if (folder / MANIFEST).is_symlink():
        raise PrunescopeError(
            f"{folder.name}/{MANIFEST} is a link, not a file of the run",
            hint="bundle the folder that `prunescope trace` wrote",
        )
    run = read_run(folder)
    traces = [name for p in run.phases.values() for name in (p.trace, p.eager_trace) if name]
    return [folder / MANIFEST, *(_trace_file(folder, name) for name in traces)]


def _trace_file(folder: Path, name: str) -> Path:
    path = folder / name
    if Path(name).name != name or not path.is_file() or path.is_symlink():
        raise PrunescopeError(
            f"{folder.name}/ lacks the trace {Path(name).name}",
            hint="the run folder is incomplete: trace the model again",
        )
    return path


def _build(
    sources: Mapping[str, Mapping[str, Path]],
    studies: Mapping[str, Study],
    stage: Path,
    scrubber: Scrubber | None,
    others: Mapping[str, bytes],
) -> dict[str, bytes]:
    runs: dict[str, dict[str, Run]] = {}
    reports: dict[str, Report] = {}
    tasks = []
    for name, variants in sources.items():
        folder = stage / "runs" / name
        if scrubber is not None:  # numbers names across all runs, so one process trims them
            _stage_runs(variants, folder, scrubber)
        tasks.append(
            BundledRun(
                folder=str(folder),
                target=str(stage / "reports" / name),
                label_prefix=label_prefixes(sources)[name],
                variants={} if scrubber else {v: str(path) for v, path in variants.items()},
            )
        )
    for name, variants, written in zip(sources, sources.values(), written_runs(tasks), strict=True):
        if isinstance(written, PrunescopeError):
            raise written
        if written.report.partial:
            raise PrunescopeError(
                f"{name} has a trace that is cut off", hint="trace the model again"
            )
        reports[name] = written.report
        runs[name] = {variant: read_run(stage / "runs" / name / variant) for variant in variants}
    files: dict[str, bytes] = dict(others)
    for path in sorted(p for p in stage.rglob("*") if p.is_file()):
        files[path.relative_to(stage).as_posix()] = path.read_bytes()
    for name, study in studies.items():
        files[f"{STUDIES}{name}/{STUDY}"] = study.to_json()
        pareto = judged(study, stage, lambda path: reports[path.parent.name])
        files |= study_files(name, pareto)
    anonymous = scrubber is not None
    files |= texts(reports, runs, anonymous=anonymous, plotted=plotted_with(), others=list(others))
    files[INDEX] = index_text(files, reports, anonymous=anonymous, plotted=plotted_with())
    files[SUMS] = sums_text(files).encode()
    return files


class BundledRun(msgspec.Struct, kw_only=True):
    """A run to analyse, and where the files of its report go.

    `variants` are the folders whose trimmed runs are first written to `folder`; none where they are
    there. `traces` are trimmed once more, and their digests returned. `formats` is empty until
    `written_runs` says them.
    """

    folder: str
    target: str
    label_prefix: str
    formats: tuple[str, ...] = ()
    variants: dict[str, str] = {}
    traces: list[str] = []


class WrittenRun(msgspec.Struct):
    """The report of a run, the paths of its files, and the SHA-256 of traces trimmed once more."""

    report: Report
    files: list[str]
    trimmed: dict[str, str]


def written_runs(tasks: Sequence[BundledRun]) -> Iterator[WrittenRun | PrunescopeError]:
    """Yield what each task gives, or its error; several have a process for each core."""
    tasks = [msgspec.structs.replace(task, formats=FORMATS) for task in tasks]
    if len(tasks) > 1 and cores() > 1:
        with part("analyze"):
            yield from run_tasks(write_run, tasks, WrittenRun, jobs=cores())
        return
    for task in tasks:
        try:
            yield write_run(task)
        except PrunescopeError as error:
            yield error


def write_run(task: BundledRun) -> WrittenRun:
    """Analyse a run of a bundle and write the files of its report.

    Raises:
        PrunescopeError: The run cannot be trimmed or analysed.
    """
    folder = Path(task.folder)
    if task.variants:
        variants = {variant: Path(path) for variant, path in task.variants.items()}
        _stage_runs(variants, folder, None)
    trimmed = {path: trimmed_digest(Path(path)) for path in task.traces}
    done = analyze(folder, options=Options())
    paths = write_formats(done, Path(task.target), task.label_prefix, task.formats)
    return WrittenRun(done.report, list(map(str, paths)), trimmed)


def trimmed_digest(path: Path) -> str:
    """Return the SHA-256 of a trace that is trimmed once more."""
    return hashlib.sha256(trimmed_json(path)).hexdigest()


def write_formats(
    done: Analysis, folder: Path, label_prefix: str, formats: Sequence[str] = ()
) -> list[Path]:
    """Write the files of one report of a bundle into a folder.

    Args:
        done: The analysis of the run.
        folder: The folder to write to.
        label_prefix: The prefix of the report's labels in LaTeX.
        formats: The formats without frames; FORMATS if empty.

    Returns:
        The paths of the files.
    """
    written = write_report(
        done.report, folder, formats=formats or FORMATS, label_prefix=label_prefix
    )
    held = done.held
    frames = PhaseFrames(
        held.pruned,
        held.dense,
        pruned_host=held.pruned_host,
        dense_host=held.dense_host,
        dense_layers=held.dense_layers,
    )
    return written + write_report(done.report, folder, formats=FRAMED, frames=frames)


def label_prefixes(names: Iterable[str]) -> dict[str, str]:
    """Return a distinct prefix for each run's labels in LaTeX.

    It is the name of the run without characters that a label refuses, or its number if two names
    would be equal.
    """
    plain = {name: re.sub(r"[^A-Za-z0-9.-]", "-", name)[:40] for name in names}
    if len(set(plain.values())) == len(plain):
        return plain
    return {name: f"run-{i}" for i, name in enumerate(plain, 1)}


def texts(
    reports: Mapping[str, Report],
    runs: Runs,
    *,
    anonymous: bool,
    plotted: str,
    others: Collection[str] = (),
) -> dict[str, bytes]:
    """Return README, citation, samples and other files that follow from the runs and reports.

    Args:
        reports: The reports by run.
        runs: The manifests by run and variant.
        anonymous: Whether the bundle is anonymous.
        plotted: The versions that the figures were plotted with.
        others: The files that the authors added.
    """
    version = tool_version()
    written_by = f"prunescope {version}; figures plotted with {plotted}"
    wheel = next((name for name in others if name.startswith(INSTALL)), None)
    install = wheel or f"'prunescope @ git+{tool_citation(version).url}'"
    origin = Origin(written_by=written_by, install=install, anonymous=anonymous)
    files = {
        "README.md": readme(reports, runs, origin),
        "CITATION.cff": citation_cff(version, _CITE),
        "samples.csv": samples_csv(runs),
        "environment.json": environment_json(runs),
    }
    if (table := frontier_csv(reports, runs)) is not None:
        files[FRONTIER] = table
    return {name: text.encode() for name, text in files.items()}


def _stage_runs(
    variants: Mapping[str, Path], target: Path, scrubber: Scrubber | None
) -> dict[str, Run]:
    """Write the trimmed runs under `target`, dense first, as the pruned one names its digest."""
    staged: dict[str, Run] = {}
    digest: str | None = None
    for variant, folder in variants.items():
        source = read_run(folder)
        original = source.phases
        run = source if scrubber is None else scrubber.run(source)
        staged_folder = target / variant
        staged_folder.mkdir(parents=True)
        phases = {
            name: _stage_phase(phase, original[name], folder, staged_folder, scrubber)
            for name, phase in run.phases.items()
        }
        baseline = BaselineRef(path=f"../dense/{MANIFEST}", sha256=digest) if digest else None
        run = changed(run, phases=phases, twin=baseline)
        text = run.to_json().encode()
        (staged_folder / MANIFEST).write_bytes(text)
        if scrubber is None and (card := read_card(folder / CARD)) is not None:
            (staged_folder / CARD).write_text(card, encoding="utf-8")
        digest = hashlib.sha256(text).hexdigest() if variant == "dense" else digest
        staged[variant] = run
    return staged


def read_card(path: Path) -> str | None:
    """Return the card of a saved model without secrets and paths; None if there is none."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > _MOST_CARD:
        return None
    return "\n".join(scrub(line) for line in path.read_text("utf-8", "replace").split("\n"))


def _stage_phase(
    phase: PhaseRun,
    original: PhaseRun,
    folder: Path,
    staged_folder: Path,
    scrubber: Scrubber | None,
) -> PhaseRun:
    """Write the trimmed traces of a phase next to the manifest, and return the phase."""
    written: list[str | None] = []
    for name in (original.trace, original.eager_trace):
        if not name:
            written.append(None)
            continue
        data = trim(_trace_file(folder, name), scrubber)
        file_name = re.sub(r"[^A-Za-z0-9._-]+", "-", scrub(name)).lstrip(".-")
        file_name = file_name if file_name.endswith(".gz") else f"{file_name}.gz"
        (staged_folder / file_name).write_bytes(data)
        written.append(file_name)
    trace, eager = written
    digest = hashlib.sha256((staged_folder / trace).read_bytes()).hexdigest() if trace else ""
    return changed(phase, trace=trace or "", sha256=digest, eager_trace=eager)


def _refuse_suspicious(files: Mapping[str, bytes], scrubber: Scrubber) -> None:
    left = []
    # The runs come first, as suspicious text in a report comes from them.
    for name in sorted(files, key=lambda n: (not n.startswith("runs/"), n)):
        content = _readable(name, files[name])
        if content is not None:
            left += [f"{name} ({text})" for text in suspicious(name, content, scrubber.names)[:3]]
    if left:
        more = when(len(left) > 5, f", and {len(left) - 5} more")
        raise PrunescopeError(
            f"not anonymous, so not written: {'; '.join(left[:5])}{more}",
            hint="rename what is named there in the run, or bundle without --anonymous",
        )


def _readable(name: str, data: bytes) -> str | None:
    if name.endswith(_TEXT) or name.startswith(SOURCE):
        return data.decode("utf-8", "replace")
    return "\n".join(sorted(trace_strings(data))) if name.endswith(".gz") else None


def _write_zip(target: Path, data: bytes) -> None:
    try:
        write_file(target.resolve(), data)
    except OSError as error:
        raise PrunescopeError(
            f"cannot write {target} ({error.strerror or error})",
            hint="give a file in a folder that can be written with -o",
        ) from None
