"""Every architecture of the table: roles of its modules, and pruned is what masked is."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

from prunescope.taxonomy.configs.architecture_table import ARCHITECTURES
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.roles import locate, matrix_role
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.model import compat
from prunescope.tracer.model.layers import decoder_layers
from prunescope.tracer.pruners import Applied, family_point, pruner
from tests.described import describe
from tests.tracer.tiny_models import MORE, TINY, tiny_model

pytestmark = pytest.mark.torch

IDS = torch.randint(2, 500, (2, 12), generator=torch.Generator().manual_seed(1))
FAMILIES = ("static-m", "static-nk", "static-nk-heads", "static-nk-mlp", "static-k-mask")
ONE_KV_HEAD = {"falcon"}
HYBRIDS = {"qwen3_next", "granite4", "lfm2"}


@cache
def dense(name: str) -> Any:
    return tiny_model(name)


def apply(family: str, model: Any, sparsity: float, **knobs: Any) -> Applied:
    point = family_point(family, Point(sparsity=sparsity, knobs=knobs))
    with torch.no_grad():
        return pruner(family).prune(copy.deepcopy(model), point)


@cache
def pruned(family: str, name: str, **knobs: Any) -> Applied:
    """Half of a dense model: what is built once is run by several tests, and changed by none."""
    return apply(family, dense(name), 0.5, **knobs)


def without_first(name: str, unit: str = "layer") -> Applied:
    """Remove the first layer, which has a state in a hybrid.

    The second layer has attention, and not all attentions can be removed.
    """
    return pruned("static-m", name, unit=unit, layers="0")


def logits(model: Any) -> torch.Tensor:
    """Of all 12 tokens in one prefill."""
    with torch.no_grad():
        return compat.forward(model, IDS, cache=compat.new_cache(model), logits="all").logits


@cache
def dense_logits(name: str) -> torch.Tensor:
    return logits(dense(name))


def decoded(model: Any) -> tuple[torch.Tensor, Any]:
    """Of a prefill of 8 tokens and 4 decoded one by one, and the cache."""
    kv = compat.new_cache(model)
    parts = (IDS[:, :8], *IDS[:, 8:].split(1, 1))
    with torch.no_grad():
        steps = [compat.forward(model, p, cache=kv, logits="all").logits for p in parts]
    return torch.cat(steps, 1), kv


def matrices(model: Any) -> Iterator[tuple[str, Any, str, Any]]:
    """(path, module, parameter, view [.., N, K]) of the matrices in the layers."""
    name, layers = decoder_layers(model)
    for path, module in layers.named_modules(prefix=name):
        for key, parameter in module.named_parameters(recurse=False):
            plain = "norm" not in path and type(module).__name__ != "Conv1d"
            if parameter.dim() in (2, 3) and plain and not key.endswith("bias"):
                turned = type(module).__name__ == "Conv1D" or getattr(module, "is_transposed", 0)
                full = path if key == "weight" else f"{path}.{key}"
                yield full, module, key, parameter.data.mT if turned else parameter.data


def masked_width(model: Any, kept: dict[str, Any], counts: dict[str, int]) -> Any:
    """Return the dense model with zeros where static-nk cuts.

    These are the inputs of o and of every down, and q and k where a norm spans all heads.
    """
    masked = copy.deepcopy(model)
    for path, _, _, weight in matrices(masked):
        place, role = locate(path), matrix_role(path)
        layer = path[: path.index(f".{place.layer}") + 1 + len(str(place.layer))]
        if role == "down":
            owners = (path.rpartition(".")[0], layer)
            owner = next((k for k in owners if f"{k}:channels" in kept), None)
            if owner is None:
                continue
            index = torch.tensor(kept[f"{owner}:channels"])
            for expert in range(len(index)) if index.dim() == 2 else (None,):
                gone = torch.ones(weight.shape[-1], dtype=torch.bool)
                gone[index if expert is None else index[expert]] = False
                (weight if expert is None else weight[expert])[:, gone] = 0
        elif f"{layer}:kv_heads" in kept and place.scope == "attention":
            gone = [g for g in range(counts["kv"]) if g not in kept[f"{layer}:kv_heads"]]
            if role == "o":
                _blocks(weight.mT, counts["kv"])[gone] = 0
            elif counts["wide"] and role in ("q", "k"):
                _blocks(weight, counts["kv"])[gone] = 0
    return masked


def _blocks(weight: torch.Tensor, parts: int) -> torch.Tensor:
    return weight.unflatten(0, (parts, -1))


def kv_heads(name: str) -> int:
    config = dense(name).config
    if name.startswith("deepseek") or name in ("gpt2", "opt") or "neox" in name:
        return 4
    if name.startswith("falcon") and name != "falcon_h1":
        return {"falcon": 1, "falcon grouped": 2, "falcon multi-head": 4}[name]
    return int(config.num_key_value_heads)


def assert_same(model: Any, oracle: Any, name: str) -> None:
    wanted = logits(oracle)
    torch.testing.assert_close(logits(model), wanted, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(wanted, dense_logits(name), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["static-nk", "static-nk-heads", "static-nk-mlp"])
@pytest.mark.parametrize("name", TINY)
def test_cut_equals_masked(name: str, family: str) -> None:
    if family == "static-nk-heads" and name in ONE_KV_HEAD:
        with pytest.raises(PrunescopeError, match="single KV head"):
            apply(family, dense(name), 0.5)
        return
    applied = pruned(family, name)
    counts = {"kv": kv_heads(name), "wide": name == "olmo2"}
    assert_same(applied.model, masked_width(dense(name), applied.kept, counts), name)
    heads = [key for key in applied.kept if key.endswith(":kv_heads")]
    channels = [key for key in applied.kept if key.endswith(":channels")]
    assert bool(heads) == (family != "static-nk-mlp")
    assert bool(channels) == (family != "static-nk-heads")
    fewer = sum(p.numel() for p in applied.model.parameters())
    assert fewer < sum(p.numel() for p in dense(name).parameters())
    assert all(p.is_contiguous() for p in applied.model.parameters())


def masked_sublayers(model: Any, gone: dict[str, list[int]]) -> Any:
    """Return the dense model with zeros in all that the sublayers write to the stream."""
    masked = copy.deepcopy(model)
    writers = {"attention": ("o", "mixer_out"), "mlp": ("down",)}
    for path, module, key, weight in matrices(masked):
        for kind, roles in writers.items():
            if locate(path).layer in gone.get(kind, ()) and matrix_role(path) in roles:
                weight.zero_()
                bias = getattr(module, "bias" if key == "weight" else f"{key}_bias", None)
                if bias is not None:
                    bias.data.zero_()
    return masked


@pytest.mark.parametrize("unit", ["layer", "attention", "mlp"])
@pytest.mark.parametrize("name", TINY)
def test_removed_equals_masked(name: str, unit: str) -> None:
    applied = without_first(name, unit)
    kinds = ("attention", "mlp") if unit == "layer" else (unit,)
    assert_same(applied.model, masked_sublayers(dense(name), {k: [0] for k in kinds}), name)


@pytest.mark.parametrize("name", sorted(HYBRIDS))
@pytest.mark.parametrize("unit", ["layer", "attention"])
def test_the_last_attention_of_a_hybrid_stays(name: str, unit: str) -> None:
    with pytest.raises(PrunescopeError, match="no attention would be left"):
        apply("static-m", dense(name), 0.5, unit=unit, layers="1")


@pytest.mark.parametrize("name", TINY)
def test_pruned_models_decode_as_they_prefill(name: str) -> None:
    """The same logits from a cache: its layers are numbered rightly."""
    models = [without_first(name, unit) for unit in ("layer", "attention", "mlp")]
    models += [pruned("static-nk", name), apply("static-k-mask", dense(name), 0.5)]
    for applied in models:
        steps, kv = decoded(applied.model)
        torch.testing.assert_close(steps, logits(applied.model), rtol=1e-3, atol=1e-4)
        assert all(layer.is_initialized for layer in kv.layers if hasattr(layer, "is_initialized"))


@pytest.mark.parametrize("name", TINY)
def test_nothing_removed_is_the_dense_model(name: str) -> None:
    for family in FAMILIES:
        model = apply(family, dense(name), 0.0).model
        torch.testing.assert_close(logits(model), dense_logits(name), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", TINY)
def test_a_pruned_cache_is_smaller(name: str) -> None:
    """Heads cut, or a layer's attention: fewer bytes. Latent attention caches no heads."""
    whole = compat.cache_bytes(decoded(dense(name))[1])
    gone = compat.cache_bytes(decoded(without_first(name).model)[1])
    assert gone < whole
    if name not in ONE_KV_HEAD:
        heads = compat.cache_bytes(decoded(pruned("static-nk-heads", name).model)[1])
        assert (heads == whole) if name.startswith("deepseek") else (heads < whole)


