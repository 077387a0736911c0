"""Does the order of the families move with the size of a model, and does `predict` say so?

    for n in 135m 360m 1b; do
      prunescope sweep benchmarks/sizes/$n.yaml --out traces/sizes-$n
    done
    python benchmarks/sizes.py traces/sizes-135m traces/sizes-360m traces/sizes-1b
    python benchmarks/sizes.py benchmarks/sizes.json

In: finished sweeps of one architecture, the smallest model first, or the JSON of an earlier run.
Out: sizes.md next to this file, and sizes.json with the speedups and their intervals. What is
predicted comes from the dense side of the first result of each phase (`predict --from-run`) and
knows of no pruned time.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist, median

import msgspec
import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from contexts import stored

import prunescope
from prunescope.analysis.pareto.pareto import judge

_Z95 = 1.96
POWER = 0.8  # with which a change of order is to be seen, as is usual for planned experiments


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """Speedups of one family at one size, measured and predicted, each with an interval. `rounded`:
    half a unit of the last digit that is known of the measured one."""

    measured: float
    ci95: tuple[float, float]
    predicted: float
    expected: tuple[float, float]
    valid: bool
    rounded: float = 0.0

    @property
    def error(self) -> float:
        """The standard error of the logarithm of the measured speedup, with that of rounding."""
        low, high = np.log(self.ci95)
        return float(np.hypot((high - low) / (2 * _Z95), self.rounded / 3**0.5 / self.measured))


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """A model, and its families by phase."""

    name: str
    machine: str
    sparsity: float
    phases: dict[str, dict[str, Family]]


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """The data of the page. `source`: "page" where the numbers are those of an older page."""

    source: str | None = None
    sizes: list[Size]


def main() -> None:
    """Read the sweeps that the command line names, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        help="of sweeps, the smallest model first, or the JSON of an earlier run",
    )
    parser.add_argument("--out", type=Path, default=HERE / "sizes.md", help="the page")
    options = parser.parse_args()
    first: Path = options.folders[0]
    found = (
        read(first)
        if first.suffix == ".json"
        else Sizes(sizes=[size_of(folder) for folder in options.folders])
    )
    options.out.with_suffix(".json").write_bytes(stored(found))
    options.out.write_text(text(found), encoding="utf-8")
    sys.stderr.write(f"wrote {options.out.name} and its JSON\n")


def read(path: Path) -> Sizes:
    """The JSON of an earlier run."""
    return msgspec.json.decode(path.read_bytes(), type=Sizes)


def text(found: Sizes) -> str:
    """The page."""
    return "\n".join(page(found)) + "\n"


def size_of(folder: Path) -> Size:
    """Measured and predicted speedups of a sweep of one sparsity, batch and length."""
    found = judge(folder)
    phases: dict[str, dict[str, Family]] = {}
    (sparsity,) = {p.sparsity for phase in found.phases.values() for p in phase.points}
    assert sparsity is not None
    for name, phase in found.phases.items():
        points = {p.family: p for p in phase.points if p.realised_ci95 is not None}
        dense = folder / "runs" / next(iter(points.values())).draws[0] / "dense"
        predicted = prunescope.predict(from_run=dense, method=list(points), sparsity=sparsity)
        rows = {row["id"]: row for row in predicted["phases"][name]["families"]}
        phases[name] = {}
        for family, point in points.items():
            assert point.realised_ci95 is not None
            row = rows[family]
            phases[name][family] = Family(
                measured=point.realised,
                ci95=(point.realised_ci95[0], point.realised_ci95[1]),
                predicted=row["expected"],
                expected=(row["range"][0], row["range"][1]),
                valid=point.timing_valid,
            )
    subject = found.subject
    machine = f"{subject.device}, {subject.dtype}"
    return Size(name=str(subject.model), machine=machine, sparsity=sparsity, phases=phases)


def page(found: Sizes) -> Iterator[str]:
    """The lines of sizes.md."""
    sizes = found.sizes
    names = ", ".join(size.name for size in sizes)
    yield "# Does the order of the families move with the size of a model?"
    yield ""
    yield (
        f"{names}, weights at random, on {sizes[0].machine}; s = {sizes[0].sparsity:g}. Speedup = "
        "dense ÷ pruned, measured, with its 95 % interval over placements; below it what `predict "
        "--from-run` makes of the dense run alone, with its range. ?: timed while other work ran."
    )
    yield ""
    yield "```"
    yield from (line.strip() for line in (__doc__ or "").splitlines()[2:7])
    yield "```"
    if found.source == "page":
        yield ""
        yield (
            "The runs were not kept: speedups and intervals are those that an earlier edition of "
            "this page printed, with two decimals, and all else is computed from them."
        )
    for phase in sizes[0].phases:
        yield from _phase(phase, [size for size in sizes if phase in size.phases])


