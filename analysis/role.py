"""The role and layer of every row: where in the decoder its work belongs.

In: scopes (places), kinds and op calls. Out: columns `layer` and `role`. Where no module is known,
roles come from the order of attention and GEMMs, and `source` says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.load import NONE, Ints
from analysis.scopes import Scopes
from analysis.work import OpCall
from taxonomy.roles import Place

GEMM_KINDS = ("gemm", "gemv", "batched_gemm", "sparse_gemm", "grouped_gemm")
_BY_A_WEIGHT = ("aten::mm", "aten::addmm", "aten::linear", "aten::mv", "aten::addmv")
POINTWISE = ("norm", "activation", "rope", "softmax", "elementwise", "reduction")


@dataclass(frozen=True)
class Roles:
    """`layer`: -1 where a row belongs to no layer; `role`: one of taxonomy.roles.ROLES.
    `source`: "modules", "nn.Module", "order" (from order and shape) or "none"."""

    layer: Ints
    role: list[str]
    source: str


def find_roles(scopes: Scopes, kinds: list[str], calls: list[OpCall | None]) -> Roles:
    """Roles of rows in time order of their launch; `calls[i]` is the op call of row i."""
    if scopes.source == "none":
        return _by_order(kinds)
    layer = np.full(len(kinds), NONE)
    role: list[str] = []
    attended: set[int] = set()  # calls of attention modules whose attention has been seen
    for i, kind in enumerate(kinds):
        place = scopes.places[scopes.place[i]] if scopes.place[i] >= 0 else None
        if place is None:
            role.append("sampling" if kind == "sampling" else "unknown")
            continue
        if place.layer is not None:
            layer[i] = place.layer
        found = place.role
        if found == "unknown":
            scope_call = int(scopes.call[i])
            found = _in_scope(place, kind, calls[i], after=scope_call in attended)
            if place.scope == "attention" and _is_attention(kind, calls[i]):
                attended.add(scope_call)
        role.append(found)
    return Roles(layer, role, scopes.source)


def _is_attention(kind: str, call: OpCall | None) -> bool:
    """Attention proper, or the products and softmax of an eager one; not a product by a weight."""
    if kind in GEMM_KINDS:
        return call is None or call.name not in _BY_A_WEIGHT
    return kind in ("attention", "softmax")


def _in_scope(place: Place, kind: str, call: OpCall | None, *, after: bool) -> str:
    """The role of work that a module with children does itself."""
    if place.scope == "attention":
        return _in_attention(kind, call, after=after)
    if place.scope == "mlp":
        if kind in ("routing", "sampling"):
            return "router"
        if kind in ("grouped_gemm", "gather_scatter"):
            return "experts"
        return "activation" if kind in (*POINTWISE, "layout") else "unknown"
    if place.scope == "layer":
        return "residual" if kind in (*POINTWISE, "layout") else "unknown"
    if place.scope == "mixer":
        return kind if kind in ("conv", "scan") else "scan"
    # A decoder multiplies by one weight outside of its layers.
    own = {"gemm": "lm_head", "gemv": "lm_head"}
    return kind if kind in ("embedding", "sampling", "rope") else own.get(kind, "unknown")


def _in_attention(kind: str, call: OpCall | None, *, after: bool) -> str:
    if _is_attention(kind, call):
        return "attention"
    if kind in GEMM_KINDS:
        return "unknown"
    if kind == "rope":
        return "rope"
    if _appends(call):
        return "kv_update"
    pointwise = kind in ("elementwise", "reduction", "layout", "norm", "activation")
    return "rope" if pointwise and not after and not _copies(call) else "attention"


def _appends(call: OpCall | None) -> bool:
    """Whether a call writes keys or values into a cache: an index_copy, a cat of unequal parts."""
    if call is None:
        return False
    if call.name in ("aten::index_copy_", "aten::index_copy", "aten::_index_put_impl_"):
        return True
    if call.name != "aten::cat" or not call.shapes or not isinstance(call.shapes[0], tuple):
        return False
    parts = call.shapes[0]
    return len(parts) == 2 and parts[0] != parts[1]


def _copies(call: OpCall | None) -> bool:
    return call is not None and call.name in ("aten::copy_", "aten::clone", "aten::repeat")


def _by_order(kinds: list[str]) -> Roles:
    """Roles from order: attention kernels divide the weight GEMMs into o, MLP and the next q, k, v.

    Between two attentions stand o, the MLP's GEMMs and the projections of the next layer. A
    sequence whose segments differ in length (an encoder beside a decoder) is left unknown.
    """
    layer = np.full(len(kinds), NONE)
    role = ["unknown"] * len(kinds)
    attention = [i for i, k in enumerate(kinds) if k == "attention"]
    gemms = [i for i, k in enumerate(kinds) if k in ("gemm", "gemv", "sparse_gemm")]
    for i, kind in enumerate(kinds):
        if kind in ("attention", "embedding", "sampling"):
            role[i] = kind
    cuts = np.searchsorted(gemms, attention) if gemms else np.zeros(0, int)
    inner = np.diff(cuts)
    usual = int(np.bincount(inner).argmax()) if len(inner) else 0
    before = int(cuts[0]) if len(cuts) else 0
    names = _SEGMENTS.get((usual, before)) if len(inner) and (inner == usual).mean() > 0.9 else None
    if names is None:
        return Roles(layer, role, "none")
    projections, after = names
    for n, i in enumerate(attention):
        layer[i] = n
        left = gemms[max(0, cuts[n] - len(projections)) : cuts[n]]
        right = gemms[cuts[n] : cuts[n] + len(after)]
        for rows, labels in ((left, projections), (right, after)):
            for j, label in zip(rows, labels, strict=False):
                layer[j], role[j] = n, label
    rest = [j for j in gemms[cuts[-1] + len(after) :] if role[j] == "unknown"]
    if len(rest) == 1:
        role[rest[0]] = "lm_head"
    return Roles(layer, role, "order")


# (GEMMs between two attentions, GEMMs before the first) -> projections, and what follows attention.
_SEGMENTS = {
    (7, 3): (("q", "k", "v"), ("o", "gate", "up", "down")),
    (4, 1): (("qkv",), ("o", "gate_up", "down")),
    (6, 3): (("q", "k", "v"), ("o", "up", "down")),
    (5, 1): (("qkv",), ("o", "gate", "up", "down")),
    (6, 2): (("q", "kv_b"), ("o", "gate", "up", "down")),
}
