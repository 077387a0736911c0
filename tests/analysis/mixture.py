"""Layers of a made-up mixture of experts: a loop over experts, each with gate, up and down."""

from __future__ import annotations

from typing import Any

from tests.chrome import chrome, k, module, op, step

H, F, V = 64, 96, 512


def mm(m: int, n: int, kk: int) -> Any:
    return op("aten::mm", [m, kk], [kk, n], dtype="c10::BFloat16", kernels=[k(us=3, name="gemm")])


def mixture(*rows: tuple[int, ...], **more: Any) -> dict[str, Any]:
    """A trace of one step whose layers' experts see `rows` tokens each."""
    items = [x for i, one in enumerate(rows) for x in layer(i, one, **more)]
    found: dict[str, Any] = chrome(step(0, *items))
    return found


def layer(i: int, rows: tuple[int, ...], width: int = F, routing_us: float = 2) -> Any:
    """A layer whose experts see `rows` tokens each: gate, up and down of every one, in turn."""
    at = f"model.layers.{i}"
    tokens = 8
    heads = [1, 2, tokens, 32]
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
        ),
    ]  # fmt: skip
