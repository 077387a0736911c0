"""The work of an op, divided among its kernels in proportion to their time.

In: the kernels frame with kinds, and the Work of each call. Out: columns `primary`, `carries_work`,
`parts`, `flop`, `bytes`, `dtype`, and `modelled`: whether a work model or the profiler gives its
FLOPs and bytes. Null is unknown.
"""

from __future__ import annotations

import re

import numpy as np
import polars as pl

from prunescope.analysis.device.cores import multiplication_dtypes
from prunescope.analysis.kernels.columns import Mask, instance_numbers, is_one_of, is_true
from prunescope.analysis.kernels.role import GEMM_KINDS, POINTWISE
from prunescope.analysis.ops.call import OpCall, Work
from prunescope.analysis.ops.kernel_kinds import op_kind
from prunescope.analysis.timeline.link import Linked
from prunescope.analysis.trace.collector import NONE, Ints
from prunescope.taxonomy.dtypes import dtype, itemsize
from prunescope.taxonomy.lazy_pattern import lazy_pattern

# A list of tensors has no number format in a trace; the name of the kernel that reads it has one,
# or the bytes of an element.
_OF_A_LIST = ("aten::cat", "aten::_cat", "aten::concat", "aten::stack")
_MOVES = {1: "copy", 2: "fill"}  # categories of device events
# Copies between host and device. On XPUs, M is pageable memory of the host.
_CROSSES = r"HtoD|DtoH|HostToDevice|DeviceToHost|^Memcpy (?:[HM]2D|D2[HM])"
_BETWEEN_DEVICES = r"PtoP|Peer"
_ELEMENT = lazy_pattern(
    r"CatArray\w*<(?:at::native::\(anonymous namespace\)::)?"
    r"(?:OpaqueType<(\d{1,2})|([\w:]+(?: \w+)?)[,>])"
)


def add_work(
    frame: pl.DataFrame,
    linked: Linked,
    calls: list[OpCall],
    works: list[Work | None],
    *,
    copied: np.ndarray | None = None,
) -> pl.DataFrame:
    """Add the columns above.

    The work of an op is shared by duration among its kernels of its own kind (`carries_work`);
    without any, its longest kernel takes it all. `primary` is the longest of them, `parts` is their
    number. Auxiliary kernels have time and no work.

    Args:
        frame: The kernels frame with kinds.
        linked: The linked rows.
        calls: The distinct op calls.
        works: The work of each call.
        copied: Bytes of the copy or fill of each row as the profiler recorded them, -1 for
            none; None
            where the profiler records no bytes.
    """
    duration = frame["duration"].to_numpy()
    carries, once = _is_of_op_kind(frame, calls, works), ~_repeated(frame, linked, works)
    number, longest = _instances(frame, carries)
    primary = longest & once
    carries = (carries | primary) & once
    parts = np.bincount(number[carries], minlength=len(frame))[number]
    took = np.bincount(number[carries], duration[carries], minlength=len(frame))[number]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(took > 0, duration / took, 1.0 / parts)
    share = np.where(parts == 1, 1.0, share)
    of_call = _table(works).select(pl.all().gather(frame["call"]))
    flop, moved = (
        (of_call[name] * pl.Series(share)).zip_with(pl.Series(carries), _UNKNOWN)
        for name in ("flop", "bytes")
    )
    columns = {
        "carries_work": carries,
        "primary": primary,
        "parts": pl.Series(parts, dtype=pl.UInt32),
        "flop": flop,
        "bytes": moved * _element_size_factor(frame, calls),
        "dtype": multiplication_dtypes(frame["name"], of_call["dtype"]),
        "modelled": is_true(of_call["modelled"]),
    }
    return _add_copies(frame.hstack(pl.DataFrame(columns)), copied)


_UNKNOWN = pl.Series([None], dtype=pl.Float64)


def _instances(frame: pl.DataFrame, carries: Mask) -> tuple[Ints, Mask]:
    """Return the number of each row's instance, and the one row that stands for each instance.

    That is a row that carries the work, else one that is no copy or fill, else the longest, else
    the first. numpy ranks them: a rank over structs in polars takes ten times as long.
    """
    moves = is_one_of(frame["kind"], ("memset", "memcpy")).to_numpy()
    number, busy, start = (
        instance_numbers(frame), frame["busy"].to_numpy(), frame["start"].to_numpy()
    )  # fmt: skip
    order = np.lexsort((start, -busy, moves, ~carries, number))
    longest = np.zeros(len(order), bool)
    longest[order[np.diff(number[order], prepend=NONE) != 0]] = True
    return number, longest


def crosses_link(name: str) -> bool:
    """Return whether a copy of that name goes over the link between host and device."""
    return re.search(_CROSSES, name) is not None


