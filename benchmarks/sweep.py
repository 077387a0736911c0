"""Publish a finished sweep: its points, table, figures, claims, machine and command.

    prunescope sweep benchmarks/smollm2.yaml --out traces/smollm2
    python benchmarks/sweep.py traces/smollm2
    python benchmarks/sweep.py benchmarks/sweep.json [--losses FILE]

Writes sweep.md and sweep.json next to this file and the figures into sweep/. sweep.json holds the
points with their intervals and the seed of the samples, from which frontier, shares, claims and
sentences follow: given instead of a folder, it is judged again, and page and figures are written
from it; `--losses` puts the losses that benchmarks/rescore.py wrote in the place of its own, and
the page lists these with what they moved. Exit code 1 where results are missing or were timed
while other work ran, 2 where the files are larger than 500 kB.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import sys
from pathlib import Path
from typing import Any

import msgspec
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from prunescope.analysis.pareto.cells import recompute
from prunescope.analysis.pareto.pareto import judge
from prunescope.analysis.pareto.points import loss_in
from prunescope.analysis.report.pareto_figures import pareto_pictures
from prunescope.analysis.report.pareto_tables import render_pareto
from prunescope.analysis.report.picture import files_of_pictures
from prunescope.analysis.report.printing import Printing, printed_as
from prunescope.analysis.schema.pareto import Pareto
from prunescope.taxonomy.formats import read as read_block
from prunescope.taxonomy.numbers import loss
from prunescope.taxonomy.runs.run_quality import Quality

MOST_BYTES = 500_000
_WIDTH = 270.0  # mm, of figures on a screen: four panels beside each other
_WHEN = ("before", "now")
COLOURS = 128  # eight, their blends with white, and hatches


class ScoredAgain(msgspec.Struct, kw_only=True):
    """A loss that rescore.py put in the place of the one that the sweep had scored."""

    family: str
    sparsity: float | None
    phase: str
    before: float | None
    now: float | None


class Published(Pareto, kw_only=True):
    """NAME.json next to a page: the comparison, and the day on which the sweep ended. `moved`: what
    the losses that were scored again changed of frontier and claims."""

    ended: str
    scored_again: list[ScoredAgain] = []
    moved: list[str] = []


def main() -> int:
    """Write the page, the points and the figures of the sweep that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("source", type=Path, help="folder of a sweep, or the JSON of a page")
    parser.add_argument("--out", type=Path, help="the page; without it, sweep.md or that of a JSON")
    parser.add_argument("--losses", type=Path, help="of rescore.py, for a JSON")
    options = parser.parse_args()
    source: Path = options.source
    if source.suffix == ".json":
        found = read(source)
        if options.losses is not None:
            rescore(found, json.loads(options.losses.read_bytes()))
        return write(found, options.out or source.with_suffix(".md"))
    judgement = judge(source, lambda name: sys.stderr.write(f"{name}\n"))
    fields = {name: getattr(judgement, name) for name in Pareto.__struct_fields__}
    found = Published(**fields, ended=last_day(source))
    return write(found, options.out or HERE / "sweep.md")


def read(path: Path) -> Published:
    """The JSON next to a page."""
    return decoded(path.read_bytes())


def rescore(found: Published, losses: dict[str, Any]) -> None:
    """Put losses in the place of those that points have: `quality` by the id of a result; and say
    which these are, and what of frontier and claims moved.

    Points that were judged after a training keep theirs: nothing is trained to score again.
    """
    frontiers, verdicts = _frontiers(found), _verdicts(found)
    known = {(one.family, one.sparsity, one.phase): one for one in found.scored_again}
    for name, phase in found.phases.items():
        for point in phase.points:
            trained = point.loss and point.loss.perplexity_rel_recovered is not None
            if point.id not in losses or trained:
                continue
            before = point.loss and point.loss.perplexity_rel
            point.loss = loss_in(read_block(Quality, losses[point.id]), name) or point.loss
            now = point.loss and point.loss.perplexity_rel
            # A model has one loss in a phase, at every batch; its first one is the sweep's.
            key = point.label, point.sparsity, name
            first = ScoredAgain(family=key[0], sparsity=key[1], phase=name, before=before, now=now)
            known.setdefault(key, first).now = now
    found.scored_again = list(known.values())
    new = recompute(found)
    found.moved = [*_moved(frontiers, _frontiers(new)), *_changed(verdicts, _verdicts(new))]


def _frontiers(found: Pareto) -> dict[str, list[str]]:
    """The points on the frontier of each cell."""
    return {
        f"{name}, batch {cell.batch}, {cell.prompt_len} tokens": [
            p.name for p in phase.points_in(cell) if p.on_frontier
        ]
        for name, phase in found.phases.items()
        for cell in phase.cells
    }


def _verdicts(found: Pareto) -> dict[str, str]:
    """The verdict on each claim in each cell."""
    return {
        f"“{one.claim}” in {one.phase}, batch {one.batch}, {one.prompt_len} tokens": one.verdict
        for one in found.hypotheses
    }


def _moved(before: dict[str, list[str]], now: dict[str, list[str]]) -> list[str]:
    found = []
    for cell, points in now.items():
        new = [p for p in points if p not in before[cell]]
        left = [p for p in before[cell] if p not in points]
        words = [f"{', '.join(p)} {verb}" for p, verb in ((new, "came"), (left, "went")) if p]
        if words:
            found.append(f"Frontier of {cell}: {'; '.join(words)}.")
    return found or ["No frontier has other points than before."]


