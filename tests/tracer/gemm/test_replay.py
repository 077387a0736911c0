"""GEMMs alone: the law of a made-up kernel is recovered, shapes run in turns, scripts run."""

from __future__ import annotations

import math
import random
import runpy
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.replays import GemmCase, ReplayDevice, ReplayPeaks, Replays
from prunescope.tracer.gemm.replay import Rounds, replay_cases
from prunescope.tracer.gemm.request import GemmRequest
from prunescope.tracer.gemm.script import write_scripts
from prunescope.tracer.gemm.steps import fit_steps
from prunescope.tracer.gemm.variants import curve_shapes, nearest_aligned, variants

pytestmark = pytest.mark.torch
ROUNDS = Rounds(placements=3, repeats=6, warmup=1, seed=0)


class Law:
    """A kernel with tiles of 64 along N: 10 µs and 4 µs a tile; cold 5 µs more. Noise of 1 %, and a
    placement moves it by 2 %."""

    def __init__(self) -> None:
        self.rng, self.placement = random.Random(1), 1.0
        self.order: list[tuple[int, bool]] = []

    def prepare(self, gemms: Iterable[Gemm]) -> None:
        self.shapes = list(gemms)

    def place(self, rng: random.Random) -> None:
        self.placement = 1 + 0.02 * rng.uniform(-1, 1)

    def sample(self, gemm: Gemm, *, cold: bool) -> float:
        self.order.append((gemm.n, cold))
        ns = 10_000 + 4_000 * math.ceil(gemm.n / 64) + 5_000 * cold
        return ns * self.placement * (1 + 0.01 * self.rng.uniform(-1, 1))

    def kernel(self, gemm: Gemm) -> str | None:
        return f"tile_64_{gemm.n}"


def replayed(cases: list[GemmCase], law: Law | None = None) -> Replays:
    peaks = ReplayPeaks(flop_per_s={"fp32": 1e12}, byte_per_s=1e11)
    found = Replays(device=ReplayDevice(kind="cpu"), peaks=peaks)
    replay_cases(found, cases, law or Law(), ROUNDS)
    return found


def test_the_law_of_a_kernel_with_64_wide_steps_is_recovered() -> None:
    cases = [GemmCase(pruned=Gemm(128, n, 576), dtype="fp32") for n in range(64, 1025, 32)]
    found = replayed(cases)
    (curve,) = found.curves
    assert (curve.axis, curve.width, curve.k, curve.n) == ("N", 64, 576, None)
    assert curve.step_ns == pytest.approx(4_000, rel=0.05)
    assert curve.base_ns == pytest.approx(10_000, rel=0.1)
    assert len(found.gemms) == len(cases) and found.gemms[0].reasons == ["given"]
    for ns, ends, placed in zip(curve.ns, curve.ci95, curve.placements_ns, strict=True):
        assert ends is not None and ends[0] < ns < ends[1]
        assert ns == pytest.approx(math.prod(placed) ** (1 / 3))  # the geometric mean of three


def test_a_straight_line_has_no_steps() -> None:
    rng, sizes = random.Random(3), list(range(64, 1025, 32))
    assert (
        fit_steps(sizes, [(5 * n + 900) * (1 + 0.01 * rng.uniform(-1, 1)) for n in sizes]) is None
    )
    assert fit_steps(sizes[:3], [1.0, 2.0, 2.0]) is None  # too few sizes
    # 4 steps of 256 within noise: ceil(n / 256)
    stairs = fit_steps(sizes, [1e5 * math.ceil(n / 256) for n in sizes])
    assert stairs is not None and stairs.width == 256


