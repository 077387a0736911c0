"""Detectors of families that narrow weights: heads, MLP channels, the residual width.

In: Evidence. Out: a Detection, or None. A GEMM whose N and K both fell belongs to two families (a
model that is narrower everywhere, as Minitron and Sheared-LLaMA leave it), by the logarithm of what
each took. How many rows an expert multiplies is the choice of its router, and changes with every
weight before it. So of experts the shapes of the weights, [N, K], are compared, never M.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from prunescope.analysis.ledger.call import Call
from prunescope.analysis.ledger.gemms import Pair
from prunescope.analysis.verdict.detectors import detector
from prunescope.analysis.verdict.evidence import Detection, Evidence, fell
from prunescope.taxonomy.roles import QKV_ROLES
from prunescope.taxonomy.words import fell_to

Widths = frozenset[tuple[int, int]]  # (dense, pruned)

EXPERT_ROLES = ("experts", "shared_expert")
_MLP = ("gate", "up", "gate_up")
_PRODUCERS = (*QKV_ROLES, "q_b", "kv_b")  # q_b and kv_b make the heads of latent attention
# What reads the residual stream (its K is h) and what writes to it (its N is h).
_ENTERED = (*QKV_ROLES, *_MLP, "q_a", "kv_a", "mixer_in")
_READERS = (*_ENTERED, "router", "lm_head")
_WRITERS = ("o", "down", "mixer_out")


@detector("static-nk")
def static_nk(e: Evidence) -> Detection | None:
    """Detect heads and MLP channels that fell, each in a producer and its consumer."""
    of_heads, of_mlp = _find_fallen(e)
    return _detect_fewer_units(e, of_heads, of_mlp) if of_heads and of_mlp else None


@detector("static-nk-heads")
def static_nk_heads(e: Evidence) -> Detection | None:
    """Detect heads that fell in attention, and no channels in the MLP."""
    of_heads, of_mlp = _find_fallen(e)
    return _detect_fewer_units(e, of_heads) if of_heads and not of_mlp else None


@detector("static-nk-mlp")
def static_nk_mlp(e: Evidence) -> Detection | None:
    """Detect channels that fell in the MLP, and no heads in attention."""
    of_heads, of_mlp = _find_fallen(e)
    return _detect_fewer_units(e, of_mlp) if of_mlp and not of_heads else None


@detector("static-nk-cross")
def static_nk_cross(e: Evidence) -> Detection | None:
    """Detect that the residual width fell.

    K of what reads the stream fell then, and N of what writes to it.
    """
    if not _stream_is_narrower(e):
        return None
    readers = [p for p in e.pairs if p.key[1] in _ENTERED and p.dense is not None]
    entered, left, stream = (
        _count_fallen(e, _ENTERED, "K"),
        _count_fallen(e, _WRITERS, "N"),
        _stream_widths(e),
    )
    maps = sum(1 for p in e.pairs if p.axis == "added" and not p.is_of_attention)
    line = f"the residual width is smaller: K of {entered} and N of {left} GEMMs" + (
        f"; {maps} residual maps were added" if maps else ""
    )
    here = sum(1 for p in readers if p.pruned is not None) or 1
    confidence = 0.9 if entered / here > 0.5 else 0.5
    return Detection([line], lambda p: _share_of_stream(p, stream), confidence)


class _Fallen(Struct, frozen=True):
    """Heads or channels that fell, in words.

    Attributes:
        what: The units of which there are fewer.
        where: The GEMMs that lost them.
        sizes: The sizes of one of these; empty where none is known.
        broken: Why they fell in the producer or in its consumer alone; empty where both fell.
        stay: What is as it was; empty where nothing is said of it.
    """

    what: str
    where: str
    sizes: str = ""
    broken: str = ""
    stay: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether they fell in the producer and in its consumer."""
        return not self.broken

    @property
    def line(self) -> str:
        """All in one line: `fewer heads: N of 24 projections and K of 8 o, v N 64 → 32`."""
        stay = self.stay and f", {self.stay}"
        return (
            f"fewer {self.what}{stay}: {self.where}{self.sizes and f', {self.sizes}'}{self._note}"
        )

    @property
    def detail(self) -> str:
        """The counts alone: `N of 24 projections and K of 8 o`."""
        stay = self.stay and f"{self.stay}: "
        return f"{stay}{self.where}{self._note}"

    @property
    def _note(self) -> str:
        """Why they fell on one side alone, in parentheses; empty where both fell."""
        return self.broken and f" (propagation broken: {self.broken})"

    @property
    def summary(self) -> str:
        """The units with their sizes: `heads (v N 64 → 32)`."""
        return f"{self.what}{self.sizes and f' ({self.sizes})'}"


