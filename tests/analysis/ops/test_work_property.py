"""Whatever a trace says, a model answers or declines; and no operand is read for free."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from prunescope.analysis.device.tiles import Launch, tile_of, wave_model
from prunescope.analysis.ops.call import MODELS, OpCall
from prunescope.analysis.ops.kernel_kinds import KINDS, is_work_op, kernel_kind, kind_of
from prunescope.analysis.ops.pointwise import generated_kernel_model
from prunescope.analysis.ops.work import work_of
from prunescope.taxonomy.gemm import Gemm

NAMES = [*sorted(MODELS), "triton_red_fused_rsqrt_0", "aten::view"]
TYPES = [
    "c10::BFloat16", "float", "long int", "bool", "c10::Float4_e2m1fn_x2", "signed char", "Scalar",
    "", "TensorList", "ScalarList", "c10::Mystery",
]  # fmt: skip
TEXTS = ["", "True", "False", "-1", "0", "1", "7", "[1]", "[-1]", "[0, 1]", "[]", "0.5", "inf",
         "9" * 5000, "[" * 5000, "[1,,2]", "²", "nan"]  # fmt: skip

sizes = st.integers(0, 5) | st.sampled_from([-1, 2**62, 2**63, 10**400, True, 1.5, None, "x"])
shapes = st.recursive(
    st.lists(sizes, max_size=5).map(tuple) | st.none() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=4,
)
small = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@st.composite
def calls(draw: st.DrawFn, shape: st.SearchStrategy[Any]) -> OpCall:
    count = draw(st.integers(0, 14))

    def listed(of: st.SearchStrategy[Any]) -> tuple[Any, ...]:
        return tuple(draw(st.lists(of, min_size=count, max_size=count)))

    strides = listed(shape) if draw(st.booleans()) else ()
    concrete = listed(st.sampled_from(TEXTS)) if draw(st.booleans()) else ()
    types = listed(st.sampled_from(TYPES))
    return OpCall(draw(st.sampled_from(NAMES)), listed(shape), types, strides, concrete)


def assert_sensible(call: OpCall) -> None:
    work = work_of(call)
    if work is None:
        return
    assert work.kind in KINDS
    assert work.flop is None or (type(work.flop) is int and work.flop >= 0)
    assert work.bytes is None or (math.isfinite(work.bytes) and work.bytes >= 0)
    assert all(min(g.m, g.n, g.k, g.batch) >= 0 for g in work.gemms)


@given(calls(shapes))
@example(OpCall("aten::mm", ((2**62, 2**62), (2**62, 2**62)), ("float", "float")))
@example(OpCall("aten::mm", ((0, 0), (0, 0)), ("float", "float"), ((), ()), ()))
@example(OpCall("aten::add", (((),), ()), ("float", "float")))
@example(OpCall("aten::mul", ((1,) * 10_000, (1,) * 10_000), ("float", "float")))
def test_no_shape_makes_a_model_fail(call: OpCall) -> None:
    assert_sensible(call)
    assert kind_of(call.name, None, call) in KINDS


@given(calls(small))
def test_nor_does_a_plausible_one(call: OpCall) -> None:
    assert_sensible(call)


ITEM = {"c10::BFloat16": 2, "float": 4, "long int": 8}
dims = st.integers(1, 5)


@given(
    name=st.sampled_from(["aten::mm", "aten::bmm", "aten::linear", "aten::add", "aten::silu",
                          "aten::_softmax", "aten::native_layer_norm", "aten::copy_",
                          "aten::_scaled_dot_product_flash_attention"]),
    a=dims, b=dims, c=dims, d=dims, spelling=st.sampled_from(sorted(ITEM)),
)  # fmt: skip
def test_every_operand_is_read_at_least_once(
    name: str, a: int, b: int, c: int, d: int, spelling: str
) -> None:
    shapes: dict[str, tuple[tuple[int, ...], ...]] = {
        "aten::mm": ((a, b), (b, c)),
        "aten::bmm": ((d, a, b), (d, b, c)),
        "aten::linear": ((d, a, b), (c, b), (c,)),
        "aten::add": ((a, b, c), (c,)),
        "aten::silu": ((a, b),),
        "aten::_softmax": ((a, b),),
        "aten::native_layer_norm": ((a, b), (), (b,), (b,)),
        "aten::copy_": ((a, b), (a, b)),
        "aten::_scaled_dot_product_flash_attention": ((a, 2 * b, c, d), (a, b, c, d), (a, b, c, d)),
    }
    inputs = shapes[name]
    types = tuple(spelling if shape else "ScalarList" for shape in inputs)
    work = work_of(OpCall(name, inputs, types))
    assert work is not None
    assert work.bytes is not None
    read = sum(math.prod(shape) for shape in inputs if shape) * ITEM[spelling]
    assert work.bytes > read or (name == "aten::copy_" and work.bytes == read)


@given(st.text(max_size=200) | st.sampled_from(["sum" * 5000, "x" * 10**6, "_" * 10**5]))
def test_any_name_has_a_kind(name: str) -> None:
    assert kernel_kind(name) in KINDS
    assert kind_of(name, name, None) in KINDS
    assert is_work_op(name) in (True, False)
    generated_kernel_model(name)


@given(
    kernel=st.sampled_from(["nvjet_tst_64x16_64x16_2x4_2cta_h_bz_TNT", "volta_sgemm_128x32_nt",
                            "Cijk_A_B_MT256x48x64_MI16"]) | st.text(max_size=80),
    gemm=st.builds(Gemm, *[st.integers(0, 10**7)] * 3, batch=st.integers(0, 300)),
    grid=st.lists(st.integers(0, 10**6), max_size=3).map(tuple),
)  # fmt: skip
def test_efficiencies_are_shares(kernel: str, gemm: Gemm, grid: tuple[int, ...]) -> None:
    tile = tile_of(kernel)
    estimate = wave_model(gemm, tile, Launch(grid), None) if tile else None
    if estimate is not None:
        assert 0 < estimate.tile_efficiency <= 1
        assert estimate.tiles > 0
        assert estimate.split_k > 0
