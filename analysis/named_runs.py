"""The runs that paths name: runs, traces and folders of runs give each run once, with its name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from prunescope.analysis.inputs.describe import unique_suffixes
from prunescope.taxonomy.runs.run import MANIFEST
from prunescope.taxonomy.words import when

_DEPTH = 5  # how many levels below a named folder are searched for runs


class NamedRun(Struct, frozen=True):
    """A run or trace: its path, and its name in the comparison (never an absolute path)."""

    path: Path
    name: str


def find_runs(subjects: Iterable[Path]) -> list[NamedRun]:
    """Return all runs that are named: a trace or run itself, and all runs inside any other folder.

    A run and the folder of its pair count once. A folder without runs stands for itself.
    """
    paths: list[Path] = []
    for subject in subjects:
        paths += _runs_of(subject)
    distinct = {_identity(path): path for path in reversed(paths)}
    kept = [path for path in paths if distinct.get(_identity(path)) is path]
    names = unique_suffixes([_identity(path) for path in kept])
    return [NamedRun(path, name) for path, name in zip(kept, names, strict=True)]


def _runs_of(subject: Path) -> list[Path]:
    """Return the runs inside a folder.

    A trace, a run or a folder without runs stands for itself.
    """
    return (subject.is_dir() and _runs_inside(subject, _DEPTH)) or [subject]


def describe_left_out(subjects: Iterable[Path]) -> list[str]:
    """Return notes on paths that are in no comparison.

    They are traces next to runs, and a run that was given twice.
    """
    subjects = list(subjects)
    notes = []
    for folder in (path for path in subjects if path.is_dir()):
        has_runs = bool(_runs_inside(folder, 1))
        loose = sorted(path.name for path in _loose_traces(folder, _DEPTH)) if has_runs else []
        if loose:
            shown = ", ".join(loose[:3]) + when(len(loose) > 3, ", …")
            notes.append(
                f"{folder.resolve().name}/ holds {len(loose)} traces next to its runs ({shown}): "
                "left out, name them to compare them"
            )
    runs = Counter(_identity(path) for subject in subjects for path in _runs_of(subject))
    notes += [f"{p.name} is named {n} times: counted once" for p, n in runs.items() if n > 1]
    return notes


def _loose_traces(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the Chrome traces in a folder that are in no run."""
    if depth == 0 or _runs_inside(folder, 0):
        return
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _loose_traces(path, depth - 1)
        elif (
            path.name.endswith((".json.gz", ".json.zst"))
            or path.suffix == ".json"
            and _is_trace(path)
        ):
            yield path


def _is_trace(path: Path) -> bool:
    """Return whether a JSON file begins as a Chrome trace does.

    A pipe does not count: opening it would wait for a writer.
    """
    with suppress(OSError):
        if path.is_file():
            with path.open("rb") as file:
                return b"traceEvents" in file.read(1 << 16)
    return False


def _runs_inside(folder: Path, depth: int) -> list[Path]:
    """Return the runs in a folder and in `depth` levels below; the folder of a pair is one run."""
    if (folder / MANIFEST).is_file():
        return [folder]
    if any((folder / name / MANIFEST).is_file() for name in ("pruned", "dense")):
        return [folder]
    if depth == 0:
        return []
    below = sorted(p for p in folder.iterdir() if p.is_dir() and not p.is_symlink())
    return [run for p in below if not p.name.startswith(".") for run in _runs_inside(p, depth - 1)]


def _identity(path: Path) -> Path:
    """Return the same path for F and F/pruned."""
    real = path.resolve()
    if path.is_dir() and real.name == "pruned" and (path / MANIFEST).is_file():
        return real.parent
    return real