def _add_copies(frame: pl.DataFrame, copied: np.ndarray | None) -> pl.DataFrame:
    """Set the recorded bytes of copies and fills, and add column `crosses`.

    `crosses` says whether a copy goes over the link between host and device. A copy inside the
    device reads and writes its memory; one between devices goes over links that a trace does not
    name.
    """
    if not is_one_of(frame["category"], _MOVES).any():
        return frame.with_columns(crosses=pl.lit(value=False))
    kind = pl.col("category").replace_strict(_MOVES, default=None, return_dtype=pl.String)
    name = pl.col("name").fill_null("")
    crosses = ((kind == "copy") & name.str.contains(_CROSSES)).fill_null(value=False)
    if copied is None:
        return frame.with_columns(crosses=crosses)
    size = pl.Series("_size", copied)
    is_known = ((size >= 0) & kind.is_not_null() & pl.col("carries_work")).fill_null(value=False)
    between = (kind == "copy") & name.str.contains(_BETWEEN_DEVICES)
    times = pl.when(crosses | (kind == "fill")).then(1).otherwise(2)
    moved = pl.when(between.not_()).then(size * times).cast(pl.Float64)
    return frame.with_columns(
        crosses=crosses,
        flop=pl.when(is_known).then(0.0).otherwise("flop"),
        bytes=pl.when(is_known).then(moved).otherwise("bytes"),
        modelled=pl.when(is_known).then(between.not_()).otherwise("modelled"),
    )


def _table(works: list[Work | None]) -> pl.DataFrame:
    """Return FLOPs, bytes, dtype and `modelled` of each call as columns."""
    return pl.DataFrame(
        {
            "flop": [None if w is None else w.flop for w in works],
            "bytes": [None if w is None else w.bytes for w in works],
            "dtype": [None if w is None else w.dtype for w in works],
            "modelled": [w is not None and w.bytes is not None for w in works],
        },
        schema={
            "flop": pl.Float64,
            "bytes": pl.Float64,
            "dtype": pl.String,
            "modelled": pl.Boolean,
        },
    )


def _is_of_op_kind(frame: pl.DataFrame, calls: list[OpCall], works: list[Work | None]) -> Mask:
    """Return the rows whose kind is that of their op; none for an op whose kind is unknown."""
    kinds = [
        work.kind
        if work is not None and not call.name.startswith("triton_")
        else op_kind(call.name, None)
        for call, work in zip(calls, works, strict=True)
    ]
    of_call = pl.Series(
        [None if k == "unknown" else _comparable_kind(k) for k in kinds], dtype=pl.String
    )
    of_op, of_row = of_call.gather(frame["call"]), frame["kind"]
    same = np.zeros(len(frame), bool)
    for kind in of_row.unique():
        same |= is_true((of_row == kind) & (of_op == _comparable_kind(kind)))
    return same


def _element_size_factor(frame: pl.DataFrame, calls: list[OpCall]) -> pl.Series | float:
    """Return the true size of an element over the one that a list of tensors was taken to have.

    The kernel's name states the true size; the factor is 1 where it states none.
    """
    lists = [i for i, call in enumerate(calls) if call.name in _OF_A_LIST]
    if not lists:
        return 1.0
    factors: dict[tuple[int, str], float] = {}
    rows = frame.filter(pl.col("call").is_in(lists) & pl.col("name").is_not_null())
    for call, name in rows.select("call", "name").unique().iter_rows():
        taken = itemsize(dtype(calls[call].dtypes[0])) if calls[call].dtypes else None
        is_known = _named_itemsize(name)
        if taken and is_known:
            factors[call, name] = is_known / taken
    keys = zip(frame["call"].to_list(), frame["name"].to_list(), strict=True)
    return pl.Series([factors.get(key, 1.0) for key in keys], dtype=pl.Float64)


def _named_itemsize(name: str) -> float | None:
    match = _ELEMENT.search(name[:512])
    if match is None:
        return None
    return float(match[1]) if match[1] else itemsize(dtype(match[2]))


def _repeated(frame: pl.DataFrame, linked: Linked, works: list[Work | None]) -> np.ndarray:
    """Return the rows whose modelled work an op inside them does again.

    The inner op keeps the work (mean > sum, _grouped_mm > mm).
    """
    repeated = np.zeros(len(linked.above), bool)
    calls, kinds = frame["call"].to_list(), frame["kind"].to_list()
    for row in np.flatnonzero(linked.above >= 0):
        outer = linked.above[row]
        same = _comparable_kind(kinds[row]) == _comparable_kind(kinds[outer])
        if same and calls[row] is not None and works[calls[row]] is not None:
            repeated[outer] = True
    return repeated


def _comparable_kind(kind: str) -> str:
    if kind in GEMM_KINDS:
        return "matmul"
    return "pointwise" if kind in (*POINTWISE, "layout") else kind
