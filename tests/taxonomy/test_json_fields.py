"""Blocks of a manifest: a file that is read and written again is the same, new ones are short."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Any

import pytest

from prunescope.taxonomy import run_blocks
from prunescope.taxonomy.json_fields import plain, read
from prunescope.taxonomy.run_blocks import Matrix, ModuleCounts, WeightStats

ROW: dict[str, Any] = {"shape": [4, 2], "name": "up", "zeros": 0.5, "of_tomorrow": {"a": [1]}}


@pytest.mark.parametrize(
    "written",
    [{}, {"matrices": []}, {"dynamic": {}, "matrices": [ROW, {**ROW, "applied": None}]},
     {"matrices": [ROW], "dynamic": {"decode": {"a": {"total": [2], "unit": "keys"}}}}],
)  # fmt: skip
def test_order_absent_fields_and_unknown_keys_survive(written: dict[str, Any]) -> None:
    found = plain(read(WeightStats, written))
    assert str(found) == str(written)


def test_a_block_reads_the_blocks_inside_it() -> None:
    counts = {"unit": "rows", "active": [1], "total": [2]}
    census = read(WeightStats, {"matrices": [ROW], "dynamic": {"prefill": {"mlp": counts}}})
    assert census.matrices == [Matrix(name="up", shape=[4, 2], zeros=0.5)]
    assert census.dynamic["prefill"]["mlp"] == ModuleCounts(unit="rows", active=[1], total=[2])


def test_a_new_block_leaves_out_what_says_nothing() -> None:
    census = WeightStats(matrices=[Matrix(name="up")])
    row = plain(census)["matrices"][0]
    assert "dynamic" not in plain(census) and "applied" not in row
    assert row["groups_2_of_4"] is None  # that is not known, and said
    census.dynamic["prefill"] = {"mlp": ModuleCounts(unit="rows")}
    assert plain(census)["dynamic"] == {
        "prefill": {"mlp": {"unit": "rows", "active": [], "total": []}}
    }


def test_what_is_changed_after_reading_is_written() -> None:
    census = read(WeightStats, {"matrices": [ROW]})
    census.matrices[0].layer = 3
    assert plain(census) == {"matrices": [{**ROW, "layer": 3}]}


@pytest.mark.parametrize(
    "block",
    [kind for kind in vars(run_blocks).values() if is_dataclass(kind)],
    ids=lambda kind: kind.__name__,
)
def test_what_an_older_or_anonymous_run_lacks_has_a_default(block: type[Any]) -> None:
    assert plain(read(block, {})) == {}
