"""Writes a report into a folder, whole or not at all.

In: a Report and the kernels frames. Out: the files. Everything is rendered before the folder is
touched, and other files in it are kept.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from prunescope.analysis.report.formats import FORMATS, PhaseFrames, RequestedFormats
from prunescope.analysis.report.printing import printed_as, printing_of
from prunescope.analysis.schema.report import Report
from prunescope.taxonomy.atomic_write import partial_folder, put_in_place
from prunescope.taxonomy.errors import PrunescopeError, nearest
from prunescope.taxonomy.timings import part

# What needs no matplotlib: the figures of the HTML page are SVG made from the numbers.
DEFAULT_FORMATS = ("md", "json", "html")

# Why a folder cannot be replaced though files in it can: its parent may not be written, or it is
# another file system, or one without hard links.
_NO_SIBLING = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP)


@part("write")
def write_report(
    report: Report,
    folder: Path,
    *,
    formats: Sequence[str] = DEFAULT_FORMATS,
    frames: PhaseFrames | None = None,
    **look: Any,
) -> list[Path]:
    """Write a report in several formats into a folder, replacing older files of the same name.

    Args:
        report: The report.
        folder: Where the files go; it is made where it is not there.
        formats: The names of the formats.
        frames: The frames of each phase, for csv, parquet, perfetto and html; None without.
        **look: How figures are printed, as `printing_of` takes it: width, font, label_prefix.

    Returns:
        The paths of the files.

    Raises:
        PrunescopeError: A format is unknown, parquet or perfetto lack frames, the look is none,
            or the folder cannot be written.
    """
    check_formats(formats)
    files: dict[str, bytes] = {}
    names = list(dict.fromkeys(formats))
    figures = tuple(name for name in names if FORMATS[name].is_figure)
    for name in names:
        if name in figures[1:]:
            continue  # saved with the first of them: each figure is plotted once
        request = RequestedFormats(
            report=report,
            name=name,
            frames=frames,
            figures=figures,
        )
        with printed_as(printing_of(formats, **look)):
            files |= FORMATS[name].render(request)
    return write_files(files, folder)


@part("write")
def write_files(files: Mapping[str, bytes], folder: Path) -> list[Path]:
    """Write files (name to bytes) into `folder`, all or none, and return their paths.

    Raises:
        PrunescopeError: The folder cannot be written.
    """
    try:
        return _place(files, folder)
    except OSError as error:
        raise PrunescopeError(
            f"cannot write the report to {folder} ({error.strerror or error})",
            hint="give a folder that can be written with --out",
        ) from None


def check_formats(formats: Sequence[str], known: Collection[str] = FORMATS.keys()) -> None:
    """Raise PrunescopeError where a format is not one of `known`."""
    for name in formats:
        if name not in known:
            raise PrunescopeError(
                f"unknown format {name!r}",
                hint=f"nearest: {nearest(name, known)}; known: {', '.join(known)}",
            )


def _place(files: Mapping[str, bytes], folder: Path) -> list[Path]:
    """Put all files into a new folder first, then in the place of older ones.

    The new folder takes the place of an older report in one step. In a folder that holds other
    things each file takes the place of its own, report.json last.
    """
    folder = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(0, "it is a file")
    for name in files:
        if (folder / name).is_dir():
            raise IsADirectoryError(0, f"{name} is a folder in it")
    if not _may_step_aside(folder) or not _placed_whole(files, folder):
        # Inside: a folder that is a mount has no sibling on its own file system.
        with partial_folder(folder / "report") as partial:
            _fill(partial, files)
            _replace(partial, folder, sorted(files, key=lambda name: name == "report.json"))
    return [folder / name for name in files]


def _fill(partial: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        (partial / name).write_bytes(data)


def _may_step_aside(folder: Path) -> bool:
    """Return whether a folder is only for a report.

    It then holds files only, and is no working directory.
    """
    if not folder.exists():
        return True
    if folder.is_mount() or Path.cwd().is_relative_to(folder):
        return False
    return all(p.is_file() and not p.is_symlink() for p in folder.iterdir())


def _placed_whole(files: Mapping[str, bytes], folder: Path) -> bool:
    """Put the new folder in the place of the old one, with the old one's other files in it.

    Returns False where that cannot be done.
    """
    try:
        with partial_folder(folder) as partial:
            _fill(partial, files)
            _keep_others(folder, partial)
            put_in_place(partial, folder)
            _keep_others(partial, folder)  # what came in between
    except OSError as error:
        if folder.is_dir() and error.errno in _NO_SIBLING:
            return False
        raise
    return True


def _keep_others(old: Path, new: Path) -> None:
    """Link files of `old` that `new` lacks into `new`."""
    for path in old.iterdir() if old.is_dir() else ():
        with suppress(FileExistsError, FileNotFoundError):
            (new / path.name).hardlink_to(path)


def _replace(partial: Path, folder: Path, names: list[str]) -> None:
    """Move each file into a folder that exists; where one fails, those before it go back."""
    before = partial / "before"
    before.mkdir()
    done: list[str] = []
    try:
        for name in names:
            if (folder / name).exists():
                shutil.copy2(folder / name, before / name, follow_symlinks=False)
            done.append(name)
            (partial / name).replace(folder / name)
    except BaseException:
        for name in done:
            with suppress(OSError):
                if (before / name).exists():
                    (before / name).replace(folder / name)
                elif not (partial / name).exists():
                    (folder / name).unlink()
        raise
