"""Kernels of a small decoder with drawn times, made by hand. No test in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from prunescope.analysis.kernels.frame import Kernels
from tests.records import flash_attention, kernel_row, kernels_of, product

Row = dict[str, Any]
WIDTH = 64  # of the stream
BUSY, GAP = st.integers(1, 1_000_000), st.integers(0, 100_000)
TIMES = [(1_000 * i, 10) for i in range(1, 8)]  # of the kernels of a layer


def layer_rows(number: int, times: Sequence[tuple[int, int]], *, width: int = 96) -> list[Row]:
    """The kernels of a layer with seven (busy, gap) in ns; `width` of its MLP."""
    works = (
        ("q", product(WIDTH, WIDTH)), ("attention", flash_attention()),
        ("o", product(WIDTH, WIDTH)), ("residual", None), ("gate", product(width, WIDTH)),
        ("up", product(width, WIDTH)), ("down", product(WIDTH, width)),
    )  # fmt: skip
    return [kernel_row(number, role, call, busy=busy, gap=gap)
            for (role, call), (busy, gap) in zip(works, times, strict=True)]  # fmt: skip


@st.composite
def decoders(draw: st.DrawFn, *, least: int = 1) -> list[Row]:
    """The rows of a step of one to four layers and a head, some of which lack an attention."""
    rows: list[Row] = []
    for number in range(draw(st.integers(least, 4))):
        whole = layer_rows(number, draw(st.lists(st.tuples(BUSY, GAP), min_size=7, max_size=7)))
        if draw(st.integers(0, 3)) == 0:
            whole = [row for row in whole if row["role"] not in ("q", "attention", "o")]
        rows += whole
    head = kernel_row(None, "lm_head", product(512, WIDTH), busy=draw(BUSY), gap=draw(GAP))
    return [*rows, head]


def kernels(rows: Sequence[Row], **records: Any) -> Kernels:
    """The kernels of these rows."""
    return kernels_of(*rows, **records)


def changed(rows: Sequence[Row], number: int, **columns: Any) -> list[Row]:
    """The rows, with other columns in one of them."""
    return [{**row, **columns} if i == number else row for i, row in enumerate(rows)]
