"""What a placement of a run.json may hold: reports rely on it, and the file may be a stranger's."""

from __future__ import annotations

from typing import Any

import pytest

from prunescope.taxonomy.json_fields import plain
from prunescope.taxonomy.run import Placement
from prunescope.taxonomy.run_schema import first_wrong


def wrong(**fields: Any) -> str | None:
    placement = {**plain(Placement(samples=2, steps=1, switches=3)), **fields}
    return first_wrong({"phases": {"decode": {"placements": [placement]}}})


def test_what_is_written_is_read() -> None:
    assert wrong() is None
    assert "switches" not in plain(Placement(samples=2, steps=1))  # as in runs of before


@pytest.mark.parametrize(
    ("field", "value"),
    [("switches", -1), ("switches", "many"), ("steps_disturbed", 5), ("steps_disturbed", "waits"),
     ("steps_disturbed", [7]), ("reasons", {"waits": 1})],
)  # fmt: skip
def test_what_no_capture_writes_is_refused(field: str, value: Any) -> None:
    found = wrong(**{field: value})
    assert found is not None and found.startswith(f"phases.decode.placements.0.{field}")
