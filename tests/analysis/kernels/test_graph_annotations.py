"""Kernels of a graph that torch annotated: the module in their arguments gives layer and role."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from tests.analysis.replays import replayed
from tests.chrome import chrome, k, op, save, step

PATH = "model.layers.7.mlp.down_proj"


def annotated(**args: Any) -> dict[str, Any]:
    gemm = op("aten::mm", [4, 32], [32, 48], kernels=[k(us=8, name="ampere_sgemm_64x64_nn")])
    trace = replayed(chrome(step(0, gemm)))
    for event in trace["traceEvents"]:
        if event["cat"] == "kernel":
            event["args"] |= {"graph node id": 42, **args}
    return trace


@pytest.mark.parametrize("key", ["name", "module_fqn", "str"])
def test_a_module_path_gives_layer_and_role(key: str, tmp_path: Path) -> None:
    frame = analyze(save(annotated(**{key: PATH}), tmp_path / "t.json")).frames["trace"]
    assert (frame["layer"].to_list(), frame["role"].to_list()) == ([7], ["down"])


@pytest.mark.parametrize("value", [3, None, ["a"], {"b": 1}, "phase_A", "", True])
def test_other_values_say_nothing(value: Any, tmp_path: Path) -> None:
    report = analyze(save(annotated(name=value), tmp_path / "t.json"))
    assert report.frames["trace"]["layer"].to_list() == [None]
    assert report.report.phases["trace"].busy_ns == 8000
