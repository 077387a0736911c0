"""The families on a tiny model: removed equals masked, caches shrink, the dense one stays."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import families
from prunescope.taxonomy.families import family as family_of
from prunescope.taxonomy.plan import Workload
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.calibration.scores import sample_indices
from prunescope.tracer.capture.weight_stats import weight_stats
from prunescope.tracer.model import compat
from prunescope.tracer.model.layers import decoder_layers
from prunescope.tracer.model.model_shape import model_shape
from prunescope.tracer.pruners import Applied, family_ids, family_point, pruner
from tests.tracer.dynamic_reference import steps

pytestmark = [pytest.mark.torch, pytest.mark.all_layers]

IDS = torch.randint(1024, (2, 12), generator=torch.Generator().manual_seed(3))


def apply(family: str, model: Any, sparsity: float, **knobs: str) -> Applied:
    point = family_point(family, Point(sparsity=sparsity, knobs=knobs))
    with torch.no_grad():
        return pruner(family).prune(copy.deepcopy(model), point)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def cached(model: Any) -> Any:
    cache = compat.new_cache(model)
    with torch.no_grad():
        compat.forward(model, IDS, cache=cache, logits="all")
    return cache


def small(model_type: str, **fields: Any) -> Any:
    config = AutoConfig.for_model(
        model_type,
        **{
            "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64,
            "vocab_size": 1024, "pad_token_id": None, **fields,
        },
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.requires_grad_(requires_grad=False)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_every_pruner_is_a_family_of_the_taxonomy() -> None:
    assert set(family_ids()) <= {f.id for f in families()}
    assert {"static-m", "static-nk", "static-k-mask"} <= set(family_ids())


def test_every_pruner_leaves_the_dense_model_alone(tiny: Any) -> None:
    before = logits(tiny)
    for family in ("static-m", "static-nk", "static-nk-heads", "static-nk-mlp", "static-k-mask"):
        pruned = apply(family, tiny, 0.5).model
        assert not torch.equal(logits(pruned), before)
        assert torch.equal(logits(tiny), before)
        own = {p.data_ptr() for p in tiny.parameters()}
        assert not own & {p.data_ptr() for p in pruned.parameters()}


def mask_width(model: Any, kept: dict[str, list[int]], head_dim: int, group: int) -> Any:
    """Put zeros into the dense model where static-nk cuts: columns of o and down."""
    masked = copy.deepcopy(model)
    for key, index in kept.items():
        path, kind = key.split(":")
        layer = masked.get_submodule(path)
        linear = layer.self_attn.o_proj if kind == "kv_heads" else layer.mlp.down_proj
        size = head_dim * group if kind == "kv_heads" else 1
        gone = [i for i in range(linear.in_features // size) if i not in index]
        for block in gone:
            linear.weight.data[:, block * size : (block + 1) * size] = 0
    return masked


@pytest.mark.parametrize(
    "model_type, fields",
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("qwen2", {}),  # biases on q, k, v
        ("qwen3", {}),  # norms of q and k
        ("mistral", {"sliding_window": None}),
        ("phi3", {}),  # q, k, v in one linear, gate and up in another
    ],
)
@pytest.mark.parametrize("family", ["static-nk", "static-nk-heads", "static-nk-mlp"])
def test_static_nk_removed_equals_masked(
    family: str, model_type: str, fields: dict[str, Any]
) -> None:
    dense = small(model_type, **fields)
    applied = apply(family, dense, 0.5)
    masked = mask_width(dense, applied.kept, head_dim=8, group=2)
    torch.testing.assert_close(logits(applied.model), logits(masked), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits(masked), logits(dense), rtol=1e-4, atol=1e-5)


def test_static_nk_shapes(tiny: Any) -> None:
    model = apply("static-nk", tiny, 0.5).model
    layer = model.model.layers[3]
    # 2 of 4 KV heads of 16, 4 of 8 query heads, up16(176) = 176 channels
    assert tuple(layer.self_attn.q_proj.weight.shape) == (64, 128)
    assert tuple(layer.self_attn.k_proj.weight.shape) == (32, 128)
    assert tuple(layer.self_attn.o_proj.weight.shape) == (128, 64)
    assert tuple(layer.mlp.up_proj.weight.shape) == (176, 128)
    assert tuple(layer.mlp.down_proj.weight.shape) == (128, 176)
    assert layer.mlp.down_proj.in_features == 176
    assert all(p.is_contiguous() for p in model.parameters())
    config = model.config
    assert (config.num_attention_heads, config.num_key_value_heads) == (4, 2)
    assert (config.head_dim, config.intermediate_size) == (16, 176)
    assert compat.cache_bytes(cached(model)) * 2 == compat.cache_bytes(cached(tiny))


def test_families_keep_what_their_theory_aligns(tiny: Any) -> None:
    shape, work = model_shape(tiny), Workload(phase="prefill", prompt_len=16)
    for name in ("static-nk-mlp", "static-nk-cross", "static-k-lowrank"):
        for align in ("1", "odd", "just-4", "32"):
            chosen = family_of(name)
            ops = chosen.theory(shape, work, chosen.point(0.4, {"align": align}))
            gate = [gemm for op in ops if op.role == "gate" for gemm in op.gemms]
            mlp = apply(name, tiny, 0.4, align=align).model.model.layers[0].mlp.gate_proj
            weights = [list(p.shape) for p in mlp.parameters()]
            assert weights == [[gemm.n, gemm.k] for gemm in gate], (name, align)


def test_static_nk_rounding(tiny: Any) -> None:
    # 4 KV heads x 0.6 = 2.4: nearest 2 heads; x 0.65 = 2.6: nearest 3, int() 2
    assert apply("static-nk", tiny, 0.4).model.config.num_key_value_heads == 2
    assert apply("static-nk", tiny, 0.35).model.config.num_key_value_heads == 3
    paper = apply("static-nk", tiny, 0.35, rounding="paper").model
    assert paper.config.num_key_value_heads == 2


def test_saved_and_loaded_again_it_is_the_same(tiny: Any, tmp_path: Any) -> None:
    for family in ("static-m", "static-nk"):
        model = apply(family, tiny, 0.5).model
        model.save_pretrained(tmp_path / family)
        again = AutoModelForCausalLM.from_pretrained(tmp_path / family)
        assert torch.equal(logits(model), logits(again))


def identity_layers(model: Any, gone: list[int], part: str) -> Any:
    """Put zeros into the dense model where static-m cuts: what o and down write into the stream."""
    masked = copy.deepcopy(model)
    for index in gone:
        layer = masked.model.layers[index]
        if part in ("layer", "attention"):
            layer.self_attn.o_proj.weight.data.zero_()
        if part in ("layer", "mlp"):
            layer.mlp.down_proj.weight.data.zero_()
    return masked


@pytest.mark.parametrize("unit", ["layer", "attention", "mlp"])
def test_static_m_removed_equals_masked(tiny: Any, unit: str) -> None:
    applied = apply("static-m", tiny, 0.5, unit=unit)
    gone = applied.record["removed"][unit]
    assert len(gone) == 4
    masked = identity_layers(tiny, gone, unit)
    torch.testing.assert_close(logits(applied.model), logits(masked), rtol=1e-4, atol=1e-5)


def test_static_m_cache(tiny: Any) -> None:
    whole = compat.cache_bytes(cached(tiny))
    assert compat.cache_bytes(cached(apply("static-m", tiny, 0.5).model)) == whole // 2
    attention = apply("static-m", tiny, 0.5, unit="attention")
    assert compat.cache_bytes(cached(attention.model)) == whole // 2
    assert cached(attention.model).get_seq_length() == 12
    mlp = apply("static-m", tiny, 0.5, unit="mlp")
    assert compat.cache_bytes(cached(mlp.model)) == whole
    assert attention.layer_map is None  # nothing is renumbered


def test_static_m_decodes_as_it_prefills(tiny: Any) -> None:
    """A cache that was renumbered wrongly would mix layers up."""
    for unit in ("layer", "attention", "sublayers"):
        model = apply("static-m", tiny, 0.5, unit=unit).model
        actual, _ = steps(model, IDS, 1)
        torch.testing.assert_close(torch.cat(actual, 1), logits(model), rtol=1e-3, atol=1e-4)


def test_static_m_named_layers(tiny: Any) -> None:
    applied = apply("static-m", tiny, 0.25, layers="1, 6,7")
    assert applied.layer_map == [0, 2, 3, 4, 5]
    assert applied.record["sparsity"] == 3 / 8
    for text in ("8", "x", "-1", ",", "0,1,2,3,4,5,6,7"):
        with pytest.raises(PrunescopeError):
            apply("static-m", tiny, 0.25, layers=text)


def test_layer_types_follow_their_layers() -> None:
    model = small("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=2)
    kinds = list(model.config.layer_types)
    assert len(set(kinds)) == 2
    applied = apply("static-m", model, 0.5, layers="0,3")
    assert applied.model.config.layer_types == [kinds[1], kinds[2]]
    masked = identity_layers(model, [0, 3], "layer")
    torch.testing.assert_close(logits(applied.model), logits(masked), rtol=1e-4, atol=1e-5)
    applied = apply("static-m", model, 0.5, unit="attention")
    masked = identity_layers(model, applied.record["removed"]["attention"], "attention")
    torch.testing.assert_close(logits(applied.model), logits(masked), rtol=1e-4, atol=1e-5)


def test_static_k_mask(tiny: Any) -> None:
    rows = weight_stats(apply("static-k-mask", tiny, 0.5).model).matrices
    layers = [row for row in rows if row.layer is not None]
    assert len(layers) == 8 * 7
    assert {row.zeros for row in layers} == {0.5}
    assert {row.zeros for row in rows if row.layer is None} == {0.0}
    model = apply("static-k-mask", tiny, 0.5).model
    old, new = (m.model.layers[0].mlp.up_proj.weight for m in (tiny, model))
    smallest_kept = torch.where(new != 0, old.abs(), torch.inf).min(1).values
    largest_gone = torch.where(new == 0, old.abs(), 0).max(1).values
    assert bool((largest_gone <= smallest_kept).all())
    random = weight_stats(apply("static-k-mask", tiny, 0.5, score="random").model).matrices
    share = next(r.zeros for r in random if r.role == "down")
    assert 0.48 < share < 0.52
    assert share != 0.5


def test_unknown_knobs_and_choices(tiny: Any) -> None:
    with pytest.raises(PrunescopeError, match="no option 'deepth'"):
        apply("static-m", tiny, 0.5, deepth="1")
    with pytest.raises(PrunescopeError, match="unit"):
        apply("static-m", tiny, 0.5, unit="block")
    with pytest.raises(PrunescopeError, match="nearest: static-"):
        pruner("static-q")


def test_models_that_cannot_be_cut_are_named() -> None:
    mixers = small("mamba", state_size=4)
    with pytest.raises(PrunescopeError, match="recurrent state"):
        apply("static-nk-heads", mixers, 0.5)
    with pytest.raises(PrunescopeError, match="no MLP"):
        apply("static-nk-mlp", mixers, 0.5)
    assert decoder_layers(mixers)[0] == "backbone.layers"


def test_states_of_other_mixers_are_part_of_the_cache() -> None:
    assert compat.cache_bytes(cached(small("mamba", state_size=4))) > 0


def test_draws_do_not_depend_on_the_machine() -> None:
    assert sample_indices(8, 4, seed=0, what="kv-heads 0") == sample_indices(
        8, 4, seed=0, what="kv-heads 0"
    )
    drawn = {tuple(sample_indices(32, 8, seed=s, what="x")) for s in range(5)}
    assert len(drawn) == 5
    assert sample_indices(10, 3, seed=7, what="layers") == [0, 1, 5]
