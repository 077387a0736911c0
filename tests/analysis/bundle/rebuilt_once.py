"""`verify` rebuilds every figure of a run, most of its time: here of the same run folder once a
process of tests. No test in it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.bundle import bundle as bundling

_written: dict[tuple[str, ...], dict[str, bytes]] = {}


def write_formats_once(done: Any, out: Path, prefix: str) -> list[Path]:
    """What `write_formats` writes for the run that `verify` unpacked beside `out`: kept by the
    bytes of its folder. What `bundle` writes is not kept, so that the two are compared."""
    run = out.parents[1] / "runs" / out.name
    files = sorted(path for path in run.rglob("*") if path.is_file())
    sums = (hashlib.sha256(path.read_bytes()).hexdigest() for path in files)
    names = (path.relative_to(run).as_posix() for path in files)
    key = (out.name, prefix, *bundling.FORMATS, *names, *sums)
    if key not in _written:
        paths = bundling.write_formats(done, out, prefix)
        _written[key] = {path.name: path.read_bytes() for path in paths}
        return paths
    out.mkdir(parents=True, exist_ok=True)
    for name, data in _written[key].items():
        (out / name).write_bytes(data)
    return [out / name for name in _written[key]]


@pytest.fixture(autouse=True)
def rebuilt_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a module that verifies one bundle many times."""
    monkeypatch.setattr("prunescope.analysis.bundle.verify.write_formats", write_formats_once)
