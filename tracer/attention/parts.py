"""The parts of an attention of transformers, for dynamic families that change one of its steps.

In: a model. Out: AttentionParts for each layer, read from its matrices, norms and cache, or a
PrunescopeError that says what is not supported. The logits show afterwards whether an attention has
other parts (`tracer.routing.prenorm.rebuilt`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.roles import locate
from prunescope.tracer.attention.rotation import (
    read_latent_rotation,
    read_rotation,
    source_function,
)
from prunescope.tracer.model import compat
from prunescope.tracer.model.forwards import hooked
from prunescope.tracer.model.heads import Heads, find_heads
from prunescope.tracer.model.layers import decoder_layers, text_config
from prunescope.tracer.model.logits import probe

_CACHED = 4  # axes of cached keys
_LATENT = ("q", "q_a", "q_b", "kv_a", "kv_b", "o")


@dataclass(frozen=True, kw_only=True)
class AttentionParts:
    """The attention of layer `layer`: `module`, at `path`. `names`: child by role (q, k, v or qkv,
    and o; of latent attention q or q_a, q_b, and kv_a, kv_b). `order`: the layout of a fused qkv,
    "parts" or "groups". `norms`: child for q and k, "" without one; `spans`: the input of a norm,
    "all" [.., n·d], "head" [.., n, d], "heads" [B, n, T, d] or "latent" [.., r]. `turns`: whether
    rotation pairs neighbours instead of halves; None: the layer has no rotation; `short`: whether
    cos and sin have one value for each pair; `rope_dim`: of latent attention, the rotated and
    shared part of a key. `gated`: whether q also outputs a gate for each head; `key_scale`: factor
    of the keys. `repeats`: copies of a key in the cache. `window`: keys that a query attends to,
    None for all; `masked`: whether every forward gets a mask. `eager`: the model's own function
    attends.
    """

    layer: int
    module: Any
    path: str
    names: dict[str, str]
    order: str
    norms: dict[str, str]
    spans: str
    interleaved: bool | None
    short: bool
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    scaling: float
    repeats: int
    window: int | None
    rope_dim: int = 0
    gated: bool = False
    key_scale: float = 1.0
    masked: bool = False
    eager: bool = False

    @property
    def like(self) -> torch.Tensor:
        """An empty tensor [1, h] with the device and dtype of the projections."""
        weight: torch.Tensor = self.module.get_submodule(self.names["o"]).weight
        return weight.new_empty(1, self.hidden)

    @property
    def layer_idx(self) -> int:
        """Index of its cache layer."""
        return int(self.module.layer_idx)


def read_attentions(model: Any) -> list[AttentionParts]:
    """The attention of every layer that has one. Raises PrunescopeError if one is not supported,
    and if there is none."""
    name, layers = decoder_layers(model)
    implementation = str(getattr(model.config, "_attn_implementation", "sdpa"))
    if implementation not in ("sdpa", "eager"):
        raise PrunescopeError(
            f"the dynamic families run SDPA or eager attention, not {implementation}",
            hint="use --attn sdpa",
        )
    heads = {i: find_heads(model, layer, f"{name}.{i}") for i, layer in enumerate(layers)}
    attentions = {i: attention for i, attention in heads.items() if attention is not None}
    if not attentions:
        raise unsupported(model, "no layer has an attention")
    for attention in attentions.values():
        _check_supported(model, attention, implementation)
    (key_heads, masked), windows = observe(model), compat.windows(model)
    return [
        replace(
            _parts(i, attention, key_heads, windows),
            masked=masked,
            eager=implementation == "eager",
        )
        for i, attention in attentions.items()
    ]


def unsupported(model: nn.Module, why: str) -> PrunescopeError:
    """The error for a model whose attention is not supported."""
    return PrunescopeError(
        f"the dynamic families do not support the layers of {type(model).__name__} ({why})",
        hint="they need an attention of q, k, v and o, fused or not; "
        "`prunescope families --architecture CONFIG` says which families take this model",
    )


def _check_supported(model: nn.Module, heads: Heads, implementation: str) -> None:
    """Raises PrunescopeError if an attention has other parts than AttentionParts."""
    own = list(heads.module.parameters(recurse=False))
    are_sinks = implementation == "eager" and all(x.shape == (heads.heads,) for x in own)
    if heads.gates or (own and not are_sinks):
        raise unsupported(model, "its attention has weights other than q, k, v and o")
    function = source_function(heads.module, "eager_attention_forward")
    if implementation == "eager" and function is None:
        raise unsupported(model, "it has no eager attention function")
    if any(w.path.rpartition(".")[0] != heads.path for w in heads.weights.values()):
        raise unsupported(model, "its projections are not in one module")
    if not isinstance(getattr(heads.module, "layer_idx", None), int):
        raise unsupported(model, "its attention has no layer_idx")
    known = ("qkv", "k", "v", *_LATENT, "qk_norm")
    for name, child in heads.module.named_children():
        has_weights = next(child.parameters(), None) is not None
        if has_weights and locate(f"{heads.path}.{name}").role not in known:
            raise unsupported(model, f"its attention has {name} next to q, k, v and o")
    rope = getattr(text_config(model), "rope_parameters", None) or {}
    if source_function(heads.module, "get_llama_4_attn_scale") and rope.get("llama_4_scaling_beta"):
        raise unsupported(model, "its queries are scaled by their position")


def observe(model: Any) -> tuple[dict[int, int], bool]:
    """Run a forward of a few tokens; returns the number of key heads by layer of the cache, and
    whether layers without a window get a mask although none is needed."""
    key_heads: dict[int, int] = {}
    windows, masked = compat.windows(model), [False]

    def record(module: Any, _args: Any, arguments: dict[str, Any], _out: Any) -> None:
        index = module.layer_idx
        layers = getattr(compat.cache_in(arguments), "layers", ())
        keys = getattr(layers[index], "keys", None) if index < len(layers) else None
        if isinstance(keys, torch.Tensor) and keys.dim() == _CACHED:
            key_heads[index] = keys.shape[1]
        has_no_window = index >= len(windows) or windows[index] is None
        masked[0] |= has_no_window and arguments.get("attention_mask") is not None

    handles = [
        module.register_forward_hook(record, with_kwargs=True)
        for module in model.modules()
        if isinstance(getattr(module, "layer_idx", None), int)
    ]
    with hooked(handles):
        probe(model, "unchanged")
    return key_heads, masked[0]


def _parts(
    layer: int, heads: Heads, key_heads: dict[int, int], windows: list[int | None]
) -> AttentionParts:
    module, root = heads.module, len(heads.path) + 1
    names = {role: weight.path[root:] for role, weight in heads.weights.items()}
    output, kv_heads = heads.weights["o"], heads.kv_heads
    head_dim = output.k // heads.heads
    if "qkv" in names:  # by its size, as the config may be wrong
        kv_heads = (heads.weights["qkv"].n // head_dim - heads.heads) // 2
    norms, spans = _norms(heads)
    interleaved, short = read_rotation(module)
    index = int(module.layer_idx)
    window = windows[index] if index < len(windows) else None
    if heads.entry and heads.entry.windowed_rope and window is None:
        interleaved = None
    parts = AttentionParts(
        layer=layer,
        module=module,
        path=heads.path,
        names=names,
        norms=norms,
        spans=spans,
        order=heads.entry.qkv if heads.entry else "",
        interleaved=interleaved,
        short=short,
        heads=heads.heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        hidden=output.n,
        scaling=float(getattr(module, "scaling", head_dim**-0.5)),
        repeats=max(1, key_heads.get(index, kv_heads) // kv_heads),
        window=window,
        gated="q" in names and heads.weights["q"].n == 2 * output.k,
        key_scale=float(getattr(module, "key_multiplier", 1.0)),
    )
    return _with_latents(parts, heads) if "kv_b" in names else parts


def _with_latents(parts: AttentionParts, heads: Heads) -> AttentionParts:
    """Latent attention: heads of queries and keys differ in size from heads of values. Its `names`
    have the matrices into the latents too."""
    children = [name for name, _ in heads.module.named_children()]
    roles = {locate(f"{heads.path}.{name}").role: name for name in children}
    names = {role: name for role, name in roles.items() if role in _LATENT}
    stored = parts.module.get_submodule(names["kv_a"]).out_features
    query = heads.weights["q_b" if "q_b" in names else "q"]
    return replace(
        parts,
        names=names,
        spans="latent",
        interleaved=read_latent_rotation(parts.module),
        short=False,
        head_dim=query.n // heads.heads,
        rope_dim=stored - heads.weights["kv_b"].k,
        gated=False,
    )


def _norms(heads: Heads) -> tuple[dict[str, str], str]:
    """Norms of q and k by role, and what they span."""
    wide = [(path, norm) for path, norm, _ in heads.wide_norms]
    names: dict[str, str] = {}
    spans = ""
    for path, norm in (*wide, *heads.head_norms):
        leaf = path[len(heads.path) + 1 :]
        if "." in leaf:
            continue  # the norm of a head, in a list of them
        names[leaf[0]] = leaf
        weight = getattr(norm, "weight", None)
        spans = "all" if wide else "heads" if weight is None else "head"
    return names, spans
