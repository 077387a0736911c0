"""The parts of an attention of transformers, for dynamic families that change one of its steps.

In: a model. Out: AttentionParts for each layer, read from its matrices, norms and cache, or a
PrunescopeError with the reason why they are not supported. Whether an attention has other parts is
checked afterwards, by its logits (`tracer.routing.rebuild.rebuild`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

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

_CACHED = 4  # the number of axes of cached keys
_LATENT = ("q", "q_a", "q_b", "kv_a", "kv_b", "o")


@dataclass(frozen=True, kw_only=True)
class AttentionParts:
    """The attention of layer `layer`: the module at `path`, and what each of its steps does.

    `names` maps roles to child modules: q, k, v or qkv, and o; latent attention has q, or q_a and
    q_b, kv_a and kv_b. `order` is the layout of a fused qkv: "parts" or "groups". `norms` maps q
    and k to their norms, and `spans` is what a norm reads: "all" [.., n·d], "head" [.., n, d],
    "heads" [B, n, T, d] or "latent" [.., r].

    `is_interleaved` tells whether the rotation pairs neighbouring dimensions instead of halves;
    None if the layer has no rotation. If `has_short_rotary`, cos and sin have one value for each
    pair. `rope_dim` is the rotated part of a key in latent attention, which all heads share.

    If `is_gated`, q also outputs a gate for each head. `key_scale` is a factor of the keys, and
    `repeats` the number of copies of a key in the cache. `window` is the number of keys that a
    query attends to; None for all. If `is_masked`, every forward gets a mask. If `is_eager`, the
    model's own function attends.
    """

    layer: int
    module: Any
    path: str
    names: dict[str, str]
    order: str
    norms: dict[str, str]
    spans: str
    is_interleaved: bool | None
    has_short_rotary: bool
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    scaling: float
    repeats: int
    window: int | None
    rope_dim: int = 0
    is_gated: bool = False
    key_scale: float = 1.0
    is_masked: bool = False
    is_eager: bool = False

    @property
    def like(self) -> Tensor:
        """An empty tensor [1, h] with the device and dtype of the projections."""
        weight: Tensor = self.module.get_submodule(self.names["o"]).weight
        return weight.new_empty(1, self.hidden)

    @property
    def layer_idx(self) -> int:
        """The index of the layer in the cache."""
        return int(self.module.layer_idx)


def read_attentions(model: Any) -> list[AttentionParts]:
    """Read the attention of every layer that has one.

    Args:
        model: A model of transformers with SDPA or eager attention.

    Returns:
        The parts of each attention, in the order of the layers.

    Raises:
        PrunescopeError: No layer has an attention, or one of them is not supported.
    """
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
    (key_heads, is_masked), windows = observe(model), compat.windows(model)
    return [
        replace(
            _parts(i, attention, key_heads, windows),
            is_masked=is_masked,
            is_eager=implementation == "eager",
        )
        for i, attention in attentions.items()
    ]


def unsupported(model: nn.Module, why: str) -> PrunescopeError:
    """Make the error for a model whose attention is not supported."""
    return PrunescopeError(
        f"the dynamic families do not support the layers of {type(model).__name__} ({why})",
        hint="they need an attention of q, k, v and o, fused or not; "
        "`prunescope families --architecture CONFIG` says which families take this model",
    )


def _check_supported(model: nn.Module, heads: Heads, implementation: str) -> None:
    """Refuse an attention with parts that AttentionParts does not describe."""
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
    """Run a forward of a few tokens, and return what its attentions do.

    These are the number of key heads by layer of the cache, and whether layers without a window get
    a mask although they need none.
    """
    key_heads: dict[int, int] = {}
    windows, is_masked = compat.windows(model), [False]

    def record(module: Any, _args: Any, arguments: dict[str, Any], _out: Any) -> None:
        index = module.layer_idx
        layers = getattr(compat.cache_in(arguments), "layers", ())
        keys = getattr(layers[index], "keys", None) if index < len(layers) else None
        if isinstance(keys, Tensor) and keys.dim() == _CACHED:
            key_heads[index] = keys.shape[1]
        has_no_window = index >= len(windows) or windows[index] is None
        is_masked[0] |= has_no_window and arguments.get("attention_mask") is not None

    handles = [
        module.register_forward_hook(record, with_kwargs=True)
        for module in model.modules()
        if isinstance(getattr(module, "layer_idx", None), int)
    ]
    with hooked(handles):
        probe(model, "unchanged")
    return key_heads, is_masked[0]


def _parts(
    layer: int, heads: Heads, key_heads: dict[int, int], windows: list[int | None]
) -> AttentionParts:
    """Describe one attention.

    The number of KV heads follows from the size of a fused projection, since the config may be
    wrong.
    """
    module, root = heads.module, len(heads.path) + 1
    names = {role: weight.path[root:] for role, weight in heads.weights.items()}
    output, kv_heads = heads.weights["o"], heads.kv_heads
    head_dim = output.k // heads.heads
    if "qkv" in names:  # the config may be wrong, and the size of the matrix is not
        kv_heads = (heads.weights["qkv"].n // head_dim - heads.heads) // 2
    norms, spans = _norms(heads)
    is_interleaved, has_short_rotary = read_rotation(module)
    index = int(module.layer_idx)
    window = windows[index] if index < len(windows) else None
    if heads.entry and heads.entry.windowed_rope and window is None:
        is_interleaved = None
    parts = AttentionParts(
        layer=layer,
        module=module,
        path=heads.path,
        names=names,
        norms=norms,
        spans=spans,
        order=heads.entry.qkv if heads.entry else "",
        is_interleaved=is_interleaved,
        has_short_rotary=has_short_rotary,
        heads=heads.heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        hidden=output.n,
        scaling=float(getattr(module, "scaling", head_dim**-0.5)),
        repeats=max(1, key_heads.get(index, kv_heads) // kv_heads),
        window=window,
        is_gated="q" in names and heads.weights["q"].n == 2 * output.k,
        key_scale=float(getattr(module, "key_multiplier", 1.0)),
    )
    return _with_latents(parts, heads) if "kv_b" in names else parts


def _with_latents(parts: AttentionParts, heads: Heads) -> AttentionParts:
    """Describe latent attention, whose queries and keys differ in head size from its values.

    Its `names` also have the matrices that write the latents.
    """
    children = [name for name, _ in heads.module.named_children()]
    roles = {locate(f"{heads.path}.{name}").role: name for name in children}
    names = {role: name for role, name in roles.items() if role in _LATENT}
    stored = parts.module.get_submodule(names["kv_a"]).out_features
    query = heads.weights["q_b" if "q_b" in names else "q"]
    return replace(
        parts,
        names=names,
        spans="latent",
        is_interleaved=read_latent_rotation(parts.module),
        has_short_rotary=False,
        head_dim=query.n // heads.heads,
        rope_dim=stored - heads.weights["kv_b"].k,
        is_gated=False,
    )


def _norms(heads: Heads) -> tuple[dict[str, str], str]:
    """Return the norms of q and k by role, and what they span."""
    wide = [(path, norm) for path, norm, _ in heads.wide_norms]
    names: dict[str, str] = {}
    spans = ""
    for path, norm in (*wide, *heads.head_norms):
        leaf = path[len(heads.path) + 1 :]
        if "." in leaf:
            continue  # it is one of a list of norms, one for each head
        names[leaf[0]] = leaf
        weight = getattr(norm, "weight", None)
        spans = "all" if wide else "heads" if weight is None else "head"
    return names, spans
