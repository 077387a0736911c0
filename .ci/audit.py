"""Known vulnerabilities of what is installed, by pip-audit. Run by .ci/run and `make audit`.

Exit code 1: one was found that another version mends. 0: none was, or the audit could not run (no
pip-audit, no network, no advisories), which is said: an audit of nothing is not taken for a clean
one. pip-audit gets an environment of its own, so that the one that is audited stays as it is.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "build" / "audit"
_SECONDS = 150  # for each of its two steps; unreachable registries take the longest


def audited(folder: Path) -> tuple[list[dict[str, Any]] | None, str]:
    """The dependencies as pip-audit lists them; or None, and why it could not."""
    python = folder / "bin" / "python"
    if not python.exists():
        failure = _run([sys.executable, "-m", "venv", folder])
        if failure:
            return None, f"no environment can be made for it ({failure})"
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "pip-audit"]
    failure = _run([str(python), *install])
    if failure:
        return None, f"pip-audit cannot be installed ({failure})"
    found = folder / "found.json"
    found.unlink(missing_ok=True)
    options = ["--progress-spinner", "off", "--timeout", "10", "--format", "json"]
    path = sysconfig.get_paths()["purelib"]
    failure = _run([str(python), "-m", "pip_audit", "--path", path, *options, "--output", found])
    try:
        plain = json.loads(found.read_bytes())
    except (OSError, ValueError):
        return None, f"pip-audit gave no answer ({failure or 'no output'})"
    dependencies: list[dict[str, Any]] = plain["dependencies"]
    return dependencies, ""


def verdict(dependencies: Sequence[dict[str, Any]] | None, why: str = "") -> tuple[int, str]:
    """The exit code, and what to say."""
    if dependencies is None:
        return 0, f"audit: not done: {why}"
    known = [one for one in dependencies if "skip_reason" not in one]
    if not known:
        of = f"none of {len(dependencies)} packages has an advisory source that can be reached"
        return 0, f"audit: not done: {of}"
    lines, mended = [], False
    for one in known:
        for flaw in one.get("vulns", ()):
            fixed = ", ".join(flaw.get("fix_versions", ())) or "no version yet"
            lines.append(f"{one['name']} {one.get('version')}: {flaw['id']}, mended in {fixed}")
            mended = mended or bool(flaw.get("fix_versions"))
    counted = f"audit: {len(known)} of {len(dependencies)} packages, {len(lines)} vulnerabilities"
    return int(mended), "\n".join([counted, *lines])


def _run(command: Sequence[str | Path]) -> str:
    """Why a command failed, in a word or two; empty where it did not."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {_SECONDS} s"
    except OSError as error:
        return error.strerror or type(error).__name__
    return f"exit code {done.returncode}" if done.returncode else ""


if __name__ == "__main__":
    code, said = verdict(*audited(FOLDER))
    sys.stdout.write(f"{said}\n")
    sys.exit(code)
