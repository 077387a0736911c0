"""Sizes of GEMMs, of what a sparsity keeps, and of models: properties of any whole numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from prunescope.taxonomy import keep
from prunescope.taxonomy.gemm import Gemm, axis_moved
from prunescope.taxonomy.shape import ModelShape
from tests.property.test_predict_bounds import shapes

QUICK = settings(max_examples=60, deadline=None)
SIZE = st.integers(1, 10_000)
GEMMS = st.builds(Gemm, SIZE, SIZE, SIZE, st.integers(1, 64))
NEAR = st.builds(Gemm, *[st.integers(1, 2)] * 4)  # most of whose sizes are equal
SPARSITY = st.floats(0, 0.95)


@QUICK
@given(gemm=GEMMS, itemsize=st.sampled_from([0.5, 1, 2, 4]))
def test_flops_and_bytes_of_a_gemm_do_not_depend_on_which_axis_is_which(
    gemm: Gemm, itemsize: float
) -> None:
    m, n, k = gemm.m, gemm.n, gemm.k
    for turned in (Gemm(n, m, k, gemm.batch), Gemm(k, n, m, gemm.batch), Gemm(n, k, m, gemm.batch)):
        assert turned.flop == gemm.flop
        assert turned.bytes(itemsize) == gemm.bytes(itemsize)


@QUICK
@given(gemm=GEMMS, times=st.integers(1, 50), itemsize=st.sampled_from([0.5, 1, 2, 4]))
def test_a_batch_of_gemms_works_as_often_and_shares_no_operand(
    gemm: Gemm, times: int, itemsize: float
) -> None:
    batched = Gemm(gemm.m, gemm.n, gemm.k, gemm.batch * times)
    assert batched.flop == times * gemm.flop
    assert batched.bytes(itemsize) == times * gemm.bytes(itemsize)


@QUICK
@given(dense=NEAR, pruned=NEAR)
def test_the_axis_that_moved_names_only_dimensions_that_differ(dense: Gemm, pruned: Gemm) -> None:
    axis = axis_moved(dense, pruned)
    moved = {name for name in ("m", "n", "k", "batch")
             if getattr(dense, name) != getattr(pruned, name)}  # fmt: skip
    named = {"heads": {"batch"}, "none": set(), "unknown": moved}.get(axis, set(axis.lower()))
    assert named == moved
    assert (axis == "none") == (dense == pruned)
    assert axis_moved(pruned, dense) == axis


@QUICK
@given(size=st.floats(0, 1e6), align=st.sampled_from(keep.ALIGNMENTS))
def test_an_aligned_size_is_the_next_multiple_and_stays_when_aligned_again(
    size: float, align: str
) -> None:
    kept, step = keep.aligned(size, align), keep.alignment_size(align)
    assert kept % step == 0
    assert not (kept and keep.is_just(align) and kept % (2 * step) == 0)
    assert 0 <= kept - int(size) < (2 if keep.is_just(align) else 1) * step
    assert keep.aligned(kept, align) == kept


@QUICK
@given(total=st.integers(64, 5000), less=SPARSITY, more=SPARSITY,
       align=st.sampled_from(["1", "8", "16", "128", "odd"]))  # fmt: skip
def test_a_higher_sparsity_never_keeps_more_of_anything(
    total: int, less: float, more: float, align: str
) -> None:
    less, more = sorted((less, more))
    counts: tuple[Callable[[float], int], ...] = (
        lambda s: keep.kept_intermediate(total, s, "1" if align == "128" else align),
        lambda s: keep.kept_kv_heads(total, s),
        lambda s: keep.kept_experts(total, 2, s),
        lambda s: keep.kept_routes(total, s),
        lambda s: keep.kept_count(total, s),
        lambda s: -keep.removed_layers(total, s),
        lambda s: keep.low_rank_or_dense(total, total, s, align) or total**2,
    )
    assert all(kept(more) <= kept(less) for kept in counts)
    assert 2 <= keep.kept_experts(total, 2, more) <= total


@QUICK
@given(groups=st.integers(1, 8), each=st.integers(2, 16), per_token=st.integers(1, 8),
       sparsity=SPARSITY)  # fmt: skip
def test_groups_of_experts_stay_equal_and_serve_every_token(
    groups: int, each: int, per_token: int, sparsity: float
) -> None:
    per_token = min(per_token, each)
    kept = keep.kept_experts(groups * each, per_token, sparsity, groups=groups)
    assert kept % groups == 0
    assert per_token <= kept <= groups * each


@QUICK
@given(shape=shapes())
def test_a_shape_is_read_back_from_what_it_writes(shape: ModelShape) -> None:
    assert ModelShape.from_fields(**shape.to_dict()) == shape
    assert ModelShape.from_run(shape.to_dict()) == shape
    fields: dict[str, Any] = shape.to_dict()
    assert shape.change(**fields) == shape
    assert all(shape.get(key) == value for key, value in fields.items())


@QUICK
@given(shape=shapes(), drawn=st.data())
def test_parameters_add_up_over_layers_of_any_sizes(
    shape: ModelShape, drawn: st.DataObject
) -> None:
    """Each layer counts what a layer of a model counts whose layers are all like it."""
    widths = drawn.draw(st.lists(st.sampled_from([256, 512, 768]), min_size=shape.layers,
                                 max_size=shape.layers))  # fmt: skip
    shape = shape.change(sliding_layers=0, layout="f" * shape.layers)
    uneven = shape.with_layers([shape.change(intermediate=width).layer(0) for width in widths])
    outside = shape.outside_parameters()
    alone = [
        (shape.change(intermediate=width).parameters() - outside) / shape.layers for width in widths
    ]
    assert uneven.parameters() - outside == sum(alone)
    assert uneven.repeat_layer(0) == shape.change(intermediate=widths[0])
