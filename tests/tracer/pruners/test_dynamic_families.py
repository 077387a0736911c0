"""Dynamic families: nothing changes at s = 0, caches shrink, counts and executed FLOPs hold."""

from __future__ import annotations

import copy
from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import family
from prunescope.taxonomy.plan import Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.tracer.attention.blocks import budget, usual_block
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.capture.scopes import module_scopes
from prunescope.tracer.capture.weight_stats import dynamic_stats
from prunescope.tracer.model import compat
from prunescope.tracer.pruners.kv_evict import KeyRanker
from prunescope.tracer.routing.decisions import Sampler
from tests.tracer import static_steps
from tests.tracer.dynamic_reference import ARCHITECTURES, prune, small, steps, tokens

pytestmark = pytest.mark.torch
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("dynamic-m", {}), ("dynamic-nk", {}), ("dynamic-nk", {"block": 3}),
    ("dynamic-nk", {"blocks": "value"}), ("dynamic-depth", {}),
    ("dynamic-depth", {"exit": "early"}), ("dynamic-width", {}), ("token-drop", {"after": 1}),
    ("kv-evict", {}), ("kv-evict", {"keep": "recent"}), ("kv-evict", {"keep": "sinks"}),
    ("kv-evict", {"keep": "accumulated"}), ("dynamic-m", {"keys": "routed"}),
    ("dynamic-depth", {"exit": "lower"}), ("token-drop", {"stages": 4}),
]  # fmt: skip
each_variant = pytest.mark.parametrize(
    ("name", "knobs"), VARIANTS, ids=["-".join([n, *map(str, k.values())]) for n, k in VARIANTS]
)
UNITS = {
    "dynamic-m": "rows", "dynamic-nk": "blocks", "dynamic-depth": "layers",
    "dynamic-width": "channels", "token-drop": "rows", "kv-evict": "keys",
}  # fmt: skip


@cache
def dense_steps(model_type: str, dtype: torch.dtype = torch.float32) -> tuple[list[Any], Any]:
    """Logits of a prompt of 14 tokens and of two decoded ones, and the cache."""
    dense = small(model_type, **dict(ARCHITECTURES)[model_type]).to(dtype)
    return steps(dense, tokens(2, 16), 14)


_halved: dict[str, Any] = {}


def halved(name: str, knobs: dict[str, Any]) -> Any:
    """Return a Llama at s = 0.5 as pruning leaves it: built once, each test has a copy."""
    key = f"{name} {knobs}"
    if key not in _halved:
        _halved[key] = prune(name, small("llama"), 0.5, **knobs).model
    return copy.deepcopy(_halved[key])


