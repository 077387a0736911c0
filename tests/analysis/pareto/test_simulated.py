"""Which points are simulated: by what their run decided at random, a part of a composite too."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from prunescope.analysis.pareto.points import simulated_by
from prunescope.taxonomy.runs.run_blocks import Pruning


def part(method: str, **more: Any) -> dict[str, Any]:
    return {"method": method, "sparsity": 0.5, "selection": "random", **more}


@pytest.mark.parametrize(
    ("pruning", "is_simulated"),
    [
        (part("kv-evict", knobs={"keep": "attention"}), True),
        (part("kv-evict", knobs={"keep": "sinks"}), False),  # by a rule
        (part("kv-evict", knobs={"keep": "attention"}, selection="importance"), False),
        ({"parts": [part("static-m"), part("kv-evict", knobs={"keep": "attention"})]}, True),
        ({"parts": [part("static-m"), part("kv-evict", knobs={"keep": "recent"})]}, False),
        ({"parts": [part("static-m"), part("static-k-24", backend="masked")]}, True),
    ],
)
def test_what_is_decided_at_random_is_simulated(
    pruning: dict[str, Any], *, is_simulated: bool
) -> None:
    found = simulated_by(msgspec.convert(pruning, Pruning), decides=True)
    assert (found is not None) is is_simulated


def test_random_weights_that_go_before_the_model_runs_are_not_simulated() -> None:
    pruning = msgspec.convert(part("static-m"), Pruning)
    assert simulated_by(pruning, decides=False) is None
