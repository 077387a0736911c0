"""The number of rows that a pass runs, by the grids of kernels other than its GEMMs.

In: the kernels of a phase with their grids, the config. Out: M where two kinds of kernels agree on
it. These are kernels that run one block a token, or element-wise ones whose blocks count M·hidden
and M·intermediate. Where they contradict the config: a notice, or another width.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Literal

import numpy as np
import polars as pl

from prunescope.analysis.device.tiles import grid_in_blocks
from prunescope.analysis.schema.notice import Notice, warning
from prunescope.analysis.shapes.config_evidence import read_named_sizes
from prunescope.analysis.shapes.grids import Intervals, meet
from prunescope.analysis.timeline.grid_units import BLOCKS, ITEMS, UNKNOWN_UNIT, grid_units, is_rocm
from prunescope.analysis.trace.trace_columns import Trace
from prunescope.taxonomy.lazy_pattern import lazy_pattern
from prunescope.taxonomy.shape import ModelShape

# Kernels of serving engines that run one block a token.
_TOKENS = tuple(
    (kind, lazy_pattern(pattern))
    for kind, pattern in (
        ("activation", r"act_and_mul_kernel"),
        ("rope", r"rotary_embedding_kernel"),
        ("norm", r"fused_add_rms_norm_kernel|rms_norm_kernel|add_rmsnorm_quant_kernel"
                 r"|AddRMSNormKernel|vectorized_layer_norm_kernel"),
        ("cache", r"reshape_and_cache|store_kvcache"),
        ("quantise", r"scaled_fp8_quant_kernel_strided|per_token_scaled_fp8_quant"
                     r"|scaled_int8_quant_kernel"),
    )
)  # fmt: skip
# PyTorch's vectorised kernels: a block does as many elements as threads times elements a thread.
_ADDED = lazy_pattern(r"vectorized_elementwise_kernel<(\d+),[^<]*CUDAFunctor_add<")
_ACTIVE = lazy_pattern(r"vectorized_elementwise_kernel<(\d+),.*?(?:silu_kernel|[Gg]eluCUDAKernel)")
_VECTORISED = lazy_pattern(r"vectorized_elementwise_kernel<(\d+),")
_PER_THREAD = 4
_ON_ROCM = (4, 8, 16)  # an MI300X does 16 in kernels named <4, as an H100 does 4
Countable = Callable[[str], tuple[str, int] | None]  # name -> what it counts, elements a thread
_SIDES: tuple[Literal["left"], Literal["right"]] = ("left", "right")
_NAME_LIMIT = 400
_MOST = 1 << 31  # elements


@dataclass(frozen=True)
class Count:
    """A kernel whose grid counts something (`kind`).

    `at` is its place in launch order, `blocks` the number of its blocks, and `elements` those of a
    block (1: it runs one block a token).
    """

    kind: str
    at: int
    blocks: int
    elements: int = 1


class CountingKernels:
    """The kernels of a phase whose grids count, and the place of each row in launch order."""

    def __init__(self, frame: pl.DataFrame, trace: Trace) -> None:
        order = frame.with_row_index("row").sort("step", "launched", "start")["row"].to_numpy()
        self.place = np.empty(len(order), np.int64)
        self.place[order] = np.arange(len(order))
        self.named = read_named_sizes(frame["name"].unique().drop_nulls())
        self._steps = frame["step"].to_numpy()[order]
        self.counts = sorted(
            _count_kernels(frame, trace, self.place, _countable), key=lambda count: count.at
        )
        self._at = [count.at for count in self.counts]

    def split_by_pass(self, step: int, passes: Sequence[Iterable[int]]) -> list[list[Count]]:
        """Return the counts of each forward pass of a step; `passes` are their GEMMs' rows."""
        first, last = (int(np.searchsorted(self._steps, step, side)) for side in _SIDES)
        cuts = [min((int(self.place[row]) for row in rows), default=last) for rows in passes[1:]]
        ends = [first, *cuts, last]
        places = [bisect_left(self._at, end) for end in ends]
        return [self.counts[a:b] for a, b in pairwise(places)]


def elementwise_counts(frame: pl.DataFrame, trace: Trace, place: np.ndarray) -> list[Count]:
    """Return the counts of all element-wise kernels of PyTorch.

    A kernel of ROCm has several counts, one for each number of elements that a thread may do.
    """
    return _count_kernels(frame, trace, place, _elementwise, on_rocm=_ON_ROCM)


def _elementwise(name: str) -> tuple[str, int] | None:
    """Return the elements a thread of an element-wise kernel; None for other names."""
    name_match = _VECTORISED.search(name[:_NAME_LIMIT])
    return None if name_match is None else ("elements", max(_PER_THREAD, int(name_match[1])))


def _count_kernels(
    frame: pl.DataFrame,
    trace: Trace,
    place: np.ndarray,
    countable: Countable,
    *,
    on_rocm: tuple[int, ...] = (),
) -> list[Count]:
    """Return the counts of the kernels whose names `countable` knows.

    `on_rocm` are the possible elements a thread, because the name of a kernel of ROCm does not
    state them; empty for the number in the name.
    """
    names = frame["name"].unique().drop_nulls()
    kinds = {name: counted for name in names if (counted := countable(name)) is not None}
    if not kinds:
        return []
    kept = frame.with_row_index("row").filter(
        pl.col("name").is_in(list(kinds)) & pl.col("grid").is_not_null()
    )
    units = grid_units(trace, kept["event"].to_numpy())
    rocm = is_rocm(trace)

    @cache
    def sizes(name: str, grid: int, block: int | None, unit: int) -> list[tuple[int, int]]:
        each = kinds[name][1]
        threads = None if block is None else trace.grids[block]
        if each and (threads is None or unit == UNKNOWN_UNIT):
            return []
        own = [n * math.prod(threads or ()) for n in (on_rocm if rocm else (each,))]
        return [
            (blocks, elements)
            for blocks in _possible_blocks(trace.grids[grid], threads, unit)
            for elements in (own if each else (1,))
            if 0 < blocks * elements <= _MOST
        ]

    columns = kept.select("row", "name", "grid", "block").iter_rows()
    return [
        Count(kinds[name][0], int(place[row]), *size)
        for (row, name, grid, block), unit in zip(columns, units, strict=True)
        for size in sizes(name, grid, block, int(unit))
    ]


