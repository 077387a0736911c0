"""Where a module path stands in a decoder: its layer and its role.

In: a dotted module path as `named_modules` gives it (`model.layers.3.mlp.gate_proj`).
Out: Place(layer, role, scope). One table serves the tracer's pruners and the analysis.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ROLES = (
    "embedding", "attn_norm", "q", "k", "v", "qkv", "q_a", "q_b", "kv_a", "kv_b", "qk_norm", "rope",
    "kv_update", "attention", "o", "mlp_norm", "gate", "up", "gate_up", "activation", "down",
    "router", "experts", "shared_expert", "mixer_in", "conv", "scan", "mixer_out", "residual",
    "final_norm", "lm_head", "sampling", "unknown",
)  # fmt: skip

# GEMM group of a role, as reports name it; a role that is not here is in group "other".
GROUPS = {
    "q": "qkv", "k": "qkv", "v": "qkv", "qkv": "qkv", "q_a": "qkv", "q_b": "qkv", "kv_a": "qkv",
    "kv_b": "qkv", "o": "o", "gate": "gate_up", "up": "gate_up", "gate_up": "gate_up",
    "down": "down", "lm_head": "lm_head", "router": "router",
}  # fmt: skip

# The name of a module's last path component, over the architectures of transformers.
_LEAVES: tuple[tuple[str, str], ...] = (
    (r"embed_tokens|wte|wpe|word_embeddings|embed_in|embed_positions|tok_embeddings", "embedding"),
    (r"q_proj|query|q_lin|wq", "q"),
    (r"k_proj|key|k_lin|wk", "k"),
    (r"v_proj|value|v_lin|wv", "v"),
    (r"qkv_proj|c_attn|query_key_value|wqkv|qkv|att_proj", "qkv"),
    (r"q_a_proj", "q_a"),
    (r"q_b_proj", "q_b"),
    (r"kv_a_proj(_with_mqa)?", "kv_a"),
    (r"kv_b_proj", "kv_b"),
    (r"(q|k)_norm|(q|k)_layernorm|(q|kv)_a_layernorm", "qk_norm"),
    (r"rotary_emb|rotary_pos_emb|rotary", "rope"),
    (r"o_proj|out_proj|c_proj_attn|wo|attn_out|dense_attn", "o"),
    (r"gate_proj|w1", "gate"),
    (r"up_proj|w3|c_fc|fc1|fc_in|dense_h_to_4h|linear_1", "up"),
    (r"gate_up_proj|ff_proj|input_linear", "gate_up"),
    (r"down_proj|w2|fc2|fc_out|dense_4h_to_h|output_linear|linear_2", "down"),
    (r"act_fn|act|activation|activation_fn|activation_func", "activation"),
    (r"router|gate|shared_expert_gate|mlp_gate", "router"),
    (r"experts", "experts"),
    (r"(attn|mlp)_(residual|shortcut_Q)", "residual"),
    (r"shared_experts?|shared_mlp", "shared_expert"),
    (r"in_proj|in_proj_qkvz|in_proj_ba|x_proj|dt_proj", "mixer_in"),
    (r"conv1d|conv", "conv"),
    (r"lm_head|embed_out|output_layer", "lm_head"),
    (r"final_layernorm|final_layer_norm|ln_f|norm_f|final_norm", "final_norm"),
    (r"input_layernorm|ln_1|attn_norm|operator_norm|pre_self_attn_layernorm"
     r"|post_self_attn_layernorm|self_attn_layer_norm|input_norm", "attn_norm"),
    (r"post_attention_layernorm|ln_2|mlp_norm|ffn_norm|pre_feedforward_layernorm|pre_ff_layernorm"
     r"|post_feedforward_layernorm|pre_mlp_layernorm|post_mlp_layernorm", "mlp_norm"),
)  # fmt: skip
_LEAF = tuple((re.compile(f"(?:{pattern})$"), role) for pattern, role in _LEAVES)
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|layer|block)\.(\d+)(?:\.(.*))?$")
_ATTENTION = re.compile(r"attn|attention|(^|\.)att$")
_MLP = re.compile(r"mlp|feed_forward|ffn|(^|\.)ff$|moe")
_MIXER = re.compile(r"mamba|mixer|ssm|linear_attn|short_conv|(^|\.)conv$|recurrent|delta")


@dataclass(frozen=True, slots=True)
class Place:
    """`layer`: index in the layer list, or None. `role`: one of ROLES. `scope`: the part of the
    layer the path lies in ("attention", "mlp", "mixer", "layer", "model")."""

    layer: int | None
    role: str
    scope: str


def locate(path: str) -> Place:
    """The place of a module path. A part of a module whose role is known has that role (the two
    factors of `q_proj`); the role is "unknown" where no entry of the table matches."""
    found = _LAYER.search(path)
    layer = int(found.group(1)) if found else None
    inner = (found.group(2) or "") if found else path
    leaf = path.rsplit(".", 1)[-1] if not (found and not inner) else ""
    scope = _scope(inner, inside_layer=layer is not None)
    if scope == "mlp" and ".experts" in f".{inner}":
        return Place(layer, "experts", scope)
    if scope == "mlp" and "shared_expert" in inner and leaf != "shared_expert_gate":
        return Place(layer, "shared_expert", scope)
    role = next((role for pattern, role in _LEAF if pattern.match(leaf)), "unknown")
    role = _in_context(role, leaf, scope)
    if role == "unknown" and "." in inner:
        role = locate(path.rpartition(".")[0]).role
    return Place(layer, role, scope)


def _scope(inner: str, *, inside_layer: bool) -> str:
    if not inside_layer:
        return "model"
    if _MIXER.search(inner):
        return "mixer"
    if _ATTENTION.search(inner) and "norm" not in inner.split(".")[0]:
        return "attention"
    if _MLP.search(inner) and "norm" not in inner.split(".")[0]:
        return "mlp"
    return "layer"


def _in_context(role: str, leaf: str, scope: str) -> str:
    """Names that mean different things in different parts of a layer."""
    if leaf in ("c_proj", "dense", "proj") and scope in ("attention", "mlp"):
        return "o" if scope == "attention" else "down"
    if scope == "mixer":
        return {"o": "mixer_out", "q": "mixer_in", "k": "mixer_in", "v": "mixer_in"}.get(role, role)
    if leaf in ("fc", "wi", "wi_0", "wi_1") and scope == "mlp":
        return "up"
    if leaf == "norm" and scope == "model":
        return "final_norm"
    if leaf == "layer_norm" and scope == "model":
        return "final_norm"
    if role == "router" and scope != "mlp" and leaf != "router":
        return "unknown"
    return role
