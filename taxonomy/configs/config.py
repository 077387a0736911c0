"""How Hugging Face configs spell a decoder's dimensions, read into the fields of ModelShape.

In: a config dict. Out: a dict of ModelShape's fields, by their keys in run.json; of a config whose
layers differ, also the fields of LayerShape that are each layer's own. What a config leaves to the
model's code (gates, biases, norms) is in the row of `architecture_table`; everything else comes
from its own keys, which are listed here, and which a run keeps. Configs of hybrids are rewritten
first (`hybrid_configs`); their mixers are read by `mixer_configs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunescope.taxonomy.configs.architecture_table import (
    ATTENTION_KINDS,
    MLP_KINDS,
    Unwritten,
    unwritten,
)
from prunescope.taxonomy.configs.block_configs import as_lists
from prunescope.taxonomy.configs.config_sizes import (
    DENSE_FIRST,
    EXPERT_WIDTHS,
    EXPERTS,
    GROUPS,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYER_SIZES,
    LAYERS,
    MLP,
    TOP_K,
    VOCAB,
    Fields,
    size_in,
    sizes_in,
)
from prunescope.taxonomy.configs.hybrid_configs import own_fields, own_layers, rewritten
from prunescope.taxonomy.configs.vision_config import vision_fields
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import MAX_LAYERS
from prunescope.taxonomy.own_files import own_document

_EACH_BLOCK = {"block_configs", "ffn_multipliers"}
# Parts of a config that are configs themselves.
NESTED = ("text_config", "llm_config", "language_config", "thinker_config", "decoder")
READ = frozenset(
    """
    _sliding_window_pattern alibi attention_bias attention_chunk_size attention_head_dim attn_config
    attn_layer_indices attn_layer_period bias block_auto_adjust_ff_dim block_configs block_ff_dim
    block_ffn_dim_multiplier block_multiple_of conv_L_cache conv_bias d_ff d_kv d_model
    decoder_sparse_step dim do_layer_norm_before enable_bias expand expansion_ratio
    feed_forward_proj ffn_dim ffn_dim_divisor ffn_hidden_size ffn_multipliers first_k_dense_replace
    full_attention_interval full_attn_idxs head_dim hidden_dim hidden_size
    interleave_moe_layer_step intermediate_size
    intermediate_size_moe kv_channels kv_lora_rank kv_n_heads layer_types layers_block_type
    linear_conv_kernel_dim linear_key_head_dim linear_num_key_heads linear_num_value_heads
    linear_value_head_dim mamba_conv_bias mamba_d_conv mamba_d_ssm mamba_d_state mamba_expand
    mamba_n_groups mamba_n_heads mamba_proj_bias mamba_rms_norm max_position_embeddings
    max_window_layers mlp_bias mlp_only_layers model_dim model_type moe_intermediate_size moe_k
    n_group num_group topk_group topk_method
    moe_num_experts moe_topk multi_query multi_query_group_num n_embd n_groups n_head n_head_kv
    n_heads n_inner n_kv_heads n_layer n_layers n_positions n_routed_experts n_shared_experts
    new_decoder_architecture num_attention_heads num_decoder_layers num_dense_layers num_experts
    num_experts_per_tok num_experts_per_token num_heads num_hidden_layers num_key_value_heads
    num_key_value_heads_per_layer num_kv_heads num_layers num_local_experts num_query_heads
    image_size is_decoder is_encoder_decoder
    mlp_ratio num_labels num_mel_bins num_register_tokens patch_size projection_dim use_swiglu_ffn
    adapter_rank add_bias_linear altup_num_inputs attention_k_eq_v attention_window_size
    attn_layer_offset attn_type_list block_size block_types chunk_size conv1d_width conv_kernel
    enable_moe_block expert_layer_offset expert_layer_period full_attn_layers global_head_dim
    hidden_size_per_layer_input hybrid_override_pattern index_head_dim index_n_heads index_topk
    index_topk_freq index_topk_pattern indexer_types laurel_rank linear_attn_config linear_head_dim
    linear_num_heads lru_width mamba_chunk_size mamba_dt_rank mamba_head_dim mamba_ngroups
    mamba_num_heads mlp_layer_types moe_latent_size moe_shared_expert_intermediate_size
    n_mamba_heads num_expert_group num_global_key_value_heads num_kv_shared_layers num_mem_blocks
    num_shared_experts per_layer_config short_conv_kernel_size ssm_state_size top_k_experts
    use_conv_bias use_double_wide_mlp use_shared_attention_adapter vocab_size_per_layer_input
    num_transformer_layers padded_vocab_size parallel_attn projectors_bias
    q_lora_rank qk_layernorm qk_nope_head_dim qk_rope_head_dim qkv_bias
    shared_expert_intermediate_size shared_intermediate_size sliding_window sliding_window_pattern
    state_size tie_embedding tie_word_embeddings time_step_rank top_k use_bias use_parallel_residual
    use_qkv_bias use_sliding_window v_head_dim vocab_size word_embed_proj_dim
    """.split()  # noqa: SIM905 - a hundred quoted words read worse
)


_MOST_EXPERTS = 1 << 16  # of a layer: each has a place in the expectation of what is read

_SLIDING = ("sliding_attention", "chunked_attention")
_ATTENTION = (*_SLIDING, "full_attention", "attention")


def read_config(config: Mapping[str, Any]) -> Fields:
    """Read the fields of ModelShape that a config gives.

    Raises:
        PrunescopeError: A dimension is missing (the message names all that are), or a value is
            not a
            size.
    """
    cfg = language_part(config)
    if (of_images := vision_fields(cfg)) is not None:
        return of_images
    kind = str(cfg.get("model_type", ""))
    if cfg.get("is_encoder_decoder"):
        raise PrunescopeError(
            f"the config of a {kind or 'model'} is of an encoder and a decoder that attends to it, "
            "and only the modules of its class tell them apart",
            hint="name the class in `architectures`, and install torch and transformers "
            "(prunescope[trace]); for one of the two alone, say is_encoder_decoder: false, too",
        )
    own = unwritten(kind)
    names = {
        "hidden": HIDDEN, "layers": LAYERS, "heads": HEADS, "vocab": VOCAB, "intermediate": MLP,
    }  # fmt: skip
    size = {field: size_in(cfg, names[field]) for field in names if field != "intermediate"}
    size["intermediate"] = _intermediate(cfg, own)
    missing = [names[field][0] for field, value in size.items() if value is None]
    if missing and (recognised := own_document(config)) is not None:
        raise PrunescopeError(f"this file {recognised[0]}, no model config", hint=recognised[1])
    if missing:
        raise PrunescopeError(
            f"the config of a {kind or 'model'} lacks {', '.join(missing)}",
            hint="give the config.json of a decoder; one of state-space mixers alone has no heads",
        )
    known = {field: value for field, value in size.items() if value is not None}
    if known["layers"] > MAX_LAYERS:
        raise PrunescopeError(
            f"the config names {known['layers']} layers, and no model has more than {MAX_LAYERS}",
            hint="check num_hidden_layers in its config.json",
        )
    fields: Fields = {"model_type": kind, **known}
    fields |= _heads(cfg, own, known)
    fields |= _switches(cfg, own)
    fields |= layer_kinds(cfg, kind, known["layers"])
    fields |= _experts(cfg, own, fields)
    fields |= _norms(cfg, own, fields)
    fields |= own_fields(cfg)
    if own.encoder and not cfg.get("is_decoder"):
        fields["encoder"] = True
    return fields


def language_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config of the decoder: of a multimodal model, its text part."""
    if not isinstance(config, Mapping):
        raise PrunescopeError("a model config is not a JSON object", hint="give its config.json")
    for name in NESTED:
        inner = config.get(name)
        if isinstance(inner, Mapping) and size_in(inner, HIDDEN) is not None:
            whole = {"tie_word_embeddings": config.get("tie_word_embeddings"), **inner}
            return rewritten(as_lists(whole))
    attention = config.get("attn_config")
    if isinstance(attention, Mapping) and "kv_n_heads" in attention:
        return {**config, "kv_n_heads": attention["kv_n_heads"]}
    return as_lists(config) if _EACH_BLOCK & config.keys() else rewritten(config)


