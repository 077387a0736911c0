"""Every family on tiny-llama, by one table: s → 0 is dense, masks are removal, caches, decoding.

Tolerances are shares of the largest dense logit, by dtype.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import family
from prunescope.tracer.capture.weight_stats import dynamic_stats
from prunescope.tracer.model import compat
from prunescope.tracer.model.load import load_model
from prunescope.tracer.model.pruned_modules import PairOfLinears
from tests.tracer.dynamic_reference import prune, reference, steps, tokens
from tests.tracer.tiny_models import WITHOUT_EXPERTS

pytestmark = [pytest.mark.torch, pytest.mark.four_layers]
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.03, torch.float16: 0.01}
STATIC = tuple(name for name in WITHOUT_EXPERTS if family(name).dynamics == "static")
DYNAMIC = tuple(name for name in WITHOUT_EXPERTS if family(name).dynamics == "dynamic")
# What a token decoded after a pruned prefill need not share with a forward of the whole: the
# router of dynamic-m looks ahead, holes of dynamic-depth are drawn, dropped and evicted keys are
# seen by the prompt, blocks of dynamic-nk are those of the prompt, channels those of the forward.
ANEW = ("dynamic-m", "dynamic-depth", "dynamic-nk", "dynamic-width", "token-drop", "kv-evict")
# Share of the dense cache that is left at s = 0.5 after 16 tokens of prompt and 4 of answer.
CACHE = {
    "static-m": 1 / 2, "static-nk": 1 / 2, "static-nk-heads": 1 / 2, "kv-evict": 1 / 2,
    "token-drop": (2 * 20 + 2 * 12) / (4 * 20),
}  # fmt: skip


@cache
def tiny(dtype: torch.dtype = torch.float32) -> Any:
    """One for all tests: pruning works on a copy."""
    model = load_model("tiny-llama", dtype="auto", device=torch.device("cpu"), attn="sdpa").model
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embed" not in name:
            parameter.data *= 3  # large enough that every part matters
    return model.to(dtype)


@cache
def dense_steps(dtype: torch.dtype, length: int, prompt: int) -> tuple[list[torch.Tensor], Any]:
    return steps(tiny(dtype), tokens(2, length), prompt)


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(ids).logits
    return output


def close(actual: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype = torch.float32) -> bool:
    error = float((actual.float() - wanted.float()).abs().max())
    return error <= TOLERANCE[dtype] * float(wanted.float().abs().max())


def test_the_families_are_all_here() -> None:
    assert len(STATIC) == 8
    assert set(DYNAMIC) == set(ANEW)


_halved: dict[str, Any] = {}


def halved(name: str) -> Any:
    """Return the model at s = 0.5 as pruning leaves it: built once, each test has a copy."""
    if name not in _halved:
        _halved[name] = prune(name, tiny(), 0.5).model
    return copy.deepcopy(_halved[name])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", [n for n in WITHOUT_EXPERTS if n != "static-k-24"])
def test_at_zero_prefill_and_decode_are_dense(name: str, dtype: torch.dtype) -> None:
    actual, cache = steps(prune(name, tiny(dtype), 0.0).model, tokens(2, 10), 8)
    wanted, full = dense_steps(dtype, 10, 8)
    for ours, theirs in zip(actual, wanted, strict=True):
        assert ours.dtype == dtype
        assert close(ours, theirs, dtype)
    assert [x.keys.shape for x in cache.layers] == [x.keys.shape for x in full.layers]


def test_two_of_four_has_no_zero() -> None:
    with pytest.raises(PrunescopeError, match=r"2:4 sparsity is 0\.5, not 0\.0") as caught:
        prune("static-k-24", tiny(), 0.0)
    assert "--sparsity 0.5" in caught.value.hint


@pytest.mark.parametrize("name", [*CACHE, *(n for n in WITHOUT_EXPERTS if n not in CACHE)])
def test_the_cache_shrinks_where_the_family_says_so(name: str) -> None:
    _, full = dense_steps(torch.float32, 20, 16)
    _, cache = steps(halved(name), tokens(2, 20), 16)
    left = compat.cache_bytes(cache) / compat.cache_bytes(full)
    if name == "dynamic-depth":  # a skipped layer caches nothing: 2 of 4 run in each forward
        assert left == pytest.approx(0.5)
    elif name == "dynamic-nk":  # the means of key blocks lie beside the keys
        assert 1 < left < 1.5
    else:
        assert left == pytest.approx(CACHE.get(name, 1.0))


@pytest.mark.parametrize("name", STATIC)
def test_decode_after_pruned_prefill_is_a_full_forward(name: str) -> None:
    model, ids = halved(name), tokens(2, 12)
    actual, _ = steps(model, ids, 9)
    whole = logits(model, ids)
    assert close(torch.cat(actual, 1), whole)
    assert torch.equal(torch.cat(actual, 1).argmax(-1), whole.argmax(-1))


@pytest.mark.parametrize("name", STATIC)
@torch.no_grad()
def test_removed_is_masked(name: str) -> None:
    """The dense model with zeros where the family cuts gives the same logits, not the dense ones.

    The mask of a rank is the product of its two factors. The cross family is in test_static_cross.
    """
    if name == "static-nk-cross":
        pytest.skip("tests/tracer/pruners/test_static_cross.py masks the residual stream")
    dense, ids = tiny(), tokens(2, 12)
    applied = prune(name, dense, 0.5)
    masked = copy.deepcopy(dense)
    layers = masked.model.layers
    if name == "static-m":
        for index in set(range(4)) - set(applied.record["kept"]["layers"]):
            layers[index].self_attn.o_proj.weight.zero_()
            layers[index].mlp.down_proj.weight.zero_()
    for key, kept in applied.kept.items():
        path, kind = key.split(":")
        layer = masked.get_submodule(path)
        linear = layer.self_attn.o_proj if kind == "kv_heads" else layer.mlp.down_proj
        size = 32 if kind == "kv_heads" else 1  # 2 query heads of 16 a KV head
        gone = set(range(linear.in_features // size)) - set(kept)
        for i in gone:
            linear.weight[:, i * size : (i + 1) * size] = 0
    for path, module in applied.model.named_modules():
        if isinstance(module, PairOfLinears):
            masked.get_submodule(path).weight.copy_(module.second.weight @ module.first.weight)
        elif name in ("static-k-24", "static-k-mask") and isinstance(module, torch.nn.Linear):
            masked.get_submodule(path).weight[module.weight == 0] = 0
    assert close(logits(applied.model, ids), logits(masked, ids))
    assert not close(logits(masked, ids), logits(dense, ids))


@pytest.mark.parametrize("name", DYNAMIC)
def test_a_dynamic_family_decides_and_keeps_all_weights(name: str) -> None:
    """A dynamic family prunes, in prefill or in decode, and keeps every number of the dense model.

    What each computes, given its routes, is in test_dynamic_reference.
    """
    dense, ids = tiny(), tokens(2, 20)
    model = halved(name)
    (actual, _), (wanted, _) = steps(model, ids, 16), dense_steps(torch.float32, 20, 16)
    assert not all(close(a, b) for a, b in zip(actual, wanted, strict=True) if a.shape == b.shape)
    assert all(bool(x.isfinite().all()) for x in actual)
    count = sum(p.numel() for p in model.parameters())
    assert count >= sum(p.numel() for p in dense.parameters())
    if name == "kv-evict":  # the prompt sees all of itself
        assert close(actual[0], reference(dense, ids[:, :16]))


IMPOSSIBLE: list[tuple[str, float, dict[str, str], str, str]] = [
    ("static-nk-heads", 0.9, {"rounding": "paper"}, "leaves 0 heads", "nearest"),
    ("static-nk", 0.8, {"rounding": "paper"}, "leaves 0 heads", "--sparsity 0.75 is"),
    ("static-nk-mlp", 0.999, {}, "leaves 0 of 352 MLP channels", "--sparsity 0.997 is"),
    ("static-nk-cross", 0.999, {}, "leaves 0 of 128 hidden", "--sparsity 0.992 is"),
    ("dynamic-width", 0.999, {}, "leaves 0 of 352 MLP channels", "--sparsity 0.997 is"),
    ("static-k-lowrank", 0.01, {}, "no rank makes any matrix", "from --sparsity 0.148 on"),
    ("static-k-24", 0.25, {}, "2:4 sparsity is 0.5", "--sparsity 0.5"),
    ("static-m", 0.25, {"layers": "5"}, "does not name layers", "from 0 to 3"),
    ("static-m", 0.25, {"layers": "1, 3,01"}, "layer 1 twice", "layers=1,3"),
    ("static-m", 0.25, {"layers": "0,1,2,3"}, "leaves no layer", "one layer"),
    ("token-drop", 0.5, {"after": "4"}, "after=4", "1 to 3"),
    ("dynamic-nk", 0.5, {"block": "-2"}, "block=-2", "0 chooses"),
]


@pytest.mark.parametrize("name, sparsity, knobs, problem, hint", IMPOSSIBLE)
def test_impossible_requests_name_what_is_near(
    name: str, sparsity: float, knobs: dict[str, str], problem: str, hint: str
) -> None:
    with pytest.raises(PrunescopeError) as caught:
        prune(name, tiny(), sparsity, **knobs)
    assert problem in caught.value.problem
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "name, sparsity, knobs",
    [
        ("static-nk-mlp", 0.997, {}), ("static-nk-cross", 0.992, {}),
        ("static-k-lowrank", 0.148, {}), ("static-nk", 0.75, {"rounding": "paper"}),
    ],
)  # fmt: skip
def test_the_nearest_value_that_is_named_can_be_had(
    name: str, sparsity: float, knobs: dict[str, str]
) -> None:
    assert bool(logits(prune(name, tiny(), sparsity, **knobs).model, tokens(1, 4)).isfinite().all())


def test_blocks_longer_than_the_prompt() -> None:
    model = prune("dynamic-nk", tiny(), 0.5, block="17").model
    with pytest.raises(PrunescopeError, match="block=17 is longer than the prompt of 16") as caught:
        steps(model, tokens(1, 17), 16)
    assert "--set block=15" in caught.value.hint  # a block of 16 would be the prompt itself


@pytest.mark.parametrize(
    ("block", "sparsity", "nearest"),
    [
        (16, 0.5, 15),  # one block; of two, query block 1 sees round(2 * .5) = 1
        (8, 0.25, 7),  # two blocks: round(2 * .75) = 2; of three round(3 * .75) = 2
        (4, 0.1, 3),  # four: round(4 * .9) = 4, five: round(5 * .9) = 4
    ],
)
def test_blocks_of_which_none_can_be_skipped(block: int, sparsity: float, nearest: int) -> None:
    asked = {"block": str(block)}
    with pytest.raises(PrunescopeError, match="no block can be skipped") as caught:
        steps(prune("dynamic-nk", tiny(), sparsity, **asked).model, tokens(1, 17), 16)
    assert f"--set block={nearest}" in caught.value.hint
    model = prune("dynamic-nk", tiny(), sparsity, block=str(nearest)).model
    dynamic_stats(model)
    steps(model, tokens(1, 16), 16)
    counts = dynamic_stats(model)
    assert counts
    assert all(sum(count.active) < sum(count.total) for count in counts.values())
    steps(prune("dynamic-nk", tiny(), 0.0, **asked).model, tokens(1, 16), 16)  # none is asked for


def test_a_prompt_too_short_for_any_block_to_be_skipped() -> None:
    model = prune("dynamic-nk", tiny(), 0.1, block="1").model
    with pytest.raises(PrunescopeError, match="no block can be skipped") as caught:
        steps(model, tokens(1, 4), 4)  # round(4 * .9) = 4
    assert "longer prompt" in caught.value.hint