def _find_fallen(e: Evidence) -> tuple[_Fallen | None, _Fallen | None]:
    """Find the heads and channels that fell.

    Where the order of kernels alone says which GEMM is which, their shapes must say it too: what
    one no longer makes, the next no longer reads.
    """
    heads, channels = _find_heads(e), _find_channels(e)
    if not e.by_order:
        return heads, channels
    whole = all(units is None or units.is_whole for units in (heads, channels))
    chained = (heads is None or _heads_are_read(e)) and (channels is None or _channels_are_read(e))
    return (heads, channels) if whole and chained else (None, None)


def _channels_are_read(e: Evidence) -> bool:
    """Return whether in each layer K of down fell by the same widths as N of gate and up.

    Each of these is half of a fused product.
    """
    alone, fused = (_widths_by_layer(e, roles, "N") for roles in (("gate", "up"), ("gate_up",)))
    twice = {layer: {(2 * old, 2 * new) for old, new in widths} for layer, widths in alone.items()}
    for layer, widths in fused.items():
        twice[layer] = twice.get(layer, set()) | widths
    read = _widths_by_layer(e, ("down",), "K")
    return twice == {
        layer: {(2 * old, 2 * new) for old, new in widths} for layer, widths in read.items()
    }


def _heads_are_read(e: Evidence) -> bool:
    """Return whether in each layer K of o fell by the ratio by which the heads of attention did.

    Where no attention has sizes, it must have fallen as N of q did, or as that of a fused q, k and
    v may have.
    """
    kept = {
        p.key[0]: new.batch / old.batch
        for p in e.pairs
        if p.key[2] == "qk" and "heads" in fell(p)
        for old, new in [p.gemms]
        if old is not None and new is not None
    }
    read = _widths_by_layer(e, ("o",), "K")
    if not kept and not read and _groups_more_queries(e):
        keys, values = (_widths_by_layer(e, (role,), "N") for role in ("k", "v"))
        return keys == values
    if kept:
        return kept.keys() == read.keys() and all(
            new == round(old * kept[layer]) for layer, widths in read.items() for old, new in widths
        )
    if _attention_is_known(e):
        return False
    if written := _widths_by_layer(e, ("q",), "N"):
        return written == read
    fused = _widths_by_layer(e, ("qkv",), "N")
    return fused.keys() == read.keys() and all(
        len(fused[layer]) == len(read[layer]) == 1
        and all(_is_fused(n, k) for n, k in zip(*fused[layer], *read[layer], strict=True))
        for layer in fused
    )


def _attention_is_known(e: Evidence) -> bool:
    """Return whether the heads of both sides of any attention are known."""
    return any(None not in p.gemms for p in e.pairs if p.key[2] == "qk")


