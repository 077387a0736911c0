"""Good dimensions: the last of a wave, or a multiple of 16, and the nearest of them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunescope.analysis.device.tiles import FAR, NEAR, Tiling, wave_aligned_neighbours

# Columns of 32 tiles on 188 slots, as of a 4096-row GEMM with 128 x 256 tiles.
LARGE = Tiling(side=256, column=32, slots=188)


@pytest.mark.parametrize(
    ("now", "reach", "wanted"),
    [
        (2944, FAR, (2816, None)),  # 12 columns are 3 waves, 11 are 2; 17 are further than 1/8
        (3072, NEAR, (None, None)),  # 8.3 % away
        (2816, NEAR, (None, 2816)),  # as good as it can be
        (2900, FAR, (2816, None)),
        (2901, NEAR, (2816, None)),  # 2.9 % away
        (3435, NEAR, (None, None)),
    ],
)
def test_the_nearest_ends_of_waves(
    now: int, reach: float, wanted: tuple[int | None, int | None]
) -> None:
    assert wave_aligned_neighbours(LARGE, "N", now, reach=reach) == wanted


@pytest.mark.parametrize(
    ("now", "wanted"), [(3435, (3424, 3440)), (3440, (3424, 3440)), (9, (None, 16))]
)
def test_a_good_k_is_a_multiple_of_16(now: int, wanted: tuple[int | None, int]) -> None:
    assert wave_aligned_neighbours(LARGE, "K", now, reach=NEAR) == wanted


def test_the_widest_of_so_many_waves() -> None:
    assert LARGE.widest(2) == 2816
    assert LARGE.waves(2816) == 2 and LARGE.waves(2817) == 3
    assert LARGE.widest(0) is None
    assert Tiling(side=64, column=2, slots=None).waves(128) == 4  # each tile counts


@settings(max_examples=100, deadline=None)
@given(
    side=st.sampled_from([16, 32, 48, 64, 96, 128, 192, 256]),
    column=st.integers(1, 300),
    slots=st.integers(1, 1000),
    now=st.integers(1, 20_000),
    reach=st.sampled_from([NEAR, FAR]),
)
def test_no_good_dimension_is_nearer(
    side: int, column: int, slots: int, now: int, reach: float
) -> None:
    tiling = Tiling(side=side, column=column, slots=slots)
    below, above = wave_aligned_neighbours(tiling, "N", now, reach=reach)
    step = math.lcm(side, 16)
    good = [n for n in range(step, 2 * now + step, step) if tiling.waves(n + 1) > tiling.waves(n)]
    near = [n for n in good if abs(n - now) <= reach * now]
    assert below == max((n for n in near if n < now), default=None)
    assert above == min((n for n in near if n >= now), default=None)
