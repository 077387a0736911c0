"""Write shapes.md: public decoder traces without their shapes, and what a config gives back.

    python -m benchmarks.shapes           # reads the traces, and writes both files
    python benchmarks/shapes.py --page    # the page alone

In: ../shared/data, by shapes_read.py. Out: shapes.json, and shapes.md, which follows from it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KEPT = Path(__file__).resolve().with_suffix(".json")


def page() -> str:
    """Return the page of what shapes.json holds."""
    kept: dict[str, list[dict[str, Any]]] = json.loads(KEPT.read_bytes())
    refused, damaged = kept["refused"], kept["damaged"]
    lines = [
        "# Shapes from a model's config",
        "",
        "Public decoder traces that recorded their shapes, stripped of them, and the config of "
        "their model. Made by `python -m benchmarks.shapes`, which reads the traces into "
        "[shapes.json](shapes.json); they are in no repository of ours. "
        "Shares are of the time of linear GEMMs; annotations of engines are stripped too. A row is "
        "wrong where its M, N or K differs from the recorded one.",
        "",
        "| trace | without | M, N, K with B and S | N, K alone | wrong | M, N, K without B and S | "
        "N, K alone | wrong |",
        "|---|---|---|---|---|---|---|---|",
        *map(_recovered, kept["recovered"]),
        "",
        "The graph replay has no grids: M comes from `--batch` or from the engine's annotation.",
        "",
        f"## {len(refused)} wrong configs on {len({row['trace'] for row in damaged})} traces",
        "",
        "| trace | config | wrong rows | why not |",
        "|---|---|---|---|",
        *map(_refused, refused),
        "",
        "## Configs that a trace cannot tell from the right one",
        "",
        "They are taken, and a note gives the interval of N that the trace fits.",
        "",
        "| trace | config | role | right N | N that fits |",
        "|---|---|---|---|---|",
        *(
            f"| {row['trace']} | intermediate_size: {row['intermediate_size']} | {row['role']} | "
            f"{row['right']:,} | {row['fits']} |"
            for row in kept["near"]
        ),
        "",
        "## Kernels dropped, merged, reordered, swapped",
        "",
        f"{', '.join(map(str, damaged[0]['counts']))} at a time, {damaged[0]['seeds']} seeds each, "
        "without modules and ops. Kernels of linears: of the truth's, those that get their role, "
        "layer, N and K; null; and those that get others.",
        "",
        "| trace | damage | runs | right | null | share null | wrong |",
        "|---|---|---|---|---|---|---|",
        *map(_damaged, damaged),
        "",
    ]
    return "\n".join(lines)


def _recovered(row: dict[str, Any]) -> str:
    cells: Iterator[str] = (
        cell
        for part in row["with"]
        for cell in (
            f"{part['whole_ns'] / row['total_ns']:.1%}",
            f"{part['widths_ns'] / row['total_ns']:.1%}",
            str(part["wrong"]),
        )
    )
    return f"| {row['trace']} | {', '.join(row['without'])} | {' | '.join(cells)} |"


def _refused(row: dict[str, Any]) -> str:
    config = json.dumps(row["config"]).strip("{}").replace('"', "")
    return f"| {row['trace']} | {config} | {row['wrong']} | {row['why'].replace('|', '/')} |"


def _damaged(row: dict[str, Any]) -> str:
    right, null = row["right"], row["null"]
    return (
        f"| {row['trace']} | {row['damage']} | {row['seeds'] * len(row['counts'])} | {right:,} | "
        f"{null:,} | {null / (right + null):.1%} | {row['wrong']} |"
    )


if __name__ == "__main__":
    if "--page" not in sys.argv:
        from benchmarks.shapes_read import read

        tables = (
            f"{json.dumps(name)}: [\n" + ",\n".join(map(json.dumps, rows)) + "\n]"
            for name, rows in read().items()
        )
        KEPT.write_text("{" + ",\n".join(tables) + "}\n", encoding="utf-8")
    KEPT.with_suffix(".md").write_text(page(), encoding="utf-8")
