"""The lines that a measurement adds to a history: of which commit, and by which version."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prunescope.analysis.schema.report import Report

_VARIABLES = ("GITHUB_SHA", "CI_COMMIT_SHA")
_SHORT = 12  # characters of a digest: as git shortens it in large repositories


def add_to_history(report: Report, path: Path, *, commit: str | None, model: str | None) -> None:
    """Add a line for each phase of a report to a history.

    Args:
        report: The report.
        path: The file, which is made if it does not exist.
        commit: What was measured; None: the commit that CI or git names.
        model: The name of the model of a trace, which its file does not say.

    Raises:
        PrunescopeError: The file is no history.
    """
    from prunescope import __version__
    from prunescope.analysis.history.history_file import append_lines
    from prunescope.analysis.history.measured_lines import lines_of

    versions = {"prunescope": __version__}
    named = commit or current_commit()
    append_lines(path, lines_of(report, commit=named, model=model, versions=versions))


def current_commit() -> str | None:
    """Return the commit that CI or git names for the folder of the call; None where neither does.

    CI's variables go first: the folder may be that of another repository.
    """
    for name in _VARIABLES:
        if value := os.environ.get(name, "").strip():
            return value[:_SHORT]
    try:
        command = ["git", "rev-parse", f"--short={_SHORT}", "HEAD"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None
