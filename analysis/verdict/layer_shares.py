"""How much of each layer still runs: what the detectors of dynamic families share.

In: Evidence. Out: shares of the dense calls, rows and attention of each layer, read from the GEMM
pairs. What the run counted (census) and units that only the pruned side has (routers, gathers) tell
work that falls at run time from weights that are gone.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from prunescope.analysis.ledger.calls import Call
from prunescope.analysis.ledger.gemms import Pair
from prunescope.analysis.verdict.evidence import Evidence, Touches, fell
from prunescope.taxonomy.roles import LINEARS

# Without kv_b, which expands what is cached.
LAYER_LINEARS = (*LINEARS, "q_a", "q_b", "kv_a", "mixer_in", "mixer_out")
EVERY = ("k", "v", "kv_a", "mixer_in", "mixer_out")  # see every token, whatever is routed past
_SPLIT = ("k", "q")  # the parts of a fused q, k, v whose queries run on fewer rows
SAME = 1e-9


@dataclass
class LayerShares:
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
        return not self.reshaped and all(is_one(x) for x in self.left(*LAYER_LINEARS))

    @property
    def has_fewer_calls(self) -> bool:
        """Whether every linear ran equally often, and less often than in the dense model."""
        shares = set(self.calls.values())
        equal = bool(shares) and max(shares) - min(shares) < SAME
        return equal and not is_one(max(shares)) and not self.reshaped

    @property
    def has_fewer_rows(self) -> bool:
        """Whether every linear ran on the same smaller share of the rows."""
        shares = [self.rows.get(r, 1.0) for r in self.calls if r in LAYER_LINEARS]
        equal = bool(shares) and max(shares) - min(shares) < SAME and not self.reshaped
        return equal and max(shares) < 1 - SAME and all(map(is_one, self.calls.values()))


def is_one(share: float) -> bool:
    """Whether nothing is gone."""
    return abs(share - 1) < SAME


def layer_shares(e: Evidence) -> dict[int, LayerShares]:
    """The layers of the dense model by number."""
    out: dict[int, LayerShares] = defaultdict(LayerShares)
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
        elif role in LAYER_LINEARS and pair.dense is not None and position == 0:
            whole = (number, role) not in smaller
            _add_linear(out[number], role, pair.dense, pair.pruned, whole=whole)
    for number, pairs in fused.items():
        _add_fused(out[number], pairs)
    return {n: layer for n, layer in sorted(out.items()) if layer.calls}


def _add_linear(
    layer: LayerShares, role: str, dense: Call, pruned: Call | None, *, whole: bool
) -> None:
    """`whole`: whether the stored weight is of the dense size."""
    layer.calls[role] = pruned.count / dense.count if pruned is not None else 0.0
    if pruned is None or dense.gemm is None or pruned.gemm is None:
        return
    assert dense.m is not None
    assert pruned.m is not None
    layer.rows[role] = pruned.m / dense.m
    if whole and (dense.gemm.n, dense.gemm.k) != (pruned.gemm.n, pruned.gemm.k):
        layer.reshaped.add(role)


def _add_fused(layer: LayerShares, pairs: list[Pair]) -> None:
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


def is_routed(e: Evidence) -> bool:
    """Whether the pruned side multiplies by a router that the dense one lacks: by any, or, where
    the model has routers to its experts, by more that decide a row at a time (N = 1)."""
    if e.added(role="router", cls="matmul"):
        return True
    decide: dict[int | None, float] = defaultdict(float)
    for pair in e.pairs:
        if pair.key[1] == "router":
            decide[pair.key[0]] += _decides(pair.pruned) - _decides(pair.dense)
    return any(more > 0 for more in decide.values())


def _decides(call: Call | None) -> float:
    return call.count if call is not None and call.n == 1 else 0.0


def counted_in_words(e: Evidence, unit: str) -> str:
    """The census in words, for an evidence line."""
    found = e.counted(unit)
    return f"; the run counted {found[0]} of {found[1]} {unit} active" if found else ""


def is_less(counted: tuple[int, int] | None) -> bool:
    """Whether something was counted, and not all of it was active."""
    return counted is not None and counted[0] < counted[1]


def attends_to_less(layer: LayerShares) -> bool:
    """Whether attention multiplies less than the dense one."""
    return layer.attention is not None and layer.attention < 1 - 1e-6


def of_attention(layers: list[int]) -> Touches:
    """The products of attention of these layers."""
    return lambda p: float(p.key[0] in layers and p.key[2] in ("qk", "pv"))
