"""Make the page of a sweep from its kept runs: points, table, figures, claims, machine.

    prunescope sweep benchmarks/sweep.yaml --out traces/sweep
    python benchmarks/evidence.py traces/sweep sweep
    python benchmarks/sweep.py sweep recovery

In: benchmarks/runs/NAME.tar.xz. Out, next to this file: NAME.md, its numbers in NAME.json, a line a
point, and its figures in NAME/. A figure whose pixels are as they were is left as it is.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

import msgspec
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from evidence import rounded, unpacked

from prunescope.analysis.bundle.same_files import same_pixels
from prunescope.analysis.pareto.pareto import judge
from prunescope.analysis.report.pareto_figures import pareto_pictures
from prunescope.analysis.report.pareto_tables import render_pareto
from prunescope.analysis.report.picture import files_of_pictures
from prunescope.analysis.report.printing import Printing, printed_as
from prunescope.analysis.schema.pareto import Pareto

_WIDTH = 270.0  # mm, of figures on a screen: four panels beside each other
_COLOURS = 128  # eight, their blends with white, and hatches


def write(name: str, runs: Path) -> None:
    """Write page, numbers and figures of the sweep of a name, whose runs are in a folder."""
    judgement = judge(runs)
    files = {f"{name}.md": text(judgement, name).encode(), f"{name}.json": stored(judgement)}
    with printed_as(Printing(width=_WIDTH)):
        pictures = files_of_pictures(pareto_pictures(judgement), ["png"], judgement.tool)
    files |= {f"{name}/{picture}": reduced(png) for picture, png in pictures.items()}
    for file, data in files.items():
        path = HERE / file
        path.parent.mkdir(parents=True, exist_ok=True)
        is_drawn = path.suffix == ".png" and path.exists()
        if not (is_drawn and same_pixels(path.read_bytes(), data)):
            path.write_bytes(data)


def text(judgement: Pareto, name: str) -> str:
    """Return the page, whose figures lie in the folder `name`."""
    return (
        f"{render_pareto(judgement).replace('](', f']({name}/')}---\n\n"
        f"Settings: [{name}.yaml]({name}.yaml), which names its commands. Points and intervals: "
        f"[{name}.json]({name}.json). Runs: runs/{name}.tar.xz; `make pages` makes this page from "
        f"them and packs them as benchmarks/bundles/{name}.zip.\n"
    )


def stored(judgement: Pareto) -> bytes:
    """Return the numbers of a page as JSON, a line a point, without what has its default."""
    fields = plain(judgement)
    phases = fields.pop("phases")
    lines = [f"{_line(key)}: {_line(value)}" for key, value in fields.items()]
    for phase, parts in phases.items():
        points = ",\n".join(map(_line, parts.pop("points")))
        others = "".join(f",\n{_line(key)}: {_line(value)}" for key, value in parts.items())
        phases[phase] = f'{_line(phase)}: {{"points": [\n{points}]{others}}}'
    lines.append('"phases": {' + ",\n".join(phases.values()) + "}")
    return ("{" + ",\n".join(lines) + "}\n").encode()


def plain(value: Any) -> Any:
    """Return plain values of a struct without the fields that have their defaults."""
    if isinstance(value, msgspec.Struct):
        fields = {field.name: field for field in msgspec.structs.fields(value)}
        return {
            name: plain(getattr(value, name))
            for name, field in fields.items()
            if field.required or getattr(value, name) != _default(field)
        }
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return rounded(value)


def _default(field: msgspec.structs.FieldInfo) -> Any:
    factory = field.default_factory
    return field.default if factory is msgspec.NODEFAULT else factory()


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def reduced(png: bytes) -> bytes:
    """Return the picture in few colours: a third of the bytes."""
    small = Image.open(io.BytesIO(png)).convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
    out = io.BytesIO()
    small.save(out, format="PNG", optimize=True)
    return out.getvalue()


def main() -> None:
    """Write the pages that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("names", nargs="+", help="of kept runs: sweep, recovery")
    for name in parser.parse_args().names:
        with unpacked(name) as runs:
            write(name, runs)


if __name__ == "__main__":
    main()
