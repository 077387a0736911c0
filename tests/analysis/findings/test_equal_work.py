"""Equal work that took another time: the ratio is noise, or its cause is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.inputs.options import Options
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.summary.headline import headline
from tests.analysis.finding_cases import FULL, assert_present, found, layers, mm, model, of_pair
from tests.chrome import chrome, k, module, op, step

OTHER, OUTLIER = "unexplained-difference", "gemm-outlier"


def gemms(*us: float, name: str = "a_gemm_kernel") -> dict[str, Any]:
    """One GEMM each, of these times."""
    roles = ("mlp.gate_proj", "mlp.up_proj")
    return layers(*[(role, mm(us=time, name=name)) for role, time in zip(roles, us, strict=True)],
                  count=1)  # fmt: skip


def test_work_on_a_second_stream_is_named(tmp_path: Path) -> None:
    """Two kernels of 100 us, one after the other and at once: 200 us became 100."""

    def two(under: float) -> dict[str, Any]:
        kernels = [k(us=100, name="gemm"), k(us=100, name="gemm", stream=9, gap_us=-under)]
        return chrome(step(0, mm()._replace(kernels=tuple(kernels))))

    phase = of_pair(tmp_path, two(0), two(100))
    assert_present(phase, OTHER, "warning", "2.00×", "kernels overlap for 100.0 µs a step",
            "0.0 µs in the", "1.00 × the dense time", "as before")  # fmt: skip


def test_kernels_that_all_run_twice_as_fast(tmp_path: Path) -> None:
    """unexplained-difference: 200 us became 100 us, and kernel efficiency holds all of it."""
    phase = of_pair(tmp_path, gemms(100, 100), gemms(50, 50))
    assert_present(phase, OTHER, "warning", "2.00×", "kernel efficiency −100.0 µs",
            "all kernels take 0.50 × the dense time", "another clock or device")  # fmt: skip
    assert "the noise between two captures" not in headline(phase)
    assert "kernel efficiency −100.0 µs" in headline(phase)


def test_a_small_difference_is_noise(tmp_path: Path) -> None:
    """Two per cent are no unexplained-difference."""
    phase = of_pair(tmp_path, gemms(100, 100), gemms(98, 98))
    assert found(phase, OTHER) is None
    assert "is the noise between two captures" in headline(phase)


def test_other_kernels_are_named(tmp_path: Path) -> None:
    phase = of_pair(tmp_path, gemms(100, 100), gemms(50, 50, name="another_gemm_kernel"))
    assert_present(
        phase, OTHER, "warning", "100 % of the busy time is in kernels that the dense run does"
    )


def test_idle_time_is_named(tmp_path: Path) -> None:
    """Every GEMM of the dense side waits 10 us longer."""
    phase = of_pair(tmp_path, model(FULL, gap_us=21), model(FULL, gap_us=1))
    assert_present(phase, OTHER, "warning", "launch and idle", "the kernels take as long as before")


def test_a_pruned_model_is_not_of_equal_shapes(tmp_path: Path) -> None:
    narrow = layers(("mlp.gate_proj", mm(n=2048, us=50)), count=1)
    phase = of_pair(tmp_path, layers(("mlp.gate_proj", mm()), count=1), narrow)
    assert found(phase, OTHER) is None


def test_a_real_trace_of_which_every_kernel_takes_half_of_its_time(
    real_trace: Callable[[str], Path],
) -> None:
    """34.892 → 18.940 ms, all of it kernel efficiency; gaps as before."""
    phase = analyze(
        real_trace("../edits/h100_qwen_all_twice_as_fast.json.gz"),
        baseline=real_trace("h100_qwen1.5-0.5b_prefill.json.gz"),
        options=Options(device="h100-sxm"),
    ).report.phases["trace"]
    assert_present(
        phase, OTHER, "warning", "1.84×", "kernel efficiency −15.953 ms", "0.50 × the dense"
    )
    assert "the noise between two captures" not in headline(phase)


def test_one_gemm_that_took_many_times_as_long(tmp_path: Path) -> None:
    """gemm-outlier: one of three takes 2.470 ms in one run and 0.037 in the other."""

    def three(us: float) -> dict[str, Any]:
        return chrome(step(0, *[
            layer for i, time in enumerate((40, us, 40))
            for layer in [mm(us=time, n=4096 + 64 * i)]
        ]))  # fmt: skip

    slow, fast = three(2470), three(37)
    first = of_pair(tmp_path, slow, fast)
    assert_present(first, OUTLIER, "info", "2.470 ms in the dense run", "37.0 µs")
    assert_present(of_pair(tmp_path, fast, slow), OUTLIER, "info", "2.470 ms in the pruned one")


@pytest.mark.parametrize("us", [(20, 20, 20), (40, 70, 40), (40, 40, 40)])
def test_gemms_that_changed_alike_or_little_are_no_outliers(
    us: tuple[float, ...], tmp_path: Path
) -> None:
    """Half of the time in all, or less than three times in one: no gemm-outlier."""

    def steps_of(times: tuple[float, ...]) -> dict[str, Any]:
        return chrome(step(0, *[mm(us=time, n=4096 + 64 * i) for i, time in enumerate(times)]))

    assert found(of_pair(tmp_path, steps_of((40, 40, 40)), steps_of(us)), OUTLIER) is None


def test_communication_that_takes_longer_is_named(tmp_path: Path) -> None:
    """A GEMM of 100 us and an all-reduce of 20 us, which becomes one of 120."""

    def rank(us: float) -> dict[str, Any]:
        reduce = op("nccl:all_reduce", [64], kernels=[k(us=us, name="ncclDevKernel_AllReduce_Sum")])
        return chrome(*[step(i, module("model.layers.0.mlp.up_proj", mm()), reduce)
                        for i in range(3)])  # fmt: skip

    finding = found(of_pair(tmp_path, rank(20), rank(120)), OTHER)
    assert finding is not None
    assert "communication 100.0 µs (its links, or waits for other ranks)" in finding.text