def _is_fused(n: int, k: int) -> bool:
    """Return whether N can be that of q, k and v in one product, and K that of o.

    Then N = K + 2·kv, where the heads of q are a multiple of those of k and v.
    """
    both = n - k
    return both > 0 and both % 2 == 0 and k % (both // 2) == 0


def _widths_by_layer(
    e: Evidence, roles: tuple[str, ...], axis: str
) -> dict[int | None, set[tuple[int, int]]]:
    """Return the (dense, pruned) widths that fell, by layer."""
    fallen: dict[int | None, set[tuple[int, int]]] = {}
    for pair in e.pairs:
        if _shrank(pair, roles, axis):
            fallen.setdefault(pair.key[0], set()).add(_sizes(pair, axis))
    return fallen


def families_by_order(e: Evidence) -> list[str]:
    """Name the families that fit if GEMMs are what the order of kernels makes of them."""
    heads, channels = _find_heads(e), _find_channels(e)
    if any(units is not None and not units.is_whole for units in (heads, channels)):
        return []
    if heads and channels:
        return ["static-nk"]
    named = {"static-nk-heads": heads, "static-nk-mlp": channels}
    return [name for name, units in named.items() if units]


def _detect_fewer_units(e: Evidence, *fallen: _Fallen) -> Detection:
    """Build the detection of heads, channels or both, less what the residual stream took."""
    stream = _stream_widths(e)
    experts = EXPERT_ROLES if expert_channels(e, stream)[0] else ()

    def touches(pair: Pair) -> float:
        if pair.key[1] in experts:
            return 1.0
        moved = pair.axis in ("N", "K", "NK", "heads") or "heads" in fell(pair)
        return moved * (1.0 - _share_of_stream(pair, stream))

    broken = tuple(units.line for units in fallen if not units.is_whole)
    confidence = 0.6 if broken else 1.0
    lines = [units.line for units in fallen]
    if len(fallen) > 1:  # the first line names both: it is the one that a paragraph has room for
        both = " and ".join(units.summary for units in fallen)
        lines = [f"fewer {both}", "; ".join(units.detail for units in fallen)]
    return Detection(lines, touches, confidence, broken=broken)


def _share_of_stream(pair: Pair, stream: Widths) -> float:
    """Return the share of a pair's fall that the narrower residual stream explains."""
    role, took = pair.key[1], fell(pair)
    axis = "K" if role in _READERS else "N" if role in _WRITERS else ""
    if role in EXPERT_ROLES:  # how many rows an expert sees is its router's choice
        took.pop("M", None)
        axis = next((axis for axis in took if _sizes(pair, axis) in stream), "")
    return took.get(axis, 0.0) / sum(took.values()) if took and stream else 0.0


def _stream_widths(e: Evidence) -> Widths:
    """Return the (dense, pruned) widths of the residual stream; none where it did not fall."""
    pairs = [p for p in e.pairs if _shrank(p, _ENTERED, "K")]
    return frozenset(_sizes(p, "K") for p in pairs) if _stream_is_narrower(e) else frozenset()


def _sizes(pair: Pair, axis: str) -> tuple[int, int]:
    """Return the (dense, pruned) N or K of a pair that has both."""
    old, new = pair.gemms
    assert old is not None and new is not None
    return (old.n, new.n) if axis == "N" else (old.k, new.k)


def _find_heads(e: Evidence) -> _Fallen | None:
    """Find whether N of q, k, v and K of o fell together, and with them the heads of attention."""
    narrow, down = _count_fallen(e, _PRODUCERS, "N"), _count_fallen(e, ("o",), "K")
    fewer = sum(1 for p in e.pairs if p.key[2] == "qk" and "heads" in fell(p))
    if not narrow and not fewer:
        return None
    if not fewer and narrower_heads(e) is not None:
        return None
    sizes = _describe_sizes(e, ("v", "qkv"), "N")
    if _groups_more_queries(e):
        where = _describe_counts(narrow, "projections", 0, "") or f"in {fewer} attentions alone"
        what = " ".join(filter(None, ["KV heads", _count_key_heads(e)]))
        return _Fallen(what, where, sizes, stay="all query heads stay")
    where = _describe_counts(narrow, "projections", down, "o") or f"in {fewer} attentions alone"
    broken = (
        "" if down and (fewer or not _attention_is_known(e)) else "o or the heads did not follow"
    )
    return _Fallen("heads", where, sizes, broken)


def _count_key_heads(e: Evidence) -> str:
    """Return the KV heads of both sides, `8 → 2`; empty where layers differ or no head is known."""
    heads = {p.dense.k for p in e.pairs if p.key[2] == "qk" and p.dense is not None}
    queries = {_sizes(p, "K")[0] for p in e.pairs if p.key[1] == "o" and None not in p.gemms}
    widths = {_sizes(p, "N") for p in e.pairs if _shrank(p, ("v",), "N")}
    fused = {_sizes(p, "N") for p in e.pairs if _shrank(p, ("qkv",), "N")}
    if not widths and len(queries) == 1:
        (width,) = queries
        widths = {((old - width) // 2, (new - width) // 2) for old, new in fused}
    if len(heads) != 1 or len(widths) != 1:
        return ""
    (head,), ((old, new),) = heads, widths
    if not head or old % head or new % head:
        return ""
    return f"{old / head:g} → {new / head:g}"


def _groups_more_queries(e: Evidence) -> bool:
    """Return whether more queries share a key than before.

    q, o and the heads of attention are then all as they were, so that N(v)·G = K(o) holds with a
    larger G.
    """
    scores = [p for p in e.pairs if p.key[2] == "qk" and p.pruned is not None]
    kept = [p for p in e.pairs if p.key[1] in ("q", "q_b", "o") and p.pruned is not None]
    return bool(scores and kept) and all(p.axis == "none" for p in (*scores, *kept))


def narrower_heads(e: Evidence) -> str | None:
    """Describe heads of a smaller dimension, which is of no family; None where there are none."""
    scores = [p for p in e.pairs if p.key[2] == "qk" and "K" in fell(p)]
    values = [p for p in e.pairs if p.key[2] == "pv" and "N" in fell(p)]
    if not scores and not values:
        return None
    arrow = _format_arrow(scores[0], "k") if scores else _format_arrow(values[0], "n")
    dimension = "the head dimension" if scores else "the head dimension of the values"
    narrow, down = _count_fallen(e, _PRODUCERS, "N"), _count_fallen(e, ("o",), "K")
    with_it = _describe_counts(narrow, "projections", down, "o")
    known = any(p.key[1] in (*_PRODUCERS, "o") for p in e.pairs)
    without = "no projection did" if known else "which GEMMs are its projections is not known"
    projections = f"{with_it} fell with it" if with_it else without
    return (
        f"{dimension} fell from {arrow.replace(' → ', ' to ')}: {projections}; narrower heads are "
        "of no family"
    )


def _describe_counts(narrow: int, producers: str, down: int, consumers: str) -> str:
    """Name the producers and consumers that fell, with their counts."""
    counts = {f"N of {narrow} {producers}": narrow, f"K of {down} {consumers}": down}
    return " and ".join(text for text, count in counts.items() if count)


def _find_channels(e: Evidence) -> _Fallen | None:
    """Find whether N of gate and up and K of down fell together, of experts too."""
    of_experts = expert_channels(e, _stream_widths(e))
    narrow, down = (
        _count_fallen(e, _MLP, "N") + of_experts[0],
        _count_fallen(e, ("down",), "K") + of_experts[1],
    )
    if not narrow and not down:
        return None
    gated = any(p.key[1] in ("gate", "gate_up") for p in e.pairs) or of_experts != (0, 0)
    into = "gate/up" if gated else "up"
    where = _describe_counts(narrow, into, down, "down")
    broken = "" if narrow and down else f"{into} and down did not move together"
    return _Fallen("MLP channels", where, _describe_sizes(e, ("down",), "K"), broken)


def _count_fallen(e: Evidence, roles: tuple[str, ...], axis: str) -> int:
    """Count the GEMMs of the roles whose axis fell, alone or with another."""
    return sum(1 for p in e.pairs if _shrank(p, roles, axis))


def _describe_sizes(e: Evidence, roles: tuple[str, ...], axis: str) -> str:
    """Return for example "down K 512 → 256"; empty where none fell.

    Where layers keep different widths it names the smallest and the largest, of the GEMM that lost
    most in as many layers.
    """
    fallen = [p for p in e.pairs if _shrank(p, roles, axis)]
    example = max(fallen, key=lambda p: fell(p)[axis], default=None)
    if example is None:
        return ""
    role = example.key[1]
    widths = [_sizes(p, axis) for p in fallen if p.key[1] == role]
    before, _ = _sizes(example, axis)
    return f"{role} {axis} {fell_to(before, [new for old, new in widths if old == before])}"


def _shrank(pair: Pair, roles: tuple[str, ...], axis: str) -> bool:
    """Return whether an axis of a GEMM with one of the roles fell."""
    return pair.key[1] in roles and pair.axis not in ("rank", "2:4") and axis in fell(pair)


def _format_arrow(pair: Pair, axis: str) -> str:
    """Return a size of both sides: `64 → 32`."""
    assert pair.dense is not None and pair.pruned is not None
    return f"{getattr(pair.dense, axis):g} → {getattr(pair.pruned, axis):g}"


def _stream_is_narrower(e: Evidence) -> bool:
    """Return whether K of what reads the stream and N of what writes to it fell."""
    return bool(_count_fallen(e, _ENTERED, "K") and _count_fallen(e, _WRITERS, "N"))


def expert_channels(e: Evidence, stream: Widths = frozenset()) -> tuple[int, int]:
    """Count the GEMMs of the pruned experts, shared ones too, whose N fell, and whose K fell.

    Args:
        e: The evidence.
        stream: The (dense, pruned) widths of the residual stream where it fell, which are no
            channels.

    Returns:
        Both numbers; (0, 0) unless both fell.
    """
    narrow = down = 0
    for role in EXPERT_ROLES:
        of_role = [p for p in e.pairs if p.key[1] == role]
        dense = [_weight_size(p.dense) for p in of_role]
        pruned = [_weight_size(p.pruned) for p in of_role]
        scale_to_step = [
            _fallen_axis(new, [old], stream) for old, new in zip(dense, pruned, strict=True)
        ]
        # Where another number of experts was hit, calls are out of step; then any weight serves.
        anywhere = [_fallen_axis(new, dense, stream) for new in pruned]
        moved = min(scale_to_step, anywhere, key=lambda m: m.count(""))
        narrow, down = narrow + moved.count("N"), down + moved.count("K")
    return (narrow, down) if narrow and down else (0, 0)


def _weight_size(call: Call | None) -> tuple[int, int] | None:
    """Return N and K of a GEMM; None where they are not known."""
    gemm = call.gemm if call is not None else None
    return None if gemm is None else (gemm.n, gemm.k)


def _fallen_axis(
    weight: tuple[int, int] | None, before: Sequence[tuple[int, int] | None], stream: Widths
) -> str:
    """Return the axis by which a weight is smaller than a dense one, in a stream as wide as before.

    It is "" where no axis is.
    """
    if weight is None or weight in before:
        return ""
    n, k = weight
    known = [old for old in before if old is not None]
    wide = [(old, k) for old, new in stream if new == n] + [
        (n, old) for old, new in stream if new == k
    ]
    if any(size in known for size in wide):
        return ""
    for n, k in wide or [weight]:
        if any(old_k == k and n < old_n for old_n, old_k in known):
            return "N"
        if any(old_n == n and k < old_k for old_n, old_k in known):
            return "K"
    return ""
