"""The passes of a training step: what is a gradient, of which role, and what the optimizer does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Phase
from tests.chrome import chrome, k, module, op, save, step

TOKENS, WIDTH = 64, 128


def mm(m: int, n: int, k_in: int, *, sequence: int | None = None) -> Any:
    kernel = k(us=10, name="gemm")
    return op("aten::mm", [m, k_in], [k_in, n], kernels=[kernel], sequence=sequence)


def node(name: str, sequence: int | None, *items: Any) -> Any:
    at = f"autograd::engine::evaluate_function: {name}"
    return op(at, sequence=sequence, inner=[op(name, sequence=sequence, inner=items, us=0)], us=0)


def training(channels: int, *, numbered: bool = True) -> dict[str, Any]:
    """up, an activation and down of one layer; views take the numbers before theirs."""
    at, number = "model.layers.0.mlp", iter(range(10))
    s = [next(number) if numbered else None for _ in range(5)]
    silu = op("aten::silu", [TOKENS, channels], kernels=[k(us=4, name="silu")], sequence=s[2])
    forward = module("model.layers.0", module(at,
        module(f"{at}.up_proj", op("aten::t", [channels, WIDTH], sequence=s[0]),
               mm(TOKENS, channels, WIDTH, sequence=s[1])),
        module(f"{at}.act_fn", silu),
        module(f"{at}.down_proj", op("aten::t", [WIDTH, channels], sequence=s[3]),
               mm(TOKENS, WIDTH, channels, sequence=s[4]))))  # fmt: skip
    own = op("aten::silu_backward", [TOKENS, channels], [TOKENS, channels],
             kernels=[k(us=5, name="silu_backward")])  # fmt: skip
    grown = op("aten::add_", [WIDTH, channels], [WIDTH, channels], kernels=[k(us=1, name="add")])
    backward = [
        node("MmBackward0", s[4], mm(WIDTH, channels, TOKENS), mm(TOKENS, channels, WIDTH)),
        node("SiluBackward0", s[2], own),
        node("MmBackward0", s[1], mm(channels, WIDTH, TOKENS), mm(TOKENS, WIDTH, channels)),
        node("torch::autograd::AccumulateGrad", None, grown),
    ]
    update = op("aten::_foreach_add_", [WIDTH, channels], kernels=[k(us=2, name="foreach")])
    return chrome(step(0, forward, *backward, module("Optimizer.step#SGD.step", update)))


def of_pair(tmp_path: Path, dense: Any, pruned: Any) -> Phase:
    d, p = save(dense, tmp_path / "d.json"), save(pruned, tmp_path / "p.json")
    return analyze(p, baseline=d).report.phases["trace"]


def adapted(*, is_trained: bool) -> dict[str, Any]:
    """up of one layer, whose input is as wide as it has tokens: trained, or frozen beside an
    adapter of rank 8."""
    at, rank, tokens = "model.layers.0.mlp.up_proj", 8, TOKENS

    def of_weight(m: int, n: int) -> Any:
        return op("aten::mm", [m, tokens], [tokens, n], strides=[[1, m], [n, 1]],
                  kernels=[k(us=10, name="gemm")])  # fmt: skip

    base = module(at, mm(tokens, WIDTH, tokens, sequence=1))
    whole = node("MmBackward0", 1, *[of_weight(WIDTH, tokens)] * is_trained,
                 mm(tokens, tokens, WIDTH))  # fmt: skip
    if is_trained:
        return chrome(step(0, base, whole))
    adapter = module(at, mm(tokens, rank, tokens, sequence=2), mm(tokens, WIDTH, rank, sequence=3))
    backward = (
        node("MmBackward0", 3, of_weight(WIDTH, rank), mm(tokens, rank, WIDTH)),
        node("MmBackward0", 2, of_weight(rank, tokens), mm(tokens, tokens, rank)),
    )
    return chrome(step(0, base, adapter, *backward, whole))


def test_gradients_pair_by_what_they_multiply(tmp_path: Path) -> None:
    """Of a frozen weight the gradient of its input stays, and that of the weight is gone, though
    those of the adapter come first and have their places."""
    phase = of_pair(tmp_path, adapted(is_trained=True), adapted(is_trained=False))
    rows = {(g.axis, g.m, g.n, g.k) for g in phase.gemms if g.role == "up backward"}
    assert rows == {("none", TOKENS, TOKENS, WIDTH), ("gone", WIDTH, TOKENS, TOKENS)}


def test_gradients_have_the_role_of_their_op_and_the_pass(tmp_path: Path) -> None:
    phase = of_pair(tmp_path, training(512), training(256))
    assert phase.phase_kind is not None and phase.phase_kind["kind"] == "training"
    rows = {(g.role, g.axis, g.m, g.n, g.k) for g in phase.gemms}
    assert rows == {
        ("up", "N", 64, 256, 128),
        ("down", "K", 64, 128, 256),
        ("up backward", "M", 256, 128, 64),  # the gradient of its weight
        ("up backward", "K", 64, 128, 256),  # that of what it read
        ("down backward", "N", 128, 256, 64),
        ("down backward", "N", 64, 256, 128),
    }
    assert phase.family is not None and phase.family.id == "static-nk-mlp"


def test_activations_and_updates_too(tmp_path: Path) -> None:
    done = analyze(save(training(512), tmp_path / "t.json"))
    (frame,) = done.frames.values()
    kernels = frame.filter(frame["kind"] != "gemm")
    assert dict(zip(kernels["name"], kernels["role"], strict=True)) == {
        "silu": "activation", "silu_backward": "activation backward", "add": "unknown",
        "foreach": "optimizer",
    }  # fmt: skip


def test_gradients_without_numbers_have_no_role(tmp_path: Path) -> None:
    phase = of_pair(tmp_path, training(512, numbered=False), training(256, numbered=False))
    roles = {g.role for g in phase.gemms}
    assert roles == {"up", "down", "unknown"}
    assert phase.family is not None and "static-m" not in phase.family.id


def test_gradients_of_a_compiled_region_have_no_role_of_one_op(tmp_path: Path) -> None:
    """A compiled region is one node of autograd: the gradients of all its linears are in it."""
    at = "model.layers.0.mlp"
    inner = [
        module(f"{at}.up_proj", mm(TOKENS, 512, WIDTH)),
        module(f"{at}.down_proj", mm(TOKENS, WIDTH, 512)),
    ]
    region = op("CompiledFunction", inner=inner, sequence=7, us=0)
    sizes = ((512, WIDTH, TOKENS), (TOKENS, WIDTH, 512), (WIDTH, 512, TOKENS), (TOKENS, 512, WIDTH))
    backward = node("CompiledFunctionBackward", 7, *[mm(*size) for size in sizes])
    done = analyze(save(chrome(step(0, region, backward)), tmp_path / "t.json"))
    (frame,) = done.frames.values()
    assert frame["role"].to_list() == ["up", "down", *["unknown backward"] * 4]
    assert frame["layer"].to_list() == [0] * 6  # all that it did is of one layer
    assert done.report.phases["trace"].coverage["role"] == pytest.approx(20 / 60)


@pytest.mark.torch
def test_a_training_step_of_torch(tmp_path: Path) -> None:
    """As torch.profiler writes it; nobody asks for the gradient of the input."""
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    x = torch.randn(8, 16)
    settings: dict[str, Any] = {"activities": [ProfilerActivity.CPU], "record_shapes": True}
    with profile(**settings) as profiler, record_function("prunescope.step#0"):
        for i, name in enumerate(("up_proj", "act_fn", "down_proj")):
            with record_function(f"model.layers.0.mlp.{name}"):
                x = model[i](x)
        x.sum().backward()
    profiler.export_chrome_trace(str(tmp_path / "t.json"))
    (phase,) = analyze(tmp_path / "t.json").report.phases.values()
    rows = {(g.role, g.m, g.n, g.k) for g in phase.gemms}
    assert rows == {
        ("up", 8, 32, 16), ("down", 8, 4, 32), ("up backward", 32, 16, 8),
        ("down backward", 4, 32, 8), ("down backward", 8, 32, 4),
    }  # fmt: skip
