"""What a published method's knobs price: hand arithmetic on a small decoder."""

from __future__ import annotations

from typing import Any

import pytest

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import family
from prunescope.taxonomy.families.token_drop import steps
from prunescope.taxonomy.plan import Op, Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import flop, forward, kv_cache_bytes

H, N, HEADS, KV, D, F, V = 64, 8, 8, 4, 8, 128, 256
SHAPE = ModelShape.from_fields(
    model_type="llama", hidden=H, layers=N, heads=HEADS, kv_heads=KV, head_dim=D, value_dim=D,
    intermediate=F, vocab=V, layout="f" * N,
)  # fmt: skip
PROMPT = Workload(phase="prefill", batch=2, prompt_len=32)


def step(batch: int = 1, context: int = 64) -> Workload:
    return Workload(phase="decode", batch=batch, prompt_len=32, context=context)


def ops(name: str, work: Workload, sparsity: float = 0.5, **knobs: Any) -> dict[str, Op]:
    pruning = family(name)
    return {op.name: op for op in pruning.theory(SHAPE, work, pruning.point(sparsity, knobs))}


@pytest.mark.parametrize("work", [PROMPT, step(), step(4)])
def test_one_set_of_channels_a_forward_reads_as_many_weights_at_any_batch(work: Workload) -> None:
    """What the tracer gathers: f' of f rows of gate and up, columns of down, for all tokens."""
    by_name = ops("dynamic-width", work)
    for role in ("gate", "up", "down"):
        assert by_name[role].weight_bytes == 2 * H * F / 2
        assert by_name[role].flop == 2 * work.rows * H * F / 2
    assert by_name["q"].flop == 2 * work.rows * H * H


def test_a_set_of_channels_a_token_reads_what_any_token_uses() -> None:
    for batch in (1, 4):
        by_name = ops("dynamic-width", step(batch), sets="token")
        assert by_name["up"].flop == 2 * batch * H * F / 2
        assert by_name["up"].weight_bytes == pytest.approx(2 * H * F * (1 - 0.5**batch))


@pytest.mark.parametrize(("attention", "dense"), [("queries", ("k", "v")), ("heads", ())])
def test_heads_that_a_token_uses(attention: str, dense: tuple[str, ...]) -> None:
    """WIDE: q, attention and o of half of the heads; Deja Vu: k and v of theirs too."""
    pruning = family("dynamic-width")
    knobs = {"sets": "token", "attention": attention}
    by_name, whole = ops("dynamic-width", step(), **knobs), ops("dense", step(), 0.0)
    for role in ("q", "o", "k", "v"):
        share = 1 if role in dense else 0.5
        assert by_name[role].flop == share * whole[role].flop, role
        assert by_name[role].weight_bytes == share * whole[role].weight_bytes, role
    seen, before = by_name["attention.full"], whole["attention.full"]
    assert seen.flop == before.flop / 2
    assert seen.kv_read == before.kv_read / 2
    assert seen.gemms[0].batch == HEADS / 2
    assert not seen.gathered
    assert not seen.estimated
    plans = pruning.plans(SHAPE, step(), pruning.point(0.5, knobs))
    assert kv_cache_bytes(plans) == SHAPE.kv_bytes(batch=1, context=64)  # the cache is full


def test_heads_of_latent_attention_have_no_set_of_their_own() -> None:
    latent = ModelShape.from_fields(
        model_type="x", hidden=H, layers=N, heads=HEADS, kv_heads=HEADS, head_dim=D, value_dim=D,
        intermediate=F, vocab=V, kv_rank=16, rope_dim=4,
    )  # fmt: skip
    pruning = family("dynamic-width")
    with pytest.raises(PrunescopeError, match="share one latent"):
        pruning.theory(latent, step(), pruning.point(0.5, {"attention": "queries"}))


def test_lower_layers_are_skipped_in_decode_alone() -> None:
    whole = sum(op.layers * op.flop for op in ops("dense", PROMPT, 0.0).values())
    assert sum(op.layers * op.flop for op in ops("dynamic-depth", PROMPT, exit="lower").values()
               ) == whole  # fmt: skip
    by_name, dense = ops("dynamic-depth", step(), exit="lower"), ops("dense", step(), 0.0)
    assert by_name["up"].layers == N / 2
    assert by_name["lm_head"].flop == dense["lm_head"].flop


