"""The runs that paths name: in, runs, traces and folders of runs; out, each once, with its name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from prunescope.analysis.inputs.describe import unique_suffixes
from prunescope.taxonomy.run import MANIFEST

_DEPTH = 5  # folders below the one named in which runs are looked for


@dataclass(frozen=True)
class NamedRun:
    """A run or trace: its path, and its name in the comparison (never an absolute path)."""

    path: Path
    name: str


def find_runs(subjects: Iterable[Path]) -> list[NamedRun]:
    """All runs that are named: a trace or run itself, of any other folder all runs inside.

    A run and the folder of a pair count once. A folder without runs stands for itself.
    """
    paths: list[Path] = []
    for subject in subjects:
        inside = [subject] if not subject.is_dir() else _inside(subject, _DEPTH)
        paths += inside or [subject]
    distinct = {_identity(path): path for path in reversed(paths)}
    kept = [path for path in paths if distinct.get(_identity(path)) is path]
    names = unique_suffixes([_identity(path) for path in kept])
    return [NamedRun(path, name) for path, name in zip(kept, names, strict=True)]


def left_out(subjects: Iterable[Path]) -> list[str]:
    """Notes on paths that are in no comparison: traces next to runs, and a run given twice."""
    subjects = list(subjects)
    notes = []
    for folder in (path for path in subjects if path.is_dir()):
        loose = sorted(path.name for path in _loose(folder, _DEPTH)) if _inside(folder, 1) else []
        if loose:
            shown = ", ".join(loose[:3]) + (", …" if len(loose) > 3 else "")
            notes.append(
                f"{folder.resolve().name}/ holds {len(loose)} traces next to its runs ({shown}): "
                "left out, name them to compare them"
            )
    runs = Counter(
        _identity(path)
        for subject in subjects
        for path in (_inside(subject, _DEPTH) if subject.is_dir() else [subject]) or [subject]
    )
    notes += [f"{p.name} is named {n} times: counted once" for p, n in runs.items() if n > 1]
    return notes


def _loose(folder: Path, depth: int) -> Iterator[Path]:
    """Chrome traces in a folder that are in no run."""
    if depth == 0 or _inside(folder, 0):
        return
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _loose(path, depth - 1)
        elif (
            path.name.endswith((".json.gz", ".json.zst"))
            or path.suffix == ".json"
            and _is_trace(path)
        ):
            yield path


def _is_trace(path: Path) -> bool:
    """Whether a JSON file begins as a Chrome trace does. A pipe is none: to open one waits."""
    with suppress(OSError):
        if path.is_file():
            with path.open("rb") as file:
                return b"traceEvents" in file.read(1 << 16)
    return False


def _inside(folder: Path, depth: int) -> list[Path]:
    """Runs in a folder; the folder of a pair is one."""
    if (folder / MANIFEST).is_file():
        return [folder]
    if any((folder / name / MANIFEST).is_file() for name in ("pruned", "dense")):
        return [folder]
    if depth == 0:
        return []
    below = sorted(p for p in folder.iterdir() if p.is_dir() and not p.is_symlink())
    return [run for p in below if not p.name.startswith(".") for run in _inside(p, depth - 1)]


def _identity(path: Path) -> Path:
    """The same path for F and F/pruned."""
    real = path.resolve()
    if path.is_dir() and real.name == "pruned" and (path / MANIFEST).is_file():
        return real.parent
    return real
