"""Experts by order alone."""

from __future__ import annotations

from prunescope.analysis.kernels.role_mixture import find_mixture
from prunescope.analysis.ops.call import OpCall

T, H, F, E = 64, 128, 192, 8


def test_a_shared_expert_as_wide_as_those_of_a_batched_product() -> None:
    """Llama 4: one product of all experts for gate and up, one for down; then the shared expert,
    whose down has the size of an expert's."""
    ran = [
        ("attention", "aten::_scaled_dot_product_attention", ((T, H),), None),
        ("gemm", "aten::mm", ((T, H), (H, E)), (T, E, H)),
        ("routing", "aten::topk", ((T, E),), None),
        ("batched_gemm", "aten::bmm", ((E, T, H), (E, H, 2 * F)), (T, 2 * F, H)),
        ("batched_gemm", "aten::bmm", ((E, T, F), (E, F, H)), (T, H, F)),
        ("gemm", "aten::mm", ((T, H), (H, F)), (T, F, H)),
        ("gemm", "aten::mm", ((T, H), (H, F)), (T, F, H)),
        ("gemm", "aten::mm", ((T, F), (F, H)), (T, H, F)),
    ]
    kinds, names, shapes, sizes = zip(*ran, strict=True)
    calls = [
        OpCall(name, shape, ("float",) * len(shape))
        for name, shape in zip(names, shapes, strict=True)
    ]
    found = find_mixture(kinds, calls, sizes, range(len(ran)), set())
    assert [found.get(i, "") for i in range(len(ran))] == [
        "", "router", "", "experts", "experts", *["shared_expert"] * 3]  # fmt: skip
