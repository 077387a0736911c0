"""Detectors of families that skip work at run time: layers, rows, keys, blocks of keys, channels.

In: Evidence. Out: a Detection, or None. `shorter_cache` gives a verdict where no run counted keys,
so that keys that left the cache and keys that were skipped look alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise

from msgspec import Struct, field

from prunescope.analysis.comparison.fewer_keys import fewer_keys
from prunescope.analysis.ledger.call import Call
from prunescope.analysis.ledger.gemms import Pair
from prunescope.analysis.schema.report import FamilyVerdict
from prunescope.analysis.verdict.detectors import detector
from prunescope.analysis.verdict.evidence import Detection, Evidence, Touches, fell, matrices
from prunescope.analysis.verdict.gathers import count_weight_gathers
from prunescope.taxonomy.families import families
from prunescope.taxonomy.roles import LINEARS, MLP_ROLES
from prunescope.taxonomy.runs.run_blocks import WeightStats
from prunescope.taxonomy.words import fell_to, percent, plural, when

_QUERY = ("q", "q_a", "q_b", "o")
_UNITS = {"keys", "blocks"}  # what attention alone reads fewer of
_CONFIDENCE = 0.5  # that it is one of two families: a shorter context looks alike


@detector("dynamic-depth")
def dynamic_depth(e: Evidence) -> Detection | None:
    """Detect layers that do not run in every step.

    Layers that never run count too where the model has routers.
    """
    layers = layer_shares(e)
    skipped = [n for n, layer in layers.items() if layer.has_fewer_calls]
    if not skipped or (counts_less(e.counted("rows")) and e.counted("layers") is None):
        return None  # single rows were routed past whole layers
    sometimes = [n for n in skipped if max(layers[n].calls.values()) > 0]
    if not (sometimes or is_routed(e) or counts_less(e.counted("layers"))):
        return None
    calls = [max(layer.calls.values()) for layer in layers.values()]
    ran = f"{percent(sum(calls) / len(layers))} of the layers run in a step"
    if e.by_order:
        line = (
            f"{layers_that_run(e)}, {ran}; which ones, the order of kernels does not say"
            f"{describe_count(e, 'layers')}"
        )
    else:
        line = (
            f"{len(skipped)} of {len(layers)} layers do not run in every step ({len(sometimes)} in "
            f"some), {ran}{describe_count(e, 'layers')}"
        )
    return Detection([line], lambda p: float(p.key[0] in skipped), explains=("static-m",))


def layers_that_run(e: Evidence) -> str:
    """Describe how many layers of the dense model run, where some do not in each step.

    By the order of kernels, layers are numbered by their places in each step, and a place that some
    steps lack is no layer that they left out. The places that all steps have and those that any has
    are then the fewest and the most layers that ran.
    """
    calls = [max(layer.calls.values()) for layer in layer_shares(e).values()]
    fewest, most = sum(map(keeps_all, calls)), sum(call > 0 for call in calls)
    if not e.by_order:
        return f"{fewest} of {len(calls)} layers run in every step, {most} in some"
    number = f"{fewest} to {most}" if fewest < most else f"{most}"
    return f"{number} of {len(calls)} layers run in a step"


@detector("dynamic-m")
def dynamic_m(e: Evidence) -> Detection | None:
    """Detect fewer rows of q, o or the MLP, while k and v see every row, or those of q alone."""
    layers = layer_shares(e)
    kept = [x for layer in layers.values() for x in layer.left(*EVERY)]
    every = all(map(keeps_all, kept))
    if not kept or any(x.reshaped for x in layers.values()):
        return None
    if not every and not _routes_keys(e, layers):
        return None
    attention = [n for n, x in layers.items() if min(x.left(*_QUERY), default=1.0) < 1 - SAME]
    mlp = [n for n, x in layers.items() if min(x.left(*MLP_ROLES), default=1.0) < 1 - SAME]
    skipped = _layers_with_fewer_experts(e)
    if not attention and not (
        (mlp or skipped) and (is_routed(e) or counts_less(e.counted("rows")))
    ):
        return None
    shares = [x for n in attention for x in layers[n].left(*_QUERY)]
    shares += [x for n in mlp for x in layers[n].left(*MLP_ROLES)]
    shares += skipped.values()
    mlp = sorted({*mlp, *skipped})
    line = (
        f"q and o of {len(attention)} layers and the MLP of {len(mlp)} see fewer rows, "
        f"{percent(sum(shares) / len(shares))} of theirs; k and v see "
        f"{'all' if every else 'as many'}"
        f"{describe_count(e, 'rows')}"
    )
    touched = {*attention, *mlp}

    def touches(pair: Pair) -> float:
        return float(pair.key[0] in touched and not (every and pair.key[1] in EVERY))

    is_counted = counts_less(e.counted("rows"))
    confidence = 1.0 if is_routed(e) or is_counted else 0.7
    explains = ("static-m", "static-nk-heads")  # removed sublayers and sequences of single steps
    return Detection([line], touches, confidence, explains, proven=is_counted)


def _routes_keys(e: Evidence, layers: dict[int, LayerShares]) -> bool:
    """Return whether the run counted rows that were left out, and k and v saw as few as q.

    Dropped tokens look alike from a layer on, but are in every layer before.
    """
    late = [n for n, layer in layers.items() if layer.has_fewer_rows]
    early = [n for n, layer in layers.items() if layer.is_whole]
    dropped = late and early and max(early) < min(late) and len(late) + len(early) == len(layers)
    return (
        counts_less(e.counted("rows"))
        and not dropped
        and all(
            abs(k - q) < SAME
            for layer in layers.values()
            for q in layer.left("q", "q_a")
            for k in layer.left("k", "v", "kv_a")
        )
    )


def _layers_with_fewer_experts(e: Evidence) -> dict[int, float]:
    """Return the layers whose experts run less often in a step, with the share of products left.

    How many experts are hit is the choice of their router as well. So none at all is evidence, or
    fewer where the run counted the rows that were left out.
    """
    ran: dict[int, list[float]] = {}
    for pair in e.pairs:
        layer, role = pair.key[0], pair.key[1]
        if role != "experts" or layer is None or layer < 0:
            continue
        sums = ran.setdefault(layer, [0.0, 0.0])
        for i, call in enumerate((pair.dense, pair.pruned)):
            sums[i] += call.count if call is not None else 0.0
    counted = counts_less(e.counted("rows"))
    return {n: p / d for n, (d, p) in ran.items() if p < d and (counted or not p)}


@detector("token-drop")
def token_drop(e: Evidence) -> Detection | None:
    """Detect tokens that leave at some layer, so that every linear from there on sees fewer rows.

    In decode the later layers attend to fewer keys, and the run counted rows that were dropped in
    prefill.
    """
    layers = layer_shares(e)
    late = [n for n, layer in layers.items() if layer.has_fewer_rows]
    early = [n for n, layer in layers.items() if layer.is_whole]
    if late and early and max(early) < min(late) and len(late) + len(early) == len(layers):
        fewer_rows = f"every GEMM sees {_describe_rows(layers, late)}{describe_count(e, 'rows')}"
        line = f"from layer {min(late)} on {fewer_rows}"
        is_counted = counts_less(e.counted("rows"))
        return Detection([line], lambda p: float(p.key[0] in late), proven=is_counted)
    if (left := rows_left(layers)) and left[-1] < 1 - SAME:
        return _detect_drops_along(layers, left)
    shorter = [n for n, x in layers.items() if attends_to_less(x)]
    full = [n for n in layers if n not in shorter]
    behind = e.layers_with_fewer_rows()
    if behind and not shorter and len(early) == len(layers):
        line = f"tokens were dropped in prefill before layer {min(behind)}; no GEMM shows it here"
        return Detection([line], touch_attention(behind), 0.6)
    if not shorter or not full or max(full) > min(shorter) or len(early) < len(layers):
        return None
    if not counts_less(e.counted("rows", any_phase=True)):
        return None
    line = f"from layer {min(shorter)} on the cache is shorter: tokens were dropped in prefill"
    return Detection([line], touch_attention(shorter), proven=True)


def _describe_rows(layers: Mapping[int, LayerShares], late: list[int]) -> str:
    """Describe the share of the rows that the first and the last of the layers see.

    It is one share where no more tokens leave between them.
    """
    first, last = (layers[n].left(*LAYER_LINEARS)[0] for n in (min(late), max(late)))
    if abs(first - last) < SAME:
        return f"{percent(last)} of the rows"
    return (
        f"fewer rows: {percent(first)} in layer {min(late)}, {percent(last)} in layer {max(late)}"
    )


def rows_left(layers: Mapping[int, LayerShares]) -> list[float]:
    """Return the shares of the rows that attention and the MLP of layer after layer see.

    The result is empty unless all rows come in and none comes back: tokens were then dropped or
    merged on the way.
    """
    left = [1.0]
    for _, layer in sorted(layers.items()):
        if layer.reshaped or not all(map(keeps_all, layer.calls.values())):
            return []
        for roles in (_ATTENDING, MLP_ROLES):
            shares = layer.left(*roles)
            if shares and (max(shares) - min(shares) > SAME or shares[0] > left[-1] + SAME):
                return []
            left += shares[:1]
    return left if len(left) > 1 and keeps_all(left[1]) else []


def _detect_drops_along(layers: Mapping[int, LayerShares], left: list[float]) -> Detection:
    """Describe tokens that leave in several steps along the layers."""
    first = min(n for n, layer in layers.items() if not layer.is_whole)
    steps = sum(now < before - SAME for before, now in pairwise(left))
    line = (
        f"tokens leave from layer {first} on, in {steps} step{plural(steps)}, and none comes "
        f"back: the last MLP sees {percent(left[-1])} of the rows (dropped or merged)"
    )
    return Detection([line], lambda p: float(p.key[0] is not None and p.key[0] >= first))


@detector("kv-evict")
def kv_evict(e: Evidence) -> Detection | None:
    """Detect keys that left the cache: the run counted them, and no linear moved.

    Attention of decode then reads fewer. Without the count `shorter_cache` says so, and that it may
    be a shorter context.
    """
    layers = layer_shares(e)
    counted = e.counted("keys")
    if not layers or not all(x.is_whole for x in layers.values()) or not counts_less(counted):
        return None
    assert counted is not None
    shorter = [n for n, x in layers.items() if attends_to_less(x)]
    held = e.layers_with_fewer_keys() or shorter
    which = f" of {len(held)} of {len(layers)} layers" if 0 < len(held) < len(layers) else ""
    share = percent(counted[0] / counted[1])
    lines = [f"the cache{which} holds {share} of the keys seen; no linear moved"]
    if shorter:
        lines.append(f"attention of {len(shorter)} of {len(layers)} layers reads fewer keys")
    return Detection(lines, touch_attention(list(layers)), proven=True)


@detector("dynamic-nk")
def dynamic_nk(e: Evidence) -> Detection | None:
    """Detect blocks of keys that were skipped: attention does less work, and the linears do all."""
    layers = layer_shares(e)
    attending = {n: x for n, x in layers.items() if x.attention is not None}
    less = [n for n, x in attending.items() if attends_to_less(x)]
    if not less or not all(x.is_whole for x in layers.values()) or e.counted("keys"):
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
        f"{describe_count(e, 'blocks')}"
    )
    confidence = 1.0 if blocks or gathers else 0.6
    explains = ("static-nk-heads",)
    return Detection([line], touch_attention(less), confidence, explains, proven=bool(blocks))


@detector("dynamic-width")
def dynamic_width(e: Evidence) -> Detection | None:
    """Detect slices that were gathered from whole weights: N of gate and up and K of down fell.

    A bare trace shows that by gathers from a matrix of the size of a weight. Gathers of activations
    pick tokens or features, whatever the weights are.
    """
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
        here = [gather for gather in e.gathers or () if gather.role in MLP_ROLES]
        picked, is_clear = count_weight_gathers(here, linears)
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
        f"gathers were added{describe_count(e, 'channels')}"
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
    """Return whether the pruned run stores MLP matrices of the dense shapes, or lists none."""

    def shapes(stats: WeightStats | None) -> list[list[int] | None]:
        return [m.shape for m in matrices(stats) if m.role in MLP_ROLES]

    return e.stats_pruned is None or shapes(e.stats_pruned) == shapes(e.stats_dense)


def shorter_cache(e: Evidence) -> FamilyVerdict | None:
    """Return a verdict where attention reads fewer keys and nothing else fell.

    In decode it is kv-evict: that the keys were not skipped, and that both sides saw the same
    prompt, is for the reader to know. Layers with windows of their own may read as many keys of a
    shorter prompt as before. In prefill, where M shows the prompt to be the same, it may be
    eviction or skipping.
    """
    steps = e.units.dense.busy.shape[1] + e.units.pruned.busy.shape[1]
    keys = fewer_keys(e.pairs, steps=steps)
    if keys is None:
        return None
    attending = {n for n, layer in layer_shares(e).items() if layer.attention is not None}
    some = keys.layers < attending
    if not (some or (keys.is_decode and keys.layers == attending)):
        return None
    line = (
        f"attention of {len(keys.layers)} of {len(attending)} layers reads fewer keys "
        f"({fell_to(keys.dense, keys.pruned)}), no linear moved: they "
    )
    either = [family.id for family in families() if _UNITS & {*family.cuts}]
    if not keys.is_decode:
        line += "left the cache or were skipped"
        return FamilyVerdict(
            id="unknown", confidence=_CONFIDENCE, evidence=[line], alternatives=either
        )
    line += "left the cache, if both sides saw the same prompt; a shorter one looks the same"
    line += when(some, " where the other layers have a window")
    line += ", and nothing recorded shows which"
    return FamilyVerdict(
        id="kv-evict",
        confidence=_CONFIDENCE,
        evidence=[line],
        alternatives=[family for family in either if family != "kv-evict"],
    )


# Without kv_b, which expands what is cached.
LAYER_LINEARS = (*LINEARS, "q_a", "q_b", "kv_a", "mixer_in", "mixer_out")
EVERY = ("k", "v", "kv_a", "mixer_in", "mixer_out")  # see every token, whatever is routed past
_ATTENDING = tuple(role for role in LAYER_LINEARS if role not in MLP_ROLES)
_SPLIT = ("k", "q")  # the parts of a fused q, k, v whose queries run on fewer rows
# A fused q, k, v, and the weights that a compiled step multiplies by one after another.
_FUSED = ("qkv", "q", "k", "v")
SAME = 1e-9


class LayerShares(Struct):
    """The shares of a layer's work that ran.

    Attributes:
        calls: The share of the calls of a linear, by role.
        rows: The share of the rows of a call, by role.
        reshaped: The roles of which N or K moved too.
        scores_dense: Multiplications of the dense attention; None where a shape is unknown.
        scores_pruned: Those of the pruned one.
        queries: The queries of a call of attention.
    """

    calls: dict[str, float] = field(default_factory=dict)
    rows: dict[str, float] = field(default_factory=dict)
    reshaped: set[str] = field(default_factory=set)
    scores_dense: float | None = 0.0
    scores_pruned: float | None = 0.0
    queries: float = 0.0

    @property
    def attention(self) -> float | None:
        """The share of the dense multiplications of QKᵀ and PV; None where it is not known."""
        if not self.scores_dense or self.scores_pruned is None:
            return None
        return self.scores_pruned / self.scores_dense

    def left(self, *roles: str) -> list[float]:
        """Return the shares of the rows of all calls, of those roles that the layer has."""
        return [self.calls[r] * self.rows.get(r, 1.0) for r in roles if r in self.calls]

    @property
    def is_whole(self) -> bool:
        """Whether no linear lost rows, calls or a dimension."""
        return not self.reshaped and all(keeps_all(x) for x in self.left(*LAYER_LINEARS))

    @property
    def has_fewer_calls(self) -> bool:
        """Whether every linear ran equally often, and less often than in the dense model."""
        shares = set(self.calls.values())
        equal = bool(shares) and max(shares) - min(shares) < SAME
        return equal and not keeps_all(max(shares)) and not self.reshaped

    @property
    def has_fewer_rows(self) -> bool:
        """Whether every linear ran on the same smaller share of the rows."""
        shares = [self.rows.get(r, 1.0) for r in self.calls if r in LAYER_LINEARS]
        equal = bool(shares) and max(shares) - min(shares) < SAME and not self.reshaped
        return equal and max(shares) < 1 - SAME and all(map(keeps_all, self.calls.values()))


def keeps_all(share: float) -> bool:
    """Return whether nothing was removed."""
    return abs(share - 1) < SAME


def layer_shares(e: Evidence) -> dict[int, LayerShares]:
    """Return the shares of the layers of the dense model that ran, by number."""
    layers: dict[int, LayerShares] = defaultdict(LayerShares)
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
            shares, before, now = layers[number], pair.dense, pair.pruned
            shares.scores_dense = _add_known(shares.scores_dense, _count_multiplications(before))
            shares.scores_pruned = _add_known(
                shares.scores_pruned, _count_multiplications(now, heads, like=before)
            )
            if pair.dense is not None and pair.dense.m is not None and group == "qk":
                layers[number].queries = pair.dense.m
        elif role == "qkv" and whole:
            fused[number].append(pair)
        elif role in LAYER_LINEARS and pair.dense is not None and position == 0:
            _add_linear(layers[number], role, pair.dense, pair.pruned, whole=whole)
    for number, pairs in fused.items():
        _add_fused(layers[number], pairs)
    return {n: layer for n, layer in sorted(layers.items()) if layer.calls}


def _add_linear(
    layer: LayerShares, role: str, dense: Call, pruned: Call | None, *, whole: bool
) -> None:
    """Add a linear to a layer; `whole`: whether the stored weight is of the dense size."""
    layer.calls[role] = pruned.count / dense.count if pruned is not None else 0.0
    if pruned is None or dense.gemm is None or pruned.gemm is None:
        return
    assert dense.m is not None
    assert pruned.m is not None
    layer.rows[role] = pruned.m / dense.m
    if whole and (dense.gemm.n, dense.gemm.k) != (pruned.gemm.n, pruned.gemm.k):
        layer.reshaped.add(role)


def _add_fused(layer: LayerShares, pairs: list[Pair]) -> None:
    """Add a fused q, k, v whose weight is of the dense size.

    Two GEMMs in its place, on fewer outputs each, are keys and values, then queries. One on fewer
    outputs is that of the keys and values alone, where o shows that queries were left out. Else
    there are fewer heads.
    """
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


def _add_known(total: float | None, value: float | None) -> float | None:
    """Return the sum, or None where a part is not known."""
    return None if total is None or value is None else total + value


def _count_multiplications(
    call: Call | None, heads: float | None = None, *, like: Call | None = None
) -> float | None:
    """Return the multiplications per step of one of attention's GEMMs; masked pairs count.

    Args:
        call: The GEMM; 0 for None, a call that was removed.
        heads: The number of heads; None takes its own.
        like: The dense GEMM, whose head dimension is taken: no method of run time makes a head
            narrower. None takes its own.

    Returns:
        The number; None where a shape is not known.
    """
    if call is None:
        return 0.0
    if call.batch is None or call.m is None or call.n is None or call.k is None:
        return None
    n, k = call.n, call.k
    if like is not None and like.n is not None and like.k is not None:
        n, k = (n, like.k) if call.group == "qk" else (like.n, k)
    return call.count * (heads or call.batch) * call.m * n * k


def is_routed(e: Evidence) -> bool:
    """Return whether the pruned side multiplies by a router that the dense one lacks.

    Any router counts. Where the model has routers to its experts, there must be more that decide on
    rows one by one (N = 1).
    """
    if e.added(role="router", cls="matmul"):
        return True
    decide: dict[int | None, float] = defaultdict(float)
    for pair in e.pairs:
        if pair.key[1] == "router":
            decide[pair.key[0]] += _decisions(pair.pruned) - _decisions(pair.dense)
    return any(more > 0 for more in decide.values())


def _decisions(call: Call | None) -> float:
    """Return how often per step a router with one output runs."""
    return call.count if call is not None and call.n == 1 else 0.0


def describe_count(e: Evidence, unit: str) -> str:
    """Describe what the run counted, for a line of evidence."""
    counted = e.counted(unit)
    return f"; the run counted {counted[0]} of {counted[1]} {unit} active" if counted else ""


def counts_less(counted: tuple[int, int] | None) -> bool:
    """Return whether something was counted, and not all of it was active."""
    return counted is not None and counted[0] < counted[1]


def attends_to_less(layer: LayerShares) -> bool:
    """Return whether attention multiplies less than the dense one."""
    return layer.attention is not None and layer.attention < 1 - 1e-6


def touch_attention(layers: list[int]) -> Touches:
    """Touch the products of attention of these layers."""
    return lambda p: float(p.key[0] in layers and p.is_of_attention)
