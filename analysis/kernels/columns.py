"""The rows of the kernels frame by the values of its columns, without a query.

In: columns. Out: masks, null where the value is null, and numbers of instances. A comparison of a
series takes a tenth of the time of a query on a small frame, and a third of that of `is_in` on a
large one.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from functools import reduce

import numpy as np
import polars as pl

from prunescope.analysis.trace.collector import NONE, Ints
from prunescope.analysis.trace.collector import Floats as Floats
from prunescope.analysis.trace.collector import Mask as Mask


def is_one_of(column: pl.Series, values: Iterable[str | int]) -> pl.Series:
    """Return which rows hold one of a few values; null where the row is null."""
    masks = [column == value for value in values]
    return (
        reduce(operator.or_, masks) if masks else column != column
    )  # no row holds one of no values


def is_true(mask: pl.Series) -> Mask:
    """Return a mask as an array, in which null is false."""
    if not mask.null_count():
        return mask.to_numpy(writable=True)
    values = np.zeros(len(mask), bool)
    values[pl.Series(np.arange(len(mask))).filter(mask).to_numpy()] = True
    return values


def instance_numbers(frame: pl.DataFrame) -> Ints:
    """Return a number from 0 for each row, equal for the rows of one op in one step."""
    step, instance = frame["step"].to_numpy(), frame["instance"].to_numpy()
    order = np.lexsort((instance, step))
    first = (np.diff(step[order], prepend=NONE) != 0) | (np.diff(instance[order], prepend=0) != 0)
    number = np.empty(len(order), np.int64)
    number[order] = np.cumsum(first) - 1
    return number


def known_ids(ids: Ints) -> pl.Series:
    """Return ids or times as a column, null where one is negative, which stands for none."""
    column = pl.Series(ids, dtype=pl.Int64)
    return column.zip_with(column >= 0, _NONE)


_NONE = pl.Series([None], dtype=pl.Int64)
