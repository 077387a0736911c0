"""The closure of a layer that ran alone, and its interval."""

from __future__ import annotations

import math

import pytest

from prunescope.taxonomy.runs.run_blocks import LayerAlone


def alone(rounds: list[tuple[float, float, float]]) -> LayerAlone:
    """10 ns a layer, four of them, and a rest of 10, in 50 ns."""
    return LayerAlone(
        layer=1, layers=4, layer_ns=10.0, rest_ns=10.0, whole_ns=50.0, rounds_ns=rounds
    )


def test_a_closure_is_as_sure_as_its_rounds_agree() -> None:
    """1, 1.1 and 1 / 1.1: a standard deviation of log 1.1, and t of two degrees, 4.303."""
    layer = alone([(10.0, 10.0, 50.0), (10.0, 10.0, 50 / 1.1), (10.0, 10.0, 55.0)])
    half = 4.30265 * math.log(1.1) / math.sqrt(3)
    assert layer.layer_sum == 1.0
    assert layer.layer_sum_ci95 == pytest.approx([math.exp(-half), math.exp(half)])


def test_one_round_or_none_has_no_interval() -> None:
    assert alone([]).layer_sum_ci95 is None
    assert alone([(10.0, 10.0, 50.0), (10.0, 10.0, 0.0)]).layer_sum_ci95 is None