def _phase(phase: str, sizes: list[Size]) -> Iterator[str]:
    families = list(sizes[0].phases[phase])
    yield from ("", f"## {phase}", "")
    yield "| family | " + " | ".join(size.name for size in sizes) + " |"
    yield "|:--|" + ":--|" * len(sizes)
    for family in families:
        cells = [_cell(size.phases[phase].get(family)) for size in sizes]
        yield f"| {family} | " + " | ".join(cells) + " |"
    yield ""
    for size in sizes:
        yield f"- {size.name}, the fastest first: {', '.join(_order(size.phases[phase]))}."
    for one, other in itertools.pairwise(sizes):
        yield from _moves(phase, one, other)
    for size in sizes:
        own = size.phases[phase]
        agree, pairs = _agreement(own)
        held = sum(f.expected[0] <= f.measured <= f.expected[1] for f in own.values())
        yield (
            f"- `predict` for {size.name}: {agree} of the {pairs} pairs of families whose order is "
            f"beyond noise are in the predicted order; {held} of {len(own)} ranges hold what was "
            "measured."
        )


def _cell(one: Family | None) -> str:
    if one is None:
        return ""
    uncertain = "" if one.valid else " ?"
    measured = f"**{one.measured:.2f}×**{uncertain} [{one.ci95[0]:.2f}, {one.ci95[1]:.2f}]"
    low, high = one.expected
    return f"{measured}<br>{one.predicted:.2f}× ({low:.2f} to {high:.2f})"


def _order(families: dict[str, Family]) -> list[str]:
    return sorted(families, key=lambda name: -families[name].measured)


def _moves(phase: str, one: Size, other: Size) -> Iterator[str]:
    """Pairs whose order is not the same in both, beyond noise, and what `predict` says of them."""
    a, b = one.phases[phase], other.phases[phase]
    common = [name for name in a if name in b]
    moved = []
    for i, j in itertools.combinations(common, 2):
        gaps = [_gap(own[i], own[j]) for own in (a, b)]
        if gaps[0] * gaps[1] < 0:
            guesses = [own[i].predicted - own[j].predicted for own in (a, b)]
            agree = [gap * guess > 0 for gap, guess in zip(gaps, guesses, strict=True)]
            first, second = (i, j) if gaps[0] > 0 else (j, i)
            moved.append(
                f"{first} before {second} turns round "
                f"({'predicted' if all(agree) else 'not predicted'})"
            )
    names = f"from {one.name} to {other.name}"
    yield f"- {names}: {'; '.join(moved) or _no_change(a, b, common)}."


def _no_change(one: dict[str, Family], other: dict[str, Family], common: list[str]) -> str:
    """A sentence where no change of order was seen: among how many pairs, and how large it had to
    be."""
    pairs = list(itertools.combinations(common, 2))
    least = [
        _least_gap(*(np.hypot(own[i].error, own[j].error) for own in (one, other)))
        for i, j in pairs
    ]
    counted = f"{len(pairs)} pair{'' if len(pairs) == 1 else 's'}"
    return (
        f"no change of order could be shown ({counted}; half of them would have to be"
        f" {100 * (np.exp(median(least)) - 1):.0f} % apart or more, first one way and then the"
        f" other, to be seen with a power of {100 * POWER:.0f} %)"
    )


def _least_gap(one: float, other: float) -> float:
    """The smallest log ratio that is beyond noise in both sizes with the power wanted, by the
    standard errors of the pair's log ratio in each."""
    normal = NormalDist()

    def power(gap: float) -> float:
        return normal.cdf(gap / one - _Z95) * normal.cdf(gap / other - _Z95)

    low, high = 0.0, 10 * (one + other)
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle) < POWER else (low, middle)
    return high


def _gap(one: Family, other: Family) -> int:
    """1 where the first is faster beyond noise, −1 where the other is, else 0: by the 95 % interval
    of the ratio, whose logarithm is normal."""
    gap = float(np.log(one.measured / other.measured))
    return int(abs(gap) > _Z95 * np.hypot(one.error, other.error)) * (1 if gap > 0 else -1)


def _agreement(families: dict[str, Family]) -> tuple[int, int]:
    """Pairs in the predicted order, and pairs whose measured order is beyond noise."""
    agree = pairs = 0
    for one, other in itertools.combinations(families.values(), 2):
        gap = _gap(one, other)
        pairs += gap != 0
        agree += gap * (one.predicted - other.predicted) > 0
    return agree, pairs


if __name__ == "__main__":
    main()
