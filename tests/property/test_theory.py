"""A forward op by op, and the experts of a layer: any sizes."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.expert_routing import Routing, expert_load, zipf_weights
from prunescope.taxonomy.families import families, family
from prunescope.taxonomy.plan import Op, Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import (
    dense_plan,
    equal_parts,
    flop,
    forward,
    kv_cache_bytes,
    roofline,
    traffic,
)
from tests.property.test_predict_bounds import loads, shapes

QUICK = settings(max_examples=25, deadline=None)
# Of these families no rounding turns a higher sparsity into more work.
FALLING = [
    pruning.id
    for pruning in families()
    if pruning.only is None and pruning.id not in ("dense", "static-k-lowrank", "static-nk-cross")
]


def dense_ops(shape: ModelShape, work: Workload) -> list[Op]:
    return forward([dense_plan(shape, work)])


@QUICK
@given(shape=shapes(), work=loads(), method=st.sampled_from(FALLING),
       sparsities=st.tuples(st.floats(0, 0.9), st.floats(0, 0.9)))  # fmt: skip
def test_keeping_more_never_takes_fewer_flops(
    shape: ModelShape, work: Workload, method: str, sparsities: tuple[float, float]
) -> None:
    less, more = sorted(sparsities)
    pruning = family(method)
    try:
        kept, lost = (flop(pruning.theory(shape, work, pruning.point(s))) for s in (less, more))
    except PrunescopeError:  # of a decoder without experts, or at a sparsity that leaves nothing
        assume(False)
        raise
    assert lost <= kept * (1 + 1e-9) + added_flop(pruning.theory(shape, work, pruning.point(more)))


def added_flop(ops: list[Op]) -> float:
    """FLOPs of what only the pruned model runs: a router, or what estimates attention."""
    return flop(op for op in ops if op.added)


@QUICK
@given(shape=shapes(), work=loads(), times=st.integers(2, 6))
def test_more_sequences_take_as_many_times_the_flops_and_read_weights_once(
    shape: ModelShape, work: Workload, times: int
) -> None:
    single, several = (
        dense_ops(shape, replace(work, batch=b)) for b in (work.batch, times * work.batch)
    )
    assert flop(several) == pytest.approx(times * flop(single))
    assert sum(op.weight_bytes for op in several) == sum(op.weight_bytes for op in single)
    assert traffic(single) < traffic(several) <= times * traffic(single) * (1 + 1e-9)
    cached = [kv_cache_bytes([dense_plan(shape, replace(work, batch=b))])
              for b in (work.batch, times * work.batch)]  # fmt: skip
    assert cached[1] == pytest.approx(times * cached[0])


@QUICK
@given(shape=shapes(), work=loads(), times=st.floats(0.01, 100))
def test_peaks_that_are_c_times_as_high_bound_a_forward_at_a_cth_of_its_time(
    shape: ModelShape, work: Workload, times: float
) -> None:
    ops = dense_ops(shape, work)
    slow = roofline(ops, flop_per_s=1e12, byte_per_s=1e10)
    fast = roofline(ops, flop_per_s=1e12 * times, byte_per_s=1e10 * times)
    assert fast == pytest.approx(slow / times)
    assert slow >= max(flop(ops) / 1e12, 0)


@QUICK
@given(shape=shapes(), work=loads(), narrow=st.lists(st.booleans(), min_size=48, max_size=48))
def test_a_stack_of_unequal_layers_works_as_the_sum_of_its_parts(
    shape: ModelShape, work: Workload, narrow: list[bool]
) -> None:
    shape = shape.change(sliding_layers=0, layout="f" * shape.layers)
    thin = shape.change(intermediate=256)
    layers = [(thin if is_thin else shape).layer(0) for is_thin in narrow[: shape.layers]]
    plan = dense_plan(shape.with_layers(layers), work)
    assert sum(part.attention_layers for part in equal_parts(plan)) == shape.layers
    assert sum(part.mlp_layers for part in equal_parts(plan)) == shape.layers
    share = sum(narrow[: shape.layers]) / shape.layers
    pure = [flop(dense_ops(even, work)) for even in (thin, shape)]
    assert flop(forward([plan])) == pytest.approx(share * pure[0] + (1 - share) * pure[1])


@QUICK
@given(experts=st.integers(2, 64), per_token=st.integers(1, 8), tokens=st.integers(1, 4000),
       exponent=st.floats(0, 1.5))  # fmt: skip
def test_every_token_reaches_its_experts_and_an_uneven_router_reaches_fewer(
    experts: int, per_token: int, tokens: int, exponent: float
) -> None:
    per_token = min(per_token, experts)
    even, uneven = (
        expert_load(routing, "decode", experts=experts, per_token=per_token, tokens=tokens)
        for routing in (None, Routing(source="a law", phases={}, exponent=exponent))
    )
    for load in (even, uneven):
        assert load.distinct * load.rows == pytest.approx(per_token * tokens)
        assert 0 < load.distinct <= min(experts, per_token * tokens) * (1 + 1e-9)
    assert uneven.distinct <= even.distinct * (1 + 1e-9)
    weights = zipf_weights(experts, exponent)
    assert sorted(weights, reverse=True) == list(weights)
