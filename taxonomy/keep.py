"""How many layers, heads, channels or ranks a sparsity keeps, with the roundings of each family.

Counts in, counts out; the tracer's pruners and the theory call the same functions. In docstrings p
is the kept share 1 − s of a sparsity s. A request that no model can satisfy (0 heads, a rank that
saves nothing, 2:4 at another sparsity) is an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real
from typing import Any

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.words import percent

ROUNDINGS = ("nearest", "paper")
_POWERS = (1, 2, 4, 8, 16, 32, 64, 128)
_JUST = "just-"
# Names of alignments, with a spelling by numbers that means the same. "paper": as in its code.
_NAMED = {"odd": f"{_JUST}1", "even": f"{_JUST}2", "paper": "16"}
# What kept dimensions are made multiples of: N, or "just-N": of N and of no larger power of two.
# A multiple of N may be one of more: 7,168 channels are aligned to 1 as well as to 1,024.
ALIGNMENTS = (*map(str, _POWERS), *_NAMED, *(f"{_JUST}{n}" for n in _POWERS))
ALIGN = "16"
_ALIGNED = {"1": "whole numbers", f"{_JUST}1": "odd numbers"}
# Products such as 10·(1 − 0.9) land a hair below the integer that is meant.
_EPSILON = 1e-9
# Shares that differ by less are not worth a sentence.
_SHOWN = 0.005


def rounding(kept: int, total: int, sparsity: float, unit: str) -> list[str]:
    """Return a note for the run if rounding to whole units changed the share that is removed."""
    share = 1 - kept / total
    if abs(share - sparsity) <= _SHOWN:
        return []
    removed, asked = percent(share, 1), percent(sparsity, 1)
    return [f"{kept} of {total} {unit} stay: {removed} of them removed, {asked} requested"]


def check_sparsity(sparsity: Any) -> float:
    """Return `sparsity` as a float. Raise PrunescopeError unless it is a number and 0 ≤ s < 1."""
    if isinstance(sparsity, bool) or not isinstance(sparsity, Real) or not 0 <= float(sparsity) < 1:
        raise PrunescopeError(
            f"sparsity {sparsity} is outside [0, 1)",
            hint="0.25 removes a quarter; 1 leaves nothing",
        )
    return float(sparsity)


def aligned(x: float, align: str = ALIGN) -> int:
    """Return int(x) rounded up to a dimension of an alignment; 0 stays 0.

    Raises:
        PrunescopeError: `align` is not one of ALIGNMENTS.
    """
    if align not in ALIGNMENTS:
        raise PrunescopeError(
            f"no alignment is called {align!r}", hint=f"one of {', '.join(ALIGNMENTS)}"
        )
    least = alignment_size(align)
    step, remainder = (2 * least, least) if is_just(align) else (least, 0)
    whole = int(x)
    return whole and whole + (remainder - whole) % step


def alignment_size(align: str) -> int:
    """Return the number that divides dimensions of an alignment: 8 for `8` and `just-8`."""
    return int(_NAMED.get(align, align).removeprefix(_JUST))


def is_just(align: str) -> bool:
    """Return whether an alignment is exact: twice its number divides no dimension.

    `odd` and `just-8` are such.
    """
    return _NAMED.get(align, align).startswith(_JUST)


def aligned_words(align: str) -> str:
    """Return the dimensions of an alignment in words: `multiples of 16`."""
    if align not in ALIGNMENTS:  # of a run folder, which may hold anything
        return f"multiples of {align}"
    size = alignment_size(align)
    many = f"numbers that {size} divides and {2 * size} does not"
    plain = many if is_just(align) else f"multiples of {size}"
    return _ALIGNED.get(_NAMED.get(align, align), plain)


def floor_of(x: float) -> int:
    """Return int(x), but 3 for 2.9999999999, which is an exact 3 in decimal."""
    return int(x + _EPSILON)


def removed_layers(layers: int, sparsity: float) -> int:
    """Return int(n·s) of n layers: sublayers of each kind, or whole layers."""
    return floor_of(layers * check_sparsity(sparsity))


def named_layers(text: str, layers: int) -> list[int]:
    """Return the layers that `--set layers=3,4` names of `layers`, in order.

    Raises:
        PrunescopeError: A layer is not there or is named twice, or none would be left.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(
        word.isascii() and word.isdecimal() and len(word) < 10 and int(word) < layers
        for word in words
    ):
        raise PrunescopeError(
            f"--set layers={text} does not name layers of this model",
            hint=f"numbers from 0 to {layers - 1}, as layers=3,4,5",
        )
    named = sorted(int(word) for word in words)
    once = sorted(set(named))
    if len(once) < len(named):
        twice = next(n for n in once if named.count(n) > 1)
        raise PrunescopeError(
            f"--set layers={text} names layer {twice} twice",
            hint=f"each once: layers={','.join(map(str, once))}",
        )
    if len(once) == layers:
        raise PrunescopeError(f"layers={text} leaves no layer", hint="keep one layer at least")
    return once


