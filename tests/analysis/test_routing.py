"""Tokens of experts: what runs counted, layer by layer, dense beside pruned, and its table."""

from __future__ import annotations

import json
from typing import Any

import pytest

from prunescope.analysis.phase_routing import routing_of
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.runs.run import Run


def run_of(routing: Any, distinct: Any = None, **more: Any) -> Run:
    plain = {
        "variant": "dense", "model": {}, "phases": {}, "dtype": "fp32", "device": {},
        "versions": {}, "seeds": {}, "argv": [], "routing": routing,
        "distinct_experts": distinct or {}, **more,
    }  # fmt: skip
    return Run.from_json(json.dumps(plain))


def test_counts_become_shares() -> None:
    """Four experts with 4, 2, 2, 0 tokens: the fullest has twice the mean of 2; entropy in bits
    1/2·1 + 2·(1/4·2) = 1.5 of log2 4 = 2."""
    own = run_of({"decode": {"0": [4, 2, 2, 0]}}, {"decode": {"0": 2.5}})
    found = routing_of(own, None, "decode")
    assert found is not None
    (layer,) = found.layers
    assert (layer.layer, layer.experts, layer.distinct) == (0, 4, 2.5)
    assert (layer.fullest, layer.entropy) == (2.0, 0.75)
    assert (layer.dense_experts, layer.dense_entropy) == (None, None)
    assert routing_of(own, None, "prefill") is None
    assert routing_of(None, None, "decode") is None


def test_a_layer_is_compared_with_the_one_it_was() -> None:
    """Of three layers the first is gone: layers 0 and 1 were 1 and 2. Keys are ordered as numbers.
    Nothing was routed in the last one: unknown, not 0."""
    dense = run_of({"prefill": {"10": [1, 1], "2": [3, 1], "1": [1, 3, 0, 0]}})
    own = run_of({"prefill": {"1": [0, 0], "0": [2, 2]}}, layer_map=[1, 2])
    found = routing_of(own, dense, "prefill")
    assert found is not None
    first, last = found.layers
    assert (first.layer, first.experts, first.dense_experts) == (1, 2, 4)
    assert (first.fullest, first.entropy, first.dense_fullest) == (1.0, 1.0, 3.0)
    assert (last.layer, last.fullest, last.entropy, last.dense_fullest) == (2, None, None, 1.5)


def test_what_a_stranger_writes_is_checked() -> None:
    for routing in ({"decode": {"../x": [1]}}, {"decode": {"0": [-1]}}, {"decode": {"0": "x"}}):
        with pytest.raises(PrunescopeError):
            run_of(routing)
