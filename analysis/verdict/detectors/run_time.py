"""Detects families that skip work at run time: layers, rows, keys, blocks of keys, channels.

In: Evidence. Out: a Detection, or None; `shorter_cache` gives a verdict where no run counted keys,
so that keys that left the cache and keys that were skipped look alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from prunescope.analysis.comparison.fewer_keys import fewer_keys
from prunescope.analysis.ledger.gemms import Call, Pair
from prunescope.analysis.schema.report import FamilyVerdict
from prunescope.analysis.verdict.detectors import detector
from prunescope.analysis.verdict.evidence import Detection, Evidence, Touches, fell, matrices
from prunescope.analysis.verdict.gathers import of_weights
from prunescope.taxonomy.families import families
from prunescope.taxonomy.roles import LINEARS, MLP_ROLES
from prunescope.taxonomy.runs.run_blocks import WeightStats
from prunescope.taxonomy.words import fell_to, percent

_QUERY = ("q", "q_a", "q_b", "o")
_UNITS = {"keys", "blocks"}  # what attention alone reads fewer of
_CONFIDENCE = 0.5  # that it is one of two families: a shorter context looks alike


@detector("dynamic-depth")
def dynamic_depth(e: Evidence) -> Detection | None:
    """Layers that do not run in every step, or that are missing while the model has routers."""
    layers = layer_shares(e)
    skipped = [n for n, layer in layers.items() if layer.has_fewer_calls]
    if not skipped or (is_less(e.counted("rows")) and e.counted("layers") is None):
        return None  # single rows were routed past whole layers
    sometimes = [n for n in skipped if max(layers[n].calls.values()) > 0]
    if not (sometimes or is_routed(e) or is_less(e.counted("layers"))):
        return None
    calls = [max(layer.calls.values()) for layer in layers.values()]
    ran = f"{percent(sum(calls) / len(layers))} of the layers run in a step"
    if e.by_order:
        line = (
            f"{layers_that_run(e)}, {ran}; which ones, the order of kernels does not say"
            f"{counted_in_words(e, 'layers')}"
        )
    else:
        line = (
            f"{len(skipped)} of {len(layers)} layers do not run in every step ({len(sometimes)} in "
            f"some), {ran}{counted_in_words(e, 'layers')}"
        )
    return Detection([line], lambda p: float(p.key[0] in skipped), explains=("static-m",))


def layers_that_run(e: Evidence) -> str:
    """How many layers of the dense model run, where some do not in each step, in words. By order
    they are numbered by their places in each step, and a place that some steps lack is no layer
    that they left out: the places of all steps, and of any, are the fewest and the most that
    ran."""
    calls = [max(layer.calls.values()) for layer in layer_shares(e).values()]
    fewest, most = sum(map(is_one, calls)), sum(call > 0 for call in calls)
    if not e.by_order:
        return f"{fewest} of {len(calls)} layers run in every step, {most} in some"
    number = f"{fewest} to {most}" if fewest < most else f"{most}"
    return f"{number} of {len(calls)} layers run in a step"


@detector("dynamic-m")
def dynamic_m(e: Evidence) -> Detection | None:
    """Fewer rows of q, o or the MLP, while k and v see every row, or those of q alone."""
    layers = layer_shares(e)
    kept = [x for layer in layers.values() for x in layer.left(*EVERY)]
    every = all(map(is_one, kept))
    if not kept or any(x.reshaped for x in layers.values()):
        return None
    if not every and not _routes_keys(e, layers):
        return None
    attention = [n for n, x in layers.items() if min(x.left(*_QUERY), default=1.0) < 1 - SAME]
    mlp = [n for n, x in layers.items() if min(x.left(*MLP_ROLES), default=1.0) < 1 - SAME]
    skipped = _without_experts(e)
    if not attention and not ((mlp or skipped) and (is_routed(e) or is_less(e.counted("rows")))):
        return None
    shares = [x for n in attention for x in layers[n].left(*_QUERY)]
    shares += [x for n in mlp for x in layers[n].left(*MLP_ROLES)]
    shares += skipped.values()
    mlp = sorted({*mlp, *skipped})
    line = (
        f"q and o of {len(attention)} layers and the MLP of {len(mlp)} see fewer rows, "
        f"{percent(sum(shares) / len(shares))} of theirs; k and v see "
        f"{'all' if every else 'as many'}"
        f"{counted_in_words(e, 'rows')}"
    )
    touched = {*attention, *mlp}

    def touches(pair: Pair) -> float:
        return float(pair.key[0] in touched and not (every and pair.key[1] in EVERY))

    is_counted = is_less(e.counted("rows"))
    confidence = 1.0 if is_routed(e) or is_counted else 0.7
    explains = ("static-m", "static-nk-heads")  # removed sublayers and sequences of single steps
    return Detection([line], touches, confidence, explains, proven=is_counted)


def _routes_keys(e: Evidence, layers: dict[int, LayerShares]) -> bool:
    """Whether the run counted rows that were left out, and k and v of each layer saw as few as q.
    Dropped tokens look alike from a layer on, and have been in every one before."""
    late = [n for n, layer in layers.items() if layer.has_fewer_rows]
    early = [n for n, layer in layers.items() if layer.whole]
    dropped = late and early and max(early) < min(late) and len(late) + len(early) == len(layers)
    return (
        is_less(e.counted("rows"))
        and not dropped
        and all(
            abs(k - q) < SAME
            for layer in layers.values()
            for q in layer.left("q", "q_a")
            for k in layer.left("k", "v", "kv_a")
        )
    )


def _without_experts(e: Evidence) -> dict[int, float]:
    """Layers whose experts run less often in a step, with the share of their products that is left.
    How many experts are hit is their router's choice as well: none at all is evidence, or fewer
    where the run counted the rows that were left out."""
    ran: dict[int, list[float]] = {}
    for pair in e.pairs:
        layer, role = pair.key[0], pair.key[1]
        if role != "experts" or layer is None or layer < 0:
            continue
        sums = ran.setdefault(layer, [0.0, 0.0])
        for i, call in enumerate((pair.dense, pair.pruned)):
            sums[i] += call.count if call is not None else 0.0
    counted = is_less(e.counted("rows"))
    return {n: p / d for n, (d, p) in ran.items() if p < d and (counted or not p)}


@detector("token-drop")
def token_drop(e: Evidence) -> Detection | None:
    """From a layer on every linear sees fewer rows; in decode the later layers attend to fewer
    keys, and the run counted rows that were dropped in prefill."""
    layers = layer_shares(e)
    late = [n for n, layer in layers.items() if layer.has_fewer_rows]
    early = [n for n, layer in layers.items() if layer.whole]
    if late and early and max(early) < min(late) and len(late) + len(early) == len(layers):
        what = f"every GEMM sees {_rows_of_layers(layers, late)}{counted_in_words(e, 'rows')}"
        line = f"from layer {min(late)} on {what}"
        is_counted = is_less(e.counted("rows"))
        return Detection([line], lambda p: float(p.key[0] in late), proven=is_counted)
    if (left := rows_left(layers)) and left[-1] < 1 - SAME:
        return _dropped_along(layers, left)
    shorter = [n for n, x in layers.items() if attends_to_less(x)]
    full = [n for n in layers if n not in shorter]
    behind = e.layers_with_fewer_rows()
    if behind and not shorter and len(early) == len(layers):
        line = f"tokens were dropped in prefill before layer {min(behind)}; no GEMM shows it here"
        return Detection([line], of_attention(behind), 0.6)
    if not shorter or not full or max(full) > min(shorter) or len(early) < len(layers):
        return None
    if not is_less(e.counted("rows", any_phase=True)):
        return None
    line = f"from layer {min(shorter)} on the cache is shorter: tokens were dropped in prefill"
    return Detection([line], of_attention(shorter), proven=True)


def _rows_of_layers(layers: Mapping[int, LayerShares], late: list[int]) -> str:
    """The share of the rows that the first and the last of the layers see: one where no more
    tokens leave between them."""
    first, last = (layers[n].left(*LAYER_LINEARS)[0] for n in (min(late), max(late)))
    if abs(first - last) < SAME:
        return f"{percent(last)} of the rows"
    return (
        f"fewer rows: {percent(first)} in layer {min(late)}, {percent(last)} in layer {max(late)}"
    )


def rows_left(layers: Mapping[int, LayerShares]) -> list[float]:
    """The shares of the rows that attention and the MLP of layer after layer see, where all of
    them come in and none comes back: tokens were dropped or merged on the way. Else empty."""
    left = [1.0]
    for _, layer in sorted(layers.items()):
        if layer.reshaped or not all(map(is_one, layer.calls.values())):
            return []
        for roles in (_ATTENDING, MLP_ROLES):
            shares = layer.left(*roles)
            if shares and (max(shares) - min(shares) > SAME or shares[0] > left[-1] + SAME):
                return []
            left += shares[:1]
    return left if len(left) > 1 and is_one(left[1]) else []


def _dropped_along(layers: Mapping[int, LayerShares], left: list[float]) -> Detection:
    first = min(n for n, layer in layers.items() if not layer.whole)
    steps = sum(one < before - SAME for before, one in pairwise(left))
    line = (
        f"tokens leave from layer {first} on, in {steps} step{'s' * (steps != 1)}, and none comes "
        f"back: the last MLP sees {percent(left[-1])} of the rows (dropped or merged)"
    )
    return Detection([line], lambda p: float(p.key[0] is not None and p.key[0] >= first))


@detector("kv-evict")
def kv_evict(e: Evidence) -> Detection | None:
    """No linear moved and the run counted keys that left the cache: attention of decode reads
    fewer. (Without the count `shorter_cache` says so, and that it may be a shorter context.)"""
    layers = layer_shares(e)
    counted = e.counted("keys")
    if not layers or not all(x.whole for x in layers.values()) or not is_less(counted):
        return None
    assert counted is not None
    shorter = [n for n, x in layers.items() if attends_to_less(x)]
    held = e.layers_with_fewer_keys() or shorter
    of = f" of {len(held)} of {len(layers)} layers" if 0 < len(held) < len(layers) else ""
    lines = [
        f"the cache{of} holds {percent(counted[0] / counted[1])} of the keys seen; no linear moved"
    ]
    if shorter:
        lines.append(f"attention of {len(shorter)} of {len(layers)} layers reads fewer keys")
    return Detection(lines, of_attention(list(layers)), proven=True)


@detector("dynamic-nk")
def dynamic_nk(e: Evidence) -> Detection | None:
    """Attention does less work while the linears do all of theirs: blocks of keys were skipped."""
    layers = layer_shares(e)
    attending = {n: x for n, x in layers.items() if x.attention is not None}
    less = [n for n, x in attending.items() if attends_to_less(x)]
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
        f"attention of {len(less)} layers does {percent(share)} of the dense FLOPs, the linears "
        f"all of theirs; {gathers} gathers of keys or values were added"
        f"{counted_in_words(e, 'blocks')}"
    )
    confidence = 1.0 if blocks or gathers else 0.6
    explains = ("static-nk-heads",)
    return Detection([line], of_attention(less), confidence, explains, proven=bool(blocks))


@detector("dynamic-width")
def dynamic_width(e: Evidence) -> Detection | None:
    """N of gate and up and K of down fell, but the weights are whole: slices were gathered. A bare
    trace shows that by gathers from a matrix of the size of a weight; those of activations pick
    tokens or features, whatever the weights are."""
    moved = [p for p in e.pairs if p.key[1] in MLP_ROLES and p.axis in ("N", "K")]
    if not moved or any(p.axis not in ("none", "N", "K") for p in e.pairs if p.key[1] in MLP_ROLES):
        return None
    gathers = sum(e.added(role=role, cls="gather_scatter") for role in MLP_ROLES)
    if not (gathers and _weights_are_whole(e)):
        return None
    confidence = 1.0
    if e.stats_pruned is None:
        calls = [p.dense for p in e.pairs if p.key[1] in MLP_ROLES and p.dense is not None]
        linears = [call.gemm for call in calls if call.gemm is not None]
        here = [one for one in e.gathers or () if one.role in MLP_ROLES]
        picked, is_clear = of_weights(here, linears)
        if e.gathers is not None and not picked:
            return None
        confidence = 1.0 if is_clear and picked else _CONFIDENCE
    pair = next((p for p in moved if p.key[1] == "down"), moved[0])
    assert pair.dense is not None
    assert pair.pruned is not None
    axis = pair.axis.lower()
    same = [p.pruned for p in moved if (p.key[1], p.axis) == (pair.key[1], pair.axis)]
    left = fell_to(getattr(pair.dense, axis), [getattr(call, axis) for call in same])
    line = (
        f"{len(moved)} MLP GEMMs run on gathered slices of whole weights ({pair.key[1]} "
        f"{pair.axis} {left}), {gathers} "
        f"gathers were added{counted_in_words(e, 'channels')}"
    )
    explains = ("static-nk-mlp",)
    return Detection(
        [line],
        lambda p: float(p.key[1] in MLP_ROLES),
        confidence,
        explains,
        proven=e.stats_pruned is not None,
    )


def _weights_are_whole(e: Evidence) -> bool:
    """Whether the pruned run stores MLP matrices of the dense shapes; so too where it is silent."""

    def shapes(stats: WeightStats | None) -> list[list[int] | None]:
        return [m.shape for m in matrices(stats) if m.role in MLP_ROLES]

    return e.stats_pruned is None or shapes(e.stats_pruned) == shapes(e.stats_dense)


def shorter_cache(e: Evidence) -> FamilyVerdict | None:
    """kv-evict where a decode reads fewer keys and nothing else fell: that they were not skipped,
    and that both sides saw the same prompt, is for the reader to know. Layers with windows of
    their own may read as many keys of a shorter prompt as before. Of a prompt, which M shows to be
    the same, it may be either family."""
    steps = e.units.dense.busy.shape[1] + e.units.pruned.busy.shape[1]
    found = fewer_keys(e.pairs, steps=steps)
    if found is None:
        return None
    attending = {n for n, one in layer_shares(e).items() if one.attention is not None}
    some = found.layers < attending
    if not (some or (found.is_decode and found.layers == attending)):
        return None
    line = (
        f"attention of {len(found.layers)} of {len(attending)} layers reads fewer keys "
        f"({fell_to(found.dense, found.pruned)}), no linear moved: they "
    )
    either = [one.id for one in families() if _UNITS & {*one.cuts}]
    if not found.is_decode:
        line += "left the cache or were skipped"
        return FamilyVerdict(
            id="unknown", confidence=_CONFIDENCE, evidence=[line], alternatives=either
        )
    line += "left the cache, if both sides saw the same prompt; a shorter one looks the same"
    line += " where the other layers have a window" * some
    line += ", and nothing recorded shows which"
    return FamilyVerdict(
        id="kv-evict",
        confidence=_CONFIDENCE,
        evidence=[line],
        alternatives=[one for one in either if one != "kv-evict"],
    )


# Without kv_b, which expands what is cached.
LAYER_LINEARS = (*LINEARS, "q_a", "q_b", "kv_a", "mixer_in", "mixer_out")
EVERY = ("k", "v", "kv_a", "mixer_in", "mixer_out")  # see every token, whatever is routed past
_ATTENDING = tuple(role for role in LAYER_LINEARS if role not in MLP_ROLES)
_SPLIT = ("k", "q")  # the parts of a fused q, k, v whose queries run on fewer rows
# A fused q, k, v, and the weights that a compiled step multiplies by one after another.
_FUSED = ("qkv", "q", "k", "v")
SAME = 1e-9


@dataclass
class LayerShares:
    """The shares of a layer's linears that ran, by role: the share of their calls, and of the rows
    of a call; and of the products of its attention. `reshaped`: N or K moved too."""

    calls: dict[str, float] = field(default_factory=dict)
    rows: dict[str, float] = field(default_factory=dict)
    reshaped: set[str] = field(default_factory=set)
    scores_dense: float | None = 0.0  # None: of some product of attention no shape is known
    scores_pruned: float | None = 0.0
    queries: float = 0.0

    @property
    def attention(self) -> float | None:
        """Share of the dense multiplications of QKᵀ and PV; None where it is not known."""
        if not self.scores_dense or self.scores_pruned is None:
            return None
        return self.scores_pruned / self.scores_dense

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
    """Whether nothing was removed."""
    return abs(share - 1) < SAME


def layer_shares(e: Evidence) -> dict[int, LayerShares]:
    """The layers of the dense model by number."""
    out: dict[int, LayerShares] = defaultdict(LayerShares)
    fused: dict[int, list[Pair]] = defaultdict(list)
    removed, smaller = e.removed_weights(), e.smaller_weights()
    for pair in e.pairs:
        number, role, group, position = pair.key
        weight = "o" if pair.is_of_attention else role  # attention goes with its projection
        if number is None or number < 0 or (number, weight) in removed:
            continue
        stored = _FUSED if role == "qkv" else (role,)
        whole = not any((number, part) in smaller for part in stored)
        if pair.is_of_attention:
            # Heads that were removed from the weights were not skipped at run time.
            fewer = (number, "o") in smaller and "heads" in fell(pair)
            heads = pair.dense.batch if fewer and pair.dense is not None else None
            one, before, now = out[number], pair.dense, pair.pruned
            one.scores_dense = _plus(one.scores_dense, _products(before))
            one.scores_pruned = _plus(one.scores_pruned, _products(now, heads, like=before))
            if pair.dense is not None and pair.dense.m is not None and group == "qk":
                out[number].queries = pair.dense.m
        elif role == "qkv" and whole:
            fused[number].append(pair)
        elif role in LAYER_LINEARS and pair.dense is not None and position == 0:
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
    and values, then queries; one on fewer outputs, those of the keys and values alone, where o
    shows that queries were left out. Else there are fewer heads."""
    dense = next((p.dense for p in pairs if p.dense is not None), None)
    if dense is None or dense.gemm is None:
        return
    parts = [p.pruned for p in pairs if p.pruned is not None]
    sizes = [part.gemm.n for part in parts if part.gemm is not None]
    without_queries = bool(parts) and min(layer.left("o"), default=1.0) < 1 - SAME
    split = sum(sizes) == dense.gemm.n if len(parts) == len(_SPLIT) else without_queries
    if not split or len(sizes) != len(parts) or max(sizes) >= dense.gemm.n:
        _add_linear(layer, "qkv", dense, parts[0] if parts else None, whole=True)
        return
    for role, part in zip(_SPLIT, (*parts, None), strict=False):
        layer.calls[role] = part.count / dense.count if part is not None else 0.0
        if part is not None and part.m is not None and dense.m is not None:
            layer.rows[role] = part.m / dense.m


def _plus(total: float | None, value: float | None) -> float | None:
    """The sum, None where a part is not known."""
    return None if total is None or value is None else total + value


def _products(
    call: Call | None, heads: float | None = None, *, like: Call | None = None
) -> float | None:
    """Multiplications a step of one of attention's GEMMs, of `heads` (its own where that is None)
    of the dimension that `like` has: no method of run time makes a head narrower. Masked pairs
    count. 0 for a call that was removed, None for one whose shape is not known."""
    if call is None:
        return 0.0
    if call.batch is None or call.m is None or call.n is None or call.k is None:
        return None
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
    """The stats in words, for an evidence line."""
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
    return lambda p: float(p.key[0] in layers and p.is_of_attention)
