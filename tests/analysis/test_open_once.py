"""A path is opened once into a Side, which is passed on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.compare_runs import compare
from prunescope.analysis.inputs import open as opening
from prunescope.analysis.pipeline import analyze

RUN = Path(__file__).resolve().parents[2] / "traces" / "tiny-static-m"


@pytest.mark.parametrize("several", [False, True])
def test_a_manifest_is_parsed_and_hashed_once(
    monkeypatch: pytest.MonkeyPatch, *, several: bool
) -> None:
    calls: Counter[tuple[str, str]] = Counter()
    for name in ("read_run", "sha256_of"):
        function = getattr(opening, name)

        def counted(path: Path, *, name: str = name, function: Any = function) -> Any:
            folder = path.parent if path.is_file() else path
            calls[name, folder.name] += 1
            return function(path)

        monkeypatch.setattr(opening, name, counted)
    if several:
        assert {row.batch for row in compare([RUN]).rows} != {None}  # of the same manifest
    else:
        analyze(RUN)
    assert calls == {(name, side): 1 for name in ("read_run", "sha256_of")
                     for side in ("dense", "pruned")}  # fmt: skip
