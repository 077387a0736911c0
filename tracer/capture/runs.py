"""Run folders: F/dense and F/pruned, each with a manifest and traces, written whole or not at all.

Captures by variant come in. The folder F goes out, which appears by one rename, whatever interrupts
the capture; an older folder stays until then. torch is not imported here.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prunescope.taxonomy.atomic_write import partial_folder, put_in_place
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.runs.run import MANIFEST, Run, sha256_of
from prunescope.taxonomy.runs.run_blocks import BaselineRef
from prunescope.taxonomy.timings import part
from prunescope.tracer.capture.joined import Joined
from prunescope.tracer.capture.progress import Progress, Silent

# What a folder that prunescope wrote may hold; anything else is the user's and stays.
_OWN_ENTRIES = {"dense", "pruned", "report"}


@dataclass(kw_only=True)
class Capture:
    """The results of one variant: its manifest without hashes, and a Chrome trace by phase.

    `eager` holds the traces of the eager pass, in the modes compile and graph.
    """

    run: Run
    traces: dict[str, Joined] = field(default_factory=lambda: defaultdict(Joined))
    eager: dict[str, Joined] = field(default_factory=lambda: defaultdict(Joined))


@part("write")
def write_runs(
    target: Path,
    captures: Mapping[str, Capture],
    baseline: Path | None,
    progress: Progress | None = None,
) -> None:
    """Write a folder `target`/<variant>/ for every capture; a pruned run points to its baseline.

    `baseline` is the dense run folder, if it is not among the captures.
    """
    bar = progress or Silent()
    write_whole(target, lambda folder: _fill(folder, target, captures, baseline, bar))


def baseline_folder(given: Path) -> Path:
    """Return the dense run of `--baseline`.

    `given` is a run folder, or a folder with dense/ and pruned/.

    Raises:
        PrunescopeError: There is no run.
    """
    for folder in (given, given / "dense"):
        if (folder / MANIFEST).is_file():
            return folder
    raise PrunescopeError(
        f"--baseline {given}: there is no run",
        hint="give a folder that `prunescope trace --out` wrote",
    )


def _fill(
    folder: Path,
    target: Path,
    captures: Mapping[str, Capture],
    baseline: Path | None,
    progress: Progress,
) -> None:
    """Write every capture into the temporary `folder`, which becomes `target`."""
    for name, captured in captures.items():
        run_folder = folder / name
        run_folder.mkdir()
        for phase, trace in captured.traces.items():
            entry = captured.run.phases[phase]
            entry.trace = f"{phase}.trace.json.gz"
            entry.sha256 = trace.write(run_folder / entry.trace)
            if phase in captured.eager:
                entry.eager_trace = f"{phase}.eager.trace.json.gz"
                captured.eager[phase].write(run_folder / entry.eager_trace)
            progress.advance()
        if name == "pruned" and "dense" in captures:
            captured.run.twin = _baseline_ref(folder / "dense" / MANIFEST, f"../dense/{MANIFEST}")
        elif name == "pruned" and baseline is not None:
            # Relative to the final folder of the run, not to the temporary one.
            path = os.path.relpath((baseline / MANIFEST).resolve(), (target / name).resolve())
            captured.run.twin = _baseline_ref(baseline / MANIFEST, Path(path).as_posix())
        (run_folder / MANIFEST).write_text(captured.run.to_json(), encoding="utf-8")


def _baseline_ref(manifest: Path, path: str) -> BaselineRef:
    return BaselineRef(path=path, sha256=sha256_of(manifest))


def check_out(target: Path, *, overwrite: bool) -> None:
    """Check, before the capture, that a folder can be written at `target`.

    Raises:
        PrunescopeError: The folder exists and may not be replaced, or it cannot be made.
    """
    if not target.exists() and not target.is_symlink():
        _check_parent(target)
        return
    if not overwrite:
        raise PrunescopeError(
            f"{target} exists already", hint="choose another --out, or replace it with --overwrite"
        )
    is_folder = target.is_dir() and not target.is_symlink()
    if not is_folder or {path.name for path in target.iterdir()} - _OWN_ENTRIES:
        raise PrunescopeError(
            f"{target} is not a folder that `prunescope trace` wrote: --overwrite does not replace"
            " it",
            hint="choose another --out",
        )


def _check_parent(target: Path) -> None:
    """Raise PrunescopeError if no folder can be made at `target`."""
    above = next(path for path in target.absolute().parents if path.exists())
    if not above.is_dir():
        raise PrunescopeError(
            f"{target} cannot be made: {above.name} is a file", hint="choose another --out"
        )
    if not os.access(above, os.W_OK | os.X_OK):
        raise PrunescopeError(
            f"{target} cannot be made: {above.name}/ cannot be written", hint="choose another --out"
        )


def write_whole(target: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into a temporary sibling of `target`, then rename it into place."""
    with partial_folder(target) as partial:
        fill(partial)
        _sync(partial)
        put_in_place(partial, target)


def _sync(folder: Path) -> None:
    """Flush contents to the disk, so that a crash after the rename leaves no empty files."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
