"""Experts by order alone."""

from __future__ import annotations

from msgspec.structs import replace

from prunescope.analysis.kernels.role_mixture import find_mixture
from prunescope.analysis.kernels.role_shapes import LaunchedRows
from prunescope.analysis.ops.call import OpCall
from prunescope.analysis.ops.kernel_kinds import kernel_kind

T, H, F, E = 64, 128, 192, 8

Ran = tuple[str, str, tuple[tuple[int, ...], ...], tuple[int, int, int] | None]


def roles(ran: list[Ran]) -> list[str]:
    kinds, names, shapes, sizes = zip(*ran, strict=True)
    calls = [
        OpCall(name, shape, ("float",) * len(shape))
        for name, shape in zip(names, shapes, strict=True)
    ]
    mixture = find_mixture(
        replace(LaunchedRows.of(kinds, calls), sizes=list(sizes)), range(len(ran))
    )
    return [mixture.get(i, "") for i in range(len(ran))]


def product(m: int, n: int, k: int) -> Ran:
    return ("gemm", "aten::mm", ((m, k), (k, n)), (m, n, k))


def routed() -> list[Ran]:
    return [
        ("attention", "aten::_scaled_dot_product_attention", ((T, H),), None),
        product(T, E, H),
        ("routing", "aten::topk", ((T, E),), None),
    ]


def test_a_shared_expert_behind_a_loop_of_experts() -> None:
    """DeepSeek, eager: gate and up of an expert in one product, which may be as wide as the
    stream, then its down; behind them the shared expert, whose down has the size of an expert's."""
    for width in (H // 2, F):
        expert = [product(9, 2 * width, H), product(9, H, width)]
        shared = [product(T, width, H), product(T, width, H), product(T, H, width)]
        found = roles([*routed(), *expert, *expert, *shared])
        assert found == ["", "router", "", *["experts"] * 4, *["shared_expert"] * 3]


def test_a_shared_expert_as_wide_as_those_of_a_batched_product() -> None:
    """Llama 4: one product of all experts for gate and up, one for down; then the shared expert,
    whose down has the size of an expert's."""
    ran: list[Ran] = [
        *routed(),
        ("batched_gemm", "aten::bmm", ((E, T, H), (E, H, 2 * F)), (T, 2 * F, H)),
        ("batched_gemm", "aten::bmm", ((E, T, F), (E, F, H)), (T, H, F)),
        product(T, F, H),
        product(T, F, H),
        product(T, H, F),
    ]
    assert roles(ran) == ["", "router", "", "experts", "experts", *["shared_expert"] * 3]


def test_tokens_that_are_chosen_are_no_experts() -> None:
    """Between o and the MLP the best 60 of 64 tokens are picked by their norms, and sorted: o is no
    router; what a sort of the router's own scores reads is one."""
    tensors = (((T, H), (T, H)),)  # of a list, which no product made
    picked: list[Ran] = [
        ("routing", "aten::topk", ((T,),), None), ("routing", "aten::sort", ((60,),), None),
        ("layout", "aten::cat", tensors, None),  # type: ignore[list-item]
    ]  # fmt: skip
    mlp = [product(60, F, H), product(60, H, F)]
    plain: list[Ran] = [product(T, 3 * H, H), ("attention", "aten::sdpa", ((T, H),), None)]
    assert roles([*plain, product(T, H, H), *picked, *mlp]) == [""] * 8
    by_sort: list[Ran] = [product(T, E, H), ("routing", "aten::sort", ((T, E),), None)]
    expert = [product(9, 2 * F, H), product(9, H, F)]
    assert roles([routed()[0], *by_sort, *expert]) == ["", "router", "", "experts", "experts"]


def test_a_head_behind_the_last_experts_is_no_shared_expert() -> None:
    """gpt-oss: N 201,088 behind grouped products, in a step that looks no token up; what scatters
    the results of the experts (`_finalize_matmul_scatter`) is no product."""
    grouped: Ran = ("grouped_gemm", "vllm::moe_forward", ((T, H),), None)
    named = roles([*routed(), grouped, grouped, product(1, 201_088, H)])
    assert named == ["", "router", "", "experts", "experts", ""]
    assert kernel_kind("_finalize_matmul_scatter") == "gather_scatter"
    assert kernel_kind("_matmul_ogs_NNT_bf16xbf16xmxfp4") == "grouped_gemm"
