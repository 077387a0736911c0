"""Detectors of the dynamic families: work that falls at run time while the weights stay whole.

In: Evidence. Out: Seen or None. Rows, calls and keys are read from the GEMM pairs; what the run
counted (census) and units that only the pruned side has (routers, gathers) tell it from static.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from prunescope.analysis.ledger.gemms import Call, Pair
from prunescope.analysis.verdict.evidence import Evidence, Seen, Touches, fell, matrices
from prunescope.taxonomy.roles import LINEARS, MLP_ROLES

_LINEARS = (*LINEARS, "q_a", "q_b", "kv_a", "mixer_in", "mixer_out")  # kv_b expands what is cached
_EVERY = ("k", "v", "kv_a", "mixer_in", "mixer_out")  # see every token, whatever is routed past
_QUERY = ("q", "q_a", "q_b", "o")
_SPLIT = ("k", "q")  # the parts of a fused q, k, v whose queries run on fewer rows
_SAME = 1e-9


@dataclass
class _Layer:
    """What is left of a layer's linears by role: the share of their calls, and of the rows of a
    call; and of the products of its attention. `reshaped`: N or K moved too."""

    calls: dict[str, float] = field(default_factory=dict)
    rows: dict[str, float] = field(default_factory=dict)
    reshaped: set[str] = field(default_factory=set)
    scores_dense: float = 0.0
    scores_pruned: float = 0.0
    queries: float = 0.0

    @property
    def attention(self) -> float | None:
        """Share of the dense multiplications of QKᵀ and PV."""
        return self.scores_pruned / self.scores_dense if self.scores_dense else None

    def left(self, *roles: str) -> list[float]:
        """Shares of the rows of all calls, of those roles that the layer has."""
        return [self.calls[r] * self.rows.get(r, 1.0) for r in roles if r in self.calls]

    @property
    def whole(self) -> bool:
        """Whether no linear lost rows, calls or a dimension."""
        return not self.reshaped and all(_is_one(x) for x in self.left(*_LINEARS))

    @property
    def has_fewer_calls(self) -> bool:
        """Whether every linear ran equally often, and less often than in the dense model."""
        shares = set(self.calls.values())
        alike = bool(shares) and max(shares) - min(shares) < _SAME
        return alike and not _is_one(max(shares)) and not self.reshaped

    @property
    def has_fewer_rows(self) -> bool:
        """Whether every linear ran on the same smaller share of the rows."""
        shares = [self.rows.get(r, 1.0) for r in self.calls if r in _LINEARS]
        alike = bool(shares) and max(shares) - min(shares) < _SAME and not self.reshaped
        return alike and max(shares) < 1 - _SAME and all(map(_is_one, self.calls.values()))


def _is_one(share: float) -> bool:
    return abs(share - 1) < _SAME


def _layers(e: Evidence) -> dict[int, _Layer]:
    """The layers of the dense model by number."""
    out: dict[int, _Layer] = defaultdict(_Layer)
    fused: dict[int, list[Pair]] = defaultdict(list)
    gone, smaller = e.removed_weights(), e.smaller_weights()
    for pair in e.pairs:
        number, role, group, position = pair.key
        if number is None or number < 0 or (number, "o" if group in ("qk", "pv") else role) in gone:
            continue
        if group in ("qk", "pv"):
            # Heads that are gone from the weights were not skipped at run time.
            fewer = (number, "o") in smaller and "heads" in fell(pair)
            heads = pair.dense.batch if fewer and pair.dense is not None else None
            out[number].scores_dense += _products(pair.dense)
            out[number].scores_pruned += _products(pair.pruned, heads, like=pair.dense)
            if pair.dense is not None and pair.dense.m is not None and group == "qk":
                out[number].queries = pair.dense.m
        elif role == "qkv" and (number, role) not in smaller:
            fused[number].append(pair)
        elif role in _LINEARS and pair.dense is not None and position == 0:
            whole = (number, role) not in smaller
            _add_linear(out[number], role, pair.dense, pair.pruned, whole=whole)
    for number, pairs in fused.items():
        _add_fused(out[number], pairs)
    return {n: layer for n, layer in sorted(out.items()) if layer.calls}


def _add_linear(layer: _Layer, role: str, dense: Call, pruned: Call | None, *, whole: bool) -> None:
    """`whole`: whether the stored weight is of the dense size."""
    layer.calls[role] = pruned.count / dense.count if pruned is not None else 0.0
    if pruned is None or dense.gemm is None or pruned.gemm is None:
        return
    assert dense.m is not None
    assert pruned.m is not None
    layer.rows[role] = pruned.m / dense.m
    if whole and (dense.gemm.n, dense.gemm.k) != (pruned.gemm.n, pruned.gemm.k):
        layer.reshaped.add(role)


def _add_fused(layer: _Layer, pairs: list[Pair]) -> None:
    """A fused q, k, v of the dense size. Two GEMMs in its place, on fewer outputs each, are keys
    and values, then queries; one on fewer outputs, those of the keys and values alone."""
    dense = next((p.dense for p in pairs if p.dense is not None), None)
    if dense is None or dense.gemm is None:
        return
    parts = [p.pruned for p in pairs if p.pruned is not None]
    sizes = [part.gemm.n for part in parts if part.gemm is not None]
    split = sum(sizes) == dense.gemm.n if len(parts) == len(_SPLIT) else bool(parts)
    if not split or len(sizes) != len(parts) or max(sizes) >= dense.gemm.n:
        _add_linear(layer, "qkv", dense, parts[0] if parts else None, whole=True)
        return
    for role, part in zip(_SPLIT, (*parts, None), strict=False):
        layer.calls[role] = part.count / dense.count if part is not None else 0.0
        if part is not None and part.m is not None and dense.m is not None:
            layer.rows[role] = part.m / dense.m


def _products(call: Call | None, heads: float | None = None, *, like: Call | None = None) -> float:
    """Multiplications a step of one of attention's GEMMs, of `heads` (its own where that is None)
    of the dimension that `like` has: no method of run time makes a head narrower. Masked pairs
    count."""
    if call is None or call.batch is None or call.m is None or call.n is None or call.k is None:
        return 0.0
    n, k = call.n, call.k
    if like is not None and like.n is not None and like.k is not None:
        n, k = (n, like.k) if call.group == "qk" else (like.n, k)
    return call.count * (heads or call.batch) * call.m * n * k


def _routed(e: Evidence) -> bool:
    """Whether the pruned side multiplies by a router that the dense one lacks."""
    return e.added(role="router", cls="matmul") > 0


def _counted(e: Evidence, unit: str) -> str:
    """The census in words, for an evidence line."""
    found = e.counted(unit)
    return f"; the run counted {found[0]} of {found[1]} {unit} active" if found else ""


def dynamic_depth(e: Evidence) -> Seen | None:
    """Layers that run in some steps, or are gone while routers stand before layers."""
    layers = _layers(e)
    skipped = [n for n, layer in layers.items() if layer.has_fewer_calls]
    if not skipped:
        return None
    sometimes = [n for n in skipped if max(layers[n].calls.values()) > 0]
    if not (sometimes or _routed(e) or _is_less(e.counted("layers"))):
        return None
    ran = sum(max(layer.calls.values()) for layer in layers.values()) / len(layers)
    line = (
        f"{len(skipped)} of {len(layers)} layers do not run in every step ({len(sometimes)} in "
        f"some), {ran:.0%} of the layers run in a step{_counted(e, 'layers')}"
    )
    return Seen(
        "dynamic-depth", [line], lambda p: float(p.key[0] in skipped), explains=("static-m",)
    )


def _is_less(counted: tuple[int, int] | None) -> bool:
    return counted is not None and counted[0] < counted[1]


def dynamic_m(e: Evidence) -> Seen | None:
    """Fewer rows of q, o or the MLP, while k and v see every row."""
    layers = _layers(e)
    kept = [x for layer in layers.values() for x in layer.left(*_EVERY)]
    if not kept or not all(map(_is_one, kept)) or any(x.reshaped for x in layers.values()):
        return None
    attention = [n for n, x in layers.items() if min(x.left(*_QUERY), default=1.0) < 1 - _SAME]
    mlp = [n for n, x in layers.items() if min(x.left(*MLP_ROLES), default=1.0) < 1 - _SAME]
    if not attention and not (mlp and (_routed(e) or _is_less(e.counted("rows")))):
        return None
    shares = [x for n in attention for x in layers[n].left(*_QUERY)]
    shares += [x for n in mlp for x in layers[n].left(*MLP_ROLES)]
    line = (
        f"q and o of {len(attention)} layers and the MLP of {len(mlp)} see fewer rows "
        f"({sum(shares) / len(shares):.0%} of them), k and v see all{_counted(e, 'rows')}"
    )
    touched = {*attention, *mlp}

    def touches(pair: Pair) -> float:
        return float(pair.key[0] in touched and pair.key[1] not in _EVERY)

    confidence = 1.0 if _routed(e) or _is_less(e.counted("rows")) else 0.7
    explains = ("static-m", "static-nk-heads")  # gone sublayers and sequences of single steps
    return Seen("dynamic-m", [line], touches, confidence, explains)


def token_drop(e: Evidence) -> Seen | None:
    """From a layer on every linear sees fewer rows; in decode the later layers attend to fewer
    keys, and the run counted rows that were dropped in prefill."""
    layers = _layers(e)
    late = [n for n, layer in layers.items() if layer.has_fewer_rows]
    early = [n for n, layer in layers.items() if layer.whole]
    if late and early and max(early) < min(late) and len(late) + len(early) == len(layers):
        share = layers[late[-1]].left(*_LINEARS)[0]
        what = f"every GEMM sees {share:.0%} of the rows{_counted(e, 'rows')}"
        line = f"from layer {min(late)} on {what}"
        return Seen("token-drop", [line], lambda p: float(p.key[0] in late))
    shorter = [n for n, x in layers.items() if _attends_to_less(x)]
    full = [n for n in layers if n not in shorter]
    behind = e.counted_layers("rows")
    if behind and not shorter and len(early) == len(layers):
        line = f"tokens were dropped in prefill before layer {min(behind)}; no GEMM shows it here"
        return Seen("token-drop", [line], _attention_of(behind), 0.6)
    if not shorter or not full or max(full) > min(shorter) or len(early) < len(layers):
        return None
    if not _is_less(e.counted("rows", any_phase=True)):
        return None
    line = f"from layer {min(shorter)} on the cache is shorter: tokens were dropped in prefill"
    return Seen("token-drop", [line], _attention_of(shorter))


def _attends_to_less(layer: _Layer) -> bool:
    return layer.attention is not None and layer.attention < 1 - 1e-6


def _attention_of(layers: list[int]) -> Touches:
    return lambda p: float(p.key[0] in layers and p.key[2] in ("qk", "pv"))


def kv_evict(e: Evidence) -> Seen | None:
    """No linear moved and the run counted keys that left the cache: attention of decode reads
    fewer. (Without the count it might as well be a shorter context.)"""
    layers = _layers(e)
    counted = e.counted("keys")
    if not layers or not all(x.whole for x in layers.values()) or not _is_less(counted):
        return None
    assert counted is not None
    shorter = [n for n, x in layers.items() if _attends_to_less(x)]
    lines = [f"the cache holds {counted[0] / counted[1]:.0%} of the keys seen; no linear moved"]
    if shorter:
        lines.append(f"attention of {len(shorter)} of {len(layers)} layers reads fewer keys")
    return Seen("kv-evict", lines, _attention_of(list(layers)))


def dynamic_nk(e: Evidence) -> Seen | None:
    """Attention does less work while the linears do all of theirs: blocks of keys were skipped."""
    layers = _layers(e)
    attending = {n: x for n, x in layers.items() if x.attention is not None}
    less = [n for n, x in attending.items() if _attends_to_less(x)]
    if not less or not all(x.whole for x in layers.values()) or e.counted("keys"):
        return None
    blocks = e.counted("blocks")
    gathers = e.added(role="attention", cls="gather_scatter")
    prompt = max(layer.queries for layer in attending.values()) > 1
    # Layers with a window of their own stay as they are.
    if (len(less) < len(attending) and not blocks) or not (prompt or blocks or gathers):
        return None
    share = sum(x.attention or 0.0 for x in attending.values()) / len(attending)
    line = (
        f"attention of {len(less)} layers does {share:.0%} of the dense products, the linears all "
        f"of theirs; {gathers} gathers of keys or values were added{_counted(e, 'blocks')}"
    )
    confidence = 1.0 if blocks or gathers else 0.6
    return Seen("dynamic-nk", [line], _attention_of(less), confidence, ("static-nk-heads",))


def dynamic_width(e: Evidence) -> Seen | None:
    """N of gate and up and K of down fell, but the weights are whole: slices were gathered."""
    moved = [p for p in e.pairs if p.key[1] in MLP_ROLES and p.axis in ("N", "K")]
    if not moved or any(p.axis not in ("none", "N", "K") for p in e.pairs if p.key[1] in MLP_ROLES):
        return None
    gathers = sum(e.added(role=role, cls="gather_scatter") for role in MLP_ROLES)
    if not (gathers and _weights_are_whole(e)):
        return None
    pair = next((p for p in moved if p.key[1] == "down"), moved[0])
    assert pair.dense is not None
    assert pair.pruned is not None
    axis = pair.axis.lower()
    line = (
        f"{len(moved)} MLP GEMMs run on gathered slices of whole weights ({pair.key[1]} "
        f"{pair.axis} {getattr(pair.dense, axis):g} → {getattr(pair.pruned, axis):g}), {gathers} "
        f"gathers were added{_counted(e, 'channels')}"
    )
    return Seen(
        "dynamic-width", [line], lambda p: float(p.key[1] in MLP_ROLES), explains=("static-nk-mlp",)
    )


def _weights_are_whole(e: Evidence) -> bool:
    """Whether the pruned run stores MLP matrices of the dense shapes; so too where it is silent."""

    def shapes(census: dict[str, Any] | None) -> list[list[int] | None]:
        return [m.get("shape") for m in matrices(census) if m.get("role") in MLP_ROLES]

    return e.census_pruned is None or shapes(e.census_pruned) == shapes(e.census_dense)


DYNAMIC_DETECTORS: tuple[Callable[[Evidence], Seen | None], ...] = (
    dynamic_depth,
    dynamic_m,
    token_drop,
    kv_evict,
    dynamic_nk,
    dynamic_width,
)
