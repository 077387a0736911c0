"""How many rows a pass runs, by the grids of kernels other than its GEMMs.

In: the kernels of a phase with their grids, the config. Out: M where two kinds of kernels agree on
it: kernels that run one block a token, or element-wise ones whose blocks count M·hidden and
M·intermediate; a notice, or another width, where they contradict the config.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Literal

import numpy as np
import polars as pl

from prunescope.analysis.device.tiles import in_blocks
from prunescope.analysis.schema.notice import Notice, warning
from prunescope.analysis.shapes.evidence import named_in
from prunescope.analysis.shapes.grids import Intervals, meet
from prunescope.analysis.timeline.grid_units import BLOCKS, ITEMS, UNKNOWN_UNIT, grid_units, is_rocm
from prunescope.analysis.trace.events import Trace
from prunescope.taxonomy.shape import ModelShape

# Kernels of serving engines that run one block a token.
_TOKENS = tuple(
    (kind, re.compile(pattern))
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
# PyTorch's vectorised kernels: threads times elements a thread, of which a block does whole ones.
_ADDED = re.compile(r"vectorized_elementwise_kernel<(\d+),[^<]*CUDAFunctor_add<")
_ACTIVE = re.compile(r"vectorized_elementwise_kernel<(\d+),.*?(?:silu_kernel|[Gg]eluCUDAKernel)")
_VECTORISED = re.compile(r"vectorized_elementwise_kernel<(\d+),")
_PER_THREAD = 4
_ON_ROCM = (4, 8, 16)  # an MI300X does 16 in kernels named <4, as an H100 does 4
Countable = Callable[[str], tuple[str, int] | None]  # name -> what it counts, elements a thread
_SIDES: tuple[Literal["left"], Literal["right"]] = ("left", "right")
_NAME_LIMIT = 400
_MOST = 1 << 31  # elements


@dataclass(frozen=True)
class Count:
    """A kernel whose grid counts something (`kind`): its place in launch order, blocks, and
    elements a block (1: it runs one block a token)."""

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
        self.named = named_in(frame["name"].unique().drop_nulls())
        self._steps = frame["step"].to_numpy()[order]
        self.counts = sorted(
            _counts_of(frame, trace, self.place, _countable), key=lambda count: count.at
        )
        self._at = [count.at for count in self.counts]

    def of_passes(self, step: int, passes: Sequence[Iterable[int]]) -> list[list[Count]]:
        """The counts of each forward pass of a step; `passes`: the rows of their GEMMs."""
        first, last = (int(np.searchsorted(self._steps, step, side)) for side in _SIDES)
        cuts = [min((int(self.place[row]) for row in rows), default=last) for rows in passes[1:]]
        ends = [first, *cuts, last]
        return [self._between(a, b) for a, b in pairwise(ends)]

    def _between(self, first: int, last: int) -> list[Count]:
        return self.counts[bisect_left(self._at, first) : bisect_left(self._at, last)]


def elementwise_counts(frame: pl.DataFrame, trace: Trace, place: np.ndarray) -> list[Count]:
    """Every element-wise kernel of PyTorch that counts its elements; of ROCm's several counts, one
    for each number of elements that a thread may do."""
    return _counts_of(frame, trace, place, _elementwise, on_rocm=_ON_ROCM)


def _elementwise(name: str) -> tuple[str, int] | None:
    found = _VECTORISED.search(name[:_NAME_LIMIT])
    return None if found is None else ("elements", max(_PER_THREAD, int(found[1])))


def _counts_of(
    frame: pl.DataFrame,
    trace: Trace,
    place: np.ndarray,
    countable: Countable,
    *,
    on_rocm: tuple[int, ...] = (),
) -> list[Count]:
    """`on_rocm`: elements a thread, where the name of a kernel of ROCm does not say how many."""
    names = frame["name"].unique().drop_nulls()
    kinds = {name: found for name in names if (found := countable(name)) is not None}
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
            for blocks in _blocks(trace.grids[grid], threads, unit)
            for elements in (own if each else (1,))
            if 0 < blocks * elements <= _MOST
        ]

    columns = kept.select("row", "name", "grid", "block").iter_rows()
    return [
        Count(kinds[name][0], int(place[row]), *size)
        for (row, name, grid, block), unit in zip(columns, units, strict=True)
        for size in sizes(name, grid, block, int(unit))
    ]


def _blocks(grid: tuple[int, ...], threads: tuple[int, ...] | None, unit: int) -> set[int]:
    """How many blocks a kernel has; both where its grid may count blocks or work-items: kinds of
    kernels, whose blocks differ, agree on one of them only."""
    out = set() if unit == ITEMS else {math.prod(grid)}
    if unit != BLOCKS and threads is not None:
        out.add(math.prod(in_blocks(grid, threads)))
    return out


def _countable(name: str) -> tuple[str, int] | None:
    """The quantity that a kernel counts, and of an element-wise one the elements a thread."""
    name = name[:_NAME_LIMIT]
    for kind, pattern in (("adds", _ADDED), ("activations", _ACTIVE)):
        if (found := pattern.search(name)) is not None:
            return kind, max(_PER_THREAD, int(found[1]))
    return next(((kind, 0) for kind, pattern in _TOKENS if pattern.search(name)), None)


def rows_by_tokens(counts: list[Count], layers: int) -> int | None:
    """M by kernels that run one block a token: what two kinds of them count, in half of the layers
    at least; None where no two do, or more than one number is agreed upon."""
    blocks: dict[str, Counter[int]] = defaultdict(Counter)
    for count in counts:
        if count.elements == 1:
            blocks[count.kind][count.blocks] += 1
    usual = [{n for n, times in one.items() if 2 * times >= layers} for one in blocks.values()]
    agreed = {n for one in usual for n in one if sum(n in other for other in usual) > 1}
    return agreed.pop() if len(agreed) == 1 else None


class RowCounts:
    """The counts of a pass. `tokens`: M by kernels that run one block a token; `adds` and
    `activations`: least and most of their elements; `allowed`: what M may be by all of them."""

    def __init__(self, counts: list[Count], shape: ModelShape, ranks: int) -> None:
        layers = shape.layers
        self.tokens = rows_by_tokens(counts, layers)
        absent = shape.count("attention_kind", "none") + shape.count("mlp_kind", "none")
        self.adds = _elements(counts, "adds", 2 * layers - absent, layers)
        self.activations: tuple[int, int] | None = None
        least, most = shape.spread("intermediate")
        if shape.intermediate and least == most and not shape.moe_layers:
            self.activations = _elements(counts, "activations", layers, layers)
        self._widths = shape.hidden, shape.intermediate // ranks

    @property
    def allowed(self) -> Intervals | None:
        """The M that all counts allow; None: any. Adds or activations alone show nothing: others
        may have their size."""
        tokens = None if self.tokens is None else ((self.tokens, self.tokens),)
        return meet(tokens, self.by_elements)

    @property
    def by_elements(self) -> Intervals | None:
        """The M that fits residual adds and activations of the config's widths; () where no M
        fits both."""
        if self.adds is None or self.activations is None:
            return None
        hidden, width = self._widths
        return meet(_rows(self.adds, hidden), _rows(self.activations, width))

    def contradictions(self, rows: int | None) -> list[Notice]:
        """A contradiction where the residual adds are not those of M rows of the hidden size."""
        hidden, _ = self._widths
        if rows is None or self.adds is None or self.adds[0] <= rows * hidden <= self.adds[1]:
            return []
        counts = {"elements": self.adds[1], "expected": rows * hidden}
        return [warning("residual-adds-off-the-rows", rows=rows, hidden=hidden, **counts)]

    def width(self, rows: int | None) -> int | None:
        """The MLP's channels on a rank by the activations' elements, of M rows, or of as many as
        the residual adds have; None where these are the config's, or not known."""
        hidden, width = self._widths
        if self.activations is None or (rows is None and self.adds is None):
            return None
        if rows is not None:
            fits = self.activations[0] <= rows * width <= self.activations[1]
            found = self.activations[1] // rows
        else:
            assert self.adds is not None
            fits = self.by_elements != ()
            found = round(self.activations[1] / self.adds[1] * hidden)
        return None if fits else found


def _elements(counts: list[Count], kind: str, count: int, layers: int) -> tuple[int, int] | None:
    """The elements of kernels of one size that run so often, give or take two; None where several
    sizes do: residual adds are two a layer, activations of a plain MLP one."""
    sizes = Counter((m.blocks, m.elements) for m in counts if m.kind == kind)
    usual = [size for size, n in sizes.items() if n >= count - 2 and n % layers < 3]
    if len(usual) != 1:
        return None
    blocks, each = usual[0]
    return (blocks - 1) * each + 1, blocks * each


def _rows(elements: tuple[int, int], width: int) -> Intervals:
    """The M for which M·width is between two numbers."""
    low, high = -(-elements[0] // width), elements[1] // width
    return ((low, high),) if low <= high else ()
