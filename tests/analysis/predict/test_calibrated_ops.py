"""What a calibrated CPU predicts: every op at its own size, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from prunescope.analysis.device.calibrated import named_device
from prunescope.analysis.predict.calibrated_ops import calibrated_ns
from prunescope.analysis.predict.costs import estimate_costs
from prunescope.analysis.predict.predict_request import PredictRequest
from prunescope.analysis.predict.ranges import host_modes
from prunescope.analysis.predict.setting import resolve, workloads
from prunescope.analysis.predict.side import PredictedSide, predicted_side
from prunescope.taxonomy.plan import Op
from tests.analysis.device.test_calibrated import ENTRY, file
from tests.analysis.predict.plain import predict

__all__ = ["file"]


def side_of(path: Path, **options: Any) -> PredictedSide:
    """The pruned side of tiny-llama in decode on the device of a file."""
    words = {"model": "tiny-llama", "method": "static-nk-mlp", "sparsity": 0.5, "phase": "decode"}
    request = PredictRequest(**{**words, "device": str(path), "dtype": "fp32", **options})
    setting, _ = resolve(request, str(request.method), 0.5, [])
    (work,) = workloads(request, setting)
    return predicted_side(setting, work)


def op_of(side: PredictedSide, name: str) -> Op:
    """The op of a role."""
    return next(op for op in side.bounded if op.role == name)


def test_a_gemm_has_the_time_of_its_own_size(file: Path) -> None:
    """gate of tiny-llama at half of its 352 channels, aligned to 16: N = 176, K = 128, one row. All
    of the model is larger than a cache of 1 MiB, so that no weight is faster than memory: 10,100 ns
    for 1,000,000 numbers."""
    side = side_of(file)
    gate = op_of(side, "gate")
    assert (gate.gemms[0].m, gate.gemms[0].n, gate.gemms[0].k) == (1, 176, 128)
    times = side.setting.device.times
    assert times is not None
    alone = times.gemm_ns("fp32", m=1, n=176, k=128)
    assert alone is not None and alone > 176 * 128 * 0.0101
    assert calibrated_ns(side, gate) == pytest.approx(alone)
    large = replace(gate, weight_bytes=4e6)  # 1,000,000 numbers of 4 bytes
    assert calibrated_ns(side, large) == pytest.approx(10100)


def test_an_element_wise_op_is_split_into_those_of_eager_modules(file: Path) -> None:
    """A norm runs nine ops that move 42 bytes where a fused one moves 8."""
    side = side_of(file)
    norm, times = op_of(side, "attn_norm"), side.setting.device.times
    assert times is not None
    each = times.stream_ns(norm.bytes * 42 / 8 / 9)
    assert calibrated_ns(side, norm) == pytest.approx(9 * each)


def test_every_op_adds_a_call_and_what_python_takes(file: Path) -> None:
    """Without any cost of execution the roofline stays; all of them are the measured times, a call
    of 1,000 ns and 4,000 ns of Python for each op that launches, and 300,000 ns of the forward."""
    side = side_of(file)
    estimate, c = estimate_costs(side), side.setting.constants
    assert estimate.total_ns(c, frozenset()) == pytest.approx(side.ns)
    ops = [(op.layers, calibrated_ns(side, op)) for op in side.bounded]
    measured = sum(layers * ns for layers, ns in ops if ns is not None)
    launches = estimate.host_ops[0]
    total = estimate.total_ns(c, frozenset(side.setting.terms))
    assert total == pytest.approx(measured + launches * 5000 + 300000)


def test_a_prediction_names_the_measurement_and_prunes_less_where_ops_cost_most(
    file: Path,
) -> None:
    at = {"model": "tiny-llama", "method": "static-nk-mlp", "sparsity": 0.5, "dtype": "fp32"}
    result = predict(PredictRequest(**at, device=str(file), batch=1, prompt_len=512))
    assert any("`prunescope calibrate` measured with 1 thread" in w for w in result["warnings"])
    speedups = {
        name: phase["predicted"]["execution"]["speedup"]
        for name, phase in result["points"][0]["phases"].items()
    }
    assert 1 < speedups["decode"] < speedups["prefill"]


def test_two_calibrations_of_one_name_are_two_devices(file: Path, tmp_path: Path) -> None:
    """The dense forward is shared by all predictions of a process, its costs are not."""
    other = tmp_path / "other.json"
    measured = {**ENTRY["measured"], "op_ns": 50000}
    other.write_text(json.dumps({**ENTRY, "measured": measured}), encoding="utf-8")
    assert named_device(str(other)).name == named_device(str(file)).name
    first, second = (
        estimate_costs(side).total_ns(side.setting.constants, frozenset(side.setting.terms))
        for side in map(side_of, (file, other))
    )
    assert second > 2 * first


def test_no_published_host_stands_in_for_a_measured_one(file: Path) -> None:
    """The cost of an op is known with the device: a range holds no other host's mode."""
    side = side_of(file)
    estimate = estimate_costs(side)
    modes = host_modes(lambda c: estimate.total_ns(c, frozenset({"launch"})), side, ("launch",))
    assert side.setting.launch == "eager" and modes == ()
