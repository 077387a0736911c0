"""Families that skip work at run time, read back: layers, rows, keys, blocks of keys, channels.

In: Evidence. Out: a Detection, or None; `fewer_keys` gives a verdict on a bare trace, in which keys
that left the cache and keys that were skipped look alike.
"""

from __future__ import annotations

from prunescope.analysis.ledger.gemms import Pair
from prunescope.analysis.schema.report import FamilyVerdict
from prunescope.analysis.verdict.detectors import detector
from prunescope.analysis.verdict.evidence import Detection, Evidence, fell, matrices
from prunescope.analysis.verdict.layer_shares import (
    EVERY,
    LAYER_LINEARS,
    SAME,
    attends_to_less,
    counted_in_words,
    is_less,
    is_one,
    is_routed,
    layer_shares,
    of_attention,
)
from prunescope.taxonomy.families import families
from prunescope.taxonomy.roles import MLP_ROLES
from prunescope.taxonomy.run_blocks import WeightStats
from prunescope.taxonomy.words import percent

_QUERY = ("q", "q_a", "q_b", "o")
_UNITS = {"keys", "blocks"}  # what attention alone reads fewer of
_CONFIDENCE = 0.5  # that it is one of two families: a shorter context looks alike


@detector("dynamic-depth")
def dynamic_depth(e: Evidence) -> Detection | None:
    """Layers that run in some steps, or are gone while routers stand before layers."""
    layers = layer_shares(e)
    skipped = [n for n, layer in layers.items() if layer.has_fewer_calls]
    if not skipped:
        return None
    sometimes = [n for n in skipped if max(layers[n].calls.values()) > 0]
    if not (sometimes or is_routed(e) or is_less(e.counted("layers"))):
        return None
    ran = sum(max(layer.calls.values()) for layer in layers.values()) / len(layers)
    line = (
        f"{len(skipped)} of {len(layers)} layers do not run in every step ({len(sometimes)} in "
        f"some), {percent(ran)} of the layers run in a step{counted_in_words(e, 'layers')}"
    )
    return Detection([line], lambda p: float(p.key[0] in skipped), explains=("static-m",))


@detector("dynamic-m")
def dynamic_m(e: Evidence) -> Detection | None:
    """Fewer rows of q, o or the MLP, while k and v see every row."""
    layers = layer_shares(e)
    kept = [x for layer in layers.values() for x in layer.left(*EVERY)]
    if not kept or not all(map(is_one, kept)) or any(x.reshaped for x in layers.values()):
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
        f"{percent(sum(shares) / len(shares))} of theirs; k and v see all"
        f"{counted_in_words(e, 'rows')}"
    )
    touched = {*attention, *mlp}

    def touches(pair: Pair) -> float:
        return float(pair.key[0] in touched and pair.key[1] not in EVERY)

    confidence = 1.0 if is_routed(e) or is_less(e.counted("rows")) else 0.7
    explains = ("static-m", "static-nk-heads")  # gone sublayers and sequences of single steps
    return Detection([line], touches, confidence, explains)


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
        share = layers[late[-1]].left(*LAYER_LINEARS)[0]
        what = f"every GEMM sees {percent(share)} of the rows{counted_in_words(e, 'rows')}"
        line = f"from layer {min(late)} on {what}"
        return Detection([line], lambda p: float(p.key[0] in late))
    shorter = [n for n, x in layers.items() if attends_to_less(x)]
    full = [n for n in layers if n not in shorter]
    behind = e.counted_layers("rows")
    if behind and not shorter and len(early) == len(layers):
        line = f"tokens were dropped in prefill before layer {min(behind)}; no GEMM shows it here"
        return Detection([line], of_attention(behind), 0.6)
    if not shorter or not full or max(full) > min(shorter) or len(early) < len(layers):
        return None
    if not is_less(e.counted("rows", any_phase=True)):
        return None
    line = f"from layer {min(shorter)} on the cache is shorter: tokens were dropped in prefill"
    return Detection([line], of_attention(shorter))


@detector("kv-evict")
def kv_evict(e: Evidence) -> Detection | None:
    """No linear moved and the run counted keys that left the cache: attention of decode reads
    fewer. (Without the count it might as well be a shorter context.)"""
    layers = layer_shares(e)
    counted = e.counted("keys")
    if not layers or not all(x.whole for x in layers.values()) or not is_less(counted):
        return None
    assert counted is not None
    shorter = [n for n, x in layers.items() if attends_to_less(x)]
    held = e.layers_with_fewer("keys") or shorter
    of = f" of {len(held)} of {len(layers)} layers" if 0 < len(held) < len(layers) else ""
    lines = [
        f"the cache{of} holds {percent(counted[0] / counted[1])} of the keys seen; no linear moved"
    ]
    if shorter:
        lines.append(f"attention of {len(shorter)} of {len(layers)} layers reads fewer keys")
    return Detection(lines, of_attention(list(layers)))


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
        f"attention of {len(less)} layers does {percent(share)} of the dense products, the linears "
        f"all of theirs; {gathers} gathers of keys or values were added"
        f"{counted_in_words(e, 'blocks')}"
    )
    confidence = 1.0 if blocks or gathers else 0.6
    return Detection([line], of_attention(less), confidence, ("static-nk-heads",))


@detector("dynamic-width")
def dynamic_width(e: Evidence) -> Detection | None:
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
        f"gathers were added{counted_in_words(e, 'channels')}"
    )
    return Detection([line], lambda p: float(p.key[1] in MLP_ROLES), explains=("static-nk-mlp",))


def _weights_are_whole(e: Evidence) -> bool:
    """Whether the pruned run stores MLP matrices of the dense shapes; so too where it is silent."""

    def shapes(census: WeightStats | None) -> list[list[int] | None]:
        return [m.shape for m in matrices(census) if m.role in MLP_ROLES]

    return e.stats_pruned is None or shapes(e.stats_pruned) == shapes(e.stats_dense)


def fewer_keys(e: Evidence) -> FamilyVerdict | None:
    """The rest of the layers keeps its keys: those with a window of their own see no more of a
    long context than of a short one. Where all layers read fewer, the context is shorter for all
    that a trace says."""
    moved = [p for p in e.pairs if p.axis != "none"]
    axis = {"qk": {"N"}, "pv": {"K"}}
    if not moved or any(fell(p).keys() != axis.get(p.key[2], {""}) for p in moved):
        return None
    layers = {p.key[0] for p in moved}
    attending = {n for n, one in layer_shares(e).items() if one.attention is not None}
    if None in layers or not layers < attending:
        return None
    first = next((p for p in moved if p.key[2] == "qk"), None)
    if first is None or first.dense is None or first.pruned is None:
        return None
    before, after = (round(call.n or 0, 1) for call in (first.dense, first.pruned))
    line = (
        f"attention of {len(layers)} of {len(attending)} layers reads fewer keys "
        f"({before:g} → {after:g}), no linear moved: they left the cache or were "
        "skipped; a shorter context looks alike where the other layers have a window"
    )
    return FamilyVerdict(
        id="unknown",
        confidence=_CONFIDENCE,
        evidence=[line],
        alternatives=[one.id for one in families() if _UNITS & {*one.cuts}],
    )
