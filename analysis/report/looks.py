"""The look of everything that figures, pages and notebooks show: one palette.

In: the name of a row of the ledger, a kind of work, a category, a bound or a family. Out: a colour,
a hatch for bars and a marker for points. Within each of these groups no two looks are alike, be it
in grey or to the colour-blind: like colours have other hatches and markers. Colours are those of
Okabe and Ito and of Paul Tol. Strokes of what is no evidence (hatches.HATCHES) are none of these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from prunescope.taxonomy.families import pruning_families


class Look(NamedTuple):
    """A colour, a hatch for bars, and a marker for points."""

    colour: str
    hatch: str = ""
    marker: str = "o"


# Rows of the ledger. The walls and the promise are lines, or the ground of a bar.
ROWS = {
    "promised": Look("#DDDDDD"),
    "coverage": Look("#E69F00"),
    "roofline_shift": Look("#56B4E9", "////"),
    "shape": Look("#CC79A7", "...."),
    "kernel_efficiency": Look("#D55E00"),
    "added_work": Look("#F0E442", "++++"),
    "launch_idle": Look("#999999", "\\\\\\\\"),
    "not_explained": Look("#FFFFFF", "**"),
}
# Kinds of kernels. Timelines have no hatches, and so the colours of all differ.
KINDS = {
    "gemm": Look("#0072B2", "", "o"),
    "gemv": Look("#004488", "////", "d"),
    "batched_gemm": Look("#6699CC", "....", "^"),
    "sparse_gemm": Look("#33BBEE", "\\\\\\\\", "<"),
    "grouped_gemm": Look("#99DDFF", "++++", ">"),
    "attention": Look("#E69F00", "", "D"),
    "softmax": Look("#BB7700", "////", "v"),
    "rope": Look("#FFCC66", "....", "p"),
    "norm": Look("#CC79A7", "", "P"),
    "reduction": Look("#AA3377", "////", "X"),
    "elementwise": Look("#009E73", "....", "s"),
    "activation": Look("#66CCAA", "////", "h"),
    "embedding": Look("#DDCC77", "", "8"),
    "gather_scatter": Look("#999933", "....", "*"),
    "layout": Look("#EE8866", "\\\\\\\\", "H"),
    "routing": Look("#CC3311", "++++", "D"),
    "quantise": Look("#882255", "....", "v"),
    "conv": Look("#332288", "", "^"),
    "scan": Look("#AA4499", "\\\\\\\\", "<"),
    "memcpy": Look("#777777", "", ">"),
    "memset": Look("#AAAAAA", "////", "d"),
    "comm": Look("#117733", "++++", "p"),
    "sampling": Look("#661100", "....", "h"),
    "unknown": Look("#DDDDDD", "", "o"),
}
# Categories of arXiv 2606.09080, in which blues are GEMMs.
CATEGORIES = {
    "gemm": KINDS["gemm"],
    "mlp": KINDS["gemm"],
    "qkvo": Look("#56B4E9", "...."),
    "other_gemm": Look("#56B4E9", "////"),
    "lm_head": Look("#88CCEE", "**"),
    "attention": KINDS["attention"],
    "cache_update": Look("#F0E442", "++++"),
    "extra": Look("#D55E00", "++++"),
    "preprocess": Look("#D55E00", "////"),
    "elementwise": KINDS["elementwise"],
    "other": Look("#FFFFFF", "...."),
    "idle": ROWS["launch_idle"],
}
BOUNDS = {
    "compute": Look("#0072B2"),
    "memory": Look("#E69F00"),
    "latency": Look("#CC79A7", "////"),
    "unknown": Look("#DDDDDD"),
}
DENSE, PRUNED = Look("#56B4E9", "", "s"), Look("#0072B2", "", "o")
BOUND, MEASURED = DENSE, PRUNED  # bounds and measured ratios of a ladder
# Parts of a whole that have no name of their own in a palette, the largest first.
PARTS = (
    Look("#D55E00"), Look("#56B4E9", "////"), Look("#009E73", "++++"), Look("#E69F00", "...."),
    Look("#CC79A7", "\\\\\\\\"), Look("#0072B2", "////"), Look("#F0E442"),
)  # fmt: skip
# Series that are told apart in one figure alone, such as GEMMs of one model.
SERIES = tuple(
    Look(colour, "", marker)
    for colour, marker in zip(
        ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999"),
        "osD^vPX",
        strict=True,
    )
)
# Colours of families alternate between dark and light. Black is that of whiskers and bounds, and
# yellow is hard to see as a small marker on white.
_COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00", "#CC79A7", "#888888", "#332288",
)  # fmt: skip
_MARKERS = "osD^vP*X<>hpd8H"
_HATCHES = ("", "////", "....", "\\\\\\\\", "++++", "**", "//..", "\\\\..", "++..")
_PLACES = {family.id: place for place, family in enumerate(pruning_families())}
# Hatches of the families in their order, which tests/analysis/report/test_looks.py checks.
_FAMILY_HATCHES = "01234567801237067"
# Methods that are no family: colour, hatch and marker.
_OWN = (("#882255", 8, 2), ("#117733", 5, 3), ("#999933", 8, 7), ("#AA4499", 2, 5))


def family_looks(labels: Iterable[tuple[str, str]]) -> dict[str, Look]:
    """Return the look of each label; a family has the same in every figure.

    Variants of a family have its colour, and another hatch and marker. Methods that are no family
    have colours of their own, in the order in which they come.

    Args:
        labels: Labels with the families that they are of; a label may come repeatedly.
    """
    looks: dict[str, Look] = {}
    own: dict[str, int] = {}
    variants: Counter[str] = Counter()
    for label, family in dict(labels).items():
        if family in _PLACES:
            place = marker = _PLACES[family]
            colour = _COLOURS[place % len(_COLOURS)]
            hatch = int(_FAMILY_HATCHES[place % len(_FAMILY_HATCHES)])
        else:
            colour, hatch, marker = _OWN[own.setdefault(family, len(own)) % len(_OWN)]
        step, variants[family] = variants[family], variants[family] + 1
        looks[label] = Look(
            colour,
            _HATCHES[(hatch + step) % len(_HATCHES)],
            _MARKERS[(marker + step) % len(_MARKERS)],
        )
    return looks


def kind_look(kind: str) -> Look:
    """Return the look of a kind of kernels; that of unknown ones where it has none."""
    return KINDS.get(kind, KINDS["unknown"])


def ink(colour: str) -> str:
    """Return black or white, whichever is read better on a colour."""
    return "white" if luminance(colour) < 0.179 else "black"  # as WCAG 2 computes contrasts


def luminance(colour: str) -> float:
    """Return the relative luminance of `#rrggbb`, 0 to 1."""
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