def _count(cfg: Mapping[str, Any], name: str) -> int | None:
    """Return a size that may be 0."""
    return 0 if cfg.get(name) == 0 else size_in(cfg, (name,))


def _intermediate(cfg: Mapping[str, Any], own: Unwritten) -> int | None:
    """Return the channels of a plain MLP; None if the config says nothing of them."""
    if own.adjusted_mlp:
        return _adjusted(cfg)
    if own.shared_mlp and cfg.get("num_local_experts") == 0:
        return size_in(cfg, ("shared_intermediate_size",))
    width = size_in(cfg, MLP)
    hidden = size_in(cfg, HIDDEN)
    if width is not None or hidden is None:
        return width
    ratio = size_in(cfg, ("expansion_ratio",))
    if ratio is not None:
        return ratio * hidden
    if own.four_times or "n_embd" in cfg:
        return 4 * hidden
    return size_in(cfg, ("moe_intermediate_size",))


def _adjusted(cfg: Mapping[str, Any]) -> int | None:
    """Return the channels of LFM2's MLP; None if the config names no width.

    They are two thirds of the written width, times a factor, rounded up to a multiple.
    """
    width = size_in(cfg, ("block_ff_dim", "intermediate_size"))
    if width is None or not cfg.get("block_auto_adjust_ff_dim", True):
        return width
    width, factor = int(2 * width / 3), cfg.get("block_ffn_dim_multiplier", 1.0)
    if factor is None:
        return width
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < 1024:
        raise PrunescopeError(
            f"block_ffn_dim_multiplier of the config is {str(factor)[:40]!r}, not a factor",
            hint="check its config.json",
        )
    multiple = size_in(cfg, ("block_multiple_of",)) or 256
    return multiple * ((int(factor * width) + multiple - 1) // multiple)


def _heads(cfg: Mapping[str, Any], own: Unwritten, known: dict[str, int]) -> Fields:
    """Read the heads of attention and their sizes, also those of latent attention."""
    heads = known["heads"]
    kv_heads = size_in(cfg, KV_HEADS) or heads
    if cfg.get("multi_query") and not cfg.get("new_decoder_architecture"):
        kv_heads = 1
    elif own.falcon_blocks and not cfg.get("new_decoder_architecture"):
        kv_heads = heads
    latent = size_in(cfg, ("kv_lora_rank",))
    if latent is not None:
        nope = size_in(cfg, ("qk_nope_head_dim",)) or 0
        rope = size_in(cfg, ("qk_rope_head_dim",)) or 0
        return {
            "kv_heads": heads,
            "head_dim": nope + rope,
            "value_dim": size_in(cfg, ("v_head_dim",)) or nope,
            "q_rank": size_in(cfg, ("q_lora_rank",)),
            "kv_rank": latent,
            "rope_dim": rope,
        }
    head_dim = size_in(cfg, HEAD_DIM)
    if head_dim is None and known["hidden"] % heads:
        raise PrunescopeError(
            f"hidden size {known['hidden']} is not a multiple of {heads} heads",
            hint="give head_dim in the config",
        )
    listed = sizes_in(cfg, HEADS) or sizes_in(cfg, KV_HEADS)
    if heads % kv_heads and not listed:  # of lists each layer is checked
        raise PrunescopeError(
            f"{heads} query heads are not a multiple of {kv_heads} KV heads",
            hint="check num_attention_heads and num_key_value_heads",
        )
    head_dim = head_dim or known["hidden"] // heads
    return {"kv_heads": kv_heads, "head_dim": head_dim, "value_dim": head_dim}


def _switches(cfg: Mapping[str, Any], own: Unwritten) -> Fields:
    """Read which matrices there are and which have a bias."""
    every = bool(cfg.get("bias") or cfg.get("use_bias", own.biases.by_default))
    attention = bool(cfg.get("attention_bias", every or own.biases.every))
    if own.biases.key:
        attention = bool(cfg.get(own.biases.key, True))
    qkv = bool(cfg.get("use_qkv_bias", attention or own.biases.qkv))
    gated = not (own.ungated or own.four_times)
    projection = str(cfg.get("feed_forward_proj", ""))
    if projection:
        gated = projection.startswith("gated")
    tied = cfg.get("tie_embedding", cfg.get("tie_word_embeddings"))
    return {
        "gated": gated,
        "tied": own.tied if tied is None else bool(tied),
        "qkv_bias": qkv or bool(cfg.get("qkv_bias")),
        "o_bias": (attention and not (own.biases.no_o or own.biases.qkv)) or own.biases.o,
        "mlp_bias": bool(cfg.get("mlp_bias", every or own.biases.mlp or own.biases.every)),
        "head_bias": own.biases.head,
        "query_gate": own.query_gate,
    }


def layer_kinds(cfg: Mapping[str, Any], kind: str, layers: int) -> Fields:
    """Read which layers see a window, have another mixer, or see all keys."""
    own = unwritten(kind)
    if own.parallel_mixer:
        return {"layout": "f" * layers}
    window = size_in({"sliding_window": cfg.get("sliding_window") or None}, ("sliding_window",))
    if cfg.get("use_sliding_window") is False:
        window = None
    period = size_in(cfg, ("attn_layer_period",))
    if period is not None:  # hybrid: the layers between are state-space mixers
        return {"other_layers": layers - layers // period}
    kinds = _listed(cfg, layers)
    if kinds:
        sliding = sum(k in _SLIDING for k in kinds)
        others = sum(k not in _ATTENTION for k in kinds)
        chunk = size_in(cfg, ("attention_chunk_size",))
        window = window or chunk if sliding else None
        letters = ["s" if k in _SLIDING else "f" if k in _ATTENTION else "m" for k in kinds]
        return {
            "window": window,
            "sliding_layers": sliding,
            "other_layers": others,
            "layout": "".join(letters),
        }
    if window is None:
        return {"layout": "f" * layers}
    pattern = size_in(cfg, ("sliding_window_pattern", "_sliding_window_pattern"))
    pattern = pattern or own.window_pattern
    first_sliding = size_in(cfg, ("max_window_layers",)) if "max_window_layers" in cfg else None
    if pattern:
        layout = "".join("s" if (i + 1) % pattern else "f" for i in range(layers))
    else:
        layout = "".ljust(first_sliding or 0, "f").ljust(layers, "s")[:layers]
    return {"window": window, "sliding_layers": layout.count("s"), "layout": layout}


def _listed(cfg: Mapping[str, Any], layers: int) -> list[str]:
    """Return the kind of each layer; nothing if the config does not tell layers apart.

    It comes from a list, a period, or the numbers of the layers with attention.
    """
    for name in ("layer_types", "layers_block_type"):
        kinds = cfg.get(name)
        if isinstance(kinds, list) and len(kinds) == layers:
            return [str(kind) for kind in kinds]
    full: Any = None
    period = size_in(cfg, ("full_attention_interval",))
    if period is not None:
        full = range(period - 1, layers, period)
    for name in ("full_attn_idxs", "attn_layer_indices"):
        full = cfg[name] if isinstance(cfg.get(name), list) else full
    return [] if full is None else ["attention" if i in full else "mixer" for i in range(layers)]


def _experts(cfg: Mapping[str, Any], own: Unwritten, known: Fields) -> Fields:
    """Read the experts and the layers that have them; nothing for a model without experts."""
    if any(cfg.get(name) == 0 for name in EXPERTS):
        return {}
    experts = size_in(cfg, EXPERTS)
    if experts is None or experts < 2:
        return {}
    if experts > _MOST_EXPERTS:
        raise PrunescopeError(
            f"the config names {experts} experts, and no model has more than {_MOST_EXPERTS}",
            hint="check the number of experts in its config.json",
        )
    layers = known["layers"]
    width = size_in(cfg, EXPERT_WIDTHS) or known["intermediate"]
    dense = next((n for name in DENSE_FIRST if (n := _count(cfg, name))), 0)
    step = _count(cfg, "decoder_sparse_step") or _count(cfg, "interleave_moe_layer_step") or 1
    only = cfg.get("mlp_only_layers")
    plain = [i for i in only if isinstance(i, int)] if isinstance(only, list) else []
    moe = [(i + 1) % step == 0 and i >= dense and i not in plain for i in range(layers)]
    counts = sizes_in(cfg, EXPERTS) or [experts] * layers
    moe = [has and count > 0 for has, count in zip(moe, counts, strict=False)]
    letters = zip(known.get("layout", ""), moe, strict=False)
    shared = size_in(cfg, ("shared_expert_intermediate_size", "shared_intermediate_size")) or 0
    if not shared:
        shared = (_count(cfg, "n_shared_experts") or own.shared_expert) * width
    a_token = size_in(cfg, TOP_K[:2]) or 0  # other names mean other things in some configs
    if a_token > experts:
        raise PrunescopeError(
            f"the config sends a token to {a_token} of {experts} experts",
            hint="no router can: with fewer experts a token needs fewer too",
        )
    return {
        "experts": experts,
        "experts_per_token": min(size_in(cfg, TOP_K) or 1, experts),
        "expert_intermediate": width,
        "shared_intermediate": shared,
        "moe_layers": sum(moe),
        "layout": "".join(kind.upper() if has else kind for kind, has in letters),
        "intermediate": 0 if all(moe) else known["intermediate"],
        "router_bias": own.biases.router,
        "shared_gate": own.shared_gate,
        **expert_groups(cfg, experts),
    }


def expert_groups(cfg: Mapping[str, Any], experts: int) -> Fields:
    """Read the groups of experts of group-limited routing; nothing for a router without groups.

    DeepSeek-V2 names its method: a group is ranked by its best expert, or there are no groups
    ("greedy"). DeepSeek-V3 and those that followed rank a group by the two best.
    """
    groups, method = size_in(cfg, GROUPS) or 1, cfg.get("topk_method")
    if groups < 2 or method == "greedy":
        return {}
    opened = size_in(cfg, ("topk_group",)) or groups
    if experts % groups or opened > groups:
        raise PrunescopeError(
            f"the config sends a token to {opened} of {groups} groups of {experts} experts",
            hint="check n_group and topk_group in its config.json: groups are equally large",
        )
    ranked_by = 1 if method == "group_limited_greedy" else 2
    return {"expert_groups": groups, "open_groups": opened, "group_ranked_by": ranked_by}


def _norms(cfg: Mapping[str, Any], own: Unwritten, known: Fields) -> Fields:
    """Read the norms, the order of sublayers, and the position table."""
    q, c = known["heads"] * known["head_dim"], known["kv_heads"] * known["head_dim"]
    qk = 2 * known["head_dim"] if own.norms.head_qk else 0
    qk = q + c if own.norms.wide_qk else qk
    if cfg.get("qk_layernorm") and own.has_layer_norm:
        qk = 4 * known["head_dim"]
    if "kv_rank" in known:
        qk = known["kv_rank"] + (known["q_rank"] or 0)
    norms = own.norms.per_layer
    if own.falcon_blocks and not cfg.get("new_decoder_architecture"):
        norms = 1 if cfg.get("parallel_attn", True) else 2
    parallel = (
        bool(cfg.get("use_parallel_residual", own.parallel_residual)) or own.norms.per_layer == 1
    )
    if own.norms.one_if_parallel:
        norms = 2 - parallel
    if own.falcon_blocks:
        parallel = bool(cfg.get("new_decoder_architecture") or cfg.get("parallel_attn", True))
    positions = 0
    if own.positions is not None:
        key, default, more = own.positions
        positions = (size_in(cfg, (key,)) or default) + more
    return {
        "parallel": parallel,
        "centred_norms": own.subtracts_mean,
        "qk_norm_parameters": qk,
        "norms": norms,
        "norm_parameters": 0 if own.norms.bare else 2 if own.has_layer_norm else 1,
        "sinks": own.sinks,
        "positions": positions,
        "embedding_norm": own.norms.embedding,
    }


def read_layers(cfg: Mapping[str, Any], known: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Read the fields of each layer that are its own; empty if one size serves all layers.

    Raises:
        PrunescopeError: A list has not one entry per layer, or heads do not divide.
    """
    layers, layout = known["layers"], known.get("layout", "")
    listed = {name: sizes_in(cfg, keys) for name, keys in LAYER_SIZES.items()}
    sizes = {name: numbers for name, numbers in listed.items() if numbers}
    kinds = {name: list(cfg[name]) for name in (ATTENTION_KINDS, MLP_KINDS) if name in cfg}
    for name, entries in {**sizes, **kinds}.items():
        if len(entries) != layers:
            raise PrunescopeError(
                f"the config lists {len(entries)} sizes of {name} for {layers} layers",
                hint="check the lists of its config.json: one entry per layer",
            )
    added = own_layers(cfg)
    if not (sizes or kinds or added) or len(layout) != layers:
        return []
    usual = ["usual"] * layers
    attention_kinds, mlp_kinds = kinds.get(ATTENTION_KINDS, usual), kinds.get(MLP_KINDS, usual)
    rows = []
    for number in range(layers):
        own: Fields = {name: numbers[number] for name, numbers in sizes.items()}
        if "head_dim" in own:
            own["value_dim"] = own["head_dim"]
        own |= _own_attention(own, known, attention_kinds[number])
        own |= _own_mlp(own, mlp_kinds[number], layout[number])
        rows.append(own | (dict(added[number]) if added else {}))
    return rows


def _own_attention(own: dict[str, Any], known: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return the fields of the attention of one layer; sizes of 0 if it has no usual attention."""
    heads, kv_heads = own.get("heads", known["heads"]), own.get("kv_heads", known["kv_heads"])
    if kind == "usual" and not kv_heads:  # llama.cpp writes a matrix in place of attention so
        kind = "linear" if heads else "none"
    if kind != "usual" or not heads:
        kind = kind if kind != "usual" else "none"
        absent = dict.fromkeys(("heads", "kv_heads", "head_dim", "value_dim"), 0)
        return {**absent, "attention_kind": kind}
    if heads % kv_heads:
        raise PrunescopeError(
            f"{heads} query heads are not a multiple of {kv_heads} KV heads",
            hint="check num_attention_heads and num_key_value_heads",
        )
    return {"heads": heads, "kv_heads": kv_heads}


def _own_mlp(own: dict[str, Any], kind: str, letter: str) -> dict[str, Any]:
    """Return the MLP fields of a layer, all 0, if it has no usual MLP; else nothing.

    A width of 0 means no MLP, except in a layer of experts.
    """
    plain = letter.islower()
    if kind == "usual" and plain and own.get("intermediate") == 0:
        kind = "none"
    if kind != "usual":
        absent = ("intermediate", "experts", "experts_per_token", "expert_intermediate",
                "shared_intermediate")  # fmt: skip
        return {**dict.fromkeys(absent, 0), "mlp_kind": kind}
    return {}
