"""Plans of `allocate` against the families that cut all layers alike, at equal measured speed.

    python benchmarks/allocate.py --model FOLDER --work FOLDER [--other-text FILE] [--out FILE.md]

Traces the dense model, makes a plan for each target, and sweeps plans and families in both
phases, once without recovery training and once after `--recover` steps. The loss of a family at the
speed of a plan lies on the line between its two nearest points. A call that was cut off goes on
where it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import prunescope  # noqa: E402
from prunescope.analysis.pareto.pareto import judge  # noqa: E402
from prunescope.analysis.report.numbers import loss, ratio, ratios  # noqa: E402
from prunescope.analysis.schema.pareto import Pareto, SweepPoint  # noqa: E402
from prunescope.taxonomy.allocation_plan import PlanOfLayers, read_plan  # noqa: E402
from prunescope.taxonomy.errors import PrunescopeError  # noqa: E402

TARGETS = (("prefill", 1.2), ("prefill", 1.4), ("prefill", 1.7), ("decode", 1.2), ("decode", 1.4))
FAMILIES = ("static-nk", "static-nk-mlp", "static-m")
SPARSITIES = (0.125, 0.25, 0.375, 0.5, 0.625)
HEAD = (
    "| target | expected | measured | loss | loss, other text | best family at this speed "
    "| its loss | on the other text |",
    "|---|---|---|---|---|---|---|---|",
)


@dataclass(frozen=True)
class Planned:
    """A target with its plan, or why there is none."""

    phase: str
    speedup: float
    path: Path
    plan: PlanOfLayers | None
    refused: str = ""


def main() -> int:
    """Measure and write the page; exit code 1 where a plan has no valid point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder of runs, plans and sweeps")
    parser.add_argument("--other-text", type=Path, help="a second text to judge on")
    parser.add_argument("--recover", type=int, default=100, help="steps of training; 0: none")
    parser.add_argument("--prompt-len", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--targets", type=int, default=len(TARGETS), help="the first N of them")
    parser.add_argument("--sparsities", type=int, default=len(SPARSITIES), help="the first N")
    parser.add_argument("--out", type=Path, default=HERE / "allocate.md")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    planned = list(plans(asked))
    pages = [f"# {Path(asked.model).name}: plans against families that cut all layers alike\n"]
    valid = True
    for steps in dict.fromkeys((0, asked.recover)):
        found = swept(asked, [one.path for one in planned if one.plan], steps)
        title = f"after {steps} steps of recovery" if steps else "without recovery"
        rows = [row(one, found) for one in planned]
        valid = valid and all(rows)
        lines = [line or "| no valid point |" for line in rows]
        pages.append("\n".join([f"## {title}\n", *HEAD, *lines, ""]))
    asked.out.write_text("\n".join(pages), encoding="utf-8")
    sys.stdout.write("\n".join(pages))
    return 0 if valid else 1


def plans(asked: argparse.Namespace) -> Iterator[Planned]:
    """The plan of each target. They share one file of measured losses, the first plan's."""
    run = asked.work / "dense"
    if not run.exists():
        prunescope.trace(asked.model, prompt_len=asked.prompt_len, repeats=asked.repeats, out=run)
    first: bytes | None = None
    for phase, speedup in TARGETS[: asked.targets]:
        path = asked.work / f"{phase}-{speedup:g}.json"
        losses = path.with_name(f"{path.stem}.losses.json")
        if first is not None and not losses.exists():
            losses.write_bytes(first)
        try:
            if not path.exists():
                prunescope.allocate(
                    asked.model, from_run=run, speedup=speedup, phase=phase, out=path
                )
            first = first or losses.read_bytes()
            yield Planned(phase, speedup, path, read_plan(path))
        except PrunescopeError as error:
            yield Planned(phase, speedup, path, None, f"{error.problem}; {error.hint}")


def swept(asked: argparse.Namespace, paths: Sequence[Path], steps: int) -> Pareto:
    """Plans and families, measured in both phases and judged."""
    keys = {
        "model": asked.model,
        "families": [*(str(path) for path in paths), *FAMILIES],
        "sparsities": list(SPARSITIES[: asked.sparsities]),
        "select": "importance",
        "prompt_lens": [asked.prompt_len],
        "repeats": asked.repeats,
    }
    if asked.other_text:
        keys["other_text"] = str(asked.other_text.resolve())
    if steps:
        keys["recover"] = f"steps={steps}"
    return judge(prunescope.sweep(keys, out=asked.work / f"sweep-{steps}"))


def row(one: Planned, found: Pareto) -> str:
    """The row of a target; "" without a valid point."""
    target = f"{one.speedup:g}× {one.phase}"
    if one.plan is None:
        return f"| {target} | {one.refused} | – | – | – | – | – | – |"
    points = found.phases[one.phase].points if one.phase in found.phases else []
    mine = next((point for point in points if point.family == one.path.name), None)
    if mine is None or mine.realised is None:
        return ""
    expected = one.plan.expected
    best = min(at_speed(points, mine.realised), key=lambda it: it[1], default=None)
    family, own, other = ("–", None, None) if best is None else best
    cells = [
        target,
        f"{ratio(expected.speedup)} {ratios(list(expected.range))}",
        f"{ratio(mine.realised)} {ratios(mine.realised_ci95)}",
        loss(relative(mine, other=False)),
        loss(relative(mine, other=True)),
        family,
        loss(own),
        loss(other),
    ]
    return f"| {' | '.join(cells)} |"


def relative(point: SweepPoint, *, other: bool) -> float | None:
    """The relative rise of the perplexity on the sweep's text or on the other one."""
    if point.loss is None:
        return None
    text = point.loss.other_text if other else point.loss
    return None if text is None else text.perplexity_rel


def at_speed(
    points: Sequence[SweepPoint], speed: float
) -> Iterator[tuple[str, float, float | None]]:
    """(family, loss, loss on the other text) of each family at a speed between two of its points,
    or of its slowest point that is faster."""
    for family in FAMILIES:
        known = [
            (one.realised, relative(one, other=False), relative(one, other=True))
            for one in points
            if one.family == family and one.realised is not None
        ]
        known = [(1.0, 0.0, 0.0), *known]
        below = max((one for one in known if one[0] <= speed), default=None)
        above = min((one for one in known if one[0] >= speed), default=None)
        if below is None or above is None or below[1] is None or above[1] is None:
            continue
        share = 0.0 if above[0] == below[0] else (speed - below[0]) / (above[0] - below[0])
        other = None
        if below[2] is not None and above[2] is not None:
            other = below[2] + share * (above[2] - below[2])
        yield family, below[1] + share * (above[1] - below[1]), other


if __name__ == "__main__":
    raise SystemExit(main())
