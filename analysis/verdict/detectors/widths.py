"""Detects families that narrow weights: heads, MLP channels, the residual width.

In: Evidence. Out: a Detection, or None. A GEMM whose N and K both fell belongs to two families (a
model that is narrower everywhere, as Minitron and Sheared-LLaMA leave it), by the logarithm of what
each took. How many rows an expert multiplies is its router's choice, and changes with every weight
before it: of experts the shapes of the weights, [N, K], are compared, never M.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prunescope.analysis.ledger.gemms import Call, Pair
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
    """Heads or MLP channels that fell, each in a producer and its consumer."""
    of_heads, of_mlp = _fallen(e)
    return _fewer_units(e, of_heads, of_mlp) if of_heads and of_mlp else None


@detector("static-nk-heads")
def static_nk_heads(e: Evidence) -> Detection | None:
    """Heads fell in attention, and no channels in the MLP."""
    of_heads, of_mlp = _fallen(e)
    return _fewer_units(e, of_heads) if of_heads and not of_mlp else None


@detector("static-nk-mlp")
def static_nk_mlp(e: Evidence) -> Detection | None:
    """Channels fell in the MLP, and no heads in attention."""
    of_heads, of_mlp = _fallen(e)
    return _fewer_units(e, of_mlp) if of_mlp and not of_heads else None


@detector("static-nk-cross")
def static_nk_cross(e: Evidence) -> Detection | None:
    """The residual width itself fell: K of what reads the stream, and N of what writes to it."""
    if not _crosses(e):
        return None
    readers = [p for p in e.pairs if p.key[1] in _ENTERED and p.dense is not None]
    entered, left, stream = _count(e, _ENTERED, "K"), _count(e, _WRITERS, "N"), _stream_widths(e)
    maps = sum(1 for p in e.pairs if p.axis == "added" and not p.is_of_attention)
    line = f"the residual width is smaller: K of {entered} and N of {left} GEMMs" + (
        f"; {maps} residual maps were added" if maps else ""
    )
    here = sum(1 for p in readers if p.pruned is not None) or 1
    confidence = 0.9 if entered / here > 0.5 else 0.5
    return Detection([line], lambda p: _share_of_stream(p, stream), confidence)


@dataclass(frozen=True)
class _Fallen:
    """Heads or channels that fell, in words. `what`: of which there are fewer; `where`: the GEMMs
    that lost them; `sizes`: of one, empty where none is known; `broken`: where they fell in the
    producer or in its consumer alone; `stay`: what is as it was."""

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
        """`N of 24 projections and K of 8 o`."""
        stay = self.stay and f"{self.stay}: "
        return f"{stay}{self.where}{self._note}"

    @property
    def _note(self) -> str:
        return self.broken and f" (propagation broken: {self.broken})"

    @property
    def in_short(self) -> str:
        """`heads (v N 64 → 32)`."""
        return f"{self.what}{self.sizes and f' ({self.sizes})'}"


def _fallen(e: Evidence) -> tuple[_Fallen | None, _Fallen | None]:
    """Heads and channels that fell. Where only the order of kernels says which GEMM is which, their
    shapes must say it too: what the one no longer makes, the other no longer reads."""
    heads, channels = _heads(e), _channels(e)
    if not e.by_order:
        return heads, channels
    whole = all(one is None or one.is_whole for one in (heads, channels))
    chained = (heads is None or _heads_are_read(e)) and (channels is None or _channels_are_read(e))
    return (heads, channels) if whole and chained else (None, None)


def _channels_are_read(e: Evidence) -> bool:
    """Whether in each layer K of down fell by the same widths as N of gate and up, each of which is
    half of a fused product."""
    alone, fused = (_widths_by_layer(e, one, "N") for one in (("gate", "up"), ("gate_up",)))
    twice = {layer: {(2 * old, 2 * new) for old, new in widths} for layer, widths in alone.items()}
    for layer, widths in fused.items():
        twice[layer] = twice.get(layer, set()) | widths
    read = _widths_by_layer(e, ("down",), "K")
    return twice == {
        layer: {(2 * old, 2 * new) for old, new in widths} for layer, widths in read.items()
    }


def _heads_are_read(e: Evidence) -> bool:
    """Whether in each layer K of o fell by the ratio by which the heads of attention did; where no
    attention has sizes, as N of q did, or as a fused q, k and v may have."""
    kept = {
        p.key[0]: p.pruned.gemm.batch / p.dense.gemm.batch
        for p in e.pairs
        if p.key[2] == "qk" and "heads" in fell(p)
        if p.dense is not None and p.dense.gemm is not None
        if p.pruned is not None and p.pruned.gemm is not None
    }
    read = _widths_by_layer(e, ("o",), "K")
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
    """Whether of any attention the heads of both sides are known."""
    scores = [p for p in e.pairs if p.key[2] == "qk"]
    return any(
        p.dense is not None and p.dense.gemm is not None
        for p in scores
        if p.pruned is not None and p.pruned.gemm is not None
    )


def _is_fused(n: int, k: int) -> bool:
    """Whether N can be that of q, k and v in one product, and K that of o: N = K + 2·kv, where the
    heads of q are a multiple of those of k and v."""
    both = n - k
    return both > 0 and both % 2 == 0 and k % (both // 2) == 0


def _widths_by_layer(
    e: Evidence, roles: tuple[str, ...], axis: str
) -> dict[int | None, set[tuple[int, int]]]:
    """(dense, pruned) widths that fell, by layer."""
    found: dict[int | None, set[tuple[int, int]]] = {}
    for pair in e.pairs:
        if _shrank(pair, roles, axis):
            found.setdefault(pair.key[0], set()).add(_sizes(pair, axis))
    return found


def families_by_order(e: Evidence) -> list[str]:
    """The families that would be named if GEMMs were what the order of kernels makes of them."""
    heads, channels = _heads(e), _channels(e)
    if any(one is not None and not one.is_whole for one in (heads, channels)):
        return []
    if heads and channels:
        return ["static-nk"]
    return ["static-nk-heads"] * bool(heads) + ["static-nk-mlp"] * bool(channels)


def _fewer_units(e: Evidence, *fallen: _Fallen) -> Detection:
    """The detection where heads, channels or both fell, less what the residual stream took."""
    stream = _stream_widths(e)
    experts = EXPERT_ROLES if expert_channels(e, stream)[0] else ()

    def touches(pair: Pair) -> float:
        if pair.key[1] in experts:
            return 1.0
        moved = pair.axis in ("N", "K", "NK", "heads") or "heads" in fell(pair)
        return moved * (1.0 - _share_of_stream(pair, stream))

    broken = tuple(one.line for one in fallen if not one.is_whole)
    confidence = 0.6 if broken else 1.0
    lines = [one.line for one in fallen]
    if len(fallen) > 1:  # the first line names both: it is the one that a paragraph has room for
        both = " and ".join(one.in_short for one in fallen)
        lines = [f"fewer {both}", "; ".join(one.detail for one in fallen)]
    return Detection(lines, touches, confidence, broken=broken)


def _share_of_stream(pair: Pair, stream: Widths) -> float:
    """The share of a pair's fall that the narrower residual stream (`stream`) explains."""
    role, took = pair.key[1], fell(pair)
    axis = "K" if role in _READERS else "N" if role in _WRITERS else ""
    if role in EXPERT_ROLES:  # how many rows an expert sees is its router's choice
        took.pop("M", None)
        axis = next((one for one in took if _sizes(pair, one) in stream), "")
    return took.get(axis, 0.0) / sum(took.values()) if took and stream else 0.0


