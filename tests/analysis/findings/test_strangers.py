"""Advice that fits its evidence: what findings may not say of traces that others captured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace as replace_fields

from prunescope.analysis.findings.context import Context
from prunescope.analysis.findings.registry import registered
from prunescope.analysis.findings.trust import above_bound
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Report
from prunescope.analysis.summary.headline import headline
from tests.analysis.finding_cases import (
    FULL,
    NARROW,
    ROLES,
    alone,
    assert_present,
    found,
    layers,
    model,
    of_pair,
)
from tests.analysis.finding_cases import mm as sized_mm
from tests.analysis.report import example
from tests.chrome import chrome, gap, k, module, op, save, step

NCCL = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevComm*, unsigned long, ncclWork*)"


def steps_of(*items: Any, count: int = 3) -> dict[str, Any]:
    return chrome(*(step(i, *items) for i in range(count)))


def mm(us: float) -> Any:
    return op("aten::mm", [512, 2048], [2048, 2048], dtype="c10::BFloat16",
              kernels=[k(us=us, name="a_gemm_kernel")])  # fmt: skip


def reduced(us: float) -> Any:
    return op("c10d::allreduce_", [[2048]], [], kernels=[k(us=us, name=NCCL)])


def test_communication_that_waits_is_no_slow_kernel(tmp_path: Path) -> None:
    """100 us of 300 more in an all-reduce, whose other ranks came later; GEMMs as before."""
    dense, pruned = steps_of(mm(100), reduced(100)), steps_of(mm(100), reduced(200))
    phase = of_pair(tmp_path, dense, pruned)
    assert found(phase, "slower-kernels") is None
    assert_present(phase, "longer-communication", "info", "100.0 µs longer", "waiting")
    slow = of_pair(tmp_path, dense, steps_of(mm(150), reduced(110)))
    assert_present(slow, "slower-kernels", "warning", "take 50.0 µs longer")
    advice = found(slow, "slower-kernels")
    assert advice is not None and advice.change is not None
    assert advice.change.startswith("no shape of the ops named has moved: compare clocks")
    assert found(slow, "longer-communication") is not None
    assert found(of_pair(tmp_path, dense, dense), "longer-communication") is None
    assert any("the 200.0 µs of them" in note for note in phase.notes)


@pytest.mark.parametrize(("slow", "moved"), [("norm", False), ("act_fn", True)])
def test_alignment_is_advised_where_a_dimension_moved(
    tmp_path: Path, slow: str, *, moved: bool
) -> None:
    """A norm or an activation takes 60 us more, and GEMMs 10 more than their shapes let expect.

    Half of the channels of an MLP are gone. The norm in front of it is as wide as before, and its
    activation half as wide.
    """

    def layer(channels: int, us: float) -> list[Any]:
        times = {"norm": 20.0, "act_fn": 20.0} | {slow: us}
        sizes = {"norm": [512, 2048], "act_fn": [512, channels]}
        norm, act = (
            module(f"model.layers.0.{path}",
                   op(name, sizes[key], dtype="c10::BFloat16", kernels=[k(us=times[key])]))
            for path, key, name in (("post_attention_layernorm", "norm", "aten::native_layer_norm"),
                                    ("mlp.act_fn", "act_fn", "aten::silu"))
        )  # fmt: skip
        products = [
            module(f"model.layers.0.mlp.{path}",
                   op("aten::mm", [512, n_in], [n_in, n], dtype="c10::BFloat16",
                      kernels=[k(us=100 if channels == 8192 else 60, name="a_gemm_kernel")]))
            for path, n_in, n in (("up_proj", 2048, channels), ("down_proj", channels, 2048))
        ]  # fmt: skip
        return [norm, products[0], act, products[1]]

    phase = of_pair(tmp_path, steps_of(*layer(8192, 20)), steps_of(*layer(4096, 80)))
    advice = found(phase, "slower-kernels")
    assert advice is not None and advice.change is not None
    assert ("an aligned dimension" in advice.change) is moved
    assert ("has moved: compare clocks" in advice.change) is not moved


def test_a_change_that_names_one_role_gains_what_that_role_lost(tmp_path: Path) -> None:
    """Another tile for up saves 40 us at most, though kernels lose 50 in all.

    Half of the channels are gone: 50 us a GEMM are expected of up and down, and they take 90 and
    60.
    """

    def layer(channels: int, *us: float) -> list[Any]:
        return [
            module(f"model.layers.0.mlp.{path}",
                   op("aten::mm", [512, n_in], [n_in, n], dtype="c10::BFloat16",
                      kernels=[k(us=time, name="a_gemm_kernel")]))
            for path, n_in, n, time in (("up_proj", 2048, channels, us[0]),
                                        ("down_proj", channels, 2048, us[1]))
        ]  # fmt: skip

    phase = of_pair(tmp_path, steps_of(*layer(8192, 100, 100)), steps_of(*layer(4096, 90, 60)))
    advice = found(phase, "slower-kernels")
    assert advice is not None and advice.change is not None
    assert "take 50.0 µs longer" in advice.text and "the kernels of up (matmul)" in advice.change
    assert advice.predicted_ns == pytest.approx(40_000, rel=0.01)


def test_a_speedup_above_its_bound_is_blamed_on_what_gave_it(tmp_path: Path) -> None:
    """Equal kernels and less idle time are no more efficient kernels; faster ones are."""
    idle = steps_of(mm(100), gap(us=100, launch=True), mm(100))
    assert_present(of_pair(tmp_path, idle, steps_of(mm(100), mm(100))), "above-bound", "info",
            "the device idles less", "launch and idle −100.0 µs")  # fmt: skip
    said = found(of_pair(tmp_path, idle, steps_of(mm(100), mm(100))), "above-bound")
    assert said is not None and "efficient" not in said.text
    fast = found(of_pair(tmp_path, steps_of(mm(100)), steps_of(mm(50))), "above-bound")
    assert fast is not None and "did not move are faster" in fast.text
    assert "idles" not in fast.text


def test_what_did_not_move_and_is_faster_too_is_no_gain_of_pruning(tmp_path: Path) -> None:
    """N of one GEMM halves, and the other one, as before, takes half of its time too."""
    dense = layers(("mlp.up_proj", sized_mm(us=100)), ("self_attn.o_proj", sized_mm(us=100)))
    narrow = ("mlp.up_proj", sized_mm(n=2048, us=50))
    pruned = layers(narrow, ("self_attn.o_proj", sized_mm(us=50)))
    said = found(of_pair(tmp_path, dense, pruned), "above-bound")
    assert said is not None and "whose shapes did not move are faster (o: −1" in said.text
    pruned = layers(
        ("mlp.up_proj", sized_mm(n=2048, us=20)), ("self_attn.o_proj", sized_mm(us=100))
    )
    said = found(of_pair(tmp_path, dense, pruned), "above-bound")
    assert said is not None and "more efficient" in said.text


def test_linears_of_two_models_at_one_place_are_two(tmp_path: Path) -> None:
    """A head of K 256 in the first step and one of K 128 in the second: none has K 192."""
    heads = [op("aten::mm", [1, width], [width, 1000], kernels=[k(us=9)]) for width in (256, 128)]
    trace = chrome(*(step(i, module("lm_head", head)) for i, head in enumerate(heads)))
    rows = alone(tmp_path, trace).gemms
    assert sorted((row.role, row.k, row.count) for row in rows) == [
        ("lm_head", 128, 0.5), ("lm_head", 256, 0.5),
    ]  # fmt: skip


def attends(name: str) -> Any:
    q = [1, 16, 512, 64]
    return op(f"aten::_scaled_dot_product_flash_attention{name}", q, q, q, [], [],
              dtype="c10::BFloat16", kernels=[k(us=20, name=f"flash{name}_kernel")])  # fmt: skip


def test_a_forward_that_is_computed_again_is_no_work_to_fuse(tmp_path: Path) -> None:
    """The backward pass runs attention forward before it computes gradients.

    A teacher's forward, which has no backward pass, is before it.
    """

    def training(*before: Any, inner: list[Any]) -> dict[str, Any]:
        product = op("aten::mm", [512, 2048], [2048, 2048], sequence=1,
                     kernels=[k(us=100, name="a_gemm_kernel")])  # fmt: skip
        node = op("MmBackward0", inner=inner, us=0, sequence=1)
        called = op(
            "autograd::engine::evaluate_function: MmBackward0", inner=[node], us=0, sequence=1
        )
        return steps_of(product, attends(""), *before, called)

    gradient = attends("_backward")
    once, teacher = training(inner=[gradient]), training(attends(""), inner=[gradient])
    again = training(inner=[attends(""), gradient])
    assert_present(of_pair(tmp_path, once, again), "recomputed-forward", "warning",
            "attention runs forward in it, 1 × a step")  # fmt: skip
    assert found(alone(tmp_path, again), "recomputed-forward") is not None
    for phase in (of_pair(tmp_path, again, again), of_pair(tmp_path, once, teacher),
                  alone(tmp_path, teacher)):  # fmt: skip
        assert found(phase, "recomputed-forward") is None


def in_turn(make: Callable[[float], tuple[Any, ...]], *times: float) -> dict[str, Any]:
    """Build a step for each time, of the items that `make` returns for it."""
    return chrome(*(step(i, *make(us)) for i, us in enumerate(times)))


def test_communication_that_varies_is_no_longer_one(tmp_path: Path) -> None:
    """100 us more in the mean of three steps, of which the first took less than the dense ones."""
    dense = steps_of(mm(100), reduced(100))
    pruned = in_turn(lambda us: (mm(100), reduced(us)), 20, 380, 200)
    assert found(of_pair(tmp_path, dense, pruned), "longer-communication") is None
    pruned = in_turn(lambda us: (mm(100), reduced(us)), 190, 210, 200)
    assert found(of_pair(tmp_path, dense, pruned), "longer-communication") is not None


def test_kernels_are_judged_without_the_noise_of_communication(tmp_path: Path) -> None:
    """GEMMs take 50 us more in every step, while the all-reduce of both sides varies by 160."""
    dense = in_turn(lambda us: (mm(100), reduced(us)), 20, 180, 100)
    pruned = in_turn(lambda us: (mm(150), reduced(us)), 20, 180, 112)
    assert_present(
        of_pair(tmp_path, dense, pruned), "slower-kernels", "warning", "take 50.0 µs longer"
    )


def test_an_interval_that_holds_the_bound_is_not_above_it(tmp_path: Path) -> None:
    """Steps of 20, 130 and 30 us against 100: 1.67 times in the mean, and not in the second."""
    dense = steps_of(mm(100))
    phase = of_pair(tmp_path, dense, in_turn(lambda us: (mm(us),), 20, 130, 30))
    assert phase.ladder is not None and phase.ladder.realised_ci95 is None  # of three steps
    assert (phase.ladder.share_of_bound or 0) > 1.5
    assert found(phase, "above-bound") is None
    phase = of_pair(tmp_path, dense, in_turn(lambda us: (mm(us),), 59, 61, 60))
    assert found(phase, "above-bound") is not None


@pytest.mark.parametrize(("share", "holds"), [([0.98, 1.2], True), ([1.02, 1.2], False)])
def test_the_finding_and_the_headline_hold_the_bound_by_one_rule(
    share: list[float], *, holds: bool
) -> None:
    """The interval of the share decides, though that of the realised speedup says otherwise."""
    phase = example.phase()
    assert phase.ladder is not None
    phase.ladder.roofline, phase.ladder.realised, phase.ladder.share_of_bound = 1.0, 1.1, 1.1
    phase.ladder.realised_ci95 = [1.05, 1.15] if holds else [0.95, 1.25]
    phase.ladder.share_of_bound_ci95 = share
    side: Any = SimpleNamespace(run=None, kernels=SimpleNamespace(on_device=True))
    assert (above_bound(Context(phase=phase, candidate=side, caveats=[])) is None) is holds
    assert ("the interval includes the bound" in headline(phase)) is holds
    phase.ladder.share_of_bound_ci95 = None
    assert (above_bound(Context(phase=phase, candidate=side, caveats=[])) is None) is not holds


def test_a_share_that_prints_above_its_bound_is_explained() -> None:
    """102 % of the roofline bound is above it, and so is 104 % of the coverage bound.

    The speedup is then 99 % of the roofline bound; the coverage bound is lower where bytes fell by
    more than FLOPs.
    """
    phase = example.phase()
    side = SimpleNamespace(run=None, kernels=SimpleNamespace(on_device=True))
    assert phase.ladder is not None
    for ladder, said in (
        ({"roofline": 1.0, "coverage": 1.1, "realised": 1.02}, "102 % of the roofline bound"),
        ({"roofline": 1.05, "coverage": 1.0, "realised": 1.04}, "104 % of the coverage bound"),
        ({"roofline": 1.05, "coverage": 1.1, "realised": 1.05}, None),
    ):
        share = {"share_of_bound": ladder["realised"] / ladder["roofline"]}
        phase.ladder = replace_fields(phase.ladder, realised_ci95=None, share_of_bound_ci95=None,
                                      **ladder, **share)  # fmt: skip
        answer = above_bound(Context(phase=phase, candidate=side, caveats=[]))  # type: ignore[arg-type]
        assert answer is None if said is None else answer is not None and said in answer.text


def test_a_row_inside_its_noise_is_not_blamed(tmp_path: Path) -> None:
    """The kernels take 100 us less; idle time 40 less, of 10 to 190 in the dense steps."""
    dense = in_turn(lambda us: (mm(100), gap(us=us, launch=True), mm(100)), 10, 190, 100)
    pruned = steps_of(mm(50), gap(us=60, launch=True), mm(50))
    said = found(of_pair(tmp_path, dense, pruned), "above-bound")
    assert said is not None and "did not move are faster" in said.text
    assert "idles" not in said.text and not any("launch" in line for line in said.evidence)


@pytest.mark.parametrize(
    ("dense", "pruned"),
    [
        (FULL, replace(FULL, f=257)),
        (FULL, replace(FULL, rank=dict.fromkeys(ROLES, 64))),
        (FULL, replace(FULL, sparse=ROLES)),
    ],
    ids=["unaligned", "second-gemm", "sparse"],
)
def test_nothing_is_warned_of_for_a_ten_thousandth_of_a_step(
    dense: Any, pruned: Any, tmp_path: Path
) -> None:
    """The same pairs whose warnings other tests look for, beside 10 s of convolution."""
    sides = []
    for layer in (dense, pruned):
        trace = model(layer, us=10)
        trace["traceEvents"] += _later(trace, 10_000_000)
        sides.append(trace)
    phase = of_pair(tmp_path, *sides)
    # What is left is of the whole step: no speedup, and what held the promise back.
    whole = {"no-speedup", "wide-interval", "coverage-limited", "unequal-steps"}
    assert {f.id for f in phase.findings if f.severity != "info"} <= whole


def _later(trace: dict[str, Any], us: float) -> list[dict[str, Any]]:
    """Append a convolution of so many us to each step."""
    events = trace["traceEvents"]
    last = max((e for e in events if e.get("cat") == "kernel"), key=lambda e: e["ts"])
    at = next(e for e in events if e.get("cat") == "cuda_runtime"
              and e["args"]["correlation"] == last["args"]["correlation"])  # fmt: skip
    link = {"External id": 999_001, "correlation": 999_001}
    started = at["ts"] + at["dur"] / 2
    own = {"External id": 999_001, "Input Dims": []}
    return [
        {**at, "cat": "cpu_op", "name": "aten::convolution_backward", "ts": started - 0.001,
         "dur": 0.01, "args": own},
        {**at, "ts": started, "dur": 0.005, "args": link},
        {**last, "name": "implicit_convolve_sgemm", "ts": last["ts"] + last["dur"], "dur": us,
         "args": {**last["args"], **link}},
    ]  # fmt: skip


def test_sides_that_ran_something_else_are_not_compared(tmp_path: Path) -> None:
    """Eight times the rows of every linear: no speedup, and no finding on one."""
    phase = of_pair(tmp_path, model(FULL, rows=256), model(NARROW, rows=32), 0.5)
    assert_present(phase, "not-comparable", "critical", "other inputs")
    assert "is no speedup" in headline(phase)
    assert not {f.id for f in phase.findings} & {rule.id for rule in registered() if rule.compares}


def test_shapes_that_were_asked_for_are_not_asked_for_again(tmp_path: Path) -> None:
    """Neither of a trace without shapes in its warning nor of kernels on CUDA cores."""
    compiled = op("CompiledFunction", kernels=[k(us=50, name="ampere_sgemm_128x64_nn")])
    trace = steps_of(compiled)
    for event in trace["traceEvents"]:
        for key in ("Input Dims", "Input Strides", "Concrete Inputs", "Input type"):
            event.get("args", {}).pop(key, None)
    for asked in (False, True):
        trace["record_shapes"] = int(asked)
        report = analyze(save(trace, tmp_path / "t.json")).report
        said = [*report.warnings, *(str(f.change) for f in report.phases["trace"].findings)]
        assert any("record_shapes=True" in line for line in said) is not asked, said


def test_stacks_raise_caveat_about_host_time(tmp_path: Path) -> None:
    """Half of the step idle; recorded with ten calls of Python a launch, that is doubtful."""
    trace = steps_of(mm(100), gap(us=200, launch=True), mm(100))
    assert_present(alone(tmp_path, trace), "launch-bound", "critical", "late host")
    assert "with_stack" not in str(found(alone(tmp_path, trace), "launch-bound"))
    frame = {"ph": "X", "cat": "python_function", "name": "model.py(1): forward", "pid": 1,
             "tid": 1, "ts": 1_000_000.0, "dur": 1.0, "args": {}}  # fmt: skip
    trace["traceEvents"] += [frame] * 60
    assert_present(
        alone(tmp_path, trace), "launch-bound", "warning", "60 calls of Python (with_stack)"
    )


def test_a_graph_is_advised_by_the_means_at_hand(tmp_path: Path) -> None:
    """A bare trace was not made by `trace`, whose option it cannot be given."""
    late = found(alone(tmp_path, steps_of(mm(10), gap(us=90, launch=True))), "launch-bound")
    assert late is None or "--mode" not in str(late.change)


def test_real_traces_that_were_wrongly_advised(real_report: Callable[[str], Report]) -> None:
    """16 rows of DLRM on CUDA cores wait for memory; half of the A100's batched products too."""
    phase = real_report("../strangers/param_v100_dlrm_rank0.json.gz").phases["trace"]
    assert {f.id for f in phase.findings} == {
        "late-first-launch", "launch-bound", "exposed-communication",
    }  # fmt: skip
