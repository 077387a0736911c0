"""Write what a capture saw as run folders: F/dense, F/pruned, each with manifest and traces.

In: Captures by variant. Out: the folder F, whole or not at all. No torch here.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.run import MANIFEST, Run, sha256_of
from prunescope.taxonomy.run_blocks import BaselineRef
from prunescope.tracer.capture.folder import write_whole
from prunescope.tracer.capture.joined import Joined
from prunescope.tracer.capture.progress import Progress, Silent


@dataclass(kw_only=True)
class Capture:
    """What one variant gave: its manifest without hashes, and by phase a Chrome trace.

    `eager`: in the modes compile and graph, the eager pass of the same step.
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

    `baseline`: the run folder of a twin that is not among the captures.
    """
    bar = progress or Silent()
    write_whole(out, lambda folder: _fill(folder, out, captures, baseline, bar))


def baseline_folder(given: Path) -> Path:
    """The dense run of `--baseline`: a run folder, or the folder around dense/ and pruned/.

    Raises PrunescopeError where there is none.
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
            captured.run.twin = _twin(folder / "dense" / MANIFEST, f"../dense/{MANIFEST}")
        elif name == "pruned" and baseline is not None:
            # Relative to where the run will stand, not to the temporary folder it is written in.
            path = os.path.relpath((baseline / MANIFEST).resolve(), (out / name).resolve())
            captured.run.twin = _twin(baseline / MANIFEST, Path(path).as_posix())
        (run_folder / MANIFEST).write_text(captured.run.to_json(), encoding="utf-8")


def _twin(manifest: Path, path: str) -> BaselineRef:
    return BaselineRef(path=path, sha256=sha256_of(manifest))
