"""The results of a case as texts by format, without what depends on the place or the version.

JSON has sorted keys and one value a line; numbers have nine significant digits, so that the
libraries' last digits do not count; paths of the machine and the version are replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import prunescope
from prunescope.cli import main
from tests.frozen.cases import Case
from tests.frozen.places import DATA, DIGESTS, ROOT

FORMATS = ("json", "csv", "md", "html", "tex", "text")
_NUMBER = re.compile(r"\d+\.\d+(?:[eE][-+]?\d+)?")
# Progress is printed every ten seconds: how often depends on the machine.
_PROGRESS = re.compile(r"^(?:runs|ranks): \d+ of \d+\n", re.MULTILINE)
_IMAGE = re.compile(r"data:image/[a-z+]+;base64,[A-Za-z0-9+/=]+")


def texts(case: Case, folder: Path) -> dict[str, str]:
    """Run the commands of a case in an empty folder, and return what they give, by format."""
    (folder / "traces").symlink_to(ROOT / "traces")
    (folder / "data").symlink_to(DATA)
    lines: dict[str, list[str]] = {name: [] for name in FORMATS}
    with (
        contextlib.chdir(folder),
        patch.dict(os.environ, _environment(folder)),
        patch("prunescope.analysis.report.sentences.repairs_text", _name_repairs),
    ):
        for words in case.words(folder):
            (folder / "out").mkdir()
            code, printed, told = _run(words)
            title = f"== {' '.join(words)}"
            is_json = printed.startswith("{")
            lines["json"] += [title, _plain_json(printed)] if is_json else []
            lines["text"] += [
                title,
                f"exit code {code}",
                "" if is_json else printed,
                _PROGRESS.sub("", told),
            ]
            for path in sorted(path for path in (folder / "out").rglob("*") if path.is_file()):
                if path.suffix[1:] not in FORMATS:
                    continue
                text = path.read_text(encoding="utf-8")
                text = _plain_json(text) if path.suffix == ".json" else text
                lines[path.suffix[1:]] += [title, f"== {path.relative_to(folder)}", text]
            shutil.rmtree(folder / "out")
    return {name: _normal("\n".join(parts), folder) for name, parts in lines.items() if parts}


def _name_repairs(ids: list[str], **_options: Any) -> str:
    """Return the names of repairs in place of their code, which is long and has its own tests."""
    return f"# {', '.join(ids)}\n"


def _environment(folder: Path) -> dict[str, str]:
    """Return what a command may see: no cache of the user, and a terminal of 100 columns."""
    return {
        "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "LC_ALL": "C.UTF-8",
        "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT),
    }  # fmt: skip


def _run(words: list[str]) -> tuple[int, str, str]:
    """Run one command in this process; return its exit code, standard output and error."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2)]
    with patch.object(sys, "stdout", streams[0]), patch.object(sys, "stderr", streams[1]):
        code = main(words)
    for stream in streams:
        stream.flush()
    printed, told = (stream.buffer.getvalue().decode() for stream in streams)  # type: ignore[attr-defined]
    return code, printed, told


def _plain_json(text: str) -> str:
    """Return JSON with sorted keys and short numbers; another text as it is."""
    try:
        parsed: Any = json.loads(text, parse_float=_short)
    except ValueError:
        return text
    return json.dumps(parsed, sort_keys=True, indent=1, ensure_ascii=False)


def _short(number: str) -> float:
    return float(f"{float(number):.9g}")


def _normal(text: str, folder: Path) -> str:
    places = {str(folder): "FOLDER", str(folder.resolve()): "FOLDER", str(ROOT): "ROOT",
              str(DATA.resolve()): "DATA", str(DATA): "DATA"}  # fmt: skip
    for place, name in places.items():
        text = text.replace(place, name)
    text = text.replace(f"prunescope {prunescope.__version__}", "prunescope VERSION")
    text = _IMAGE.sub("IMAGE", text)
    return _NUMBER.sub(lambda match: _shortened(match[0]), text)


def _shortened(number: str) -> str:
    return number if len(number) <= 10 else f"{float(number):.9g}"


def digests(results: dict[str, str]) -> dict[str, str]:
    """Return a short digest of each format's text."""
    return {
        name: hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]
        for name, text in results.items()
    }


def frozen(name: str) -> dict[str, str]:
    """Return the committed digests of a case by format; none where there is no file."""
    path = DIGESTS / f"{name}.json"
    kept: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}
    return kept


def freeze(name: str, digests_now: dict[str, str]) -> None:
    """Write the digests of a case."""
    DIGESTS.mkdir(exist_ok=True)
    (DIGESTS / f"{name}.json").write_text(json.dumps(digests_now, indent=1) + "\n")


def differing(kept: dict[str, str], digests_now: dict[str, str]) -> list[str]:
    """Return the formats whose digests differ, in the order of FORMATS."""
    return [name for name in FORMATS if kept.get(name) != digests_now.get(name)]


def stale() -> Iterator[Path]:
    """Yield the files of digests that belong to no case."""
    from tests.frozen.cases import cases

    yield from (path for path in sorted(DIGESTS.glob("*.json")) if path.stem not in cases())
