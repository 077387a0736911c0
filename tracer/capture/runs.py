"""Run folders: F/dense and F/pruned, each with a manifest and traces, written whole or not at all.

In: Captures by variant. Out: the folder F, which appears by one rename, whatever interrupts the
capture; an older folder stays until then. No torch here.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prunescope.taxonomy.atomic_write import partial_folder, put_in_place
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.run import MANIFEST, Run, sha256_of
from prunescope.taxonomy.run_blocks import BaselineRef
from prunescope.tracer.capture.joined import Joined
from prunescope.tracer.capture.progress import Progress, Silent

# What a folder that prunescope wrote may hold; anything else is the user's and stays.
_OWN_ENTRIES = {"dense", "pruned", "report"}


@dataclass(kw_only=True)
class Capture:
    """The results of one variant: its manifest without hashes, and a Chrome trace by phase.

    `eager`: the traces of the eager pass, in the modes compile and graph.
    """

    run: Run
    traces: dict[str, Joined] = field(default_factory=lambda: defaultdict(Joined))
    eager: dict[str, Joined] = field(default_factory=lambda: defaultdict(Joined))


def write_runs(
    out: Path,
    captures: Mapping[str, Capture],
    baseline: Path | None,
    progress: Progress | None = None,
) -> None:
    """Write `out`/<variant>/ for every capture; a pruned run points to its dense baseline.

    `baseline`: the dense run folder, if it is not among the captures.
    """
    bar = progress or Silent()
    write_whole(out, lambda folder: _fill(folder, out, captures, baseline, bar))


def baseline_folder(given: Path) -> Path:
    """The dense run of `--baseline`: a run folder, or the folder around dense/ and pruned/.

    Raises PrunescopeError if there is none.
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
    out: Path,
    captures: Mapping[str, Capture],
    baseline: Path | None,
    progress: Progress,
) -> None:
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
            path = os.path.relpath((baseline / MANIFEST).resolve(), (out / name).resolve())
            captured.run.twin = _baseline_ref(baseline / MANIFEST, Path(path).as_posix())
        (run_folder / MANIFEST).write_text(captured.run.to_json(), encoding="utf-8")


def _baseline_ref(manifest: Path, path: str) -> BaselineRef:
    return BaselineRef(path=path, sha256=sha256_of(manifest))


def check_out(out: Path, *, overwrite: bool) -> None:
    """Raises PrunescopeError if `out` exists and may not be replaced."""
    if not out.exists() and not out.is_symlink():
        _check_parent(out)
        return
    if not overwrite:
        raise PrunescopeError(
            f"{out} exists already", hint="choose another --out, or replace it with --overwrite"
        )
    if out.is_symlink() or not out.is_dir() or {p.name for p in out.iterdir()} - _OWN_ENTRIES:
        raise PrunescopeError(
            f"{out} is not a folder that `prunescope trace` wrote: --overwrite does not replace it",
            hint="choose another --out",
        )


def _check_parent(out: Path) -> None:
    """Raises PrunescopeError, before the capture, if a folder cannot be made at `out`."""
    above = next(path for path in out.absolute().parents if path.exists())
    if not above.is_dir():
        raise PrunescopeError(
            f"{out} cannot be made: {above.name} is a file", hint="choose another --out"
        )
    if not os.access(above, os.W_OK | os.X_OK):
        raise PrunescopeError(
            f"{out} cannot be made: {above.name}/ cannot be written", hint="choose another --out"
        )


def write_whole(out: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into a temporary sibling of `out`, then rename it into place."""
    with partial_folder(out) as partial:
        fill(partial)
        _sync(partial)
        put_in_place(partial, out)


def _sync(folder: Path) -> None:
    """Flush contents before the rename: a crash after it leaves no empty files."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
