"""The parts of predict.md about cells that are left out: the worst ones, and whether ranges hold.

In: every cell. Out: Markdown, and the groups in which ranges hold too few.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache

from predict_calibration import LEVEL, Outside, blind, grouped, held, held_alike, left_out
from predict_cells import Cell

from prunescope.analysis.predict.constants import ERROR

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
COVERED, LARGE = 0.85, 10
# The one publication of an engine's host, and its chips: without it no prefill has a floor.
ENGINES = ("SlideSparse", "h100-sxm", "a100-80gb-sxm")

# Why a cell is far off, as far as it is known: (word of its label, reason).
REASONS = (
    ("llama-2-70b static-k-24 s=0.5 batch", "the dense side ran on more GPUs than the sparse one "
     "in the larger batches, and contexts are not printed"),
    ("decode 32x1024", "at batch 32 nearly every family gains more than at 16: the dense GEMMs of "
     "32 rows seem to be slow there; Figs. 2 and 6 say nothing of it"),
    ("static-nk-cross decode 8x1024", "the figure itself falls from 1.56 to 1.26 and rises to 1.39 "
     "at batch 16; no size of the shapes does"),
    ("dynamic-m decode 1x", "three random draws of 32 layers: the mean of a draw moves by 5 %"),
    ("prefill 1x1024", "1,024 rows are few tiles: which kernel the library takes decides"),
    ("vLLM 0.13", "without this publication nothing is known of the host's part of a short "
     "prefill, nor of the 2:4 kernels in 8 bits"),
    ("FLAP", "its dense step takes 39 ms, four times what the device needs, and yet gains as if "
     "the device set the pace"),
    ("LLM-Pruner", "its dense step takes 39 ms, four times what the device needs, and yet gains "
     "as if the device set the pace"),
    ("FastV", "the vision encoder is in the time, and pruning leaves it as it is"),
    ("static-k-24", "the two papers on the A100 differ by a quarter for one library; the rate is "
     "read from the other one alone"),
    ("static-k-lowrank decode", "small GEMMs follow each other faster than the gap and the ramp of "
     "the dense model's kernels say"),
)  # fmt: skip


def group(cell: Cell) -> str:
    """The group of measurements with one set-up: a phase of the figure, or a paper."""
    return cell.group


def family(cell: Cell) -> str:
    """The group of measurements with one mechanism."""
    return cell.family


@cache
def outside(known: tuple[Cell, ...], by: str = "group") -> dict[float, list[Outside]]:
    """Each cell but those apart, in ranges that its group, or its family, had no part in."""
    return left_out(blind(known), group if by == "group" else family, LEVELS)


def in_use(known: tuple[Cell, ...]) -> tuple[dict[str, float], float, float]:
    """The cells of other publications as `predict` gives them: the shares that hold, publications
    alike and all cells; the mean over publications of the median error; and the median width over
    the expected speedup."""
    by: defaultdict[str, list[tuple[bool, float, float]]] = defaultdict(list)
    for cell in known:
        if cell.commanded:
            expected = cell.gain(None)
            low, high = cell.uncertainty().range_of(expected)
            inside = low <= cell.measured <= high
            by[cell.group].append((inside, abs(cell.error), (high - low) / expected))
    every = [one for own in by.values() for one in own]
    shares = {
        "alike": statistics.mean(statistics.mean(one[0] for one in own) for own in by.values()),
        "all": statistics.mean(one[0] for one in every),
    }
    error = statistics.mean(statistics.median(one[1] for one in own) for own in by.values())
    return shares, error, statistics.median(one[2] for one in every)


def _in_use_rows(known: tuple[Cell, ...]) -> list[str]:
    shares, error, width = in_use(known)
    return [
        "With every constant in use, on the cells of other publications (published_commands.csv): "
        f"{shares['alike']:.0%} held where publications count alike, {shares['all']:.0%} of all "
        f"cells; mean over publications of the median error {error:.1%}, median width over the "
        f"expected speedup {width:.2f}. What was seen of them: the mechanisms, and of one "
        "publication (SlideSparse) the constants of an engine's host and the 2:4 rates of its "
        "kernel tables. The tables below leave that out.\n"
    ]


def device(cell: Cell) -> str:
    """The group of measurements on one kind of device."""
    return cell.setting.device.name


def coverage(known: tuple[Cell, ...]) -> dict[str, tuple[int, float]]:
    """Cells of each group and of each device, and the share that holds."""
    found = outside(known)[LEVEL]
    by = {**grouped(found, group), **grouped(found, device)}
    return {name: (len(own), held(own)) for name, own in by.items()}


def uncovered(known: tuple[Cell, ...]) -> list[str]:
    """Groups and devices of ten cells or more whose ranges hold too few of them."""
    missed = [g for g, (n, share) in coverage(known).items() if n >= LARGE and share < COVERED]
    return [name for name in missed if not name.startswith(ENGINES)]


def worst(known: tuple[Cell, ...]) -> str:
    """The cells that are furthest off where their group is left out."""
    ranked = sorted(outside(known)[LEVEL], key=lambda one: -abs(math.log(1 + one.off)))[:10]
    rows = [
        "## The worst ten cells\n",
        "Each paper, and each phase of the seed paper's figure, left out in turn: constants that "
        "were read from it are read again without it. Of the seed paper's figure no constant is "
        "read. Cells that differ in more than the pruning (TensorRT) or whose model and device are "
        "not printed (TEAL) stand apart.\n",
        "| cell | expected | range | measured | off | why |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for one in ranked:
        label = one.cell.label
        why = next((text for word, text in REASONS if word in label), "not known")
        rows.append(
            f"| {label} ({one.cell.group}) | {one.expected:.2f} | {one.low:.2f}–{one.high:.2f} "
            f"| {one.cell.measured:.2f} | {one.off:+.0%} | {why} |"
        )
    apart = [f"{c.label} {c.gain(None):.2f} for {c.measured:.2f}" for c in known if c.apart]
    return "\n".join([*rows, "", f"Apart: {'; '.join(apart)}."])


def ranges(known: tuple[Cell, ...]) -> str:
    """How the ranges were made, and what they hold."""
    rows = [
        "## Do the ranges hold?\n",
        f"The range is meant to hold {LEVEL:.0%} of measurements. Its ends are those of the "
        "constants, of chance, and of the model's own error, whose settings are chosen by an "
        "interval score with one group after the other left out; a group is a phase of the "
        "figure, or a publication, and groups count alike. The tables are nested: a group is left "
        "out, the settings are chosen on the others in the same way, constants that were read "
        "from it are read again, and it is looked at once. What was chosen with all cells in "
        "sight: the form of the error, the grid of its settings, the rates of tiles and the ends "
        "of the constants. Where two laboratories differ on what is the same on both sides, a "
        "floor of the range says so (common). Of some devices little can be said about another: "
        f"there the error is × {ERROR.unseen:g} and the constants' ends are twice as far. In use "
        f"(of the logarithm): common {ERROR.common:g}, reshaped kernels {ERROR.reshaped:g} over "
        f"their waves of tiles to the power of {ERROR.power:.2g}, added kernels {ERROR.added:g}, "
        f"an engine's host {ERROR.waits:g}, scale {ERROR.scale:g}.\n",
        *_in_use_rows(known),
        "| group left out, or device | cells | held | median width | median error |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    found = outside(known)
    for key in (group, device):
        for name, cells in grouped(found[LEVEL], key).items():
            rows.append(f"| {name} | {_listed(cells)} |")
    rows += [f"| **all** | {_listed(found[LEVEL])} |", ""]
    rows += [
        "| family | device | cells | held | median width | median error | its family left out |",
        "|---|---|---|---|---|---|---|",
    ]
    apart = {one.cell: one for one in outside(known, "family")[LEVEL]}
    by: defaultdict[tuple[str, str], list[Outside]] = defaultdict(list)
    for one in found[LEVEL]:
        by[family(one.cell), device(one.cell)].append(one)
    for (name, where), cells in by.items():
        alone = held(apart[one.cell] for one in cells)
        rows.append(f"| {name} | {where} | {_listed(cells)} | {alone:.0%} |")
    rows += ["", _short(found[LEVEL])]
    rows += ["", "Reliability:\n", "| meant to hold | " + _row(f"{v:.0%}" for v in LEVELS),
             "|---" * (len(LEVELS) + 1) + "|"]  # fmt: skip
    for text, one in (("group left out", found), ("family left out", outside(known, "family"))):
        rows.append(f"| held, {text} | " + _row(f"{held(one[v]):.0%}" for v in LEVELS))
        alike = _row(f"{held_alike(one[v], group):.0%}" for v in LEVELS)
        rows.append(f"| the same, groups counted alike | {alike}")
    rows.append("| median width | " + _row(f"{_width(found[v]):.2f}" for v in LEVELS))
    return "\n".join(rows)


def _short(cells: Sequence[Outside]) -> str:
    """Families of ten cells or more whose ranges hold too few: listed, not averaged."""
    by = grouped(cells, family)
    few = [f"{name} {held(own):.0%}" for name, own in by.items()
           if len(own) >= LARGE and held(own) < COVERED]  # fmt: skip
    names = ", ".join(few) or "none"
    return f"Families of ten cells or more below {COVERED:.0%}: {names}."


def _row(cells: Iterable[str]) -> str:
    return " | ".join(cells) + " |"


def _listed(cells: Sequence[Outside]) -> str:
    error = statistics.median(abs(one.off) for one in cells)
    return f"{len(cells)} | {held(cells):.0%} | {_width(cells):.2f} | {error:.1%}"


def _width(cells: Iterable[Outside]) -> float:
    return statistics.median(one.high - one.low for one in cells)
