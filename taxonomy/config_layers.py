"""What a config says of each layer, where its layers differ.

In: a config whose `block_configs` were made lists, and the fields that `config.read_config` read.
Out: for each layer the fields of LayerShape that are its own; nothing where the layers agree. A
size that is 0 or null in one layer says that it lacks this sublayer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunescope.taxonomy.block_configs import ATTENTION_KINDS, MLP_KINDS
from prunescope.taxonomy.config import (
    EXPERT_WIDTHS,
    EXPERTS,
    HEADS,
    KV_HEADS,
    MLP,
    TOP_K,
    sizes_in,
)
from prunescope.taxonomy.errors import PrunescopeError

_NAMES = {
    "heads": HEADS,
    "kv_heads": KV_HEADS,
    "intermediate": MLP,
    "experts": EXPERTS,
    "experts_per_token": TOP_K,
    "expert_intermediate": EXPERT_WIDTHS,
}


def read_layers(cfg: Mapping[str, Any], known: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The fields of each layer that are its own; empty where the config has one size for all.

    Raises PrunescopeError for a list that is not one entry a layer, or heads that do not divide.
    """
    layers, layout = known["layers"], known.get("layout", "")
    sizes = {name: found for name, keys in _NAMES.items() if (found := sizes_in(cfg, keys))}
    kinds = {name: list(cfg[name]) for name in (ATTENTION_KINDS, MLP_KINDS) if name in cfg}
    for name, found in {**sizes, **kinds}.items():
        if len(found) != layers:
            raise PrunescopeError(
                f"the config lists {len(found)} sizes of {name} for {layers} layers",
                hint="check the lists of its config.json: one entry a layer",
            )
    if not (sizes or kinds) or len(layout) != layers:
        return []
    out = []
    for number in range(layers):
        own: dict[str, Any] = {name: found[number] for name, found in sizes.items()}
        own |= _attention(own, known, kinds.get(ATTENTION_KINDS, ["usual"] * layers)[number])
        own |= _mlp(own, kinds.get(MLP_KINDS, ["usual"] * layers)[number], layout[number])
        out.append(own)
    return out


def _attention(own: dict[str, Any], known: Mapping[str, Any], kind: str) -> dict[str, Any]:
    heads, kv_heads = own.get("heads", known["heads"]), own.get("kv_heads", known["kv_heads"])
    if kind == "usual" and not kv_heads:  # llama.cpp writes a matrix in place of attention so
        kind = "linear" if heads else "none"
    if kind != "usual" or not heads:
        kind = kind if kind != "usual" else "none"
        gone = dict.fromkeys(("heads", "kv_heads", "head_dim", "value_dim"), 0)
        return {**gone, "attention_kind": kind}
    if heads % kv_heads:
        raise PrunescopeError(
            f"{heads} query heads are no multiple of {kv_heads} KV heads",
            hint="check num_attention_heads and num_key_value_heads",
        )
    return {"heads": heads, "kv_heads": kv_heads}


def _mlp(own: dict[str, Any], kind: str, letter: str) -> dict[str, Any]:
    """Of a layer whose MLP are experts, a width of 0 says nothing."""
    plain = letter.islower()
    if kind == "usual" and plain and own.get("intermediate") == 0:
        kind = "none"
    if kind != "usual":
        gone = ("intermediate", "experts", "experts_per_token", "expert_intermediate",
                "shared_intermediate")  # fmt: skip
        return {**dict.fromkeys(gone, 0), "mlp_kind": kind}
    return {}