# What each architecture has beside a norm, a projection of the usual name and an activation.
_COMMON = {"embedding", "attn_norm", "o", "mlp_norm", "activation", "final_norm", "lm_head"}
_APART, _GATED = {"q", "k", "v"}, {"gate", "up", "down"}
_LLAMA = _COMMON | _APART | _GATED | {"rope"}
_LATENT_ROLES = _COMMON | {"kv_a", "kv_b", "qk_norm", "rope", "router", "experts", "shared_expert"}
_MIXER = {"mixer_in", "conv", "mixer_out"}
ROLES_OF = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA | {"qk_norm"},
    "gemma2": _LLAMA,
    "gemma3": _LLAMA | {"qk_norm"},
    "phi3": _COMMON | {"qkv", "gate_up", "down", "rope"},
    "phi": _COMMON - {"mlp_norm"} | _APART | {"up", "down", "rope"},
    "gpt2": _COMMON | {"qkv", "up", "down"},
    "gpt_neox": _COMMON | {"qkv", "up", "down", "rope"},
    "gpt_neox sequential": _COMMON | {"qkv", "up", "down", "rope"},
    "olmo2": _LLAMA | {"qk_norm"},
    "granite": _LLAMA,
    "stablelm": _LLAMA | {"qk_norm"},
    "stablelm parallel": _LLAMA - {"mlp_norm"},
    "smollm3": _LLAMA,
    "falcon": _COMMON - {"mlp_norm"} | {"qkv", "up", "down", "rope"},
    "falcon grouped": _COMMON | {"qkv", "up", "down", "rope"},
    "falcon multi-head": _COMMON | {"qkv", "up", "down", "rope"},
    "opt": _COMMON | _APART | {"up", "down"},
    "cohere": _LLAMA - {"mlp_norm"} | {"qk_norm"},
    "cohere2": _LLAMA - {"mlp_norm"},
    "mixtral": _LLAMA - _GATED - {"activation"} | {"router", "experts"},
    "qwen2_moe": _LLAMA - _GATED - {"activation"} | {"router", "experts", "shared_expert"},
    "qwen3_moe": _LLAMA - _GATED - {"activation"} | {"qk_norm", "router", "experts"},
    "gpt_oss": _LLAMA - _GATED - {"activation"} | {"router", "experts"},
    "deepseek_v2": _LATENT_ROLES | _GATED | {"q"},
    "deepseek_v3": _LATENT_ROLES | _GATED | {"q_a", "q_b"},
    "qwen3_next": _LLAMA - _GATED - {"activation"} | _MIXER
    | {"qk_norm", "router", "experts", "shared_expert", "scan"},
    "falcon_h1": _LLAMA | _MIXER | {"scan"},
    "granite4": _LLAMA - _GATED - {"rope"} | _MIXER
    | {"router", "experts", "shared_expert", "scan"},
    "lfm2": _LLAMA - {"activation"} | _MIXER | {"qk_norm"},
}  # fmt: skip
_SCOPES = {
    "attention": {"q", "k", "v", "qkv", "q_a", "q_b", "kv_a", "kv_b", "qk_norm", "o"},
    "mlp": {"gate", "up", "gate_up", "down", "router", "experts", "shared_expert", "activation"},
    "mixer": {"mixer_in", "conv", "scan", "mixer_out", "activation"},
    "layer": {"attn_norm", "mlp_norm"},
    "model": {"embedding", "rope", "final_norm", "lm_head"},
}


