"""A detector is found by its mark; a family has one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from prunescope.analysis.verdict import detectors as folder
from prunescope.analysis.verdict.detectors import detectors

SECOND = """
from prunescope.analysis.verdict.detectors import detector

@detector({family!r})
def second(e): return None
"""


def test_a_second_detector_of_a_family_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = detectors()[0].family.id
    (tmp_path / "a_second.py").write_text(SECOND.format(family=known))
    monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(tmp_path)])
    detectors.cache_clear()
    try:
        with pytest.raises(ValueError, match=f"{known} has two detectors"):
            detectors()
    finally:
        sys.modules.pop(f"{folder.__name__}.a_second", None)
        vars(folder).pop("a_second", None)
        monkeypatch.undo()
        detectors.cache_clear()
    assert detectors()[0].family.id == known
