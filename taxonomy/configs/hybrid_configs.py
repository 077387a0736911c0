"""Configs of hybrids and of layers that differ, rewritten in the keys that other configs have.

In: a config of a model type whose row names one of `REWRITES`, or one with transformers'
`per_layer_config` or `mlp_layer_types`. Out: the same with one list entry per layer, and, under
OWN_FIELDS and OWN_LAYERS, the fields of ModelShape and LayerShape that no key of another config can
say. A value there is a `Derived`, which no JSON file can hold. Sources: configuration_*.py and
modeling_*.py of each type in transformers 5.24.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prunescope.taxonomy.configs.architecture_table import ATTENTION_KINDS, MLP_KINDS, unwritten
from prunescope.taxonomy.errors import PrunescopeError

Config = dict[str, Any]
OWN_FIELDS, OWN_LAYERS = "own fields", "own layers"  # keys that this module adds
_LAYER_KEYS = (
    "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
    "num_local_experts", "num_experts", "n_routed_experts", "num_experts_per_tok",
    "moe_intermediate_size",
)  # fmt: skip


class Derived(dict[str, Any]):
    """Fields that were computed from a config."""


def rewritten(cfg: Mapping[str, Any]) -> Config:
    """Return the config in the keys of other configs; a copy where there is nothing to rewrite.

    Raises:
        PrunescopeError: A layer has a key of its own that changes shapes and that nobody reads.
    """
    same = {key: value for key, value in cfg.items() if key not in (OWN_FIELDS, OWN_LAYERS)}
    code = unwritten(str(cfg.get("model_type"))).layers_code
    rewrite = REWRITES.get(code)
    layers = cfg.get("num_hidden_layers")
    kinds = cfg.get("mlp_layer_types")
    if isinstance(kinds, list) and kinds and "mlp_only_layers" not in cfg:
        same["mlp_only_layers"] = [i for i, kind in enumerate(kinds) if kind == "dense"]
        same = {key: value for key, value in same.items() if key != "first_k_dense_replace"}
    if rewrite is not None:
        same = rewrite(same)
    if cfg.get("per_layer_config") and isinstance(layers, int) and rewrite is not _gemma4:
        same |= _lists_of_layers(same, cfg["per_layer_config"], layers)
    return same


def own_fields(cfg: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields of ModelShape that a rewritten config holds."""
    fields = cfg.get(OWN_FIELDS)
    return fields if isinstance(fields, Derived) else {}


