"""The place of a module path in a decoder: its layer and its role.

In: a dotted module path as `named_modules` gives it (`model.layers.3.mlp.gate_proj`), and the model
type if it is known. Out: Place(layer, role, scope). One table serves the tracer's pruners and the
analysis; what an architecture names otherwise is in its entry of `architecture_table`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from msgspec import Struct

from prunescope.taxonomy.configs.architecture_table import BY_ID
from prunescope.taxonomy.lazy_pattern import lazy_pattern

ROLES = (
    "embedding", "attn_norm", "q", "k", "v", "qkv", "q_a", "q_b", "kv_a", "kv_b", "qk_norm", "rope",
    "kv_update", "attention", "o", "cross_q", "cross_k", "cross_v", "cross_o",
    "mlp_norm", "gate", "up", "gate_up", "activation", "down",
    "router", "experts", "shared_expert", "mixer_in", "conv", "scan", "mixer_out", "indexer",
    "extra", "residual",
    "final_norm", "lm_head", "sampling", "adapter",
    "optimizer", "unknown",
)  # fmt: skip

# The linears of a layer, however they are fused; latent attention has others too.
QKV_ROLES = ("q", "k", "v", "qkv")
MLP_ROLES = ("gate", "up", "gate_up", "down")
LINEARS = (*QKV_ROLES, "o", *MLP_ROLES)

# This ending of an op's role marks the work of its gradient, in the backward pass of training.
BACKWARD = " backward"

RESIDUAL = "residual"  # its sums follow the rows and the width: no family touches them alone
# Roles that do not say where an op belongs.
UNPLACED = ("unknown", f"unknown{BACKWARD}")

# GEMM group of a role, as reports name it; a role that is not here is in group "other".
GROUPS = {
    "q": "qkv", "k": "qkv", "v": "qkv", "qkv": "qkv", "q_a": "qkv", "q_b": "qkv", "kv_a": "qkv",
    "kv_b": "qkv", "cross_q": "qkv", "cross_k": "qkv", "cross_v": "qkv", "o": "o", "cross_o": "o",
    "gate": "gate_up", "up": "gate_up", "gate_up": "gate_up",
    "down": "down", "lm_head": "lm_head", "router": "router",
}  # fmt: skip

# Roles whose matrix is a weight; attention and routers multiply activations too.
WEIGHT_ROLES = (
    *GROUPS.keys() - {"router"}, "experts", "shared_expert", "mixer_in", "mixer_out", "indexer",
    "extra",
)  # fmt: skip

# The name of a module's last path component, over the architectures of transformers.
_LEAVES: tuple[tuple[str, str], ...] = (
    (r"embed_tokens|wte|wpe|word_embeddings|embed_in|embed_positions|tok_embeddings|embeddings"
     r"|position_embeddings|token_type_embeddings|word_embeddings_layernorm"
     r"|layernorm_embedding", "embedding"),
    # q_u_proj and q_v_proj are the two matrices that SVD-LLM makes of q_proj.
    (r"q_([uv]_)?proj|query|q_lin|[wW]q|project_q", "q"),
    (r"k_([uv]_)?proj|key|k_lin|[wW]k|project_k", "k"),
    (r"v_([uv]_)?proj|value|v_lin|[wW]v|project_v", "v"),
    (r"qkv_proj|c_attn|query_key_value|[wW]qkv|qkv|att_proj", "qkv"),
    (r"q_a_proj", "q_a"),
    (r"q_b_proj", "q_b"),
    (r"kv_a_proj(_with_mqa)?", "kv_a"),
    (r"kv_b_proj", "kv_b"),
    (r"(q|k|query|key)_(norm|layernorm)|(q|kv)_a_layernorm", "qk_norm"),
    (r"rotary_emb|rotary_pos_emb|rotary|pos_emb", "rope"),
    (r"o_([uv]_)?proj|out_proj|out_lin|c_proj_attn|[wW]o|attn_out|dense_attn|attention_out",
     "o"),
    (r"gate_([uv]_)?proj|w1|proj_up_gate", "gate"),
    (r"up_([uv]_)?proj|w3|c_fc|fc1|fc_in|dense_h_to_4h|linear_1|lin1|w_in|proj_up", "up"),
    (r"gate_up_proj|ff_proj|input_linear", "gate_up"),
    (r"down_([uv]_)?proj|w2|fc2|fc_out|dense_4h_to_h|output_linear|linear_2|lin2|w_out"
     r"|proj_down", "down"),
    (r"act_fn|act|activation|activation_fn|activation_func|gelu_impl|intermediate_act_fn",
     "activation"),
    (r"router|gate|shared_expert_gate|mlp_gate", "router"),
    (r"experts", "experts"),
    (r"(attn|mlp)_(residual|shortcut_Q)", "residual"),  # SliceGPT's maps between two bases
    (r"shared_experts?|shared_mlp", "shared_expert"),
    (r"in_proj|in_proj_qkvz|in_proj_ba|x_proj|dt_proj|linear_[xy]", "mixer_in"),
    (r"linear_out", "mixer_out"),
    (r"rg_lru", "scan"),
    (r"indexer", "indexer"),
    (r"laurel|altup|per_layer_(input_gate|projection|model_projection)|altup_(un)?embed_projections"
     r"|altup_projections", "extra"),
    (r"conv1d|conv_1d|conv|[qkv]_conv1?d?|([kv]|attn|mlp)_sconv", "conv"),
    (r"lm_head|embed_out|output_layer|output_projection|predictions|lm_loss"
     r"|generator_lm_head", "lm_head"),
    (r"final_layernorm|final_layer_norm|ln_f|norm_f|final_norm|embedding_norm|layernorm_f",
     "final_norm"),
    (r"input_layernorm|ln_1|ln_attn|attn_norm|operator_norm|temporal_pre_norm|pre_self_attn_layernorm"
     r"|post_self_attn_layernorm|self_attn_layer_norm|norm_1|layernorm1|post_operator_norm"
     r"|input_norm|self_attn_norm", "attn_norm"),
    (r"post_attention_layernorm|ln_2|ln_mlp|mlp_norm|norm_2|layernorm2|ffn_norm|post_ffn_norm"
     r"|channel_pre_norm"
     r"|pre_feedforward_layernorm|pre_ff_layernorm|post_feedforward_layernorm|pre_mlp_layernorm|post_mlp_layernorm",
     "mlp_norm"),
)  # fmt: skip
_LEAF = tuple((lazy_pattern(f"(?:{pattern})$"), role) for pattern, role in _LEAVES)
_LAYER = lazy_pattern(r"(?:^|\.)(?:layers|h|blocks|layer|block)\.(\d{1,5})(?:\.(.*))?$")
_ATTENTION = lazy_pattern(r"attn|attention|(^|\.)(Self|EncDec)Attention|(^|\.)att$")
_MLP = lazy_pattern(r"mlp|DenseReluDense|feed_forward|ffn|(^|\.)ff$|moe|experts?(\.|$)")
_MIXER = lazy_pattern(
    r"mamba|mixer|ssm|linear_attn|short_conv|(^|\.)conv(\.|$)|recurrent|delta|temporal_block|mlstm"
)
# A module of such a name may be an attention or an MLP, as its matrices say (Nemotron-H,
# RecurrentGemma).
_ANY_MIXER = lazy_pattern(
    r"^(?:mixer|temporal_block)\.([qkvo]_([uv]_)?proj|(gate|up|down)_([uv]_)?proj)(\.|$)"
)
_EXPERTS = lazy_pattern(r"(^|\.)experts(\.|$)")
_SHARED = lazy_pattern(r"(^|\.)(shared_experts?|shared_mlp)(\.|$)")
# An adapter of peft stands next to a linear, not in it.
_ADAPTER = lazy_pattern(r"\.(lora|vera)_(embedding_)?[AB](\.|$)")
_LEAVES_OF_MLP = {
    "Wi": "gate_up", "Wo": "down", "c_proj": "down", "dense": "down", "proj": "down", "fc": "up",
    "wi": "up", "wi_0": "gate", "wi_1": "up", "wo": "down",
}  # fmt: skip
_NORMS = ("norm", "layer_norm", "LayerNorm", "layernorm", "out_norm", "ln_out")


class Place(Struct, frozen=True):
    """The place of a module in a decoder.

    `layer`: index in the layer list, or None. `role`: one of ROLES. `scope`: the part of the layer
    in which the path lies ("attention", "mlp", "mixer", "conv", "layer", "model").
    """

    layer: int | None
    role: str
    scope: str


@lru_cache(maxsize=65536)
def locate(path: str, architecture: str | None = None) -> Place:
    """Return the place of a module path; its role is "unknown" if no entry of the table matches.

    A module inside one whose role is known has that role.

    Limitations: the role is read from names. A module whose name means something else in an
    architecture that has no entry gets a wrong role.

    Args:
        path: The dotted path.
        architecture: The model type; without it a name has the role that most architectures
            give it.
    """
    layer, inner = _split(path)
    if layer is not None and not inner:
        return Place(layer, "unknown", "layer")
    scope = _scope(inner, inside_layer=layer is not None)
    if _ADAPTER.search(path):
        return Place(layer, "adapter", scope)
    entry = BY_ID.get(architecture or "")
    own = entry.roles.get(inner.rpartition(".")[2]) if entry else None
    if own is not None:
        return Place(layer, own, scope)
    if scope == "mlp" and _EXPERTS.search(inner):
        return Place(layer, "experts", scope)
    if scope == "mlp" and _SHARED.search(inner):
        return Place(layer, "shared_expert", scope)
    role = matrix_role(path)
    if scope == "layer" and (role in MLP_ROLES or role == "activation"):
        scope = "mlp"  # an MLP without a module of its own
    return Place(layer, role, scope)


def locate_all(paths: Iterable[str]) -> dict[str, Place]:
    """Locate the module paths of one model whose type is not known.

    A name that some architectures use otherwise is identified by the modules next to it.
    """
    names = list(paths)
    leaves = {name.rpartition(".")[2] for name in names}
    marked = next(
        (entry.ids[0] for entry in BY_ID.values() if entry.mark and entry.mark in leaves), None
    )
    return {name: locate(name, marked) for name in names}


def matrix_role(path: str) -> str:
    """Return the role that a path's last names give: gate, up or down of an expert's matrix."""
    layer, inner = _split(path)
    scope = _scope(inner, inside_layer=layer is not None)
    names = inner.split(".")
    for depth in range(len(names), 0, -1):
        leaf = names[depth - 1]
        role = _role_in_context(_usual(leaf), leaf, names[:depth], scope)
        if role != "unknown":
            return role
    return "unknown"


def _split(path: str) -> tuple[int | None, str]:
    """Split a path into the number of its layer and what follows; None outside of layers."""
    match = _LAYER.search(path)
    return (int(match.group(1)), match.group(2) or "") if match else (None, path)


def _scope(inner: str, *, inside_layer: bool) -> str:
    """Return the part of a layer in which a path lies."""
    if not inside_layer:
        return "model"
    first = inner.split(".")[0]
    if "norm" in first or first.startswith("ln_"):
        return "layer"
    if _EXPERTS.search(inner) or _SHARED.search(inner):
        return "mlp"
    if any_mixer := _ANY_MIXER.match(inner):
        return "attention" if any_mixer[1][0] in "qkvo" else "mlp"
    if _MIXER.search(inner):
        return "mixer"
    if _ATTENTION.search(inner):
        return "attention"
    return "mlp" if _MLP.search(inner) else "layer"


def _usual(leaf: str) -> str:
    """Return the role of a name by itself."""
    return next((role for pattern, role in _LEAF if pattern.match(leaf)), "unknown")


def _role_in_context(role: str, leaf: str, names: list[str], scope: str) -> str:
    """Return the role of a name that means different things in different parts of a layer."""
    if scope == "mixer":
        return _role_in_mixer(role, leaf, names)
    if scope == "attention":
        return _role_in_attention(role, leaf)
    if scope == "mlp":
        return _LEAVES_OF_MLP.get(leaf, role)
    if scope == "layer":
        return _role_in_layer(role, leaf, names)
    if leaf in _NORMS:
        return "embedding" if "embedding" in map(_usual, names[:-1]) else "final_norm"
    return role


def _role_in_attention(role: str, leaf: str) -> str:
    """Return the role of a name inside an attention."""
    if leaf in ("c_proj", "dense", "proj"):
        return "o"
    if leaf == "LayerNorm":
        return "attn_norm"
    if leaf in ("q", "k", "v", "o"):  # T5
        return leaf
    # A gate of attention's output is not a gate of an MLP.
    return "unknown" if role in (*MLP_ROLES, "embedding") or leaf == "gate" else role


def _role_in_layer(role: str, leaf: str, names: list[str]) -> str:
    """Return the role of a name that stands in the layer itself."""
    part = names[-2] if len(names) > 1 else ""
    if leaf == "dense" and part in ("intermediate", "output"):
        return "up" if part == "intermediate" else "down"
    if role == "final_norm" or leaf == "LayerNorm":
        return "mlp_norm"  # OPT and its kin: the second norm of a layer
    if leaf == "norm":
        return "attn_norm"
    return "unknown" if leaf == "gate" or role == "embedding" else role


def _role_in_mixer(role: str, leaf: str, names: list[str]) -> str:
    """Return the role of a name inside a mixer."""
    if len(names) == 1:
        return "conv" if role == "conv" else "unknown"
    if role == "o":
        return "mixer_out"
    if role in ("q", "k", "v", "qkv", "gate"):
        return "mixer_in"
    if role == "unknown" and "norm" in leaf:
        return "scan"
    if role == "unknown" and leaf.endswith("_proj"):
        return "mixer_in"
    return role
