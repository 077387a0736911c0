"""The names of sizes in Hugging Face configs, and the sizes that a config has under them.

In: a config and the names that one size goes by, in the order in which they count. Out: a whole
number, or one for each layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunescope.taxonomy.errors import PrunescopeError

Fields = dict[str, Any]  # fields of ModelShape, and those that lead to them

HIDDEN = ("hidden_size", "n_embd", "d_model", "dim", "model_dim")
LAYERS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers",
    "num_transformer_layers",
)  # fmt: skip
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "num_query_heads")
KV_HEADS = (
    "num_key_value_heads_per_layer", "num_key_value_heads", "num_kv_heads", "n_head_kv",
    "n_kv_heads", "kv_n_heads", "multi_query_group_num",
)  # fmt: skip
HEAD_DIM = ("head_dim", "d_kv", "kv_channels", "attention_head_dim")
MLP = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff", "hidden_dim")
VOCAB = ("vocab_size", "padded_vocab_size")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
DENSE_FIRST = ("first_k_dense_replace", "num_dense_layers")  # layers before those with experts
TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k")

GROUPS = ("n_group", "num_group")  # of experts, where a token first chooses some of the groups
EXPERT_WIDTHS = ("moe_intermediate_size", "intermediate_size_moe")
# Fields of LayerShape that a config may give for each layer by itself, in a list.
LAYER_SIZES = {
    "heads": HEADS,
    "kv_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "intermediate": MLP,
    "experts": EXPERTS,
    "experts_per_token": TOP_K,
    "expert_intermediate": EXPERT_WIDTHS,
}
EACH_LAYER = frozenset(key for keys in LAYER_SIZES.values() for key in keys)


def size_in(cfg: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    """Return the size under the first of `names` that holds one; None if none does.

    Of a list it is the largest, which is that of all layers unless `sizes_in` says otherwise.
    """
    for name in names:
        value = cfg.get(name)
        if isinstance(value, list) and value:
            every = [one_size(0 if x is None else x, name, least=0) for x in value]
            if name not in EACH_LAYER and len(set(every)) > 1:
                raise no_size(name, value)
            value = max(every) or None
        if value is not None:
            return one_size(value, name, least=1)
    return None


def sizes_in(cfg: Mapping[str, Any], names: tuple[str, ...]) -> list[int]:
    """Return the sizes under the first of `names` that holds a list of different sizes, 0 for null.

    The list is empty if that name holds one size for all layers.
    """
    for name in names:
        value = cfg.get(name)
        if isinstance(value, list) and value and size_in(cfg, (name,)):
            sizes = [x or 0 for x in value]
            return sizes if len(set(sizes)) > 1 else []
        if value is not None:
            return []
    return []


def one_size(value: Any, name: str, *, least: int) -> int:
    """Return a whole number of at least `least`. Raise PrunescopeError for another value."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**40:
        raise no_size(name, value)
    return value


def no_size(name: str, value: Any) -> PrunescopeError:
    """Return the error for a value that is no size."""
    return PrunescopeError(
        f"{name} of the config is {str(value)[:40]!r}, not a positive whole number",
        hint="check its config.json; sizes of heads and MLPs may be lists with one entry per layer",
    )
