"""What must hold of any prediction: limits, monotone behaviour and sums, on drawn shapes."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from prunescope.analysis.device.hardware import DEVICES, Device
from prunescope.analysis.predict.constants import NAMES
from prunescope.analysis.predict.costs import expected_speedup, total_ns
from prunescope.analysis.predict.kernel_times import op_ns
from prunescope.analysis.predict.setting import Setting
from prunescope.analysis.predict.side import predicted_side, roofline_speedup
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import families, family
from prunescope.taxonomy.plan import Workload
from prunescope.taxonomy.shape import ModelShape

QUICK = settings(max_examples=20, deadline=None)
PLACED = ("static-m", "static-k-lowrank", "static-nk", "static-nk-cross", "dynamic-m", "dynamic-nk")
# Wider steps than any rounding to 16 channels, one head or one layer of these shapes.
STEPS = (0.0, 0.25, 0.5, 0.75)


@st.composite
def shapes(draw: st.DrawFn) -> ModelShape:
    kv_heads = draw(st.sampled_from((1, 2, 4, 8)))
    group = draw(st.sampled_from((1, 2, 4)))
    return ModelShape.from_fields(
        model_type="llama",
        hidden=128 * draw(st.integers(4, 40)),
        layers=4 * draw(st.integers(1, 12)),
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=draw(st.sampled_from((64, 128))),
        value_dim=128,
        intermediate=256 * draw(st.integers(4, 60)),
        vocab=draw(st.integers(1000, 200_000)),
        gated=draw(st.booleans()),
        window=4096,
        sliding_layers=draw(st.sampled_from((0, 2))),
    )


@st.composite
def loads(draw: st.DrawFn) -> Workload:
    return Workload(
        phase=draw(st.sampled_from(("prefill", "decode"))),
        batch=draw(st.integers(1, 64)),
        prompt_len=draw(st.integers(1, 20_000)),
        logits=draw(st.sampled_from(("last", "all"))),
    )


devices = st.sampled_from([d for d in DEVICES if d.peak("bf16") and d.byte_per_s])
placed = st.sampled_from(PLACED)


def setting_of(shape: ModelShape, device: Device, method: str, sparsity: float = 0.5) -> Setting:
    one = family(method)
    assert device.byte_per_s is not None
    return Setting(
        shape=shape, device=device, dtype="bf16", flop_per_s=device.dense_flop_per_s["bf16"],
        byte_per_s=device.byte_per_s, family=one, sparsity=sparsity,
        knobs=one.point(sparsity).knobs, terms=NAMES,
    )  # fmt: skip


@QUICK
@given(
    shape=shapes(),
    work=loads(),
    device=devices,
    method=st.sampled_from([f.id for f in families() if f.id not in ("dense", "token-drop")]),
)
def test_nothing_pruned_gains_nothing(
    shape: ModelShape, work: Workload, device: Device, method: str
) -> None:  # fmt: skip
    setting = setting_of(shape, device, method, 0.0)
    assert roofline_speedup(setting, work) == pytest.approx(1)
    assert expected_speedup(setting, work) == pytest.approx(1)


@QUICK
@given(shape=shapes(), work=loads(), device=devices)
def test_the_bound_tends_to_one(shape: ModelShape, work: Workload, device: Device) -> None:
    setting = setting_of(shape, device, "dynamic-nk")
    assert roofline_speedup(setting, work, 1e-6) == pytest.approx(1, abs=1e-5)


@QUICK
@given(
    shape=shapes(),
    work=loads(),
    device=devices,
    method=placed,
    faster=st.floats(1, 100),
    what=st.sampled_from(("byte_per_s", "flop_per_s")),
)
def test_a_faster_device_never_slows(
    shape: ModelShape, work: Workload, device: Device, method: str, faster: float, what: str
) -> None:  # fmt: skip
    slow = setting_of(shape, device, method)
    fast = replace(slow, **{what: getattr(slow, what) * faster})
    for pruned in (False, True):
        before, after = (
            predicted_side(slow, work, pruned=pruned),
            predicted_side(fast, work, pruned=pruned),
        )
        assert after.ns <= before.ns * (1 + 1e-9)
        for terms in ((), ("achievable", "elementwise"), tuple(set(NAMES) - {"tile_wave"})):
            assert total_ns(after, terms) <= total_ns(before, terms) * (1 + 1e-9)


@QUICK
@given(shape=shapes(), device=devices, method=placed)
def test_many_sequences_are_bound_by_compute(
    shape: ModelShape, device: Device, method: str
) -> None:
    """Every weight is read once for all of them, so its GEMM ends above its ridge; attention in
    decode reads a cache a sequence, and never does."""
    setting = setting_of(shape, device, method)
    work = Workload(phase="decode", batch=10**7, prompt_len=256)
    side = predicted_side(setting, work)
    half_intensity = setting.flop_per_s / setting.byte_per_s
    for op in side.bounded:
        gemm = op.gemms[0] if op.gemms else None
        if op.cls == "matmul" and gemm and 1 / gemm.n + 1 / gemm.k < 0.99 / half_intensity:
            assert side.is_compute(op), op.name
        if op.cls == "attention":
            assert not side.is_compute(op)


@QUICK
@given(shape=shapes(), work=loads(), device=devices, method=placed)
def test_the_bound_grows_with_sparsity(
    shape: ModelShape, work: Workload, device: Device, method: str
) -> None:
    setting = setting_of(shape, device, method)
    before = 0.0
    for sparsity in STEPS:
        try:
            gain = roofline_speedup(setting, work, sparsity)
        except PrunescopeError:  # a rank that saves nothing
            assume(method != "static-k-lowrank")
            raise
        if sparsity in (0.0, 0.25) and method in ("static-nk-cross", "static-k-lowrank"):
            before = gain if sparsity else 0.0  # a small cut may cost more than it saves
            continue
        assert gain >= before * (1 - 1e-9)
        before = gain


@QUICK
@given(shape=shapes(), work=loads(), device=devices, method=placed)
def test_each_cost_of_execution_only_adds(
    shape: ModelShape, work: Workload, device: Device, method: str
) -> None:
    setting = setting_of(shape, device, method)
    for pruned in (False, True):
        side = predicted_side(setting, work, pruned=pruned)
        total = side.ns
        for i in range(len(NAMES)):
            now = total_ns(side, NAMES[: i + 1])
            assert now >= total * (1 - 1e-9), NAMES[i]
            total = now
        ops = sum(op.layers * op_ns(side, op, NAMES) for op in side.bounded)
        assert ops <= total * (1 + 1e-9)


@QUICK
@given(shape=shapes(), work=loads())
def test_flop_and_bytes_are_those_of_the_gemms(shape: ModelShape, work: Workload) -> None:
    """Each weight by its Gemm: 2MNK and A, W, O once; causal attention by counting its pairs."""
    device = next(d for d in DEVICES if d.name == "h100-sxm")
    side = predicted_side(setting_of(shape, device, "static-m", 0.0), work, pruned=False)
    for op in side.bounded:
        if op.cls == "matmul":
            assert op.flop == op.gemms[0].flop
            assert op.bytes == op.gemms[0].bytes(work.itemsize)
        elif op.cls == "attention":
            window = shape.attention.window if op.name == "attention.sliding" else None
            most = min(work.keys, window or work.keys)
            pairs = most
            if work.prefill:
                pairs = sum(range(1, most + 1)) + (work.prompt_len - most) * most
            width = shape.attention.heads * (shape.attention.head_dim + shape.attention.value_dim)
            assert op.flop == 2 * work.batch * width * pairs
