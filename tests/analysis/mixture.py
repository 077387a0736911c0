"""Layers of a made-up mixture of experts: a loop over experts, each with gate, up and down."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.chrome import Scope, chrome, k, module, op, step

H, F, V = 64, 96, 512


def mm(m: int, n: int, kk: int) -> Any:
    return op("aten::mm", [m, kk], [kk, n], dtype="c10::BFloat16", kernels=[k(us=3, name="gemm")])


def mixture(*rows: tuple[int, ...], named: bool = True, **more: Any) -> dict[str, Any]:
    """A trace of one step whose layers' experts see `rows` tokens each; `named`: with modules."""
    items = [x for i, one in enumerate(rows) for x in layer(i, one, **more)]
    found: dict[str, Any] = chrome(step(0, *(items if named else _without_modules(items))))
    return found


def copied(experts: int, tokens: int, per_token: int = 2, *, layers: int = 2) -> Any:
    """A trace of one step whose experts copy the matrices of each token and multiply by them, as
    transformers' batched_mm: gate and up in one, then down."""
    pairs, half = tokens * per_token, "c10::BFloat16"

    def product(n: int, kk: int) -> list[Any]:
        return [
            op("aten::index", [experts, n, kk], [], dtypes=[half, ""],
               kernels=[k(us=4, name="index_elementwise_kernel")]),
            op("aten::bmm", [pairs, n, kk], [pairs, kk, 1], dtype=half,
               kernels=[k(us=3, name="gemmk1_kernel")]),
        ]  # fmt: skip

    items = []
    for i in range(layers):
        at = f"model.layers.{i}.mlp"
        inside = module(f"{at}.experts", *product(2 * F, H), *product(H, F))
        items.append(module(at, module(f"{at}.gate", mm(tokens, experts, H)), inside))
    return chrome(step(0, *items))


def on_all_tokens(experts: int, tokens: int, *, layers: int = 2) -> Any:
    """A trace of one step in which every token goes through all experts, as in Llama 4: one product
    of gate and up, one of down."""
    half, items = "c10::BFloat16", []
    for i in range(layers):
        at = f"model.layers.{i}.feed_forward"
        products = [
            op("aten::bmm", [experts, tokens, kk], [experts, kk, n], dtype=half,
               kernels=[k(us=experts, name="gemm")])
            for n, kk in ((2 * F, H), (H, F))
        ]  # fmt: skip
        items.append(module(at, module(f"{at}.router", mm(tokens, experts, H)),
                            module(f"{at}.experts", *products)))  # fmt: skip
    return chrome(step(0, *items))


def _without_modules(items: list[Any]) -> Iterator[Any]:
    for item in items:
        yield from _without_modules(list(item.items)) if isinstance(item, Scope) else [item]


def layer(
    i: int, rows: tuple[int, ...], width: int = F, *, routing_us: float = 2, shared: bool = False
) -> Any:
    """A layer whose experts see `rows` of 8 tokens each: gate, up and down of every one, in turn;
    `shared`: behind them the wider MLP of a shared expert."""
    at = f"model.layers.{i}"
    tokens = 8
    heads = [1, 2, tokens, 32]
    wide = 2 * width
    behind = [
        module(f"{at}.mlp.shared_expert.{name}_proj", mm(tokens, n, kk))
        for name, n, kk in (("gate", wide, H), ("up", wide, H), ("down", H, wide))
    ]
    return [
        module(
            f"{at}.self_attn",
            *(module(f"{at}.self_attn.{x}_proj", mm(tokens, H, H)) for x in "qkv"),
            op("aten::_scaled_dot_product_flash_attention", heads, heads, heads,
               kernels=[k(us=2, name="flash_fwd")]),
            module(f"{at}.self_attn.o_proj", mm(tokens, H, H)),
        ),
        module(
            f"{at}.mlp",
            module(f"{at}.mlp.gate", mm(tokens, len(rows), H)),
            op("aten::topk", [tokens, len(rows)],
               kernels=[k(us=routing_us, name="at::native::sbtopk::gatherTopK")]),
            *(
                module(
                    f"{at}.mlp.experts.{e}",
                    module(f"{at}.mlp.experts.{e}.gate_proj", mm(m, width, H)),
                    module(f"{at}.mlp.experts.{e}.up_proj", mm(m, width, H)),
                    module(f"{at}.mlp.experts.{e}.down_proj", mm(m, H, width)),
                )
                for e, m in enumerate(rows)
            ),
            *(behind if shared else ()),
        ),
    ]  # fmt: skip
