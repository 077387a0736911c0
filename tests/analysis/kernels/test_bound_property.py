"""What must hold of every bound whatever the kernels: ideals scale, work never helps."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from prunescope.analysis.device.hardware import DEVICES
from prunescope.analysis.device.tiles import Launch, Tile, shape_loss, wave_model
from prunescope.analysis.kernels.peaks import Peaks
from prunescope.analysis.kernels.roofline import add_bound
from prunescope.taxonomy.gemm import Gemm

DTYPES = ("bf16", "fp32", "int8", None)
BOUNDS = ("compute", "memory", "latency", "unknown")
SCHEMA = {"flop": pl.Float64, "bytes": pl.Float64, "dtype": pl.String, "busy": pl.Int64,
          "duration": pl.Int64, "blocks": pl.Int64, "tiles": pl.Int64, "shape_loss": pl.Float64,
          "class": pl.String, "category": pl.Int64, "crosses": pl.Boolean}  # fmt: skip
positive = st.floats(1.0, 1e18)
row = st.fixed_dictionaries({
    "flop": st.none() | st.just(0.0) | positive,
    "bytes": st.none() | st.just(0.0) | positive,
    "dtype": st.sampled_from(DTYPES),
    "busy": st.integers(0, 10**9),
    "duration": st.integers(0, 10**9),
    "blocks": st.none() | st.integers(1, 10**6),
    "tiles": st.none() | st.integers(1, 10**6),
    "shape_loss": st.none() | st.floats(1.0, 100.0),
    "class": st.sampled_from(["matmul", "attention", "pointwise"]),
    "category": st.sampled_from([0, None]),
    "crosses": st.just(False),
})  # fmt: skip
rows = st.lists(row, min_size=1, max_size=8)
peaks = st.builds(
    Peaks,
    name=st.just("x"), source=st.just("test"), byte_per_s=st.floats(1e9, 1e13),
    flop_per_s=st.fixed_dictionaries({"bf16": st.floats(1e9, 1e16), "fp32": st.floats(1e9, 1e15)}),
    floor_ns=st.none() | st.floats(1.0, 1e5), sm=st.none() | st.integers(1, 400),
)  # fmt: skip


def bounds(given_rows: list[dict[str, Any]], of: Peaks | None) -> list[dict[str, Any]]:
    return add_bound(pl.DataFrame(given_rows, schema=SCHEMA), of).to_dicts()


@given(rows, peaks, st.floats(0.01, 100.0))
def test_scaling_both_peaks_scales_ideals_and_moves_no_bound(
    given_rows: list[dict[str, Any]], of: Peaks, by: float
) -> None:
    of = replace(of, floor_ns=None)  # a floor is a time of its own
    faster = replace(
        of, flop_per_s={d: p * by for d, p in of.flop_per_s.items()},
        byte_per_s=(of.byte_per_s or 0.0) * by,
    )  # fmt: skip
    for one, other in zip(bounds(given_rows, of), bounds(given_rows, faster), strict=True):
        for column in ("ideal", "predicted"):
            if one[column] is None:
                assert other[column] is None
            else:
                assert other[column] == pytest.approx(one[column] / by, rel=1e-9)
        near = one["ideal"] and one["compute_ns"] == pytest.approx(one["memory_ns"], rel=1e-9)
        assert near or one["bound"] == other["bound"]


@given(rows, peaks, st.sampled_from(["flop", "bytes"]), st.floats(1.0, 1e6))
def test_more_work_never_lowers_an_ideal(
    given_rows: list[dict[str, Any]], of: Peaks, what: str, by: float
) -> None:
    more = [{**r, what: None if r[what] is None else r[what] * by} for r in given_rows]
    for one, other in zip(bounds(given_rows, of), bounds(more, of), strict=True):
        assert (one["ideal"] is None) == (other["ideal"] is None)
        assert one["ideal"] is None or other["ideal"] >= one["ideal"]


@given(rows, peaks, st.floats(1.0, 100.0))
def test_a_worse_shape_raises_predictions_and_no_ideal(
    given_rows: list[dict[str, Any]], of: Peaks, by: float
) -> None:
    worse = [
        {**r, "shape_loss": None if r["shape_loss"] is None else r["shape_loss"] * by}
        for r in given_rows
    ]
    for one, other in zip(bounds(given_rows, of), bounds(worse, of), strict=True):
        assert one["ideal"] == other["ideal"]
        assert one["bound"] == other["bound"]
        if one["predicted"] is not None:
            assert one["ideal"] <= one["predicted"] <= other["predicted"]


@given(rows, peaks, st.floats(1.0, 1e9))
def test_a_floor_makes_latency_of_small_rows_and_changes_no_ideal(
    given_rows: list[dict[str, Any]], of: Peaks, floor: float
) -> None:
    bare = replace(of, floor_ns=None, sm=None)
    floored = replace(bare, floor_ns=floor)
    for one, other in zip(bounds(given_rows, bare), bounds(given_rows, floored), strict=True):
        assert one["ideal"] == other["ideal"]
        small = one["ideal"] is not None and one["ideal"] < floor
        assert other["bound"] == ("latency" if small else one["bound"])


@given(rows, st.none() | peaks)
def test_every_row_has_one_bound_and_unknown_is_where_there_is_no_ideal(
    given_rows: list[dict[str, Any]], of: Peaks | None
) -> None:
    found = bounds(given_rows, of)
    sums = {b: sum(r["busy"] for r in found if r["bound"] == b) for b in BOUNDS}
    assert sum(sums.values()) == sum(r["busy"] for r in found)
    for one in found:
        assert (one["bound"] == "unknown") == (one["ideal"] is None)
        needs_peak = one["flop"] is None or one["flop"] > 0
        if of is None or one["bytes"] is None or (needs_peak and one["dtype"] in ("int8", None)):
            assert one["flop"] == 0 or one["flop"] is None or one["ideal"] is None


@given(
    gemm=st.builds(Gemm, *[st.integers(1, 20_000)] * 3, batch=st.integers(1, 16)),
    tile=st.builds(Tile, st.sampled_from([64, 128, 256]), st.sampled_from([32, 64, 128])),
    more=st.integers(1, 500), sm=st.integers(8, 200),
)  # fmt: skip
def test_more_columns_never_take_fewer_waves_and_more_sms_never_more(
    gemm: Gemm, tile: Tile, more: int, sm: int
) -> None:
    h100 = next(d for d in DEVICES if d.name == "h100-sxm")

    def whole(of: Gemm, sms: int) -> float:
        across = -(-of.m // tile.rows) * -(-of.n // tile.columns) * of.batch
        launch = Launch((across, 1, 1), (256, 1, 1), 128, 65536)
        found = wave_model(of, tile, launch, replace(h100, sm=sms))
        assert found is not None
        assert found.waves is not None
        assert found.wave_efficiency is not None
        loss = shape_loss(found)
        assert loss is not None
        assert loss >= 1
        return round(found.waves / found.wave_efficiency)

    wider = replace(gemm, n=gemm.n + more)
    # The orientation may turn where both explain the grid: squares of tiles keep it.
    if tile.rows == tile.columns:
        assert whole(wider, sm) >= whole(gemm, sm)
    assert whole(gemm, sm + more) <= whole(gemm, sm)