def named_share(text: str, layers: int, sparsity: float) -> str | None:
    """Return a note if `--set layers=` names another share than the sparsity, else None.

    Raises:
        PrunescopeError: `named_layers` refuses the text.
    """
    named = len(named_layers(text, layers))
    if abs(named / layers - sparsity) * layers < 1:  # int(n·s) rounds less than a layer away
        return None
    return (
        f"layers={text} are {named} of {layers} layers (s = {named / layers:.3g}), not s = "
        f"{sparsity:g}: nominal values use the requested sparsity"
    )


def kept_kv_heads(kv_heads: int, sparsity: float, rounding: str = "nearest") -> int:
    """Return the KV heads left of n_kv: max(1, round(n_kv·p)), ties to even.

    The rounding "paper" takes int(n_kv·p), which may be 0 for a small share.

    Raises:
        PrunescopeError: No head would be left, or the rounding is unknown.
    """
    share = kv_heads * (1 - check_sparsity(sparsity))
    if rounding not in ROUNDINGS:
        raise PrunescopeError(
            f"no rounding is called {rounding!r}", hint=f"one of {', '.join(ROUNDINGS)}"
        )
    if rounding == "nearest":
        return max(1, round(round(share, 9)))
    kept = floor_of(share)
    if kept == 0:
        raise PrunescopeError(
            f"int({kv_heads} KV heads x {1 - sparsity:g}) leaves 0 heads",
            hint=f"use rounding=nearest, which keeps one head, or {_largest_sparsity(kv_heads)}",
        )
    return kept


def kept_intermediate(intermediate: int, sparsity: float, align: str = ALIGN) -> int:
    """Return the MLP channels left of f: int(f·p), aligned, never more than f."""
    kept = aligned(floor_of(intermediate * (1 - check_sparsity(sparsity))), align)
    return _require_some(min(kept, intermediate), "MLP channels", intermediate, sparsity)


def kept_hidden(hidden: int, sparsity: float, align: str = ALIGN) -> int:
    """Return the residual-stream dimensions left of h: int(h·p), aligned, never more than h."""
    kept = aligned(floor_of(hidden * (1 - check_sparsity(sparsity))), align)
    return _require_some(min(kept, hidden), "hidden dimensions", hidden, sparsity)


def low_rank(n: int, k: int, sparsity: float, align: str = ALIGN) -> int:
    """Return the rank r = int(p·N·K/(N+K)), aligned, of a weight [N, K].

    Raises:
        PrunescopeError: r ≥ N·K/(N+K), so that the pair would cost as much as the matrix.
    """
    rank = _rank(n, k, sparsity, align)
    if not _saves(rank, n, k):
        raise PrunescopeError(
            f"rank {rank} of a [{n}, {k}] weight saves nothing (break-even {n * k / (n + k):.0f})",
            hint=f"{rank_hint([(n, k)], sparsity, align)}, or leave this matrix out",
        )
    return rank


