"""The published measurements behind the ranges, and what their width is where a kind is left out.

    python benchmarks/predict_evidence.py

Reads every published cell, writes analysis/predict/measurements.json. A kind is a mechanism in a
phase under an engine. `between_kinds` is the root of the mean square of misses, kinds alike;
`level` is the smallest number of standard deviations that holds 90 % of the cells of kinds that
were left out whole, kinds alike, in ranges that are as wide as the constants or the kinds say.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import msgspec
from predict_cells import Cell, cells, third_cells

from prunescope.analysis.predict.answers import predict_answer
from prunescope.analysis.predict.evidence import Kind, Measurement, kind_of, spread_of
from prunescope.analysis.predict.side import predicted_side

HELD = 0.90
SEED = "arXiv 2606.09080"  # "seed paper" in the cells
TABLE = ROOT / "analysis/predict/measurements.json"


@dataclass(frozen=True, eq=False)
class Miss:
    """A measurement with the ends of its range by the constants alone, as logarithms."""

    row: Measurement
    low: float
    high: float

    def holds(self, wider: float) -> bool:
        """Return whether the measurement lies in the range that is at least `wider`."""
        return min(self.low, -wider) <= self.row.off <= max(self.high, wider)


def miss_of(cell: Cell) -> Miss:
    """Return how far a published measurement lies from its prediction."""
    side, expected = predicted_side(cell.setting, cell.work), cell.gain(None)
    if cell.new_tokens:
        answer = predict_answer(cell.setting, cell.work, new_tokens=cell.new_tokens)
        side = answer.longer_forward
    row = Measurement(
        source=SEED if cell.source == "seed paper" else cell.source,
        setting=cell.label,
        kind=kind_of(side),
        sparsity=round(cell.setting.sparsity, 4),
        off=round(math.log(cell.measured / expected), 4),
    )
    low, high = replace(cell.uncertainty(), kinds=0.0).range_of(expected)
    return Miss(row, math.log(low / expected), math.log(high / expected))


def kind_name(kind: Kind) -> tuple[str, str, str]:
    """Return the kind that is left out whole."""
    return kind.mechanism, kind.phase, kind.engine


def mean_by_kind(misses: Sequence[Miss], value: Callable[[Miss], float]) -> float:
    """Return the mean of a value over the publications of each kind, kinds alike."""
    by_kind: defaultdict[tuple[str, ...], list[float]] = defaultdict(list)
    for miss in misses:
        by_kind[kind_name(miss.row.kind)].append(value(miss))
    return statistics.mean(statistics.mean(values) for values in by_kind.values())


@dataclass(frozen=True)
class LeftOut:
    """How ranges do on kinds that were left out whole."""

    between_kinds: float
    level: float
    held: float  # kinds alike
    held_of_all: float
    width: float  # median, over the expected speedup


def leave_kinds_out(misses: Sequence[Miss]) -> LeftOut:
    """Fit the width, each kind in turn looked at with the measurements of the others.

    Constants are read from other figures of the seed paper, so that its cells are evidence, and no
    test.
    """
    table, misses = misses, [miss for miss in misses if miss.row.source != SEED]
    kinds = dict.fromkeys(kind_name(miss.row.kind) for miss in misses)
    spreads: dict[int, float] = {}
    for name in kinds:
        others = [miss for miss in misses if kind_name(miss.row.kind) != name]
        known = [miss for miss in table if kind_name(miss.row.kind) != name]
        between = math.sqrt(mean_by_kind(others, lambda miss: miss.row.off**2))
        for miss in misses:
            if kind_name(miss.row.kind) == name:
                rows = [other.row for other in known]
                spreads[id(miss)] = spread_of(miss.row.kind, rows, between)
    between = math.sqrt(mean_by_kind(misses, lambda miss: miss.row.off**2))

    def held(level: float) -> float:
        """Return the share of held cells, kinds alike."""
        return mean_by_kind(misses, lambda miss: float(miss.holds(level * spreads[id(miss)])))

    level = next(k / 20 for k in range(61) if held(k / 20) >= HELD)
    ends = [(m, level * spreads[id(m)]) for m in misses]
    return LeftOut(
        between_kinds=round(between, 4),
        level=level,
        held=held(level),
        held_of_all=statistics.mean(float(m.holds(wider)) for m, wider in ends),
        width=statistics.median(
            math.exp(max(m.high, wider)) - math.exp(min(m.low, -wider)) for m, wider in ends
        ),
    )


def published_misses() -> list[Miss]:
    """Return how far every published measurement lies from its prediction."""
    return [miss_of(cell) for cell in (*cells(), *third_cells()) if not cell.apart]


def section(misses: Sequence[Miss], fit: LeftOut) -> list[str]:
    """Return the lines of the page on kinds that are left out."""
    by_kind: defaultdict[tuple[str, ...], list[Miss]] = defaultdict(list)
    for miss in misses:
        by_kind[kind_name(miss.row.kind)].append(miss)
    lines = [
        f"{len(misses)} measurements of {len({m.row.source for m in misses})} publications are of "
        f"{len(by_kind)} kinds: what is cut, in which phase, under which engine. With each kind "
        f"left out whole, the ranges hold {fit.held:.0%} of the cells of publications other "
        f"than the seed paper, kinds alike, and "
        f"{fit.held_of_all:.0%} of all, at a median width of {fit.width:.2f}. Fitted on them: the "
        f"size of a miss in a kind that nobody measured, {fit.between_kinds:.2f} of the logarithm, "
        f"and the number of standard deviations, {fit.level:g}. Set, not fitted: how far two kinds "
        "are apart (analysis/predict/evidence.py).",
        "",
        "| cut | phase | engine | cells | publications | median miss |",
        "|---|---|---|---|---|---|",
    ]
    for (mechanism, phase, engine), rows in sorted(by_kind.items()):
        median = statistics.median(abs(math.exp(row.row.off) - 1) for row in rows)
        sources = len({row.row.source for row in rows})
        lines.append(
            f"| {mechanism} | {phase} | {engine or 'kernels alone'} | {len(rows)} | {sources} | "
            f"{median:.1%} |"
        )
    return lines


def write_table() -> list[str]:
    """Write measurements.json, and return the lines of the page."""
    misses = published_misses()
    fit = leave_kinds_out(misses)
    table = {
        "between_kinds": fit.between_kinds,
        "level": fit.level,
        "measurements": [msgspec.to_builtins(miss.row) for miss in misses],
    }
    TABLE.write_bytes(msgspec.json.format(msgspec.json.encode(table), indent=1) + b"\n")
    return section(misses, fit)


if __name__ == "__main__":
    sys.stdout.write("\n".join(write_table()) + "\n")
