"""Tiles of a device and the work of an op: what a wider dimension or another spelling changes."""

from __future__ import annotations

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from prunescope.analysis.device.hardware import DEVICES, Device, find_device
from prunescope.analysis.device.tiles import (
    Launch,
    Tile,
    Tiling,
    grid_in_blocks,
    resident_blocks,
    shape_loss,
    wave_model,
)
from prunescope.analysis.ops.call import MODELS, OpCall
from prunescope.analysis.ops.work import work_of
from prunescope.taxonomy.dtypes import ITEMSIZE, dtype
from prunescope.taxonomy.gemm import Gemm

QUICK = settings(max_examples=60, deadline=None)
SIDE = st.sampled_from([16, 32, 64, 128, 256])
SIZE = st.integers(1, 5_000)
GPUS = st.sampled_from([device for device in DEVICES if device.sm and device.max_threads_per_sm])
SPELLINGS = st.sampled_from(["float", "c10::Half", "c10::BFloat16"])
LAUNCHES = st.builds(
    Launch, st.tuples(SIZE), st.tuples(st.sampled_from([32, 100, 128, 256, 1024])),
    st.integers(16, 255), st.integers(0, 100_000),
)  # fmt: skip


@QUICK
@given(gemm=st.builds(Gemm, SIZE, SIZE, SIZE, st.integers(1, 8)), rows=SIDE, columns=SIDE,
       launch=LAUNCHES, device=GPUS)  # fmt: skip
def test_tiles_cover_the_result_and_cost_nothing_where_they_fit(
    gemm: Gemm, rows: int, columns: int, launch: Launch, device: Device
) -> None:
    blocks = -(-gemm.m // rows) * -(-gemm.n // columns) * gemm.batch
    launch = replace(launch, grid=(blocks, 1, 1))
    estimate = wave_model(gemm, Tile(rows, columns), launch, device)
    assert estimate is not None
    assert estimate.tiles * rows * columns >= gemm.m * gemm.n * gemm.batch
    assert (shape_loss(estimate) or 0) >= 1
    fitting = Gemm(gemm.m * rows, gemm.n * columns, gemm.k, gemm.batch)
    full = wave_model(fitting, Tile(rows, columns), Launch((gemm.m * gemm.n * gemm.batch,)), None)
    if full is not None and not full.swapped:
        assert (full.tile_efficiency, full.waves) == (1, None)


@QUICK
@given(side=SIDE, column=st.integers(1, 60), slots=st.integers(1, 300), n=SIZE)
def test_the_widest_dimension_of_as_many_waves_takes_no_more_of_them(
    side: int, column: int, slots: int, n: int
) -> None:
    tiling = Tiling(side=side, column=column, slots=slots)
    waves = tiling.waves(n)
    widest = tiling.widest(waves)
    assert widest is not None and widest >= n
    assert tiling.waves(widest) == waves < tiling.waves(widest + 1)


@QUICK
@given(launch=LAUNCHES, device=GPUS, more=st.integers(1, 100))
def test_a_block_that_asks_for_more_never_fits_more_often(
    launch: Launch, device: Device, more: int
) -> None:
    fits = resident_blocks(launch, device)
    assume(fits is not None)
    assert launch.registers is not None and launch.block is not None
    for larger in (
        replace(launch, registers=launch.registers + more),
        replace(launch, shared_bytes=(launch.shared_bytes or 0) + 1000 * more),
        replace(launch, block=(launch.block[0] + more,)),
    ):
        assert 1 <= (resident_blocks(larger, device) or 0) <= (fits or 0)
    (items,) = grid_in_blocks((launch.grid[0] * launch.block[0],), launch.block)
    assert items == launch.grid[0]


@QUICK
@given(m=SIZE, n=SIZE, k=SIZE, spellings=st.tuples(SPELLINGS, SPELLINGS))
def test_every_spelling_of_a_product_is_the_same_work(
    m: int, n: int, k: int, spellings: tuple[str, str]
) -> None:
    first, second = spellings
    plain = work_of(OpCall("aten::mm", ((m, k), (k, n)), (first, first)))
    linear = work_of(OpCall("aten::linear", ((m, k), (n, k), ()), (first, first, "")))
    batched = work_of(OpCall("aten::bmm", ((3, m, k), (3, k, n)), (first, first)))
    assert plain is not None and linear is not None and batched is not None
    assert (plain.flop, plain.bytes, plain.gemms) == (linear.flop, linear.bytes, linear.gemms)
    assert (batched.flop, batched.bytes) == (3 * (plain.flop or 0), 3 * (plain.bytes or 0))
    converted = work_of(OpCall("aten::mm", ((m, k), (k, n)), (second, second)))
    assert converted is not None and converted.flop == plain.flop and converted.gemms == plain.gemms
    sizes = [ITEMSIZE[dtype(name) or ""] for name in spellings]
    assert (converted.bytes or 0) * sizes[0] == (plain.bytes or 0) * sizes[1]


@QUICK
@given(known=st.sampled_from(sorted(MODELS)), number=st.integers(0, 999),
       shape=st.lists(st.integers(0, 9), max_size=3).map(tuple))  # fmt: skip
def test_work_is_unknown_where_no_shape_or_no_model_is_known(
    known: str, number: int, shape: tuple[int, ...]
) -> None:
    assert work_of(OpCall(known, (), ())) is None
    assert work_of(OpCall(f"mylib::op_{number}", (shape, shape), ("float", "float"))) is None


@given(device=st.sampled_from(DEVICES))
def test_every_device_is_found_by_its_own_name(device: Device) -> None:
    assert find_device(device.name) == device
    assert find_device(device.name.upper()) == device