def own_layers(cfg: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the fields of LayerShape of each layer that a rewritten config holds, or no list."""
    layers = cfg.get(OWN_LAYERS)
    return list(layers["layers"]) if isinstance(layers, Derived) else []


def layer_overrides(cfg: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    """Return the keys that `per_layer_config` gives one layer."""
    written = cfg.get("per_layer_config")
    if not isinstance(written, Mapping):
        return {}
    for key, own in written.items():  # written as "5", and as "05" of ten layers or more
        if str(key).isdecimal() and int(key) == number and isinstance(own, Mapping):
            return own
    return {}


def _lists_of_layers(cfg: Config, written: object, layers: int) -> Config:
    """Return a list with one entry per layer for each key that some layer has of its own."""
    if not isinstance(written, Mapping):
        raise PrunescopeError(
            "per_layer_config of the config is no object", hint="check its config.json"
        )
    overrides = [layer_overrides(cfg, number) for number in range(layers)]
    keys = sorted({str(key) for own in overrides for key in own})
    unread = [key for key in keys if key not in _LAYER_KEYS]
    if unread:
        raise PrunescopeError(
            f"per_layer_config of the config gives layers {', '.join(unread)} of their own",
            hint=f"layers may differ in {', '.join(_LAYER_KEYS)}",
        )
    lists: Config = {}
    for key in keys:
        usual = cfg.get(key)
        whole = isinstance(usual, list) and len(usual) == layers
        lists[key] = [
            own.get(key, usual[number] if whole and isinstance(usual, list) else usual)
            for number, own in enumerate(overrides)
        ]
    return lists


def _layer_list(cfg: Config, *keys: str) -> list[str]:
    """Return the first list of kinds under these keys, or an empty one."""
    for key in keys:
        if isinstance(cfg.get(key), list):
            return [str(kind) for kind in cfg[key]]
    return []


def _size(cfg: Config, key: str, usual: int = 0) -> int:
    """Return a whole number of a config; `usual` where the key is absent."""
    value = cfg.get(key)
    if value is None:
        return usual
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**40:
        raise PrunescopeError(
            f"{key} of the config is {str(value)[:40]!r}, not a whole number",
            hint="check its config.json",
        )
    return value


_MIXER = "linear_attention"  # a layer whose mixer is no attention
_NEMOTRON = {"M": _MIXER, "*": "attention", "-": "mlp", "E": "moe"}


def _nemotron_h(cfg: Config) -> Config:
    """Rewrite a Nemotron-H: each layer is a mixer, an attention, an MLP or experts, and no more."""
    kinds = _layer_list(cfg, "layers_block_type", "layer_types")
    if not kinds:
        pattern = str(cfg.get("hybrid_override_pattern", ""))
        kinds = [_NEMOTRON.get(letter, letter) for letter in pattern or "ME*-"]
    if cfg.get("moe_latent_size") and "moe" in kinds:
        raise PrunescopeError(
            "moe_latent_size of the config gives its experts an input of their own",
            hint="experts that read a latent are not known",
        )
    attends = [kind not in ("mlp", "moe") for kind in kinds]
    channels = [kind in ("mlp", "moe") for kind in kinds]
    experts = "moe" in kinds
    heads = _size(cfg, "mamba_num_heads", 128)
    return {
        **cfg,
        "num_hidden_layers": len(kinds),
        "layer_types": [
            "attention" if kind in ("attention", "full_attention", "mlp", "moe") else _MIXER
            for kind in kinds
        ],
        "mlp_only_layers": [i for i, kind in enumerate(kinds) if kind != "moe"],
        ATTENTION_KINDS: ["usual" if has else "none" for has in attends],
        MLP_KINDS: ["usual" if has else "none" for has in channels],
        "num_local_experts": None,
        "n_routed_experts": _size(cfg, "n_routed_experts") if experts else 0,
        "shared_expert_intermediate_size": _size(cfg, "moe_shared_expert_intermediate_size")
        if _size(cfg, "n_shared_experts", 1)
        else None,
        "mamba_n_heads": heads,
        "mamba_d_ssm": heads * _size(cfg, "mamba_head_dim", 64),
        "mamba_n_groups": _size(cfg, "n_groups", 8),
        "mamba_d_state": _size(cfg, "ssm_state_size", 128),
        "mamba_d_conv": _size(cfg, "conv_kernel", 4),
        "mamba_chunk_size": _size(cfg, "chunk_size", 128),
        "mamba_conv_bias": cfg.get("use_conv_bias", True),
        "mamba_proj_bias": cfg.get("use_bias", False),
        "use_bias": False,
        "sliding_window": None,
    }


def _jamba(cfg: Config) -> Config:
    """Rewrite a Jamba: attention and experts in layers of two periods, each with an offset."""
    layers = _size(cfg, "num_hidden_layers")
    period, offset = _size(cfg, "attn_layer_period", 8), _size(cfg, "attn_layer_offset", 4)
    every, first = _size(cfg, "expert_layer_period", 2), _size(cfg, "expert_layer_offset", 1)
    numbers = range(layers)
    return {
        **cfg,
        "attn_layer_period": None,
        "layer_types": ["attention" if i % period == offset else _MIXER for i in numbers],
        "mlp_only_layers": [i for i in numbers if i % every != first],
        "sliding_window": None,
    }


# The layers where a config does not list them: 54, of which every sixth or so has a shared block.
_ZAMBA2 = [_MIXER, *([_MIXER] * 5 + ["hybrid"]) * 7, *[_MIXER] * 4, "hybrid", *[_MIXER] * 3,
           "hybrid", *[_MIXER] * 2]  # fmt: skip


def _zamba2(cfg: Config) -> Config:
    """Rewrite a Zamba2: before some mixers stands a block of attention and MLP that they share.

    Such a block is a layer of its own here, of which `num_mem_blocks` are stored. It reads the
    stream and the embedding side by side. A matrix behind it and the adapters are each layer's own.
    """
    kinds = _layer_list(cfg, "layers_block_type", "layer_types") or list(_ZAMBA2)
    hidden = _size(cfg, "hidden_size")
    heads = _size(cfg, "num_attention_heads", 32)
    width = _size(cfg, "intermediate_size") or 4 * hidden
    rank, inner = _size(cfg, "adapter_rank", 128), 2 * hidden
    more = [("linear", hidden, hidden), ("adapter_a", rank, hidden), ("adapter_b", 2 * width, rank)]
    if cfg.get("use_shared_attention_adapter"):
        for role in "qkv":
            more += [(f"{role}_adapter_a", rank, inner), (f"{role}_adapter_b", inner, rank)]
    order = [kind for each in kinds for kind in ([*["attention"][: each == "hybrid"], _MIXER])]
    attends = [kind == "attention" for kind in order]
    own = {"mlp_more": tuple(more), "attention_extras": hidden}  # a norm of twice the width
    return {
        **cfg,
        "num_hidden_layers": len(order),
        "layer_types": order,
        "head_dim": inner // heads,
        "attention_head_dim": None,
        "kv_channels": None,
        "intermediate_size": width,
        "attention_bias": False,
        "mlp_bias": bool(cfg.get("add_bias_linear")),
        MLP_KINDS: ["usual" if has else "none" for has in attends],
        "mamba_n_heads": _size(cfg, "n_mamba_heads", 8),
        "mamba_n_groups": _size(cfg, "mamba_ngroups", 1),
        "mamba_d_state": _size(cfg, "mamba_d_state", 64),
        "mamba_d_conv": _size(cfg, "mamba_d_conv", 4),
        "mamba_expand": cfg.get("mamba_expand", 2),
        "mamba_conv_bias": cfg.get("use_conv_bias", True),
        "mamba_proj_bias": bool(cfg.get("add_bias_linear")),
        "mamba_chunk_size": _size(cfg, "chunk_size", 256),
        OWN_FIELDS: Derived(attention_reads=inner, shared_blocks=_size(cfg, "num_mem_blocks", 1)),
        OWN_LAYERS: Derived(layers=[own if has else {} for has in attends]),
    }


def _kimi_linear(cfg: Config) -> Config:
    """Rewrite a Kimi Linear: the numbers of its layers with attention count from 1."""
    layers, inner = _size(cfg, "num_hidden_layers"), cfg.get("linear_attn_config")
    same = dict(cfg)
    if isinstance(inner, Mapping):
        full = inner.get("full_attn_layers")
        if isinstance(full, list):
            kinds = ["attention" if i + 1 in full else "linear" for i in range(layers)]
            same["layer_types"] = kinds
        for key, other in (
            ("linear_head_dim", "head_dim"),
            ("linear_num_heads", "num_heads"),
            ("linear_conv_kernel_dim", "short_conv_kernel_size"),
        ):
            same[key] = inner.get(other, same.get(key))
    for name, key in (("n_shared_experts", "num_shared_experts"), ("n_group", "num_expert_group")):
        same[name] = same.get(name, same.get(key))
    return {**same, "head_dim": None}


def _minimax(cfg: Config) -> Config:
    """Rewrite a MiniMax: `attn_type_list` has 1 for softmax attention and 0 for lightning's."""
    kinds = cfg.get("attn_type_list")
    if not isinstance(kinds, list):
        return cfg
    return {**cfg, "layer_types": ["attention" if kind else "linear_attention" for kind in kinds]}


def _recurrent_gemma(cfg: Config) -> Config:
    """Rewrite a RecurrentGemma: blocks in turns, and an MLP of half the width that is written."""
    layers, blocks = (
        _size(cfg, "num_hidden_layers"),
        _layer_list(cfg, "block_types"),
    )
    blocks = blocks or ["recurrent", "recurrent", "attention"]
    kinds = [blocks[i % len(blocks)] for i in range(layers)]
    return {
        **cfg,
        "layer_types": ["sliding_attention" if k == "attention" else "recurrent" for k in kinds],
        "sliding_window": _size(cfg, "attention_window_size", 2048),
        "intermediate_size": _size(cfg, "intermediate_size") // 2,
        "mlp_bias": True,
    }


def _indexed(cfg: Config) -> Config:
    """Rewrite a model with an indexer: every layer attends to the keys that it chooses."""
    types = _layer_list(cfg, "indexer_types")
    frequency = max(1, _size(cfg, "index_topk_freq", 1))
    if "shared" in types or "S" in str(cfg.get("index_topk_pattern", "")) or frequency > 1:
        raise PrunescopeError(
            "indexer_types of the config lets layers share the keys that another one chose",
            hint="an indexer in each layer is known",
        )
    fields = Derived(
        index_heads=_size(cfg, "index_n_heads"),
        index_dim=_size(cfg, "index_head_dim"),
        index_keys=_size(cfg, "index_topk"),
        index_rank=_size(cfg, "q_lora_rank"),
    )
    return {**cfg, "layer_types": None, "head_dim": None, OWN_FIELDS: fields}


def _shared_from(cfg: Config, layers: int) -> int:
    """Return the number of the first layer that has no keys and values of its own."""
    return layers - _size(cfg, "num_kv_shared_layers")


def _own_inputs(cfg: Config, hidden: int, layers: int) -> tuple[list[Any], list[Any], int]:
    """Return the matrices of a layer, those outside, and numbers outside, of per-layer embeddings.

    Each token has a row for each layer in a table of its own; a matrix outside makes another one
    from the token's embedding, and two of the layer take the sum into the stream.
    """
    width = _size(cfg, "hidden_size_per_layer_input")
    if not width:
        return [], [], 0
    gates = [("per_layer_input_gate", width, hidden), ("per_layer_projection", hidden, width)]
    outside = [("per_layer_model_projection", layers * width, hidden)]
    rows = _size(cfg, "vocab_size_per_layer_input")
    return gates, outside, rows * layers * width + width


def _gemma3n(cfg: Config) -> Config:
    """Rewrite a Gemma 3n: per-layer embeddings, LAuReL, AltUp, and layers without keys."""
    layers, hidden = _size(cfg, "num_hidden_layers"), _size(cfg, "hidden_size")
    streams, rank = _size(cfg, "altup_num_inputs", 4), _size(cfg, "laurel_rank", 64)
    gates, outside, numbers = _own_inputs(cfg, hidden, layers)
    more = (
        *gates,
        ("laurel_left", rank, hidden),
        ("laurel_right", hidden, rank),
        ("altup_correction", streams, streams),
        ("altup_prediction", streams * streams, streams),
        ("altup_router", streams, hidden),
    )
    outside += [(f"altup_{i}", hidden, hidden) for i in range(2 * (streams - 1))]
    size, first = _size(cfg, "head_dim", 256), _shared_from(cfg, layers)
    own = [
        {
            "shares_kv": i >= first,
            "attention_extras": size * (1 + (i < first)),
            "mlp_more": more,
            # norms of LAuReL's output, of AltUp's router and of the layer's input, and a scale
            "mlp_extras": 4 * hidden,
        }
        for i in range(layers)
    ]
    return {
        **cfg,
        OWN_FIELDS: Derived(outside_more=tuple(outside), outside_extras=numbers),
        OWN_LAYERS: Derived(layers=own),
    }


def _gemma4(cfg: Config) -> Config:
    """Rewrite a Gemma 4: layers with a window have smaller heads; experts beside the MLP."""
    layers, hidden = _size(cfg, "num_hidden_layers"), _size(cfg, "hidden_size")
    width, heads = _size(cfg, "intermediate_size"), _size(cfg, "num_attention_heads")
    kinds = _layer_list(cfg, "layer_types")
    kinds = kinds or [
        "sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(layers)
    ]
    kinds = [*kinds[:-1], "full_attention"]
    gates, outside, numbers = _own_inputs(cfg, hidden, layers)
    first = _shared_from(cfg, layers)
    experts = _size(cfg, "num_experts") if cfg.get("enable_moe_block") else 0
    same_v = bool(cfg.get("attention_k_eq_v"))
    own = []
    for i, kind in enumerate(kinds):
        full = kind == "full_attention"
        change = layer_overrides(cfg, i) if cfg.get("per_layer_config") else {}
        size = _size(cfg, "global_head_dim", 512) if full else _size(cfg, "head_dim", 256)
        size = _size(dict(change), "head_dim", size)
        kv_heads = _size(cfg, "num_key_value_heads")
        if full and same_v:
            kv_heads = _size(cfg, "num_global_key_value_heads", kv_heads)
        own.append(
            {
                "heads": heads,
                "kv_heads": _size(dict(change), "num_key_value_heads", kv_heads),
                "head_dim": size,
                "value_dim": size,
                "shares_kv": i >= first,
                "v_is_k": full and same_v,
                "attention_extras": size * (1 + (i < first)),
                "mlp_more": tuple(gates),
                # a norm of the layer's own input; with experts three more, and the router's scales
                "mlp_extras": hidden * bool(gates) + (4 * hidden + experts) * bool(experts),
            }
        )
    wide = [
        width * (1 + bool(cfg.get("use_double_wide_mlp") and i >= first)) for i in range(layers)
    ]
    return {
        **cfg,
        "layer_types": kinds,
        "per_layer_config": None,
        "intermediate_size": wide,
        "num_experts": experts,
        "num_experts_per_tok": cfg.get("top_k_experts"),
        "shared_expert_intermediate_size": width if experts else None,
        OWN_FIELDS: Derived(outside_more=tuple(outside), outside_extras=numbers),
        OWN_LAYERS: Derived(layers=own),
    }


# By `Unwritten.layers_code` of the model type.
REWRITES: Mapping[str, Callable[[Config], Config]] = {
    "one sublayer each": _nemotron_h,
    "two periods": _jamba,
    "shared blocks": _zamba2,
    "counted from one": _kimi_linear,
    "list of numbers": _minimax,
    "blocks in turns": _recurrent_gemma,
    "indexer": _indexed,
    "several streams": _gemma3n,
    "two sizes of heads": _gemma4,
}
