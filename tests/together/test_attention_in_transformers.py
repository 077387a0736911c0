"""What eager modules do with keys and values, run from the source of transformers itself.

The tensors are small and of the CPU; what is counted is the numbers that each op writes anew.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.cache_utils import DynamicLayer, StaticLayer
from transformers.integrations import flash_attention, sdpa_attention
from transformers.models.llama.modeling_llama import eager_attention_forward

from prunescope.analysis.predict.assumptions import list_assumptions
from prunescope.analysis.predict.eager_modules import (
    EAGER_LAUNCHES,
    FUSED_LAUNCHES,
    attention_bytes,
    kv_expansions,
)
from prunescope.analysis.predict.predict_request import PredictRequest
from prunescope.analysis.predict.setting import resolve, workloads
from prunescope.analysis.predict.side import predicted_side
from prunescope.taxonomy.plan import Op

pytestmark = pytest.mark.torch

HEADS, KV_HEADS, KEYS, SIZE = 32, 8, 100, 128  # of Llama-3.1-8B
GROUP = HEADS // KV_HEADS
CACHE = 2 * KV_HEADS * KEYS * SIZE  # keys and values of a sequence
MODULE = SimpleNamespace(num_key_value_groups=GROUP, is_causal=True, training=False)


class Written(TorchDispatchMode):
    """The ops that run, with the numbers of each tensor that is no view of another."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[tuple[str, int]] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = op(*args, **(kwargs or {}))
        name = op.overloadpacket.__name__
        if not op.is_view and name != "_unsafe_view" and isinstance(result, torch.Tensor):
            self.ops.append((name, result.numel()))
        return result

    def numbers(self, *names: str) -> int:
        return sum(count for name, count in self.ops if name in names)