def _stream_widths(e: Evidence) -> Widths:
    """(dense, pruned) widths of the residual stream; none where it did not fall."""
    pairs = [p for p in e.pairs if _shrank(p, _ENTERED, "K")]
    return frozenset(_sizes(p, "K") for p in pairs) if _crosses(e) else frozenset()


def _sizes(pair: Pair, axis: str) -> tuple[int, int]:
    """(dense, pruned) N or K of a pair that has both."""
    old, new = pair.dense, pair.pruned
    assert old is not None and old.gemm is not None and new is not None and new.gemm is not None
    return (old.gemm.n, new.gemm.n) if axis == "N" else (old.gemm.k, new.gemm.k)


def _heads(e: Evidence) -> _Fallen | None:
    """N of q, k, v and K of o fell together, and with them the heads of attention."""
    narrow, down = _count(e, _PRODUCERS, "N"), _count(e, ("o",), "K")
    fewer = sum(1 for p in e.pairs if p.key[2] == "qk" and "heads" in fell(p))
    if not narrow and not fewer:
        return None
    if not fewer and narrower_heads(e) is not None:
        return None
    sizes = _sizes_kept(e, ("v", "qkv"), "N")
    if _shares_keys(e):
        where = _counts_that_fell(narrow, "projections", 0, "") or f"in {fewer} attentions alone"
        return _Fallen("KV heads", where, sizes, stay="all query heads stay")
    where = _counts_that_fell(narrow, "projections", down, "o") or f"in {fewer} attentions alone"
    broken = (
        "" if down and (fewer or not _attention_is_known(e)) else "o or the heads did not follow"
    )
    return _Fallen("heads", where, sizes, broken)


def _shares_keys(e: Evidence) -> bool:
    """Whether more queries share a key than before: q, o and the heads of attention are all as they
    were, so that N(v)·G = K(o) holds with a larger G."""
    scores = [p for p in e.pairs if p.key[2] == "qk" and p.pruned is not None]
    kept = [p for p in e.pairs if p.key[1] in ("q", "q_b", "o") and p.pruned is not None]
    return bool(scores and kept) and all(p.axis == "none" for p in (*scores, *kept))


