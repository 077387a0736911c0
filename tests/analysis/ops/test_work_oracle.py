"""FLOPs against torch.utils.flop_counter, for every forward op that it counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from prunescope.analysis.ops.call import OpCall
from prunescope.analysis.ops.work import work_of

torch = pytest.importorskip("torch")
from torch.utils.flop_counter import FlopCounterMode, flop_registry  # noqa: E402

aten = torch.ops.aten
pytestmark = pytest.mark.torch
TYPES = {
    torch.float32: "float", torch.bfloat16: "c10::BFloat16", torch.int64: "long int",
    torch.int32: "int", torch.float8_e4m3fn: "c10::Float8_e4m3fn",
}  # fmt: skip


def meta(*shape: int, dtype: Any = torch.bfloat16) -> Any:
    return torch.empty(shape, dtype=dtype, device="meta")


def call_of(op: Any, *args: Any, **kwargs: Any) -> OpCall:
    """The call as a profiler writes it: every argument of the schema, keywords and defaults too."""
    values = []
    for i, argument in enumerate(op._schema.arguments):
        given = args[i] if i < len(args) else kwargs.get(argument.name, argument.default_value)
        values.append(given)
    shapes, types, strides, concrete = [], [], [], []
    for value in values:
        tensor = isinstance(value, torch.Tensor)
        shapes.append(tuple(value.shape) if tensor else ())
        strides.append(value.stride() if tensor else ())
        listed = isinstance(value, list | tuple)
        none = "" if value is None else "ScalarList" if listed else "Scalar"
        types.append(TYPES[value.dtype] if tensor else none)
        shown = "" if value is None or tensor else str(list(value)) if listed else str(value)
        concrete.append(shown)
    name = op._schema.name
    return OpCall(name, tuple(shapes), tuple(types), tuple(strides), tuple(concrete))


Q, K, V = meta(2, 8, 5, 16), meta(2, 4, 7, 16), meta(2, 4, 7, 16)  # GQA: 8 heads over 4
ROWS_Q, ROWS_K, ROWS_V = meta(2, 5, 8, 16), meta(2, 7, 4, 16), meta(2, 7, 4, 16)
# The counter reads [B, S, H, d] as [B, H, S, d]: with as many rows as heads both agree.
SQUARE = meta(2, 6, 6, 16)
FP8 = torch.float8_e4m3fn
STRIDED = ([2, 1], [1, 0], [1, 2])  # stride, padding, dilation
CASES: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    "mm": (aten.mm.default, (meta(4, 6), meta(6, 5)), {}),
    "addmm": (aten.addmm.default, (meta(5), meta(4, 6), meta(6, 5)), {}),
    "bmm": (aten.bmm.default, (meta(3, 4, 6), meta(3, 6, 5)), {}),
    "baddbmm": (aten.baddbmm.default, (meta(3, 4, 5), meta(3, 4, 6), meta(3, 6, 5)), {}),
    "_scaled_mm": (
        aten._scaled_mm.default,
        (
            meta(32, 16, dtype=FP8), meta(48, 16, dtype=FP8).t(),
            meta(dtype=torch.float32), meta(dtype=torch.float32),
        ),
        {"out_dtype": torch.bfloat16},
    ),
    "convolution": (
        aten.convolution.default,
        (meta(2, 8, 9, 7), meta(6, 4, 3, 2), meta(6), *STRIDED, False, [0, 0], 2),
        {},
    ),
    "_convolution": (
        aten._convolution.default,
        (meta(2, 8, 9, 7), meta(6, 4, 3, 2), meta(6), *STRIDED, False, [0, 0], 2,
         False, False, True, True),
        {},
    ),
    "_scaled_dot_product_flash_attention": (
        aten._scaled_dot_product_flash_attention.default, (SQUARE, SQUARE, SQUARE), {},
    ),
    "_scaled_dot_product_efficient_attention": (
        aten._scaled_dot_product_efficient_attention.default,
        (SQUARE, SQUARE, SQUARE, None, False), {},
    ),
    "_scaled_dot_product_cudnn_attention": (
        aten._scaled_dot_product_cudnn_attention.default, (SQUARE, SQUARE, SQUARE, None, False), {},
    ),
    "_flash_attention_forward": (
        aten._flash_attention_forward.default,
        (SQUARE, SQUARE, SQUARE, None, None, 6, 6, 0.0, False, False), {},
    ),
    "_efficient_attention_forward": (
        aten._efficient_attention_forward.default,
        (SQUARE, SQUARE, SQUARE, None, None, None, None, None, 0.0, 0), {},
    ),
}  # fmt: skip
# These do not run on meta tensors: x, weight, then their arguments for one convolution, ungrouped.
PLAIN = (meta(2, 8, 9, 7), meta(6, 8, 3, 2))
SIBLINGS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "cudnn_convolution": (
        aten.cudnn_convolution.default, ([1, 0], [2, 1], [1, 2], 1, False, False, True),
    ),
    "convolution_overrideable": (
        aten.convolution_overrideable.default, (None, *STRIDED, False, [0, 0], 1),
    ),
    "_slow_conv2d_forward": (
        aten._slow_conv2d_forward.default, ([3, 2], None, [2, 1], [1, 0]),
    ),
}  # fmt: skip


def count(run: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("name", CASES)
def test_flops_are_those_of_the_flop_counter(name: str) -> None:
    op, args, kwargs = CASES[name]
    work = work_of(call_of(op, *args, **kwargs))
    assert work is not None
    assert work.flop == count(lambda: op(*args, **kwargs)) > 0


@pytest.mark.parametrize("name", SIBLINGS)
def test_other_convolutions_count_the_same(name: str) -> None:
    op, rest = SIBLINGS[name]
    dilation = [1, 1] if name == "_slow_conv2d_forward" else STRIDED[2]
    same = (*PLAIN, None, STRIDED[0], STRIDED[1], dilation, False, [0, 0], 1)
    work = work_of(call_of(op, *PLAIN, *rest))
    assert work is not None
    assert work.flop == count(lambda: aten.convolution.default(*same)) > 0


def test_no_forward_op_of_the_flop_counter_is_missing() -> None:
    names = {str(op).removeprefix("aten.") for op in flop_registry}
    counted = {n for n in names if "backward" not in n and not n.startswith("flex_attention")}
    assert counted == set(CASES) | set(SIBLINGS)


@pytest.mark.parametrize("layout", ["heads first", "rows first"])
def test_grouped_queries_count_the_heads_of_the_queries(layout: str) -> None:
    # 4·B·H·S_q·S_kv·d = 4·2·8·5·7·16
    if layout == "heads first":
        call = call_of(aten._scaled_dot_product_flash_attention.default, Q, K, V)
    else:
        args = (ROWS_Q, ROWS_K, ROWS_V, None, None, 5, 7, 0.0, False, False)
        call = call_of(aten._flash_attention_forward.default, *args)
    work = work_of(call)
    assert work is not None
    assert work.flop == 4 * 2 * 8 * 5 * 7 * 16


@pytest.mark.parametrize(
    ("op", "position", "true"),
    [
        ("_scaled_dot_product_flash_attention", 4, True),
        ("_scaled_dot_product_efficient_attention", 6, True),
        ("_scaled_dot_product_cudnn_attention", 6, True),
        ("_flash_attention_forward", 8, True),
        ("_efficient_attention_forward", 9, 1),
    ],
)
def test_causal_counts_the_half_with_the_diagonal(op: str, position: int, true: Any) -> None:
    """The counter takes all S² pairs, causal ones are S·(S+1)/2: ours = theirs·(S+1)/(2·S)."""
    overload, args, kwargs = CASES[op]
    names = [a.name for a in overload._schema.arguments]
    causal = {**kwargs, names[position]: true}
    work = work_of(call_of(overload, *args[:position], **causal))
    rows = 6
    assert work is not None
    assert work.causal is True
    assert work.flop is not None
    assert work.flop * 2 * rows == count(lambda: overload(*args, **kwargs)) * (rows + 1)


def test_linear_layers_count_what_the_ops_inside_them_count() -> None:
    x, weight, bias = meta(2, 3, 6), meta(5, 6), meta(5)
    work = work_of(call_of(aten.linear.default, x, weight, bias))
    assert work is not None
    assert work.flop == count(lambda: torch.nn.functional.linear(x, weight, bias)) == 2 * 6 * 6 * 5


def test_matmul_of_any_ranks() -> None:
    for left, right in [
        ((4, 6), (6, 5)), ((3, 4, 6), (6, 5)), ((3, 4, 6), (3, 6, 5)), ((6,), (6, 5)),
        ((4, 6), (6,)), ((2, 1, 4, 6), (3, 6, 5)), ((4, 6), (3, 6, 5)),
    ]:  # fmt: skip
        a, b = meta(*left), meta(*right)
        work = work_of(call_of(aten.matmul.default, a, b))
        out = torch.matmul(a, b)
        assert work is not None
        assert work.flop == 2 * out.numel() * 6, (left, right)
