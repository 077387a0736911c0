"""The two timelines of the page: every kernel of one step of each side, and what the host did.

In: a Phase, and the frames of its sides (ns). Out: JSON for the script of the page, in which `<` is
escaped, so that no name ends the element that holds it. Kernels that share name, role, kind, class
and layer are a group: the page selects groups, and adds up their times per step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import polars as pl
from msgspec import UNSET, Struct, field

from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.looks import kind_look
from prunescope.analysis.schema.report import Phase, Row
from prunescope.taxonomy.idle_causes import CAUSE_WORDS
from prunescope.taxonomy.scrub import scrub_all
from prunescope.taxonomy.student_t import t_quantile_975

MOST = 100_000  # kernels of a side that the page draws; it says how many are left out
_MOST_SUMS = 200_000  # times of groups by step that are sent; of more, their means
_LEAST = 0.01  # of the largest part of a row: what a row is about
_LONGEST = 160  # characters of a name
_GROUP = ("name", "role", "kind", "class", "layer")
_DEEPEST = {"scope": 4, "op": 2, "launch": 1}  # rows of the host for nested events, by category
_THREADS = 2  # threads of the host that are drawn, those with the most events


class SideTimeline(Struct, frozen=True):
    """One side of a phase, as its timeline needs it.

    Attributes:
        name: Its name on the page: dense, pruned or step.
        kernels: Its kernels frame.
        host: What the host did in the first step; None where it is not known.
        dense_layers: The dense layer of each layer; empty where all have the same numbers.
    """

    name: str
    kernels: pl.DataFrame
    host: pl.DataFrame | None = None
    dense_layers: Mapping[int, int] = field(default_factory=dict)

    def rows(self) -> pl.DataFrame:
        """Return the kernels with the columns that the page reads, and the dense layer of each.

        A layer that was added is -1 - its number.
        """
        texts = (*_GROUP[:-1], "bound", "cause")
        numbers = ("step", "start", "duration", "busy", "gap", "launched", "stream", "layer")
        known = set(self.kernels.columns)
        columns = [
            (pl.col(name) if name in known else pl.lit(None)).cast(kind).alias(name)
            for names, kind in ((texts, pl.String), (numbers, pl.Int64))
            for name in names
        ]
        rows = self.kernels.select(columns).with_columns(pl.col(texts).fill_null(""))
        if not self.dense_layers:
            return rows
        pairs = (list(self.dense_layers), list(self.dense_layers.values()))
        mapped = pl.col("layer").replace_strict(*pairs, default=None, return_dtype=pl.Int64)
        return rows.with_columns(layer=pl.coalesce(mapped, -1 - pl.col("layer")))


class _Words:
    """Texts that are sent once, and their numbers."""

    def __init__(self) -> None:
        self.index: dict[str, int] = {}

    def numbers(self, texts: pl.Series) -> list[int]:
        """Return the number of each text, numbering those that are new."""
        return [self.index.setdefault(text, len(self.index)) for text in texts.to_list()]

    def sent(self) -> list[str]:
        """Return all texts in the order of their numbers, without what a page must not hold."""
        texts = [clean(" ".join(word.split())) for word in scrub_all(list(self.index))]
        return [text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…" for text in texts]


def timelines(phase: Phase, sides: Sequence[SideTimeline]) -> str:
    """Return the kernels of one step of each side, and which of them rows and findings are about.

    Args:
        phase: The phase, whose ledger says which (role, class) moved a row.
        sides: The dense side and the pruned one, or the only one.

    Returns:
        JSON with `words` (texts by column), `colours` (of each kind), `groups`, `sides` (columns of
        kernels and of the host's events, and times of groups by step), and what selects kernels:
        `rows` of the ledger and `findings`.
    """
    words = {name: _Words() for name in (*_GROUP[:-1], "bound", "cause", "host")}
    all_rows = [side.rows() for side in sides]
    keys = pl.concat([rows.select(_GROUP) for rows in all_rows]).unique(maintain_order=True)
    groups = keys.with_row_index("group")
    sent = [
        _side(side, rows.join(groups, on=_GROUP, nulls_equal=True, maintain_order="left"), words)
        for side, rows in zip(sides, all_rows, strict=True)
    ]
    for sent_side in sent:
        sent_side["sizes"] = _sizes(phase, groups, is_dense=sent_side["name"] == "dense")
    columns = [words[name].numbers(keys[name]) for name in _GROUP[:-1]]
    data = {
        "groups": list(zip(*columns, keys["layer"].to_list(), strict=True)),
        "words": {name: each.sent() for name, each in words.items()},
        "colours": [kind_look(kind).colour for kind in words["kind"].index],
        "causes": CAUSE_WORDS,
        "t": [round(t_quantile_975(freedom), 4) for freedom in range(1, 31)],
        "sides": sent,
        "rows": {row.row: _moving_parts(row) for row in phase.ledger or []},
        "findings": {
            finding.id: {
                "roles": [] if finding.roles is UNSET else finding.roles,
                "rows": [] if finding.accounts_for is UNSET else list(finding.accounts_for),
            }
            for finding in phase.findings
        },
    }
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _sizes(phase: Phase, groups: pl.DataFrame, *, is_dense: bool) -> dict[int, str]:
    """Return M×N×K of the GEMMs of groups, where a role has one size in the layer."""
    known: dict[tuple[str, int | None], set[str]] = {}
    for gemm in phase.gemms:
        sizes = (gemm.dense_m, gemm.dense_n, gemm.dense_k) if is_dense else ()
        sizes = sizes if any(sizes) else (gemm.m, gemm.n, gemm.k)
        text = "×".join("?" if size is None else str(size) for size in sizes)
        layers: list[int | None] = [*gemm.layers]
        for layer in layers or [None]:
            known.setdefault((gemm.role, layer), set()).add(text)
    of_gemms = groups.filter(pl.col("class").is_in(["matmul", "attention"]))
    return {
        group: next(iter(texts))
        for group, role, layer in of_gemms.select("group", "role", "layer").iter_rows()
        if len(texts := known.get((role, layer), set())) == 1
    }


def _moving_parts(row: Row) -> list[list[str | None]]:
    """Return the role and class of each part that moved a row by a hundredth of its largest."""
    most = max((abs(part.ns) for part in row.parts), default=0.0)
    parts = [part for part in row.parts if abs(part.ns) >= _LEAST * most]
    return [[part.role, part.cls] for part in parts if part.role is not None]


def _side(side: SideTimeline, rows: pl.DataFrame, words: Mapping[str, _Words]) -> dict[str, Any]:
    """Return the kernels of the first step of a side, whose times begin at 0, and its sums."""
    first = rows.filter(pl.col("step") == pl.col("step").min()).sort("start", maintain_order=True)
    shown = first.head(MOST)
    begin = 0
    if shown.height:
        begin = shown["start"][0] - (shown["gap"][0] or 0)
    streams = first["stream"].unique().sort().to_list()
    lane = {stream: number for number, stream in enumerate(streams)}
    texts = {name: words[name].numbers(shown[name]) for name in ("bound", "cause")}
    return {
        "name": side.name,
        "left_out": first.height - shown.height,
        "steps": rows["step"].n_unique(),
        "lanes": ["host" if stream is None else f"stream {stream}" for stream in streams],
        "kernels": {
            "start": _differences((shown["start"] - begin).to_list()),
            "duration": shown["duration"].to_list(),
            "gap": shown["gap"].fill_null(0).to_list(),
            "launch": (shown["launched"] - begin).to_list(),
            "lane": [lane[stream] for stream in shown["stream"].to_list()],
            "group": shown["group"].to_list(),
            **texts,
        },
        "host": _host(side.host, begin, words["host"]),
        "own_layers": {dense: own for own, dense in side.dense_layers.items()},
        "sums": _sums(rows),
    }


def _sums(rows: pl.DataFrame) -> list[list[float]]:
    """Return of each group its number, its calls per step, and its busy ns in every step.

    Where these are many, the mean stands for all steps.
    """
    steps = sorted(rows["step"].unique().to_list())
    at = {step: number for number, step in enumerate(steps)}
    by_step = rows.group_by("group", "step").agg(pl.len().alias("calls"), pl.col("busy").sum())
    sums: dict[int, list[float]] = {}
    for group, step, calls, busy in by_step.sort("group", "step").iter_rows():
        row = sums.setdefault(group, [group, *[0] * (1 + len(steps))])
        row[1] += calls
        row[2 + at[step]] = busy or 0
    is_short = len(sums) * len(steps) <= _MOST_SUMS
    return [
        [group, round(calls / len(steps), 3), *(ns if is_short else [sum(ns) / len(steps)])]
        for group, calls, *ns in sums.values()
    ]


def _host(host: pl.DataFrame | None, begin: int, words: _Words) -> dict[str, Any]:
    """Return what the host did, as rows of events that do not overlap, by thread and category."""
    empty: dict[str, Any] = {"rows": [], "start": [], "duration": [], "row": [], "name": []}
    if host is None or host.is_empty():
        return empty
    most = host["thread"].value_counts(sort=True)["thread"].head(_THREADS).to_list()
    labels: list[str] = []
    kept: list[tuple[int, int, int, str]] = []
    for number, thread in enumerate(sorted(most), 1):
        for category, deepest in _DEEPEST.items():
            events = host.filter(thread=thread, category=category)
            rows = _nested(events.select("start", "duration", "name").rows(), deepest)
            for depth, row in enumerate(rows):
                name = f"thread {number}: {category}" if len(most) > 1 else category
                labels.append(name if depth == 0 else "")
                kept += [(start, ns, len(labels) - 1, name) for start, ns, name in row]
    kept.sort()
    names = words.numbers(pl.Series([name for *_, name in kept], dtype=pl.String))
    return {
        "rows": labels,
        "start": _differences([start - begin for start, *_ in kept]),
        "duration": [ns for _, ns, _, _ in kept],
        "row": [row for _, _, row, _ in kept],
        "name": names,
    }


def _nested(
    events: Sequence[tuple[int, int, str]], deepest: int
) -> list[list[tuple[int, int, str]]]:
    """Return events in rows by how deep they nest; deeper ones than `deepest` rows are left out."""
    rows: list[list[tuple[int, int, str]]] = [[] for _ in range(deepest)]
    ends: list[int] = []
    for start, ns, name in events:
        while ends and ends[-1] <= start:
            ends.pop()
        if len(ends) < deepest:
            rows[len(ends)].append((start, ns, name))
        ends.append(start + ns)
    return [row for row in rows if row]


def _differences(values: Sequence[int]) -> list[int]:
    """Return each value less the one before it: short numbers, that the page adds up again."""
    return [*values[:1], *(after - before for before, after in pairwise(values))]