def test_shapes_run_in_turns_warm_and_cold() -> None:
    law = Law()
    case = GemmCase(pruned=Gemm(64, 176, 128), dense=Gemm(64, 352, 128), dtype="fp32", role="up")
    found = replayed([case], law)
    shapes = variants(case)
    first, second = law.order[: 2 * len(shapes)], law.order[2 * len(shapes) : 4 * len(shapes)]
    assert [n for n, cold in first if cold] == [one.gemm.n for one in shapes]
    assert first == second  # of the first placement: a warm-up round, and the first round
    third = law.order[4 * len(shapes) : 6 * len(shapes)]
    assert [n for n, _ in third] == [n for n, _ in first][::-1]
    pruned = found.gemms[0]
    assert (pruned.reasons, pruned.dense_n, pruned.role) == (["pruned", "aligned"], 352, "up")
    assert pruned.warm is not None and pruned.cold is not None
    assert len(pruned.warm.placements_ns) == 3 and pruned.warm.samples == 6
    assert pruned.warm.ci95 is not None and pruned.warm.ci95[0] < 22_000 < pruned.warm.ci95[1]
    assert pruned.cold.ns == pytest.approx(27_000, rel=0.03)  # 10 + 3·4 + 5 µs
    # 2·64·176·128 FLOP at 1 TFLOP/s: 2.9 µs; 4·(64·128 + 176·128 + 64·176) bytes at 100 GB/s: 1.7
    assert pruned.ideal_ns == pytest.approx(2883.6, rel=1e-3) and pruned.bound == "compute"
    assert [(c.axis, c.width) for c in found.curves] == [("N", 64)]


def test_shapes_near_a_pruned_one() -> None:
    case = GemmCase(pruned=Gemm(64, 176, 128), dense=Gemm(64, 352, 128), dtype="fp32", role="up")
    found = {one.gemm.n: (one.reasons, one.align) for one in variants(case)}
    assert found[128] == (["good", "aligned"], 128)  # 64·2 and 128·1; 256 is as good, farther
    assert found[192] == (["good", "aligned"], 64) and found[256][0] == ["good"]
    assert {n: a for n, (_, a) in found.items() if a} == {
        175: 1, 174: 2, 172: 4, 168: 8, 176: 16, 160: 32, 192: 64, 128: 128
    }  # fmt: skip
    assert nearest_aligned(10_035, 1) == 10_035 and nearest_aligned(10_035, 16) == 10_032
    assert [one.gemm for one in variants(GemmCase(pruned=Gemm(1, 2, 3), dtype="fp32"))] == [
        Gemm(1, 2, 3)
    ]
    sizes = [gemm.n for gemm in curve_shapes(case, "n")]
    assert sizes[0] == 176 and sizes[-1] == 352 and all(n % 8 == 0 for n in sizes)


@pytest.mark.parametrize(("given", "missing", "example"), [
    ({"m": 12, "n": [64, 96]}, "--k is missing", "--m 12 --n 64,96 --k 576"),
    ({"k": 32}, "--m and --n are missing", "--m 128 --n 384,400,512 --k 32"),
])  # fmt: skip
def test_a_missing_dimension_is_named(given: dict[str, Any], missing: str, example: str) -> None:
    with pytest.raises(PrunescopeError, match=missing) as found:
        GemmRequest(**given).shapes()
    assert str(found.value.hint).endswith(f"prunescope gemm {example}")


def test_a_script_reproduces_a_gemm_without_prunescope(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = GemmCase(pruned=Gemm(8, 24, 16), dense=Gemm(8, 48, 16), dtype="fp32", role="up")
    found = replayed([case])
    found.flush_bytes, found.device.threads = 4096, 1
    (path,) = write_scripts(found, tmp_path)
    assert path.name == "up-8x24x16-fp32.py" and "import prunescope" not in path.read_text()
    monkeypatch.setitem(sys.modules, "prunescope", None)  # whoever imports it, fails
    runpy.run_path(str(path), run_name="__main__")
    said = capsys.readouterr().out
    assert "M=8 N=24 K=16: warm" in said and "dense M=8 N=48" in said


def test_every_gemm_has_a_script_that_no_shell_takes_for_an_option(tmp_path: Path) -> None:
    phases = ("-c import os", "../x", ".", "A b", "a-b", "a/b", "x" * 256)
    cases = [
        GemmCase(pruned=Gemm(8, 24, 16, batch=batch), dtype="fp32", role="up", phase=phase)
        for phase in phases
        for batch in (1, 2)
    ]
    written = write_scripts(replayed(cases), tmp_path)
    assert len({path.name.lower() for path in written}) == len(cases)
    assert sorted(tmp_path.iterdir()) == sorted(written)
    assert [path.name for path in written[:4]] == [
        "c-import-os-up-8x24x16-fp32.py", "c-import-os-up-8x24x16-fp32-2.py",
        "x-up-8x24x16-fp32.py", "x-up-8x24x16-fp32-2.py",
    ]  # fmt: skip
