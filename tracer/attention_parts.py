"""What an attention of transformers is made of, so that a dynamic family can run its steps apart.

In: a model. Out: AttentionParts for each layer, read from its matrices, norms and cache, or a
PrunescopeError that says what is not understood. That the parts are all there is to it is proved
afterwards, by the logits (`tracer.prenorm.rebuilt`).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from taxonomy.errors import PrunescopeError
from tracer import compat
from tracer.heads import Heads, find_heads
from tracer.layers import decoder_layers, probe

_CACHED = 4  # axes of cached keys
_TURNED = 4  # dimensions of the vectors that tell how a rotation pairs them


@dataclass(frozen=True, kw_only=True)
class AttentionParts:
    """An attention: `module`, at `path`. `names`: child by role (q, k, v or qkv, and o). `order`:
    how a fused qkv lies, "parts" or "groups". `norms`: child for q and k, "" without one; `spans`:
    what a norm takes, "all" [.., n·d], "head" [.., n, d] or "heads" [B, n, T, d]. `turns`: whether
    a rotation pairs neighbours, not halves; None: this layer has none; `short`: whether cos and
    sin are given for one of each pair. `repeats`: times that a key stands in the cache. `window`:
    keys that a query sees, None for all; `masked`: whether every forward is given a mask. `eager`:
    the model's own function attends.
    """

    module: Any
    path: str
    names: dict[str, str]
    order: str
    norms: dict[str, str]
    spans: str
    turns: bool | None
    short: bool
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    scaling: float
    repeats: int
    window: int | None
    masked: bool = False
    eager: bool = False

    @property
    def like(self) -> torch.Tensor:
        """A tensor [1, h] of the device and dtype of the projections."""
        weight: torch.Tensor = self.module.get_submodule(self.names["o"]).weight
        return weight.new_empty(1, self.hidden)

    @property
    def layer_idx(self) -> int:
        """Its layer of the cache."""
        return int(self.module.layer_idx)


def read_attentions(model: Any) -> list[AttentionParts]:
    """The attention of every layer. Raises PrunescopeError where one is built otherwise."""
    name, layers = decoder_layers(model)
    implementation = str(getattr(model.config, "_attn_implementation", "sdpa"))
    if implementation not in ("sdpa", "eager"):
        raise PrunescopeError(
            f"the dynamic families run SDPA or eager attention, not {implementation}",
            hint="use --attn sdpa, so that dense and pruned attend alike",
        )
    found = [find_heads(model, layer, f"{name}.{i}") for i, layer in enumerate(layers)]
    heads = [_taken_apart(model, one, implementation) for one in found]
    (cached, masked), windows = observe(model), compat.windows(model)
    return [
        replace(_parts(one, cached, windows), masked=masked, eager=implementation == "eager")
        for one in heads
    ]


def unread(model: nn.Module, why: str) -> PrunescopeError:
    """The error for a model whose attention is not understood."""
    return PrunescopeError(
        f"layers of {type(model).__name__} cannot be taken apart by the dynamic families ({why})",
        hint="they need an attention of q, k, v and o, fused or not; "
        "`prunescope families --architecture CONFIG` says which families take this model",
    )


def _taken_apart(model: nn.Module, heads: Heads | None, implementation: str) -> Heads:
    if heads is None:
        raise unread(model, "a layer has no attention")
    if "kv_b" in heads.weights:
        raise unread(model, "its keys and values are expanded from a latent")
    beside = list(heads.module.parameters(recurse=False))
    sinks = implementation == "eager" and all(x.shape == (heads.heads,) for x in beside)
    if heads.gates or (beside and not sinks):
        raise unread(model, "its attention has weights beside q, k, v and o")
    if implementation == "eager" and own_function(heads.module, "eager_attention_forward") is None:
        raise unread(model, "its eager attention is no function of its own")
    if any(w.path.rpartition(".")[0] != heads.path for w in heads.weights.values()):
        raise unread(model, "its projections do not stand side by side")
    return heads


def observe(model: Any) -> tuple[dict[int, int], bool]:
    """What a forward of a few tokens shows: heads of keys by layer of the cache, and whether layers
    without a window are given a mask although none is needed."""
    seen: dict[int, int] = {}
    windows, masked = compat.windows(model), [False]

    def see(module: Any, _args: Any, arguments: dict[str, Any], _out: Any) -> None:
        index = module.layer_idx
        layers = getattr(compat.cache_in(arguments), "layers", ())
        keys = getattr(layers[index], "keys", None) if index < len(layers) else None
        if isinstance(keys, torch.Tensor) and keys.dim() == _CACHED:
            seen[index] = keys.shape[1]
        whole = index >= len(windows) or windows[index] is None
        masked[0] |= whole and arguments.get("attention_mask") is not None

    handles = [
        module.register_forward_hook(see, with_kwargs=True)
        for module in model.modules()
        if isinstance(getattr(module, "layer_idx", None), int)
    ]
    try:
        probe(model, "as it is")
    finally:
        for handle in handles:
            handle.remove()
    return seen, masked[0]


def _parts(heads: Heads, cached: dict[int, int], windows: list[int | None]) -> AttentionParts:
    module, root = heads.module, len(heads.path) + 1
    names = {role: weight.path[root:] for role, weight in heads.weights.items()}
    head_dim, kv_heads = heads.weights["o"].k // heads.heads, heads.kv_heads
    if "qkv" in names:  # its size tells, whatever the config says
        kv_heads = (heads.weights["qkv"].n // head_dim - heads.heads) // 2
    norms, spans = _norms(heads)
    turns, short = _turns(module)
    index = int(module.layer_idx)
    return AttentionParts(
        module=module, path=heads.path, names=names, norms=norms, spans=spans,
        order=heads.entry.qkv if heads.entry else "", turns=turns, short=short,
        heads=heads.heads, kv_heads=kv_heads, head_dim=head_dim, hidden=heads.weights["o"].n,
        scaling=float(getattr(module, "scaling", head_dim**-0.5)),
        repeats=cached.get(index, kv_heads) // kv_heads,
        window=windows[index] if index < len(windows) else None,
    )  # fmt: skip


def _norms(heads: Heads) -> tuple[dict[str, str], str]:
    """Norms of q and k by role, and what they take."""
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


def own_function(module: Any, name: str) -> Any:
    """A function of the source that a module's class is from; None where it has none so named."""
    kind = getattr(module, "_extends", type(module))
    return getattr(sys.modules[kind.__module__], name, None)


def _turns(module: Any) -> tuple[bool | None, bool]:
    """How the module's own source rotates: neighbours (True) or halves; None where it does not.
    And whether cos and sin are given for one of each pair."""
    rotate = own_function(module, "apply_rotary_pos_emb")
    if rotate is None or not getattr(module, "use_rope", True):
        return None, False
    x = torch.arange(1.0, _TURNED + 1).view(1, 1, 1, _TURNED)
    for size in (_TURNED, _TURNED // 2):
        cos, sin = torch.zeros(1, 1, size), torch.ones(1, 1, size)
        try:
            turned = rotate(x, x, cos, sin)[0].flatten().tolist()
        except RuntimeError:
            continue
        return bool(turned == [-2.0, 1.0, -4.0, 3.0]), size < _TURNED
    return False, False
