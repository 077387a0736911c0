"""What paths on the command line mean: in, a run, a pair, a trace or a folder of traces; out, the
run or trace that is meant, and its baseline. Paths stay out of everything that is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prunescope.analysis.trace.load import is_there
from prunescope.analysis.trace.ranks import holds_traces
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.run import MANIFEST, read_run, sha256_of


@dataclass(frozen=True)
class Paths:
    """The subject and its baseline, resolved."""

    subject: Path
    baseline: Path | None
    warnings: list[str]


@contextmanager
def of_the(what: str) -> Iterator[None]:
    """Says which of two arguments an error is about: their files may have one name."""
    try:
        yield
    except PrunescopeError as error:
        raise PrunescopeError(f"{what}: {error.problem}", hint=error.hint) from None


def resolve(subject: Path, baseline: Path | None) -> Paths:
    """The run or trace that is meant, and its baseline. Raises PrunescopeError where one is
    missing."""
    warnings: list[str] = []
    chosen = _run_folder(subject)
    if baseline is not None:
        with of_the("baseline"):
            return Paths(chosen, _run_folder(baseline, prefer="dense"), warnings)
    if not (chosen / MANIFEST).is_file():
        return Paths(chosen, None, warnings)
    run = read_run(chosen)
    if run.twin is None:
        return Paths(chosen, None, warnings)
    twin = (chosen / (run.twin.path or "")).parent.resolve()
    inside = chosen.resolve().parent.parent
    if not twin.is_relative_to(inside) and not twin.is_relative_to(inside.parent):
        raise PrunescopeError(
            f"the twin of {chosen.name}/ lies outside of its folder",
            hint="name the dense run with --baseline RUN",
        )
    if not is_there(twin) or not (twin / MANIFEST).is_file():
        raise PrunescopeError(
            f"the dense baseline of {chosen.name}/ is missing ({str(run.twin.path)[:200]})",
            hint="keep F/dense beside F/pruned, or name a dense run with --baseline RUN",
        )
    if run.twin.sha256 != sha256_of(twin / MANIFEST):
        warnings.append("the dense run.json is not the one that this run was traced with")
    return Paths(chosen, twin, warnings)


def _run_folder(path: Path, *, prefer: str = "pruned") -> Path:
    """A trace file or a folder of traces as it is; a run, or the preferred run of a pair."""
    if not is_there(path):
        given = path.name if path.is_absolute() else str(path)  # as typed, but no path of a machine
        raise PrunescopeError(
            f"no such file or folder: {given[-200:]}", hint="check the path of the run or trace"
        )
    if path.is_file():
        return path.parent if path.name == MANIFEST else path
    if not path.is_dir():
        raise PrunescopeError(
            f"{path.name} is a device or a pipe, not a file", hint="give a trace file or a run"
        )
    if (path / MANIFEST).is_file():
        return path
    for name in (prefer, "pruned", "dense"):
        if (path / name / MANIFEST).is_file():
            return path / name
        if name == prefer and (path / name).is_dir() and any(path.glob(f"*/{MANIFEST}")):
            raise PrunescopeError(
                f"{path.name}/{name}/ has no readable {MANIFEST}",
                hint=f"trace the model again, or name the run that is meant: one with a {MANIFEST}",
            )
    if holds_traces(path):
        return path
    raise PrunescopeError(
        f"{path.name}/ holds no run",
        hint="give a folder that `prunescope trace --out` wrote, a Chrome trace file, or a folder "
        "with a Chrome trace a rank",
    )
