"""Ids of a column, and what lean events hold: counters are read from whole ones."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from prunescope.analysis.trace.collector import are_among, call_of, parts_of, unique_ids
from prunescope.analysis.trace.event import LEAN

COLUMNS = ([], [7], [-1, 3, 3, 0, -1], [5, 1 << 61, 5, -(1 << 61)], [10**15, 10**15 + 2])


@pytest.mark.parametrize("ids", COLUMNS)
def test_ids_are_those_that_numpy_finds(ids: list[int]) -> None:
    column = np.array(ids, np.int64)
    assert unique_ids(column).tolist() == np.unique(column).tolist()
    for group in COLUMNS:
        values = np.array(group, np.int64)
        assert are_among(values, column).tolist() == np.isin(values, column).tolist()


def test_a_call_of_known_sizes_has_no_other_parts() -> None:
    assert parts_of(call_of("aten::mm", b"[[2,3],[3,4]]")) == [b"[[2,3],[3,4]]", b"", b"", b""]


def test_a_counter_is_no_lean_event() -> None:
    with pytest.raises(msgspec.ValidationError):
        LEAN.decode(b'[{"ph":"C","cat":"cpu_op","name":"power [W]","ts":1,"args":{"value":3}}]')
