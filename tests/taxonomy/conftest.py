"""The taxonomy is tested as it is without torch: configs alone, unless a test gives trees."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from prunescope.taxonomy import inventory_reader, witnesses


@pytest.fixture(autouse=True)
def no_trees(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Read configs alone: other tests of the same process may have a reader of trees."""
    monkeypatch.setattr(inventory_reader, "_readers", [])
    witnesses.forget()
    yield
    witnesses.forget()
