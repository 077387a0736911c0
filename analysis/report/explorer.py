"""The two timelines of the page: every kernel of one step of the dense and of the pruned side.

In: a Phase and the kernels frames of both sides (ns). Out: JSON for the script of the page, in
which `<` is escaped, so that no name ends the element that holds it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import polars as pl

from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.looks import kind_look
from prunescope.analysis.schema.report import Phase

MOST = 20_000  # kernels of a side; the page says how many are left out
_LONGEST = 160  # characters of a kernel's name
_WORDS = ("name", "role", "kind", "class", "bound")  # columns of texts, sent once each
_NUMBERS = ("start", "duration", "gap", "layer", "stream")


def timelines(phase: Phase, pruned: pl.DataFrame, dense: pl.DataFrame | None) -> str:
    """Return the kernels of one step of each side, and which of them each ledger row holds.

    Args:
        phase: The phase, whose ledger says which (role, class) moved a row.
        pruned: The kernels frame of the pruned side, or of the only one.
        dense: That of the dense side; None without a baseline.

    Returns:
        JSON with `words` (texts by column), `colours` (of each kind), `sides` (rows of a kernel
        are start, duration, gap,
        layer and stream, then the index of each text) and `rows` (parts by ledger row).
    """
    words: dict[str, dict[str, int]] = {column: {} for column in _WORDS}
    frames = {"dense": dense, "pruned" if dense is not None else "step": pruned}
    sides = [_side(name, frame, words) for name, frame in frames.items() if frame is not None]
    rows = {
        row.row: [[part.role, part.cls] for part in row.parts if part.role is not None]
        for row in phase.ledger or []
    }
    texts = {column: [_short(text) for text in index] for column, index in words.items()}
    colours = [kind_look(kind).colour for kind in words["kind"]]
    data = {"words": texts, "colours": colours, "sides": sides, "rows": rows}
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _side(name: str, frame: pl.DataFrame, words: dict[str, dict[str, int]]) -> dict[str, Any]:
    """Return the kernels of the first step of a side, whose times begin at 0."""
    columns = [
        pl.col(name) if name in frame.columns else pl.lit(None).alias(name)
        for name in ("step", *_NUMBERS, *_WORDS)
    ]
    known = frame.select(columns)
    first = known.filter(pl.col("step") == pl.col("step").min()).sort("start")
    shown = first.head(MOST)
    begin = int(shown["start"].min() or 0) if shown.height else 0  # type: ignore[arg-type]
    return {
        "name": name,
        "left_out": first.height - shown.height,
        "kernels": list(_kernels(shown, begin, words)),
    }


def _kernels(
    frame: pl.DataFrame, begin: int, words: dict[str, dict[str, int]]
) -> Iterator[list[int | None]]:
    streams = {stream: i for i, stream in enumerate(frame["stream"].unique().sort().to_list())}
    for row in frame.select(*_NUMBERS, *_WORDS).iter_rows(named=True):
        layer = row["layer"]
        numbers = [
            row["start"] - begin, row["duration"], row["gap"] or 0,
            None if layer is None else int(layer), streams[row["stream"]],
        ]  # fmt: skip
        indices = [
            words[column].setdefault(row[column] or "", len(words[column])) for column in _WORDS
        ]
        yield [*numbers, *indices]


def _short(text: str) -> str:
    text = clean(text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