def leaves(model: Any) -> Iterator[tuple[str, Any]]:
    for path, module in model.named_modules():
        own = next(module.parameters(recurse=False), None) is not None
        if path and (own or not list(module.children())) and "Dropout" not in type(module).__name__:
            yield path, module


@pytest.mark.parametrize("name", TINY)
def test_every_module_has_its_role(name: str) -> None:
    model = dense(name)
    actual: set[str] = set()
    for path, module in leaves(model):
        place = locate(path, model.config.model_type)
        holds_parts = list(module.children()) and place.role == "unknown"
        # A mixer or an attention with numbers of its own is known by its scope alone.
        assert holds_parts and place.scope in ("attention", "mixer") or place.role != "unknown", (
            path
        )
        if place.role != "unknown":
            assert place.role in _SCOPES[place.scope], (path, place)
            actual.add(place.role)
        numbers = [int(part) for part in path.split(".") if part.isdecimal()]
        assert place.layer == (numbers[0] if numbers else None), path
    assert actual == ROLES_OF[name]


@pytest.mark.parametrize("name", TINY)
def test_matrices_multiply_as_their_roles_say(name: str) -> None:
    """Readers of the stream have K = hidden, writers N = hidden, whatever the names are."""
    model = dense(name)
    hidden = model.config.hidden_size
    readers = ("q", "k", "v", "qkv", "q_a", "kv_a", "gate", "up", "gate_up", "mixer_in", "router")
    for path, _, _, weight in matrices(model):
        role = matrix_role(path)
        if role in readers:
            assert weight.shape[-1] == hidden, path
        elif role in ("o", "down", "mixer_out"):
            assert weight.shape[-2] == hidden, path
        elif role != "unknown":
            assert role in ("q_b", "kv_b"), path


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "olmo2"])
def test_a_norm_after_attention_is_told_by_the_architecture(name: str) -> None:
    path = "model.layers.1.post_attention_layernorm"
    assert locate(path).role == "mlp_norm"
    assert locate(path, dense(name).config.model_type).role == "attn_norm"