def _changed(before: dict[str, str], now: dict[str, str]) -> list[str]:
    found = [
        f"Claim {claim}: {verdict}, before: {before.get(claim, 'not judged')}."
        for claim, verdict in now.items()
        if before.get(claim) != verdict
    ]
    return found or ["No verdict on a claim changed."] * bool(now)


def decoded(data: bytes) -> Published:
    """The comparison in the bytes of such a file."""
    return msgspec.json.decode(data, type=Published)


def write(found: Published, page: Path) -> int:
    """Judge the points again, and write page, JSON and figures; gives the exit code."""
    # Judged as the JSON has it, with its digits, so that page and JSON agree whoever reads it.
    new = recompute(decoded(stored(found)))
    files = {page: text(new, page.stem).encode(), page.with_suffix(".json"): stored(new)}
    with printed_as(Printing(width=_WIDTH)):
        pictures = files_of_pictures(pareto_pictures(new), ["png"], new.tool)
    for name, png in pictures.items():
        # A page that was read back has no runs, hence no ledgers and exact bounds.
        if found.source != "page" or name.startswith("speed-quality"):
            files[page.with_suffix("") / name] = reduced(png)
    for path, data in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    size = sum(map(len, files.values()))
    sys.stderr.write(f"{page.name}, its JSON and figures: {size:,} bytes\n")
    if size > MOST_BYTES:
        return 2
    return 1 if new.pending or any("other work" in note for note in new.notes) else 0


def text(found: Published, name: str) -> str:
    """The page, whose figures lie in the folder `name`."""
    page = render_pareto(found).replace("](", f"]({name}/")
    return (
        f"{page}{_scored_again(found)}---\n\nSweep ended {found.ended}; points and intervals: "
        f"[{name}.json]({name}.json), judged again by "
        f"`python benchmarks/sweep.py benchmarks/{name}.json`.\n"
    )


def _scored_again(found: Published) -> str:
    """The section on losses that were scored again; empty without any."""
    if not found.scored_again:
        return ""
    rows: dict[tuple[str, float | None], dict[str, ScoredAgain]] = {}
    for one in found.scored_again:
        rows.setdefault((one.family, one.sparsity), {})[one.phase] = one
    head = ["family", "s", *(f"{phase}, {when}" for phase in found.phases for when in _WHEN)]
    table = [f"| {' | '.join(head)} |", f"|{':--|' * 2}{'--:|' * (len(head) - 2)}"]
    for (family, sparsity), phases in rows.items():
        cells = [family, f"{sparsity:g}" if sparsity is not None else "–"]
        for phase in found.phases:
            one = phases.get(phase)
            cells += ["–", "–"] if one is None else [loss(one.before), loss(one.now)]
        table.append(f"| {' | '.join(cells)} |")
    lines = "\n".join(f"- {line}" for line in found.moved)
    return (
        "## Losses scored again\n\nThese losses are by the rules of docs/sweep.md, in the windows "
        "named above, scored by `python benchmarks/rescore.py` after the sweep, without timing "
        "anything; before, all tokens of a window were read in one forward in decode too, and "
        "random decisions went on from window to window.\n\n"
        f"{chr(10).join(table)}\n\n{lines}\n\n"
    )


def stored(found: Published) -> bytes:
    """The JSON of a page: a line a point. Every page and phase has the same keys; of points, cells
    and what stands next to them, what has its default is left out."""
    plain = _every(found)
    lines = [f"{json.dumps(name)}: {_line(sparse(value))}" for name, value in plain.items()
             if name != "phases"]  # fmt: skip
    phases = []
    for name, phase in found.phases.items():
        rest = _every(phase)
        points = ",\n".join(_line(sparse(point)) for point in rest.pop("points"))
        others = "".join(
            f",\n{json.dumps(key)}: {_line(sparse(value))}" for key, value in rest.items()
        )
        phases.append(f'{json.dumps(name)}: {{"points": [\n{points}]{others}}}')
    lines.append('"phases": {' + ",\n".join(phases) + "}")
    return ("{" + ",\n".join(lines) + "}\n").encode()


def _every(struct: msgspec.Struct) -> dict[str, Any]:
    """The fields of a struct by name; what is absent by its kind has none."""
    found = {field.name: getattr(struct, field.name) for field in msgspec.structs.fields(struct)}
    return {name: value for name, value in found.items() if value is not msgspec.UNSET}


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def sparse(value: Any) -> Any:
    """Plain values of a struct without the fields that have their defaults."""
    if isinstance(value, msgspec.Struct):
        found = {}
        for field in msgspec.structs.fields(value):
            own = getattr(value, field.name)
            default = field.default
            if field.default_factory is not msgspec.NODEFAULT:
                default = field.default_factory()
            if default is msgspec.NODEFAULT or own != default:
                found[field.name] = sparse(own)
        return found
    if isinstance(value, list):
        return [sparse(one) for one in value]
    if isinstance(value, dict):
        return {key: sparse(one) for key, one in value.items()}
    return float(f"{value:.7g}") if isinstance(value, float) else value


def reduced(png: bytes) -> bytes:
    """The picture in few colours: a third of the bytes."""
    small = Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    out = io.BytesIO()
    small.save(out, format="PNG", optimize=True)
    return out.getvalue()


def last_day(folder: Path) -> str:
    """The day on which a sweep ended."""
    stamp = (folder / "sweep.json").stat().st_mtime
    return datetime.datetime.fromtimestamp(stamp, datetime.UTC).date().isoformat()


if __name__ == "__main__":
    sys.exit(main())
