"""Which findings a phase has.

A row is a finding, its severity (None: it must not appear), words of its text or evidence, and the
traces or runs. The other files here test numbers and whole sentences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.schema.report import Phase, Report
from tests.analysis.decoder import Layer, Setting, census, decoder
from tests.analysis.finding_cases import (
    ADDED,
    BF16,
    FULL,
    MANY,
    MM,
    NARROW,
    ROLES,
    H,
    M,
    N,
    V,
    alone,
    assert_present,
    attention,
    block,
    clocks,
    copy_,
    counts,
    cross,
    cslt,
    decode_run,
    found,
    head,
    layers,
    method,
    mm,
    model,
    of_pair,
    of_run,
    pair,
    plain,
    pointwise,
    report,
    routed,
    sparse_attention,
    tiled,
)
from tests.analysis.mixture import copied, mixture
from tests.chrome import chrome, gap, k, module, op, step

ZEROS = {"census": census(0.5, 0.6), "dense_census": census(0.0)}
SPARSE, LOW_RANK = replace(FULL, sparse=ROLES), replace(FULL, rank=dict.fromkeys(ROLES, 64))
WIDE, THIN = replace(FULL, h=1024, f=256), replace(FULL, h=1024, f=64)
GATHER = op("aten::index_select", [32, 256], [], [16], kernels=[k(us=30, name="indexSelect")])
UP_PROJ = layers(("mlp.up_proj", mm()))
CHOSEN = layers(("mlp.router", GATHER), ("mlp.up_proj", mm()))
Case = tuple[str, str | None, tuple[str, ...], Callable[[Path], Phase | Report]]


def full_and(
    layer: Layer, sparsity: float | None = None, **setting: Any
) -> Callable[[Path], Phase]:
    """Bare traces of FULL and of another layer."""
    return lambda t: of_pair(t, model(FULL), model(layer, **setting), sparsity)


def on_another_device() -> Any:
    trace = model(FULL)
    trace["deviceProperties"] = [{"id": 0, "name": "NVIDIA B200"}]
    return trace


def idle(us: float, *, launch: bool) -> Any:
    """Ten GEMMs of 10 us with nine gaps between them, in which the host launches, or not."""
    return chrome(step(0, MM, *[gap(us=us, launch=launch), MM] * 9))


def on_cpu(gap_us: float) -> Any:
    gemm = op("aten::mm", [4, 5], [5, 6], us=10)
    return chrome(step(0, *[gemm, gap(us=gap_us)] * 9), cpu=True)


def unprofiled(times: float) -> Callable[[Path], Phase]:
    """Make a phase whose samples take `times` the profiled wall."""

    def make(tmp_path: Path) -> Phase:
        wall = alone(tmp_path, model(FULL)).wall_ns
        return of_run(tmp_path, model(FULL), model(NARROW), samples_ns=[round(times * wall)] * 3)

    return make


def one_gemm(*kernels: Any) -> Any:
    """4096³ in bf16: 1.37e11 FLOP, which an H100 needs 139 us for."""
    return chrome(step(0, op("aten::mm", [4096, 4096], [4096, 4096], dtype=BF16, kernels=kernels)))


def pruned_run(
    dense: Any, pruned: Any, run: dict[str, Any], **more: Any
) -> Callable[[Path], Report]:
    return lambda t: pair(t, dense, pruned, pruned_run=run, **more)


CASES: list[Case] = [
    ("zeros-in-dense", "critical", ("0 sparse kernels in 37 GEMMs", "50.0 %"),
     lambda t: of_run(t, model(FULL), model(FULL), **ZEROS)),
    ("zeros-in-dense", None, (), lambda t: of_run(t, model(FULL), model(SPARSE), **ZEROS)),
    ("nothing-removed", "critical", ("50 %",), full_and(FULL, 0.5)),
    ("nothing-removed", None, (), full_and(FULL)),
    ("nothing-removed", None, (), full_and(NARROW, 0.5)),
    # Changed as no family does, but smaller all the same.
    ("nothing-removed", None, (), full_and(replace(NARROW, h=128), 0.5, rows=16)),
    ("sparse-without-gain", "critical", ("1.00 × the time",), full_and(SPARSE, us=10)),
    ("sparse-without-gain", None, (), full_and(SPARSE, us=6)),
    ("sparse-padded", None, (),
     lambda t: report(t, UP_PROJ, layers(("mlp.up_proj", cslt(512, us=60))))),
    ("broken-propagation", "warning", ("broken",), full_and(replace(FULL, f=256, f_down=512))),
    ("broken-propagation", None, (), full_and(NARROW)),
    ("outside-taxonomy", "warning", ("fp16",), full_and(FULL, dtype="c10::Half")),
    # A step of fixed shapes of which every row runs is no reason to compare with another baseline.
    ("outside-taxonomy", "warning", ("every row runs",),
     pruned_run(UP_PROJ, CHOSEN, counts("rows", 4, 4))),
    ("outside-taxonomy", "warning", ("has no family for it",),
     pruned_run(UP_PROJ, CHOSEN, counts("rows", 2, 4))),
    ("outside-taxonomy", None, (), full_and(NARROW)),
    ("swapped-sides", "warning", ("more FLOPs and", "are the two sides swapped?"),
     lambda t: of_pair(t, model(NARROW), model(FULL))),
    ("mislabelled-sides", "critical", ("dense and pruned are mixed up", "that it is the dense run"),
     pruned_run(plain(), plain(), {"variant": "dense"}, dense_run={})),
    ("mislabelled-sides", None, (), pruned_run(plain(), plain(), {}, dense_run={})),
    ("swapped-sides", None, (), full_and(NARROW)),
    ("swapped-sides", None, (), full_and(FULL)),
    ("unaligned", "warning", ("gate N = 257", "272"), full_and(replace(FULL, f=257))),
    ("unaligned", None, (), full_and(NARROW)),
    # A CPU has no tensor cores.
    ("unaligned", None, (),
     lambda t: of_pair(t, model(FULL, cpu=True), model(replace(FULL, f=257), cpu=True))),
    ("not-comparable", "critical", ("batch: 1 dense, 2 pruned", "float32 pruned"),
     lambda t: of_run(t, model(FULL), model(FULL), batch=2, dtype="float32")),
    ("not-comparable", None, (), lambda t: of_run(t, model(FULL), model(FULL))),
    # Bare traces name their device.
    ("not-comparable", "critical", ("NVIDIA H100 80GB HBM3 dense, NVIDIA B200 pruned",),
     lambda t: of_pair(t, model(FULL), on_another_device())),
    ("not-comparable", None, (), lambda t: of_pair(t, on_another_device(), on_another_device())),
    # 30 of 40 us wait for the host; 5 of 15; idle, but not for it.
    ("launch-bound", "critical", (), lambda t: alone(t, idle(30, launch=True))),
    ("launch-bound", "warning", (), lambda t: alone(t, idle(5, launch=True))),
    ("launch-bound", None, (), lambda t: alone(t, idle(1, launch=True))),
    ("launch-bound", None, (), lambda t: alone(t, idle(30, launch=False))),
    ("launch-bound", None, (), lambda t: alone(t, on_cpu(10))),
    ("dispatch-bound", "info", ("%",), lambda t: alone(t, on_cpu(10))),
    ("dispatch-bound", None, (), lambda t: alone(t, on_cpu(1))),
    # 4096 x 1024 x f: a quarter of f leaves 82 % of the bytes, most of them the activations.
    ("roofline-shift", "warning", ("FLOPs fall more than bytes",),
     lambda t: of_pair(t, model(WIDE, rows=4096), model(THIN, rows=4096))),
    ("roofline-shift", None, (),
     lambda t: of_pair(t, model(WIDE, rows=4096), decoder({0: WIDE, 3: WIDE}, Setting(rows=4096)))),
    # Nothing was removed, and 32 heads write their scores of 512 keys: more bytes, not less work.
    ("roofline-shift", None, (), lambda t: of_pair(
        t, model(FULL, rows=512),
        model(replace(FULL, h=64, heads=32), rows=512, attention="eager"))),
    ("slower-kernels", "warning", ("down (matmul)",), full_and(NARROW, us=10)),
    ("slower-kernels", None, (), full_and(FULL)),
    ("added-work", "warning", ("q (gather_scatter)",), full_and(replace(FULL, added=(GATHER,)))),
    ("added-work", None, (), full_and(NARROW)),
    ("second-gemm", "warning", ("1.00 ×",), full_and(LOW_RANK, us=5)),
    ("second-gemm", None, (), full_and(LOW_RANK, us=2)),
    # A candidate that is dense itself has no speedup to miss.
    ("no-speedup", None, (),
     lambda t: of_run(t, model(FULL), model(FULL), both_samples_ns=MANY, both_census=census(0.0))),
    ("profiler-overhead", "info", ("2.00×",), unprofiled(0.5)),
    ("profiler-overhead", None, (), unprofiled(0.95)),
    # 13.7 PFLOP/s, and 0.14; of 1 ms behind another kernel 10 us are its own: no faster for that.
    ("above-peak", "info", ("100 %",), lambda t: alone(t, one_gemm(k(us=10)))),
    ("above-peak", None, (), lambda t: alone(t, one_gemm(k(us=1000)))),
    ("above-peak", None, (),
     lambda t: alone(t, one_gemm(k(us=990, stream=9), k(us=1000, gap_us=-990)))),
    ("above-bound", "info", ("of the roofline bound",), full_and(NARROW, us=2)),
    ("above-bound", None, (), full_and(FULL)),
    # Without the peaks of a CPU its coverage bound is the only one.
    ("above-bound", "info", ("of the coverage bound",),
     lambda t: of_pair(t, model(FULL, cpu=True), model(NARROW, cpu=True, us=2))),
    ("carry-over", "info", ("1 device events", "60.0 %"),
     lambda t: alone(t, chrome(module("ProfilerStep#0", k(us=30), MM, MM)))),
    ("carry-over", None, (), lambda t: alone(t, chrome(module("ProfilerStep#0", MM, MM)))),
    ("decompressed", "critical", ("sparse24_decompress",),
     lambda t: report(t, UP_PROJ, layers(("mlp.up_proj", [
         pointwise("compressed::sparse24_decompress", [7], us=50), mm()])))),
    # Activations that are scaled are no weights.
    ("decompressed", None, (),
     lambda t: report(t, UP_PROJ, layers(("mlp.up_proj", [
         mm(), pointwise("aten::mul", [M, N], [M, N], us=40)])))),
    # Of a row; of the outputs, where as many rows as columns are multiplied; of 0.1 us.
    ("weight-copied", None, (), lambda t: head(t, copy_(1, H))),
    ("weight-copied", None, (), lambda t: head(t, copy_(H, V), rows=H)),
    ("weight-copied", None, (), lambda t: head(t, copy_(V, H, us=0.1))),
    ("same-waves", None, (),
     lambda t: report(t, layers(("mlp.up_proj", tiled(16384, us=400))),
                      layers(("mlp.up_proj", tiled(12672, us=300))), 0.25)),
    # An aligned dimension on a wave is as good as its neighbours.
    ("nearest-dimension", None, (),
     lambda t: report(t, layers(("mlp.up_proj", tiled(33792, us=800))),
                      layers(("mlp.up_proj", tiled(16896, us=400))))),
    *((id, None, (), lambda t, id=id: report(t, block(ADDED[id]), block(ADDED[id])))  # type: ignore[misc]
      for id in ADDED),
    ("residual-map", None, (), lambda t: report(t, plain(), cross(10))),
    ("reads-all-weights", None, (),
     pruned_run(routed(1, 50), routed(1, 50), decode_run(1), phase="decode")),
    ("below-break-even", None, (),
     pruned_run(attention(), sparse_attention(10, 60), method("dynamic-nk"))),
    # Tokens that were removed, that all count as active, or that no method drops.
    ("masked-tokens", None, (), pruned_run(routed(M, 100), routed(256, 50), method("token-drop"))),
    ("masked-tokens", None, (),
     pruned_run(routed(M, 100), routed(M, 100), counts("rows", 512, 512))),
    ("masked-tokens", None, (),
     pruned_run(routed(M, 100), routed(M, 100), method("static-k-mask"))),
    # A decode step keeps its rows, whatever was dropped of the prompt.
    ("masked-tokens", None, (),
     pruned_run(routed(1, 50), routed(1, 50), method("token-drop"), phase="decode")),
    ("skipped-layers-executed", None, (),
     pruned_run(routed(M, 100), layers(*((f"mlp.{p}_proj", mm()) for p in ("gate", "up", "down")),
                                       count=1), {**method("static-m"), "layer_map": [0]})),
    # Every layer was sampled to run.
    ("skipped-layers-executed", None, (),
     pruned_run(routed(M, 100), routed(M, 100),
                {**method("dynamic-depth"), **counts("layers", 4, 4)})),
    ("skipped-layers-executed", None, (),
     pruned_run(routed(M, 100), routed(M, 100), method("static-k-mask"))),
    ("unsteady-clocks", None, (),
     pruned_run(plain(), plain(), clocks(1.98e9, 1.95e9), dense_run=clocks(1.98e9, 1.95e9))),
    ("unsteady-clocks", None, (), pruned_run(plain(), plain(), {}, dense_run={})),
    # Eight tokens that all go to two experts, of eight and of the four that are left.
    ("experts-read-alike", "warning", ("reads 2 of 4 experts a layer", "read 2 of 8 before"),
     lambda t: of_pair(t, mixture((8, 8, *[0] * 6)), mixture((8, 8, 0, 0)))),
    ("experts-read-alike", None, (),
     lambda t: of_pair(t, mixture((2,) * 8), mixture((4,) * 4))),
    # Of eight experts half are gone, and of the six that were read two: less than their share.
    ("experts-read-alike", "info", ("save less than their share", "33 % fewer, where 50 %"),
     lambda t: of_pair(t, mixture((3, 3, 3, 3, 2, 2, 0, 0)), mixture((4,) * 4))),
    # Every token multiplies by copies of its two experts, with eight of them and with 16.
    ("experts-read-alike", "warning", ("copies of its experts, 12 in a layer, as many as before",),
     lambda t: of_pair(t, copied(16, 6), copied(8, 6))),
    ("nominal-differs", "info", ("as many experts as before where experts were removed",),
     pruned_run(mixture((2,) * 8), mixture((4,) * 4), method("static-experts"))),
    # The same experts, and others that the router chose.
    ("experts-read-alike", None, (),
     lambda t: of_pair(t, mixture((8, 8, 0, 0)), mixture((4, 4, 4, 4)))),
    ("expert-imbalance", "info", ("fullest expert sees 8 rows", "32.0 times the mean of 0.2"),
     lambda t: alone(t, mixture((8, *[0] * 31)))),
    ("expert-imbalance", None, (), lambda t: alone(t, mixture((2,) * 8))),
    ("routing-cost", "warning", ("gatherTopK",),
     lambda t: alone(t, mixture((4,) * 4, routing_us=60))),
    ("routing-cost", None, (), lambda t: alone(t, mixture((4,) * 4))),
    # 2 layers x 6 tokens x 2 experts copy 2·96·64 + 64·96 numbers of 2 bytes, read and written.
    ("experts-copied", "warning", ("12 copies in a layer", "1.8 MB", "16.0 µs", "as many copies"),
     lambda t: of_pair(t, copied(16, 6), copied(8, 6))),
    ("experts-copied", None, (), lambda t: alone(t, mixture((4,) * 4))),
    # Of 34 us the routers take 6; the copies are another finding's.
    ("routing-cost", "warning", ("takes 18 % of the step",), lambda t: alone(t, copied(16, 6))),
]  # fmt: skip


def name_of(case: Case) -> str:
    return case[0] if case[1] else f"no {case[0]}"


@pytest.mark.parametrize(("id", "severity", "says", "make"), CASES, ids=map(name_of, CASES))
def test_which_findings_a_phase_has(
    id: str,
    severity: str | None,
    says: tuple[str, ...],
    make: Callable[[Path], Phase | Report],
    tmp_path: Path,
) -> None:
    made = make(tmp_path)
    if severity is None:
        assert found(made, id) is None
    else:
        assert_present(made, id, severity, *says)
