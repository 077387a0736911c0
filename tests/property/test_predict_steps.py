"""Expected times change little from one batch, length or sparsity to the next, or say why."""

from __future__ import annotations

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from prunescope.analysis.device.hardware import Device
from prunescope.analysis.predict.costs import expected_speedup, total_ns
from prunescope.analysis.predict.kernel_times import cut_of, op_cost, rates
from prunescope.analysis.predict.setting import Setting
from prunescope.analysis.predict.side import PredictedSide, predicted_side, roofline_speedup
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.plan import Workload
from prunescope.taxonomy.shape import ModelShape
from tests.property.test_predict_bounds import PLACED, devices, setting_of, shapes

# The same examples in every run: near the limit chance would decide.
QUICK = settings(max_examples=30, deadline=None, derandomize=True)
methods = st.sampled_from((*PLACED, "static-k-24", "dynamic-nk"))
JUMP = 0.05


def steps_of(side: PredictedSide) -> list[object]:
    """What changes by whole steps: tiles, waves and parts of each GEMM, and padded rows."""
    cuts = []
    r = rates(side.setting, side.setting.constants, ("achievable", "kernel", "launch"))
    for op in side.bounded:
        cut = cut_of(op_cost(side, op), r)
        cuts.append(cut and (cut.rows, cut.columns, cut.tiles, cut.parts))
    return [*cuts, side.work.rows % 8 == 0]


def jumps(before: float, after: float) -> bool:
    return abs(after / before - 1) > JUMP


def check(setting: Setting, here: Workload, there: Workload, sparsity: float | None = None) -> None:
    """No jump of the expected speedup without a step of a GEMM, or one of the bound."""
    gains = [expected_speedup(setting, here), expected_speedup(setting, there, sparsity)]
    bounds = [roofline_speedup(setting, here), roofline_speedup(setting, there, sparsity)]
    # A step that the bound takes too is no jump of the model.
    shares = [gain / bound for gain, bound in zip(gains, bounds, strict=True)]
    if not (jumps(*gains) and jumps(*shares)):
        return
    named = any(
        steps_of(predicted_side(setting, here, pruned=p))
        != steps_of(predicted_side(setting, there, pruned=p, sparsity=s))
        for p, s in ((False, None), (True, sparsity))
    )
    assert named or jumps(bounds[0] * (1 + JUMP / 2), bounds[1]) or jumps(*bounds), (gains, bounds)


@QUICK
@given(shape=shapes(), device=devices, method=methods, batch=st.integers(1, 600),
       length=st.integers(64, 9000))  # fmt: skip
def test_in_batch(shape: ModelShape, device: Device, method: str, batch: int, length: int) -> None:
    assume(device.sm is not None)
    work = Workload(phase="decode", batch=batch, prompt_len=length)
    check(setting_of(shape, device, method), work, replace(work, batch=batch + 1))


@QUICK
@given(shape=shapes(), device=devices, method=methods, length=st.integers(64, 9000),
       phase=st.sampled_from(("prefill", "decode")))  # fmt: skip
def test_in_length(shape: ModelShape, device: Device, method: str, length: int, phase: str) -> None:
    work = Workload(phase=phase, prompt_len=length)
    check(setting_of(shape, device, method), work, replace(work, prompt_len=length + 1))


@QUICK
@given(shape=shapes(), device=devices, method=st.sampled_from(PLACED),
       sparsity=st.floats(0.3, 0.9), batch=st.integers(1, 64))  # fmt: skip
def test_in_sparsity(
    shape: ModelShape, device: Device, method: str, sparsity: float, batch: int
) -> None:
    work = Workload(phase="decode", batch=batch, prompt_len=1024)
    try:
        check(setting_of(shape, device, method, sparsity), work, work, sparsity + 0.001)
    except PrunescopeError:  # no rank that saves
        assume(False)


@QUICK
@given(shape=shapes(), device=devices, method=methods, batch=st.integers(1, 500),
       phase=st.sampled_from(("prefill", "decode")))  # fmt: skip
def test_more_sequences_take_longer(
    shape: ModelShape, device: Device, method: str, batch: int, phase: str
) -> None:
    """But where they fill the rows of eight that a 2:4 kernel wants, which saves its padding."""
    assume(method != "static-k-24" or batch % 8 == 0)
    work = Workload(phase=phase, batch=batch, prompt_len=256)
    setting = setting_of(shape, device, method)
    for pruned in (False, True):
        few, more, twice = (predicted_side(setting, replace(work, batch=b), pruned=pruned)
                            for b in (batch, batch + 8, 2 * batch))  # fmt: skip
        ns = [total_ns(side, setting.terms) for side in (few, more, twice)]
        assert ns[1] >= ns[0] * (1 - 1e-9)
        assert ns[2] >= ns[0] * (1 - 1e-9)


@QUICK
@given(shape=shapes(), device=devices, length=st.integers(64, 60_000))
def test_longer_contexts_take_longer(shape: ModelShape, device: Device, length: int) -> None:
    work = Workload(phase="decode", prompt_len=length)
    setting = setting_of(shape, device, "static-nk")
    for pruned in (False, True):
        works = [replace(work, prompt_len=n) for n in (length, length + 500)]
        sides = [predicted_side(setting, at, pruned=pruned) for at in works]
        ns = [total_ns(side, setting.terms) for side in sides]
        assert ns[1] >= ns[0]
