"""The figures in tests/README.md are those of the tables that the tests run."""

from __future__ import annotations

from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.mark.torch
def test_the_readme_says_what_was_tried() -> None:
    pytest.importorskip("torch")
    from tests.faults.counts import lines

    text = README.read_text(encoding="utf-8")
    assert [line for line in lines() if line not in text] == []