def _possible_blocks(grid: tuple[int, ...], threads: tuple[int, ...] | None, unit: int) -> set[int]:
    """Return how many blocks a kernel has.

    Both numbers are returned where its grid may count blocks or work-items. Kinds of kernels, whose
    blocks differ, agree on one of them only.
    """
    blocks = set() if unit == ITEMS else {math.prod(grid)}
    if unit != BLOCKS and threads is not None:
        blocks.add(math.prod(grid_in_blocks(grid, threads)))
    return blocks


def _countable(name: str) -> tuple[str, int] | None:
    """Return the quantity that a kernel counts, and the elements a thread (0: not element-wise).

    None is returned for a kernel that counts nothing.
    """
    name = name[:_NAME_LIMIT]
    for kind, pattern in (("adds", _ADDED), ("activations", _ACTIVE)):
        if (match := pattern.search(name)) is not None:
            return kind, max(_PER_THREAD, int(match[1]))
    return next(((kind, 0) for kind, pattern in _TOKENS if pattern.search(name)), None)


def rows_by_tokens(counts: list[Count], layers: int) -> int | None:
    """Return M by kernels that run one block a token.

    It is the number that two kinds of them count, in half of the layers at least; None where no two
    kinds agree, or they agree on several numbers.
    """
    blocks: dict[str, Counter[int]] = defaultdict(Counter)
    for kernel in counts:
        if kernel.elements == 1:
            blocks[kernel.kind][kernel.blocks] += 1
    kinds = Counter(
        n for times in blocks.values() for n, count in times.items() if 2 * count >= layers
    )
    agreed = [n for n, count in kinds.items() if count > 1]
    return agreed[0] if len(agreed) == 1 else None


class RowCounts:
    """The counts of a pass.

    `tokens` is M by kernels that run one block a token; `adds` and `activations` are the least and
    most of their elements; `allowed` are the M that fit all of them.
    """

    def __init__(self, counts: list[Count], shape: ModelShape, ranks: int) -> None:
        layers = shape.layers
        self.tokens = rows_by_tokens(counts, layers)
        absent = shape.count_layers("attention_kind", "none") + shape.count_layers(
            "mlp_kind", "none"
        )
        self.adds = _elements_of_usual_size(counts, "adds", 2 * layers - absent, layers)
        self.activations: tuple[int, int] | None = None
        least, most = shape.spread("intermediate")
        if shape.mlp.intermediate and least == most and not shape.moe_layers:
            self.activations = _elements_of_usual_size(counts, "activations", layers, layers)
        self._widths = shape.hidden, shape.mlp.intermediate // ranks

    @property
    def allowed(self) -> Intervals | None:
        """The M that all counts allow; None allows any.

        Adds or activations alone show nothing, because other kernels may have their size.
        """
        tokens = None if self.tokens is None else ((self.tokens, self.tokens),)
        return meet(tokens, self.element_rows)

    @property
    def element_rows(self) -> Intervals | None:
        """The M that fits residual adds and activations of the config's widths.

        It is empty where no M fits both, and None where one of them is unknown.
        """
        if self.adds is None or self.activations is None:
            return None
        hidden, width = self._widths
        return meet(_rows_of_width(self.adds, hidden), _rows_of_width(self.activations, width))

    def contradictions(self, rows: int | None) -> list[Notice]:
        """Warn that the residual adds are not those of M rows; empty if they are."""
        hidden, _ = self._widths
        if rows is None or self.adds is None or self.adds[0] <= rows * hidden <= self.adds[1]:
            return []
        counts = {"elements": self.adds[1], "expected": rows * hidden}
        return [warning("residual-adds-off-the-rows", rows=rows, hidden=hidden, **counts)]

    def width(self, rows: int | None) -> int | None:
        """Return the MLP's channels on a rank, by the elements of the activations.

        These are the elements of `rows` rows, or of as many rows as the residual adds have. None
        means that the channels are the config's, or unknown.
        """
        hidden, width = self._widths
        if self.activations is None or (rows is None and self.adds is None):
            return None
        if rows is not None:
            fits = self.activations[0] <= rows * width <= self.activations[1]
            channels = self.activations[1] // rows
        else:
            assert self.adds is not None
            fits = self.element_rows != ()
            channels = round(self.activations[1] / self.adds[1] * hidden)
        return None if fits else channels


def _elements_of_usual_size(
    counts: list[Count], kind: str, count: int, layers: int
) -> tuple[int, int] | None:
    """Return the least and most elements of the kernels of one size that run `count` times or more.

    Two runs less than `count` are enough. None is returned where several sizes run so often.
    Residual adds run twice a layer, the activations of a plain MLP once.
    """
    sizes = Counter((m.blocks, m.elements) for m in counts if m.kind == kind)
    usual = [size for size, n in sizes.items() if n >= count - 2 and n % layers < 3]
    if len(usual) != 1:
        return None
    blocks, each = usual[0]
    return (blocks - 1) * each + 1, blocks * each


def _rows_of_width(elements: tuple[int, int], width: int) -> Intervals:
    """Return the M for which M·width is between two numbers."""
    low, high = -(-elements[0] // width), elements[1] // width
    return ((low, high),) if low <= high else ()