def narrower_heads(e: Evidence) -> str | None:
    """Heads of a smaller dimension, which is of no family: one sentence, or None."""
    scores = [p for p in e.pairs if p.key[2] == "qk" and "K" in fell(p)]
    values = [p for p in e.pairs if p.key[2] == "pv" and "N" in fell(p)]
    if not scores and not values:
        return None
    arrow = _arrow(scores[0], "k") if scores else _arrow(values[0], "n")
    what = "the head dimension" if scores else "the head dimension of the values"
    narrow, down = _count(e, _PRODUCERS, "N"), _count(e, ("o",), "K")
    with_it = _counts_that_fell(narrow, "projections", down, "o")
    known = any(p.key[1] in (*_PRODUCERS, "o") for p in e.pairs)
    without = "no projection did" if known else "which GEMMs are its projections is not known"
    rest = f"{with_it} fell with it" if with_it else without
    return (
        f"{what} fell from {arrow.replace(' → ', ' to ')}: {rest}; narrower heads are of no family"
    )


def _counts_that_fell(narrow: int, producers: str, down: int, consumers: str) -> str:
    """Counts of producers and consumers that fell; those that did not are left out."""
    parts = [f"N of {narrow} {producers}"] * bool(narrow) + [f"K of {down} {consumers}"] * bool(
        down
    )
    return " and ".join(parts)


def _channels(e: Evidence) -> _Fallen | None:
    """N of gate and up and K of down fell together, of experts too."""
    of_experts = expert_channels(e, _stream_widths(e))
    narrow, down = _count(e, _MLP, "N") + of_experts[0], _count(e, ("down",), "K") + of_experts[1]
    if not narrow and not down:
        return None
    gated = any(p.key[1] in ("gate", "gate_up") for p in e.pairs) or of_experts != (0, 0)
    into = "gate/up" if gated else "up"
    where = _counts_that_fell(narrow, into, down, "down")
    broken = "" if narrow and down else f"{into} and down did not move together"
    return _Fallen("MLP channels", where, _sizes_kept(e, ("down",), "K"), broken)


def _count(e: Evidence, roles: tuple[str, ...], axis: str) -> int:
    """GEMMs of the roles whose axis fell, alone or with another."""
    return sum(1 for p in e.pairs if _shrank(p, roles, axis))


def _sizes_kept(e: Evidence, roles: tuple[str, ...], axis: str) -> str:
    """ "down K 512 → 256"; from the smallest to the largest where layers keep different widths,
    of the GEMM that lost most in as many layers. Empty where none fell."""
    fallen = [p for p in e.pairs if _shrank(p, roles, axis)]
    example = max(fallen, key=lambda p: fell(p)[axis], default=None)
    if example is None:
        return ""
    role = example.key[1]
    widths = [_sizes(p, axis) for p in fallen if p.key[1] == role]
    before, _ = _sizes(example, axis)
    return f"{role} {axis} {fell_to(before, [new for old, new in widths if old == before])}"


def _shrank(pair: Pair, roles: tuple[str, ...], axis: str) -> bool:
    return pair.key[1] in roles and pair.axis not in ("rank", "2:4") and axis in fell(pair)


def _arrow(pair: Pair, axis: str) -> str:
    assert pair.dense is not None and pair.pruned is not None
    return f"{getattr(pair.dense, axis):g} → {getattr(pair.pruned, axis):g}"


def _crosses(e: Evidence) -> bool:
    """Whether K of what reads the stream and N of what writes to it fell."""
    return bool(_count(e, _ENTERED, "K") and _count(e, _WRITERS, "N"))


def expert_channels(e: Evidence, stream: Widths = frozenset()) -> tuple[int, int]:
    """(GEMMs whose N fell, GEMMs whose K fell) of the pruned experts, shared ones too; (0, 0)
    unless both fell. `stream`: (dense, pruned) widths of the residual stream where it fell, which
    are no channels."""
    narrow = down = 0
    for role in EXPERT_ROLES:
        of_role = [p for p in e.pairs if p.key[1] == role]
        dense = [_weight(p.dense) for p in of_role]
        pruned = [_weight(p.pruned) for p in of_role]
        in_step = [_fallen_axis(new, [old], stream) for old, new in zip(dense, pruned, strict=True)]
        # Where another number of experts was hit, calls are out of step; then any weight serves.
        anywhere = [_fallen_axis(new, dense, stream) for new in pruned]
        moved = min(in_step, anywhere, key=lambda m: m.count(""))
        narrow, down = narrow + moved.count("N"), down + moved.count("K")
    return (narrow, down) if narrow and down else (0, 0)


def _weight(call: Call | None) -> tuple[int, int] | None:
    gemm = call.gemm if call is not None else None
    return None if gemm is None else (gemm.n, gemm.k)


def _fallen_axis(
    weight: tuple[int, int] | None, before: Sequence[tuple[int, int] | None], stream: Widths
) -> str:
    """The axis by which a weight is smaller than a dense one, in a stream as wide as before; ""
    where it is none of them."""
    if weight is None or weight in before:
        return ""
    n, k = weight
    known = [old for old in before if old is not None]
    wide = [(old, k) for old, new in stream if new == n] + [
        (n, old) for old, new in stream if new == k
    ]
    if any(one in known for one in wide):
        return ""
    for n, k in wide or [weight]:
        if any(old_k == k and n < old_n for old_n, old_k in known):
            return "N"
        if any(old_n == n and k < old_k for old_n, old_k in known):
            return "K"
    return ""