def tensors(queries: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys, values and a mask, in bf16."""
    query = torch.zeros(1, HEADS, queries, SIZE, dtype=torch.bfloat16)
    key, value = (torch.zeros(1, KV_HEADS, KEYS, SIZE, dtype=torch.bfloat16) for _ in range(2))
    return query, key, value, torch.zeros(1, 1, queries, KEYS, dtype=torch.bfloat16)


def attention(attn: str, cache: str = "dynamic", **sizes: Any) -> tuple[float, Op, int]:
    """The bytes beyond a fused kernel of a decode step of these sizes, its op, and expansions."""
    request = PredictRequest(
        "llama-3.1-8b", device="h100-sxm", dtype="bf16", runtime="hf", phase="decode",
        attn=attn, cache=cache, prompt_len=KEYS, **sizes,
    )  # fmt: skip
    setting, _ = resolve(request, None, None, [])
    side = predicted_side(setting, workloads(request, setting)[0], pruned=False)
    (op,) = [op for op in side.bounded if op.cls == "attention"]
    assert op.kv_read == 2 * CACHE  # bytes
    return attention_bytes(side, op), op, kv_expansions(setting, op)


def sdpa(monkeypatch: pytest.MonkeyPatch, queries: int, *, mask: bool) -> tuple[Written, Any]:
    """What `sdpa_attention_forward` writes before its kernel, and what the kernel is given."""
    given: dict[str, Any] = {}
    written = Written()

    def kernel(query: Any, key: Any, _: Any, **more: Any) -> Any:
        given.update(query=query, key=key, gqa=more.get("enable_gqa"), ops=list(written.ops))
        return torch.zeros_like(query)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", kernel)
    query, key, value, bias = tensors(queries)
    with written:
        sdpa_attention.sdpa_attention_forward(MODULE, query, key, value, bias if mask else None)
    written.ops = given["ops"]
    return written, given


def test_sdpa_expands_grouped_keys_beside_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """`repeat_kv` writes G times as many keys and values, and the kernel reads those: 2G of them
    beyond the one that it would read."""
    written, given = sdpa(monkeypatch, 2, mask=True)
    assert given["key"].shape[1] == HEADS
    copies = written.numbers("clone")
    assert copies == GROUP * CACHE
    (bytes_sdpa, _, expansions), (bytes_flash, _, none) = attention("sdpa"), attention("flash")
    assert bytes_sdpa - bytes_flash == 2 * copies * 2  # written and read, of two bytes
    assert (expansions, none) == (len([op for op in written.ops if op[0] == "clone"]), 0)


@pytest.mark.parametrize("mask", [True, False])
def test_sdpa_of_one_query_copies_nothing_in_newer_versions(
    monkeypatch: pytest.MonkeyPatch, *, mask: bool
) -> None:
    """It packs the queries of a group, or asks the kernel to read grouped heads: what is predicted
    of sdpa is of older versions, and the prediction says so."""
    written, given = sdpa(monkeypatch, 1, mask=mask)
    assert given["key"].shape[1] == KV_HEADS
    assert written.ops == []
    request = PredictRequest("llama-3.1-8b", device="h100-sxm", runtime="hf", phase="decode")
    for attn, said in (("sdpa", True), ("flash", False)):
        setting, _ = resolve(PredictRequest(**{**vars(request), "attn": attn}), None, None, [])
        assert any("repeat_kv" in text for text in list_assumptions(setting)) is said


def test_eager_attention_writes_its_scores() -> None:
    """matmul writes b bytes a score; scale and mask read and write 2b each; a softmax in float32
    reads b and writes 4, its cast reads 4 and writes b; matmul reads b: 8b + 8."""
    query, key, value, mask = tensors(3)
    written = Written()
    with written:
        eager_attention_forward(MODULE, query, key, value, mask, scaling=0.1)
    scores = HEADS * 3 * KEYS
    # On a CPU the cast to float32 is an op of its own, which a GPU's softmax does as it reads.
    sized = [name for name, count in written.ops if count == scores]
    assert sized == ["bmm", "mul", "add", "_to_copy", "_softmax", "_to_copy"]
    bytes_per_score = {"bmm": 2 + 2, "mul": 4, "add": 4, "_softmax": 2 + 4, "cast": 4 + 2}
    assert sum(bytes_per_score.values()) == 8 * 2 + 8
    assert written.numbers("clone") == GROUP * CACHE + query.numel()  # expanded; and the output
    more, op, expansions = attention("eager")
    plain = attention("sdpa")[0]
    assert more - plain == 24 * op.gemms[0].batch * op.gemms[0].m * op.gemms[0].n
    # Two products, scale, mask, softmax, cast and a copy; two concatenations of the cache.
    ops = [name for name, _ in written.ops if name not in ("_to_copy",)]
    kernels = len(ops) - expansions + 1  # the cast back
    assert kernels + 2 == EAGER_LAUNCHES
    assert FUSED_LAUNCHES == 2 + 1 + 1  # concatenations, the kernel, a copy


def test_a_dynamic_cache_is_copied_and_a_static_one_is_not() -> None:
    _, key, value, _ = tensors(1)
    new = key[:, :, :1].clone(), value[:, :, :1].clone()
    dynamic = DynamicLayer()
    dynamic.update(key, value)
    static = StaticLayer(max_cache_len=2 * KEYS)
    static.update(key, value)
    written = {}
    for name, layer in (("dynamic", dynamic), ("static", static)):
        with (mode := Written()):
            layer.update(*new)
        written[name] = mode.numbers("cat", "clone", "index_copy")
    copied = CACHE + 2 * KV_HEADS * SIZE  # all of it, with the new token
    assert written == {"dynamic": copied, "static": 0}
    more = attention("flash", "dynamic")[0] - attention("flash", "static")[0]
    # Each number is read and written, of two bytes; the new token is counted with the kernel.
    assert more == 2 * 2 * CACHE
    assert attention("flash", "static")[0] == 0


def test_flash_attention_is_given_grouped_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def kernel(query: Any, key: Any, *_: Any, **__: Any) -> Any:
        given["key"] = key
        return query

    monkeypatch.setattr(flash_attention, "_flash_attention_forward", kernel)
    query, key, value, _ = tensors(1)
    module = SimpleNamespace(
        **vars(MODULE), config=SimpleNamespace(_attn_implementation="flash_attention_2"),
        layer_idx=0, modules=lambda: (),
    )  # fmt: skip
    with Written() as written:
        flash_attention.flash_attention_forward(module, query, key, value, None)
    assert given["key"].shape == (1, KEYS, KV_HEADS, SIZE)
    assert given["key"].data_ptr() == key.data_ptr() and not written.ops