def test_every_entry_of_the_table_is_a_model_type_of_transformers() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    ids = [name for entry in ARCHITECTURES for name in entry.ids]
    assert len(ids) == len(set(ids))
    assert set(ids) <= set(CONFIG_MAPPING_NAMES)
    built = {dense(name).config.model_type for name in TINY} | {kind for kind, _ in MORE.values()}
    assert built == set(ids)


def test_alibi_and_unknown_layouts_are_refused_with_the_reason() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    small = {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 512}
    bloom = AutoModelForCausalLM.from_config(AutoConfig.for_model("bloom", **small))
    with pytest.raises(PrunescopeError, match="ALiBi"):
        apply("static-nk", bloom, 0.5)
    assert apply("static-nk-mlp", bloom, 0.5).record["kept"]["intermediate"] == [128, 128]
    fields = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 512, "n_positions": 64}
    bigcode = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt_bigcode", **fields))
    with pytest.raises(PrunescopeError, match="order of rows"):
        apply("static-nk", bigcode, 0.5)


def test_a_cache_index_of_another_name_is_renumbered() -> None:
    """GPT-Neo calls it layer_id."""
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {
        "hidden_size": 64, "num_layers": 4, "num_heads": 4, "vocab_size": 512,
        "attention_types": [[["global", "local"], 2]], "max_position_embeddings": 64,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt_neo", **fields)).eval()
    pruned = apply("static-m", model, 0.5).model
    steps, kv = decoded(pruned)
    torch.testing.assert_close(steps, logits(pruned), rtol=1e-3, atol=1e-4)
    assert len(kv.layers) == 2


def test_an_architecture_without_an_entry_is_checked_as_it_is_pruned() -> None:
    """DiffLlama pairs its heads: half of them alone are another attention."""
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512,
        "num_key_value_heads": 4, "intermediate_size": 96, "head_dim": 16,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("diffllama", **fields)).eval()
    with pytest.raises(PrunescopeError, match="DiffLlama"):
        apply("static-nk-heads", model, 0.5)
    exaone = AutoModelForCausalLM.from_config(AutoConfig.for_model("exaone4", **fields)).eval()
    kept = apply("static-nk", exaone, 0.5).record["kept"]
    assert [len(heads) for heads in kept["kv_heads"]] == [2, 2]
    assert kept["intermediate"] == [48, 48]


HYBRID = ("qwen3_next", "granite4", "lfm2")  # their first layer has no attention to rank tokens


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_what_families_architecture_says_is_so(name: str) -> None:
    """A family that is said to be realised prunes the model, which then runs.

    A static family that is said not to be realised ends in a sentence.
    """
    model = dense(name)
    for entry in describe(model.config.to_dict())["families"]:
        knobs = {"after": 2 if name in HYBRID else 1} if entry["id"] == "token-drop" else {}
        if entry["realised"]:
            steps, _ = decoded(apply(entry["id"], model, 0.5, **knobs).model)
            assert bool(steps.isfinite().all()), entry["id"]
        elif entry["id"].startswith("static"):
            with pytest.raises(PrunescopeError):
                apply(entry["id"], model, 0.5)