@each_variant
@pytest.mark.parametrize(("model_type", "fields"), ARCHITECTURES, ids=[a for a, _ in ARCHITECTURES])
def test_at_zero_it_is_the_dense_model(
    name: str, knobs: dict[str, Any], model_type: str, fields: dict[str, Any]
) -> None:
    dense, ids = small(model_type, **fields), tokens(2, 16)
    model = prune(name, dense, 0.0, **knobs).model
    (actual, cache), (wanted, full) = steps(model, ids, 14), dense_steps(model_type)
    for ours, theirs in zip(actual, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert [x.keys.shape for x in cache.layers] == [x.keys.shape for x in full.layers]
    whole, _ = steps(model, ids, 16)  # a forward of everything gives the same as well
    torch.testing.assert_close(torch.cat(actual, 1), whole[0], rtol=1e-4, atol=1e-4)


@each_variant
def test_at_zero_in_half_precision(name: str, knobs: dict[str, Any]) -> None:
    dense = small("qwen3", head_dim=16).to(torch.bfloat16)
    model = prune(name, dense, 0.0, **knobs).model
    actual, _ = steps(model, tokens(2, 16), 14)
    wanted, _ = dense_steps("qwen3", torch.bfloat16)
    for ours, theirs in zip(actual, wanted, strict=True):
        assert ours.dtype == torch.bfloat16
        assert float((ours - theirs).abs().max()) <= 0.03 * float(theirs.abs().max())


@each_variant
def test_a_prompt_in_two_chunks(name: str, knobs: dict[str, Any]) -> None:
    dense, ids = small("llama"), tokens(2, 17)

    def chunked(model: Any) -> torch.Tensor:
        cache = compat.new_cache(model)
        with torch.no_grad():
            compat.forward(model, ids[:, :9], cache=cache, logits="last")
            output: torch.Tensor = compat.forward(
                model, ids[:, 9:], cache=cache, logits="last"
            ).logits
        return output

    exact = chunked(prune(name, dense, 0.0, **knobs).model)
    torch.testing.assert_close(exact, chunked(dense), rtol=1e-5, atol=1e-5)
    assert bool(chunked(halved(name, knobs)).isfinite().all())


@each_variant
def test_the_dense_model_and_its_hooks_stay(name: str, knobs: dict[str, Any]) -> None:
    dense, ids = small("qwen2"), tokens(1, 12)
    before, state = dense(ids).logits, {k: v.clone() for k, v in dense.state_dict().items()}
    model = prune(name, dense, 0.5, **knobs).model
    assert not {p.data_ptr() for p in dense.parameters()} & {
        p.data_ptr() for p in model.parameters()
    }
    with module_scopes(model):
        model(ids)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(before, dense(ids).logits)
    assert all(torch.equal(v, state[k]) for k, v in dense.state_dict().items())
    flags = {name: p.requires_grad for name, p in dense.named_parameters()}
    actual = {name: p.requires_grad for name, p in model.named_parameters()}
    assert {name: actual.get(name) for name in flags} == flags
    kept = {k: v for k, v in model.state_dict().items() if ".router." not in k}
    assert kept.keys() == state.keys()
    assert all(torch.equal(v, state[k]) for k, v in kept.items())


@each_variant
def test_counts_are_per_forward_and_start_anew(name: str, knobs: dict[str, Any]) -> None:
    model = halved(name, knobs)
    steps(model, tokens(1, 20), 16)
    stats = dynamic_stats(model)
    assert {row.unit for row in stats.values()} == {UNITS[name]}
    for row in stats.values():
        assert len(row.active) == len(row.total) == 5
        assert all(0 <= a <= t for a, t in zip(row.active, row.total, strict=True))
    assert sum(sum(row.active) for row in stats.values()) < sum(
        sum(row.total) for row in stats.values()
    )
    assert all(row.active == [] for row in dynamic_stats(model).values())


@each_variant
def test_a_seed_decides_alike_and_another_one_otherwise(name: str, knobs: dict[str, Any]) -> None:
    dense, ids = small("llama"), tokens(2, 24)

    def logits(model: Any) -> torch.Tensor:
        return torch.cat(steps(model, ids, 20)[0], 1)

    first = logits(halved(name, knobs))
    assert torch.equal(first, logits(prune(name, dense, 0.5, **knobs).model))
    if knobs not in ({"keep": "recent"}, {"keep": "sinks"}, {"exit": "lower"}):
        assert not torch.equal(first, logits(prune(name, dense, 0.5, seed=1, **knobs).model))


def test_caches() -> None:
    dense, ids = small("llama"), tokens(1, 24)

    def held(name: str, **knobs: Any) -> tuple[list[int], int]:
        _, cache = steps(prune(name, dense, 0.5, **knobs).model, ids, 20)
        return [x.keys.shape[2] for x in cache.layers], compat.cache_bytes(cache)

    _, full = steps(dense, ids, 20)
    size = compat.cache_bytes(full)
    assert held("dynamic-m") == ([24] * 4, size)
    assert held("dynamic-width") == ([24] * 4, size)
    assert held("kv-evict") == ([12] * 4, size // 2)
    assert held("token-drop", after=2) == ([24, 24, 14, 14], size * 76 // 96)
    # Beside the keys the means of their 6 whole blocks of 4: 2 heads of 8 in fp32.
    assert held("dynamic-nk", block=4) == ([24] * 4, size + 4 * 6 * 2 * 8 * 4)


@pytest.mark.parametrize("keep", ["attention", "recent", "sinks", "accumulated"])
def test_a_budget_of_one_key_leaves_a_token_itself(keep: str) -> None:
    """int(24 · 0.01) = 0, and one key stays: attention to it alone gives its value, so that a token
    has the logits of a prompt of this token. It attended to two keys."""
    dense, ids = small("llama"), tokens(1, 24)
    model = prune("kv-evict", dense, 0.99, keep=keep).model
    each, _ = steps(model, ids, 20)
    with torch.no_grad():
        alone = torch.cat([dense(ids[:, t : t + 1]).logits for t in range(20, 24)], 1)
    torch.testing.assert_close(torch.cat(each[1:], 1), alone)
    _, static = static_steps.loops(model, "decode")
    last = static_steps.ids()[:, -1:]
    with torch.inference_mode():
        torch.testing.assert_close(static_steps.sampled(model, static), dense(last).logits)


def test_cropped_caches_are_noticed() -> None:
    """A decode repeated from a cropped cache gives the same, the means of new blocks with it."""
    ids = tokens(1, 32)
    changed = ids.clone()
    changed[:, 24:] = tokens(1, 8, 300)
    for name, knobs in (("dynamic-nk", {"block": 4}), ("token-drop", {})):
        model = prune(name, small("llama"), 0.0, **knobs).model
        wanted, _ = steps(model, changed, 24)
        _, cache = steps(model, ids, 24)
        assert compat.try_crop(cache, 8)
        with torch.no_grad():
            again = [
                compat.forward(model, changed[:, t : t + 1], cache=cache, logits="all").logits
                for t in range(24, 32)
            ]
        torch.testing.assert_close(torch.cat(again, 1), torch.cat(wanted[1:], 1))
    _, cache = steps(prune("kv-evict", small("llama"), 0.5).model, ids, 24)
    assert not compat.try_crop(cache, 8)


@pytest.mark.parametrize(
    ("family", "model_type", "fields", "why"),
    [
        ("dynamic-m", "mamba", {"hidden_size": 32}, "no layer has an attention"),
        ("token-drop", "bloom", {"n_head": 4}, "ALiBi"),
        ("kv-evict", "mistral", {"sliding_window": 8}, "every layer .* sliding window"),
        ("dynamic-nk", "mistral", {"sliding_window": 8}, "every layer .* sliding window"),
        ("dynamic-m", "gptj", {"rotary_dim": 4}, "cannot be taken apart"),
        ("dynamic-m", "ministral3", {}, "scaled by their position"),
        ("dynamic-width", "mixtral", {"num_local_experts": 2}, "has experts"),
    ],
)
def test_other_architectures_are_refused(
    family: str, model_type: str, fields: dict[str, Any], why: str
) -> None:
    model = small(model_type, **fields)
    with pytest.raises(PrunescopeError, match=why):
        prune(family, model, 0.5)


def test_impossible_requests() -> None:
    model, ids = small("llama"), tokens(2, 12)
    with pytest.raises(PrunescopeError, match="after 1 to 3 layers"):
        prune("token-drop", model, 0.5, after=4)
    with pytest.raises(PrunescopeError, match="after 1 to 3 layers"):
        prune("token-drop", model, 0.5, after=0)
    long = prune("dynamic-nk", model, 0.5, block=13).model
    with pytest.raises(PrunescopeError, match="the longest that fits is --set block=11"):
        steps(long, ids, 12)
    with pytest.raises(PrunescopeError, match="block=-1"):
        prune("dynamic-nk", model, 0.5, block=-1)
    padded = torch.ones_like(ids)
    padded[0, :4] = 0
    for name, knobs in (("dynamic-m", {}), ("kv-evict", {}), ("token-drop", {"after": 1})):
        with pytest.raises(PrunescopeError, match="padding"):
            prune(name, model, 0.5, **knobs).model(ids, attention_mask=padded)
    for name in ("dynamic-depth", "dynamic-width"):
        with pytest.raises(PrunescopeError, match="cannot select by importance"):
            prune(name, model, 0.5, select="importance")
    flash = small("llama")
    flash.config._attn_implementation = "flash_attention_2"
    with pytest.raises(PrunescopeError, match="use --attn sdpa"):
        prune("dynamic-m", flash, 0.5)


def test_usual_blocks_and_budgets() -> None:
    assert [usual_block(n) for n in (1, 8, 16, 64, 511, 512, 8192)] == [1, 1, 2, 8, 32, 64, 64]
    # p = 1/2 of 1 … 8 blocks, ties to even, never none
    assert [budget(i, 0.5) for i in range(8)] == [1, 1, 2, 2, 2, 3, 4, 4]
    assert [budget(i, 0.0) for i in range(4)] == [1, 2, 3, 4]


def test_draws() -> None:
    random, real = (Sampler(Point(sparsity=0.5, select=s), "x") for s in ("random", "importance"))
    scores = torch.arange(6.0).view(2, 3)
    assert torch.equal(real.replace(scores), scores)
    first, second = random.replace(scores), random.replace(scores)
    assert first.shape == scores.shape
    assert not torch.equal(first, second)
    assert bool(((first >= 0) & (first < 1)).all())
    happened = sum(random.count_successes(8, 0.25) for _ in range(1000))
    assert abs(happened - 2000) < 160  # four standard deviations of sqrt(8000 x .25 x .75) = 39


def cpu_attention(q: Any, k: Any, *_: Any, **__: Any) -> int:
    """torch counts no FLOPs of the CPU's attention; keys may have fewer heads than queries."""
    grown = torch.Size([k[0], q[1], *k[2:]])
    return int(sdpa_flop_count(q, grown, grown))


FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def executed(model: Any, ids: torch.Tensor, cache: Any) -> Counter[str]:
    """FLOPs of one forward by the module that multiplies; attention's own under "self_attn"."""
    counter = FlopCounterMode(display=False, custom_mapping={FLASH: cpu_attention})
    with torch.no_grad(), counter:
        compat.forward(model, ids, cache=cache, logits="last")
    total: Counter[str] = Counter()
    for name, ops in counter.flop_counts.items():
        leaf = name.rsplit(".", 1)[-1]
        if leaf.endswith("_proj") or leaf in ("lm_head", "router"):
            total[leaf] += sum(ops.values())
        elif leaf == "self_attn":
            inner = [n for n in counter.flop_counts if n.startswith(f"{name}.")]
            nested = sum(sum(counter.flop_counts[n].values()) for n in inner)
            total[leaf] += sum(ops.values()) - nested
    return total


def linears(total: Counter[str]) -> int:
    return sum(n for leaf, n in total.items() if leaf not in ("self_attn", "router"))


S = 64  # a prompt whose shares are whole numbers


@each_variant
def test_executed_flops_are_those_of_the_theory(name: str, knobs: dict[str, Any]) -> None:
    """Linears against the family's theory, attention against the recorded rows, blocks and keys.

    torch counts masked query-key pairs too: a causal S x S prefill has 4·q·S² FLOPs there.
    """
    dense = small("llama", hidden_size=64, intermediate_size=128, head_dim=16)
    model, ids = prune(name, dense, 0.5, **knobs).model, tokens(1, S + 1)
    cache = compat.new_cache(model)
    for phase, part in (("prefill", ids[:, :S]), ("decode", ids[:, S:])):
        held = [0 if getattr(x, "keys", None) is None else x.keys.shape[2] for x in cache.layers]
        total = executed(model, part, cache)
        stats = dynamic_stats(model)
        theory = linear_theory(dense, name, knobs, phase, stats)
        assert linears(total) == pytest.approx(theory, rel=0.01), phase
        if phase == "prefill":
            pairs, every = prefill_pairs(name, knobs, stats), 4 * S * S
        else:
            pairs, every = decode_pairs(name, knobs, stats, held), 4 * (S + 1)
        if knobs.get("blocks") == "value":  # QKᵀ of all pairs, PV of the chosen ones
            pairs = (pairs + every) / 2
        assert 0 < pairs <= every, phase
        assert total["self_attn"] == pytest.approx(4 * 64 * pairs, rel=0.01), phase


def linear_theory(
    dense: Any, name: str, knobs: dict[str, Any], phase: str, stats: dict[str, Any]
) -> float:
    """FLOPs of the linears: the family's theory, at the recorded routes where those are drawn."""
    if phase == "decode" and name == "dynamic-m":  # one row: the theory holds on average
        return routed_decode_flops(stats, every="keys" not in knobs)
    point = family(name).point(0.5, knobs)
    work = Workload(phase=phase, prompt_len=S, context=S + 1)
    ops = family(name).theory(ModelShape.from_config(dense.config.to_dict()), work, point)
    total = sum(op.layers * op.flop for op in ops if op.cls == "matmul" and not op.added)
    if name == "dynamic-depth" and knobs.get("exit") != "lower":  # 2 of 4 layers in theory
        head, ran = 2 * 64 * 512, sum(row.active[0] for row in stats.values())
        return (total - head) / 2 * ran + head
    return total


def routed_decode_flops(stats: dict[str, Any], *, every: bool) -> int:
    """Compute the FLOPs 2·N·K of a routed decode step.

    k and v [32, 64] run for every token if `every`, and otherwise with q. q and o [64, 64] and the
    MLP [128, 64] run for the active rows.
    """
    attention = sum(r.active[0] for n, r in stats.items() if n.endswith("self_attn"))
    mlp = sum(r.active[0] for n, r in stats.items() if n.endswith("mlp"))
    keys = 4 if every else attention
    each = keys * 2 * 64 * 32 + attention * 2 * 64 * 64 + mlp * 3 * 64 * 128
    return 2 * (each + 64 * 512)


def prefill_pairs(name: str, knobs: dict[str, Any], stats: dict[str, Any]) -> float:
    """Query-key pairs of one head, all 4 layers, masked ones too."""
    active = [row.active[0] for row in stats.values()]
    if name == "dynamic-m":
        ran = [r.active[0] for n, r in stats.items() if "attn" in n]
        return float(sum(r * (r if "keys" in knobs else S) for r in ran))
    if name == "dynamic-nk":
        block = knobs.get("block", 8)
        if not S % block:
            return float(block**2 * sum(active))
        last = budget(S // block, 0.5)  # of 21 blocks of 3 and one of 1
        return float(sum(block**2 * (a - last) + (last - 1) * block + 1 for a in active))
    if name == "dynamic-depth":
        return float(S * S * sum(active))
    if name == "token-drop":
        return float(sum(a * a for a in active))
    return float(4 * S * S)


def decode_pairs(name: str, knobs: dict[str, Any], stats: dict[str, Any], held: list[int]) -> float:
    """Keys that the one query of each layer saw."""
    active = [row.active[0] for row in stats.values()]
    if name == "dynamic-m":
        ran = [r.active[0] for n, r in stats.items() if "attn" in n]
        return float(sum(r * (h + 1) for r, h in zip(ran, held, strict=True)))
    if name == "dynamic-nk":
        block = knobs.get("block", 8)
        own = (S % block) + 1
        return float(sum((a - 1) * block + own for a in active))
    if name == "dynamic-depth":
        return float(sum(a * (h + 1) for a, h in zip(active, held, strict=True)))
    if name == "kv-evict":
        return float(sum(active))
    return float(sum(h + 1 for h in held))


@pytest.mark.parametrize(
    ("name", "knobs"),
    [("dynamic-nk", {"block": 4}), ("token-drop", {})],
)
def test_attention_decides_where_nothing_is_drawn(name: str, knobs: dict[str, Any]) -> None:
    """What attends most stays: nearer to the dense logits than three draws, on average."""
    dense, ids = small("llama"), tokens(4, 36)
    wanted = steps(dense, ids, 32)[0]

    def error(**options: Any) -> float:
        actual = steps(prune(name, dense, 0.5, **knobs, **options).model, ids, 32)[0]
        return sum(float((a[:, -1] - b[:, -1]).norm()) for a, b in zip(actual, wanted, strict=True))

    drawn = [error(seed=seed) for seed in range(3)]
    assert error(select="importance") < sum(drawn) / 3


def test_the_most_attended_keys_go_last() -> None:
    """Keys 3 and 7 of 12 get all attention of 4 observers; 3 of 6 kept keys are the latest.

    With one latent for both heads, the keys that both together attend to most stay.
    """
    queries, keys = torch.zeros(1, 4, 4, 8), torch.zeros(1, 2, 12, 8)
    queries[..., 0], keys[:, :, 3, 0], keys[:, :, 7, 0] = 1, 20, 30
    sampler = Sampler(Point(sparsity=0.5, select="importance"), "x")
    rows = KeyRanker(sampler)(queries, keys, count=6, scaling=1.0, sets=2).view(2, 6)
    assert torch.equal(rows[1], rows[0] + 12)  # the second head's keys stand behind the first's
    assert rows[0, 1:3].tolist() == [3, 7]
    assert set(rows[0, 3:].tolist()) == {9, 10, 11}
    keys[:, 1, 7, 0], keys[:, 1, 5, 0] = 0, 40  # the second head: 5, then 3
    shared = KeyRanker(sampler)(queries, keys, count=6, scaling=1.0, sets=1)
    # Half the mass each on 5 and 7, next to none on 3: the highest comes last.
    assert set(shared[1:3].tolist()) == {5, 7}
    assert set(shared[3:].tolist()) == {9, 10, 11}


def test_generate_keeps_its_positions() -> None:
    ids = tokens(1, 12)
    for name, knobs in VARIANTS:
        output = halved(name, knobs).generate(
            ids, max_new_tokens=3, do_sample=False, eos_token_id=None
        )
        assert output.shape == (1, 15)