def low_rank_or_dense(n: int, k: int, sparsity: float, align: str = ALIGN) -> int | None:
    """Return `low_rank`, or None if the pair would save nothing and the matrix stays dense."""
    rank = _rank(n, k, sparsity, align)
    return rank if _saves(rank, n, k) else None


def rank_hint(shapes: Iterable[tuple[int, int]], sparsity: float, align: str = ALIGN) -> str:
    """Name the nearest sparsity at which some rank makes one of the weights [N, K] smaller."""
    break_even = [n * k / (n + k) for n, k in shapes]
    # The largest aligned rank below N·K/(N+K), as a share of it.
    least = [1 - rank / e for e in break_even if (rank := _largest_below(e, align))]
    if not least:
        return (
            f"no sparsity can be met: ranks are aligned to {align}, and N·K/(N+K) is not above that"
        )
    nearest = math.ceil(min(least) * 1000) / 1000
    if sparsity > nearest:  # no rank is left
        return _largest_sparsity(math.floor(max(break_even)))
    return (
        f"raise the sparsity: from --sparsity {nearest:g} on a rank aligned to {align} saves "
        "something"
    )


def _largest_below(limit: float, align: str) -> int:
    """Return the largest aligned number below `limit`; 0 if there is none."""
    return next((n for n in range(math.ceil(limit) - 1, 0, -1) if aligned(n, align) == n), 0)


def spared_share(sparsity: float, full_heads: float) -> float:
    """Return the sparsity of keys over all heads if a share `full_heads` of them reads every key.

    Raises:
        PrunescopeError: The share is outside [0, 1).
    """
    if not 0 <= full_heads < 1:
        raise PrunescopeError(
            f"full_heads={full_heads:g} is not a share of the heads below 1",
            hint="for example --set full_heads=0.5: half of them read every key",
        )
    return sparsity * (1 - full_heads)


ALL_THAT_CAN_GO = 0.999999  # a sparsity at which only those experts stay that a router needs


def kept_experts(
    experts: int,
    per_token: int,
    sparsity: float,
    *,
    groups: int = 1,
    open_groups: int = 1,
    ranked_by: int = 1,
) -> int:
    """Return the experts left of E in a layer: max(k, round(E·p)), ties to even.

    A token needs its top k, so that k stay at least. Of `groups` between which a router chooses
    `open_groups` first, as many are left in each, at least the share of k that they have to serve
    and the `ranked_by` that rank a group; all of them if none can go.
    """
    kept = max(per_token, round(round(experts * (1 - check_sparsity(sparsity)), 9)))
    if groups < 2:
        return kept
    least = max(ranked_by, math.ceil(per_token / open_groups))
    return groups * min(experts // groups, max(round(kept / groups), least))


def kept_routes(per_token: int, sparsity: float) -> int:
    """Return the experts that a token still goes to, of its k: max(1, round(k·p)), ties to even."""
    return max(1, round(round(per_token * (1 - check_sparsity(sparsity)), 9)))


def kept_count(total: int, sparsity: float) -> int:
    """Return max(1, int(total·p)): the tokens, cached keys, blocks or ranks kept of `total`."""
    return max(1, floor_of(total * (1 - check_sparsity(sparsity))))


def _rank(n: int, k: int, sparsity: float, align: str) -> int:
    return aligned(floor_of((1 - check_sparsity(sparsity)) * n * k / (n + k)), align)


def _saves(rank: int, n: int, k: int) -> bool:
    return 0 < rank * (n + k) < n * k


def _largest_sparsity(total: int) -> str:
    """Name the largest sparsity, in thousandths, that leaves one unit of `total`."""
    return f"--sparsity {math.floor((1 - 1 / total) * 1000) / 1000:g} is the most"


def _require_some(kept: int, unit: str, total: int, sparsity: float) -> int:
    if kept == 0:
        raise PrunescopeError(
            f"sparsity {sparsity} leaves 0 of {total} {unit}",
            hint=f"use a lower sparsity: {_largest_sparsity(total)}",
        )
    return kept
