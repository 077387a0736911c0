"""The heads of an attention: which rows and columns of its matrices belong to a KV-head group.

In: a layer. Out: Heads, which can mask or cut groups. n_q and n_kv are the numbers of query and KV
heads, and G = n_q/n_kv. With latent attention every head is a group: q_b and kv_b are cut, and the
latents stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunescope.taxonomy.configs.architecture_table import BY_ID, Architecture
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import cutting
from prunescope.taxonomy.roles import locate
from prunescope.taxonomy.witnesses import read_shape
from prunescope.tracer.model.layers import text_config
from prunescope.tracer.model.narrow import block_rows, is_norm, keep_entries, narrow_norm, set_sizes
from prunescope.tracer.model.weights import Weight, weights_of

_SETS = (
    frozenset({"q", "k", "v", "o"}),
    frozenset({"qkv", "o"}),
    frozenset({"q", "kv_b", "o"}),
    frozenset({"q_b", "kv_b", "o"}),
)
_PER_HEAD = ("q", "q_b", "k", "v", "kv_b")
_Q_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head")
_KV_COUNTS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
_CROSS = ("encoder_attn", "crossattention", "cross_attn")


@dataclass(frozen=True, kw_only=True)
class Heads:
    """The heads of one attention, with everything that is cut with them.

    `gates` are further matrices whose outputs belong to the query heads. `wide_norms` are norms
    over all heads of a role, as (path, norm, role); `head_norms` are norms of single heads.
    """

    path: str
    module: Any
    heads: int
    kv_heads: int
    weights: dict[str, Weight]
    gates: list[Weight]
    wide_norms: list[tuple[str, nn.Module, str]]  # over all heads of a role (path, norm, role)
    head_norms: list[tuple[str, nn.Module]]
    entry: Architecture | None

    def mask(self, kept: list[int]) -> None:
        """Zero the outputs of all groups but `kept`, and their inputs to a norm over all heads."""
        output = self.weights["o"]
        output.zero_inputs(self._index(kept, output.k, output))
        for role in {role for _, _, role in self.wide_norms}:
            weight = self.weights[role]
            weight.zero_outputs(self._index(kept, weight.n, weight))

    def cut(self, kept: list[int]) -> None:
        """Cut all groups but `kept` out of every matrix, norm and count."""
        widths = {role: weight.n for role, weight in self.weights.items()}
        for role, weight in self.weights.items():
            if role == "o":
                weight.keep_inputs(self._index(kept, weight.k, weight))
            elif role == "qkv":
                weight.keep_outputs(self._fused(kept, weight))
            else:
                weight.keep_outputs(self._index(kept, weight.n, weight))
        for gate in self.gates:
            gate.keep_outputs(self._index(kept, gate.n, gate))
        device = self.weights["o"].tensor.device
        for path, norm, role in self.wide_norms:
            narrow_norm(path, norm, block_rows(kept, widths[role] // self.kv_heads, device))
        for path, norm in self.head_norms:
            self._narrow_per_head(path, norm, kept, device)
        self._set_counts(kept, device)

    def _index(self, kept: list[int], size: int, weight: Weight) -> Tensor:
        """Return the rows of the kept groups in a matrix whose axis has `size` features."""
        return block_rows(kept, size // self.kv_heads, weight.tensor.device)

    def _fused(self, kept: list[int], weight: Weight) -> Tensor:
        """Return the rows of the kept groups in a fused q, k, v, in its architecture's order."""
        assert self.entry is not None
        if self.entry.qkv == "groups":
            return self._index(kept, weight.n, weight)
        size = weight.n // (self.heads + 2 * self.kv_heads)
        key = block_rows(kept, size, weight.tensor.device)
        query = block_rows(kept, size * self.heads // self.kv_heads, weight.tensor.device)
        first = self.heads * size
        return torch.cat([query, key + first, key + first + self.kv_heads * size])

    def _narrow_per_head(
        self, path: str, norm: nn.Module, kept: list[int], device: torch.device
    ) -> None:
        """Cut a norm with parameters for each head: a list of norms, or a weight [heads, d]."""
        is_query = path.rpartition(".")[2].startswith("q")
        count = self.heads if is_query else self.kv_heads
        index = block_rows(kept, count // self.kv_heads, device)
        for name, child in list(norm.named_children()):
            if isinstance(child, nn.ModuleList) and len(child) == count:
                setattr(norm, name, nn.ModuleList([child[i] for i in index.tolist()]))
        for name, parameter in list(norm.named_parameters(recurse=False)):
            if parameter.dim() == 2 and parameter.shape[0] == count:
                keep_entries(norm, name, index)

    def _set_counts(self, kept: list[int], device: torch.device) -> None:
        """Set the numbers and widths of heads in the modules, and cut attention sinks."""
        group = self.heads // self.kv_heads
        query = len(kept) * group
        for module in {id(m): m for m in (self.module, self.weights["o"].module)}.values():
            set_sizes(module, _Q_COUNTS, before=self.heads, after=query)
            set_sizes(module, _KV_COUNTS, before=self.kv_heads, after=len(kept))
        names = self.entry.widths if self.entry else ()
        width = self.weights["o"].k
        set_sizes(self.module, names, before=width * self.heads // query, after=width)
        for name, parameter in list(self.module.named_parameters(recurse=False)):
            if parameter.shape == (self.heads,):  # attention sinks
                keep_entries(self.module, name, block_rows(kept, group, device))


def find_heads(model: nn.Module, layer: nn.Module, path: str) -> Heads | None:
    """Find the attention of a layer; None if it has none (a recurrent mixer, or an MLP alone).

    Raises:
        PrunescopeError: The matrices do not show which rows belong to a head.
    """
    config = text_config(model)
    entry = BY_ID.get(str(config.model_type))
    if _is_mixer(config, path):
        return None
    weights, gates = _attention_weights(layer, path)
    if not weights:
        return None
    reason = entry.no_heads if entry else ""
    if getattr(config, "alibi", False):
        reason = "its positions are a slope for each head (ALiBi), counted from the first"
    if reason:
        raise _refusal(path, reason)
    if frozenset(weights) not in _SETS:
        raise _refusal(path, f"its matrices are {', '.join(sorted(weights))}")
    if "qkv" in weights and not (entry and entry.qkv):
        raise _refusal(path, "the order of rows in its fused q, k, v is not known")
    root, _, _ = weights[next(r for r in ("q", "q_b", "qkv") if r in weights)].path.rpartition(".")
    module = model.get_submodule(root)
    heads, kv_heads = _count_heads(config, module, weights)
    wide, single = [], []
    for name, norm in module.named_modules(prefix=root):
        if is_norm(norm) and locate(name).role == "qk_norm":
            role = _spanned_role(name, norm, weights, heads, kv_heads)
            if role:
                wide.append((name, norm, role))
            else:
                single.append((name, norm))
    attention = Heads(
        path=root,
        module=module,
        heads=heads,
        kv_heads=kv_heads,
        weights=weights,
        gates=gates,
        wide_norms=wide,
        head_norms=single,
        entry=entry,
    )
    _check_groups(attention)
    return attention


def _is_mixer(config: Any, path: str) -> bool:
    """Return whether the config says that a layer has a mixer, whatever its matrices are called.

    The q, k and v of linear attention have the names of those of attention (Kimi Linear, MiniMax).
    """
    kinds, number = getattr(config, "layer_types", None), locate(f"{path}.self_attn").layer
    if not isinstance(kinds, list) or number is None or number >= len(kinds):
        return False
    return kinds[number] == "linear_attention"


def _spanned_role(
    path: str, norm: nn.Module, weights: dict[str, Weight], heads: int, kv_heads: int
) -> str:
    """Return the role whose whole width a norm spans; "" for a norm of single heads or latents."""
    scale = getattr(norm, "weight", None)
    leaf = path.rpartition(".")[2]
    role = next((r for r in ("q", "k") if leaf.startswith(r) and r in weights), "")
    if not isinstance(scale, Tensor) or scale.dim() != 1 or not role:
        return ""
    has_many = (heads if role == "q" else kv_heads) > 1
    return role if has_many and scale.numel() == weights[role].n else ""


def _attention_weights(layer: nn.Module, path: str) -> tuple[dict[str, Weight], list[Weight]]:
    """Return the matrices of the layer's self-attention by role, and its gates."""
    inside = [
        (role, weight)
        for role, weight in weights_of(layer, path)
        if locate(weight.path).scope == "attention" and not any(c in weight.path for c in _CROSS)
    ]
    depth = next((weight.path.count(".") for role, weight in inside if role == "o"), None)
    siblings = [(role, weight) for role, weight in inside if weight.path.count(".") == depth]
    known = {role: weight for role, weight in siblings if role in (*_PER_HEAD, "qkv", "o")}
    gates = [w for role, w in siblings if role == "unknown" and _is_gate(w)]
    unknown = [w for role, w in siblings if role == "unknown" and not _is_gate(w)]
    if unknown:
        raise _refusal(path, f"it has {unknown[0].path}")
    return known, gates


def _is_gate(weight: Weight) -> bool:
    """Return whether a matrix is called a gate."""
    leaf = weight.path.rpartition(".")[2]
    return "gate" in leaf or leaf == "g_proj"


def _count_heads(config: Any, module: Any, weights: dict[str, Weight]) -> tuple[int, int]:
    """Return the numbers of query and KV heads.

    Those of the module and the shapes of its matrices count before those of the config.
    """
    counts = [getattr(module, name, None) for name in _Q_COUNTS]
    own = next((count for count in counts if isinstance(count, int)), 0)
    heads = own or int(config.num_attention_heads)
    if "kv_b" in weights:
        return heads, heads
    size = getattr(module, "head_dim", None) or weights["o"].k // heads
    if "k" in weights and weights["k"].n % size == 0:
        kv_heads = weights["k"].n // size
        group = getattr(module, "num_key_value_groups", None)
        return (group * kv_heads if isinstance(group, int) else heads), kv_heads
    return heads, read_shape(config.to_dict()).attention.kv_heads


def _check_groups(attention: Heads) -> None:
    """Refuse an attention whose matrices do not divide into equal groups."""
    weights, heads, parts = attention.weights, attention.heads, attention.kv_heads
    sizes = [weight.n for role, weight in weights.items() if role != "o"]
    sizes += [weights["o"].k, *(gate.n for gate in attention.gates)]
    if "qkv" in weights:
        whole = heads + 2 * parts
        if weights["qkv"].n % whole or heads % parts:
            raise _refusal(attention.path, f"its fused projection is not {whole} equal heads")
    if heads % parts or any(size % parts for size in sizes):
        raise _refusal(attention.path, f"its matrices are not {parts} equal groups")


def _refusal(path: str, why: str) -> PrunescopeError:
    """Make the error for an attention whose heads cannot be cut."""
    return PrunescopeError(
        f"heads of {path} cannot be cut: {why}",
        hint=f"{cutting('channels')} and {cutting('layers')} prune this model without its heads",
    )
