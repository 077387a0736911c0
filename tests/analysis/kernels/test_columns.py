"""Masks and numbers of instances: what null means in them, and which rows are of one op."""

from __future__ import annotations

import numpy as np
import polars as pl

from prunescope.analysis.kernels.columns import instance_numbers, is_one_of, is_true, known_ids

KINDS = pl.Series(["gemm", None, "norm", "gemv"])


def test_null_is_none_of_the_values_and_not_known_to_be_none() -> None:
    assert is_one_of(KINDS, ("gemm", "gemv")).to_list() == [True, None, False, True]
    assert (~is_one_of(KINDS, ("gemm",))).to_list() == [False, None, True, True]
    assert is_one_of(KINDS, ()).to_list() == [False, None, False, False]


def test_null_is_false_in_an_array() -> None:
    assert is_true(is_one_of(KINDS, ("gemm", "gemv"))).tolist() == [True, False, False, True]
    assert is_true(pl.Series([True, False])).tolist() == [True, False]


def test_a_negative_id_is_null() -> None:
    assert known_ids(np.array([3, -1, 0])).to_list() == [3, None, 0]


def test_rows_of_one_op_in_one_step_have_one_number() -> None:
    frame = pl.DataFrame({"step": [0, 0, 0, 1], "instance": [7, -3, 7, 7]})
    first, other, again, later = instance_numbers(frame).tolist()
    assert first == again
    assert sorted({first, other, later}) == [0, 1, 2]