def test_tokens_without_keys_leave_a_quarter_of_the_pairs() -> None:
    """If half of the tokens are queries and keys, a quarter of the pairs is left.

    Of T tokens k and v then have T/2 rows, and half of the cache is left; with keys of all, half of
    the pairs and the whole cache are left.
    """
    every, routed = (ops("dynamic-m", PROMPT, keys=keys) for keys in ("all", "routed"))
    dense = ops("dense", PROMPT, 0.0)
    assert (every["k"].flop, routed["k"].flop) == (dense["k"].flop, dense["k"].flop / 2)
    pairs = dense["attention.full"].flop
    assert (every["attention.full"].flop, routed["attention.full"].flop) == (pairs / 2, pairs / 4)
    assert routed["attention.full"].gemms[0].m == routed["attention.full"].gemms[0].n == 16
    assert routed["attention.full"].kv_write == dense["attention.full"].kv_write / 2
    pruning, whole = family("dynamic-m"), SHAPE.kv_bytes(batch=1, context=64)
    for keys, share in (("all", 1), ("routed", 0.5)):
        plans = pruning.plans(SHAPE, step(), pruning.point(0.5, {"keys": keys}))
        assert kv_cache_bytes(plans) == whole * share
        read = ops("dynamic-m", step(), keys=keys)["attention.full"]
        assert read.kv_read == ops("dense", step(), 0.0)["attention.full"].kv_read * 0.5 * share
        assert not read.estimated


def test_which_keys_stay_does_not_change_how_many() -> None:
    flops = [
        flop(ops("kv-evict", step(), keep=keep).values())
        for keep in ("attention", "accumulated", "recent", "sinks")
    ]
    assert len(set(flops)) == 1


def test_stages_are_a_schedule_of_their_ends() -> None:
    pruning = family("token-drop")
    by_stages = steps(SHAPE, pruning.point(0.5, {"stages": 4}))
    assert by_stages == steps(SHAPE, pruning.point(0.5, {"schedule": "2,4,6"}))
    assert [after for after, _ in by_stages] == [2, 4, 6]
    assert [gone for _, gone in by_stages] == pytest.approx([1 - 2 ** (-i / 3) for i in (1, 2, 3)])
    assert steps(SHAPE, pruning.point(0.5, {"stages": 1})) == [(2, 0.5)]
    for knobs in ({"stages": 0}, {"stages": 99}, {"stages": 2, "schedule": "4"}):
        with pytest.raises(PrunescopeError, match="stages="):
            steps(SHAPE, pruning.point(0.5, knobs))


def test_tokens_that_come_back_are_rows_of_a_step_and_keys_from_then_on() -> None:
    """Of 32 tokens 16 leave after 2 layers; an eighth of them, 2, comes back in each step.

    The third step computes 3 rows and sees 16 + 3·2 + 3 keys, and from the eighth on none is away.
    """
    pruning = family("token-drop")
    for steps_done, rows, keys in ((1, 3, 19), (3, 3, 25), (8, 3, 40), (9, 1, 41)):
        work = step(context=32 + steps_done)
        plans = pruning.plans(SHAPE, work, pruning.point(0.5, {"revived": 0.125}))
        before, behind = plans
        assert (before.context, behind.context) == (32 + steps_done, keys)
        by_name = {op.name: op for op in forward([behind])}
        assert by_name["up"].flop == 2 * rows * H * F
        assert by_name["attention.full"].flop == 4 * rows * keys * HEADS * D
        assert by_name["attention.full"].kv_write == 2 * rows * 2 * KV * D
        assert by_name["lm_head"].flop == 2 * V * H  # the newest token's alone
    prompt = pruning.theory(SHAPE, PROMPT, pruning.point(0.5, {"revived": 0.125}))
    assert flop(prompt) == flop(pruning.theory(SHAPE, PROMPT, pruning.point(0.5)))
    with pytest.raises(PrunescopeError, match="not a share"):
        pruning.plans(SHAPE, step(), pruning.point(0.5, {"revived": 2}))
