"""Nothing critical rests on a time that is not valid: every finding that is critical by time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.findings.registry import registered
from tests.analysis.decoder import census, matrix
from tests.analysis.finding_cases import (
    FULL,
    MANY,
    MM,
    NARROW,
    ROLES,
    H,
    K,
    M,
    N,
    V,
    assert_present,
    attention,
    copy_,
    found,
    layers,
    mm,
    model,
    of_run,
    pointwise,
    sparse_attention,
    two_placements,
)
from tests.analysis.findings.test_left_on import FAKE, SIZE, adapted, lora
from tests.chrome import chrome, gap, k, module, op, step

TIMED = {rule.id for rule in registered() if rule.needs_valid_times and rule.severity == "critical"}
Case = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]  # dense, pruned, fields of the runs


def elementwise(name: str, *shapes: list[int], us: float) -> Any:
    return op(name, *shapes, kernels=[k(us=us, name="elementwise")])


def remade(applied: str, *made: Any) -> Case:
    """Ops of up's size in q's scope of every layer, and what the census says applies them."""
    held = {**matrix(0, "up", 0.0), "shape": SIZE, "applied": applied}
    more = {"census": {"matrices": [held]}, "dense_census": census(0.0)}
    return model(FULL), model(replace(FULL, added=made)), more


def late() -> Case:
    idle = chrome(step(0, MM, *[gap(us=30, launch=True), MM] * 9))
    return idle, idle, {}


def copied() -> Case:
    head = module("lm_head", copy_(1, H, V), mm(1, V, H, us=10))
    trace = chrome(step(0, module("model.layers.0.mlp.up_proj", mm(us=20)), head))
    return trace, trace, {}


def scaled() -> Case:
    product = pointwise("aten::mul", [N, K], [N, 1], us=40)
    return layers(("mlp.up_proj", mm())), layers(("mlp.up_proj", [product, mm()])), {}


def blocks() -> Case:
    named = {"pruning": {"method": "dynamic-nk", "sparsity": 0.5, "knobs": {}}}
    return attention(), sparse_attention(50, 60), named


CASES: dict[str, Callable[[], Case]] = {
    "added-adapter": lambda: (
        model(FULL), adapted(FULL),
        {"census": {"matrices": [*census(0.0)["matrices"], *lora()]}, "dense_census": census(0.0)},
    ),
    "added-mask": lambda: remade(
        "torch.nn.utils.prune", elementwise("aten::mul", SIZE, SIZE, us=40)
    ),
    "below-break-even": blocks,
    "decompressed": scaled,
    "fake-quantised": lambda: remade(
        "torch.ao.quantization", elementwise(FAKE, SIZE, [512], [512], us=30)
    ),
    "launch-bound": late,
    "no-speedup": lambda: (model(FULL), model(NARROW), {"samples_ns": MANY[::-1]}),
    "sparse-without-gain": lambda: (model(FULL), model(replace(FULL, sparse=ROLES)), {}),
    "weight-copied": copied,
    "weights-recomputed": lambda: remade(
        "torch.nn.utils.parametrize", elementwise("aten::_weight_norm", SIZE, [512, 1], us=30)
    ),
}  # fmt: skip


def test_every_finding_of_the_list_has_a_case() -> None:
    assert set(CASES) == TIMED
    assert len({M, N, K}) == 3  # a weight has dimensions that no activation has


@pytest.mark.parametrize("name", sorted(TIMED))
def test_what_is_critical_by_time_is_a_warning_where_time_is_not_valid(
    name: str, tmp_path: Path
) -> None:
    for disturbed, severity in ((0, "critical"), (len(MANY) // 2, "warning")):
        dense, pruned, more = CASES[name]()
        fields = {"dense_samples_ns": MANY, "samples_ns": MANY, **more}
        phase = of_run(tmp_path / severity, dense, pruned,
                       both_placements=two_placements(disturbed),
                       **fields)  # fmt: skip
        assert_present(phase, name, severity)
        assert (found(phase, "timing-not-valid") is not None) == (severity == "warning")


def test_milliseconds_of_a_ledger_are_information_where_time_is_not_valid(tmp_path: Path) -> None:
    """A gather of 30 us that the dense model does not have."""
    gather = op("aten::index_select", [32, 256], [], [16], kernels=[k(us=30, name="indexSelect")])
    for disturbed, severity in ((0, "warning"), (len(MANY) // 2, "info")):
        phase = of_run(tmp_path / severity, model(FULL), model(replace(FULL, added=(gather,))),
                       both_placements=two_placements(disturbed), dense_samples_ns=MANY,
                       samples_ns=MANY)  # fmt: skip
        assert_present(phase, "added-work", severity)
