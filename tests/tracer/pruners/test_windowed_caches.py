"""Layers with a window keep the keys that they see: theory, and the caches of tiny models."""

from __future__ import annotations

import pytest

from prunescope.taxonomy.families import family
from prunescope.taxonomy.plan import Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import forward, kv_cache_bytes
from prunescope.tracer.model import compat
from tests.tracer.dynamic_reference import prune, steps, tokens
from tests.tracer.tiny_models import tiny_model

pytestmark = pytest.mark.torch
KEYS = 2 * 2 * 16 * 4  # K and V of 2 KV heads of 16 in fp32, bytes a token and layer


@pytest.mark.parametrize(
    ("window", "kept"),
    [
        # 24 tokens, one layer of each kind, s = 0.5: the full layer keeps 12 of its 24 keys.
        (8, 12 + 8),  # fewer than are kept: the window decides
        (16, 12 + 16),  # more than are kept, fewer than there are
        (64, 12 + 24),  # more than there are
    ],
)
@pytest.mark.parametrize("keep", ["attention", "recent"])
def test_eviction_leaves_windows_as_they_are(window: int, kept: int, keep: str) -> None:
    dense = tiny_model("gemma3", sliding_window=window)
    shape = ModelShape.from_config(dense.config.to_dict())
    evicting = family("kv-evict")
    work = Workload(phase="decode", prompt_len=20, context=24, itemsize=4)
    plans = evicting.plans(shape, work, evicting.point(0.5, {"keep": keep}))
    assert kv_cache_bytes(plans) == kept * KEYS
    reads = {op.name: op.kv_read for op in forward(plans) if op.cls == "attention"}
    assert reads == {
        "attention.full": 12 * KEYS, "attention.sliding": min(window, 24) * KEYS,
    }  # fmt: skip
    _, cache = steps(prune("kv-evict", dense, 0.5, keep=keep).model, tokens(1, 24), 20)
    # A full window waits for the key of the next query: transformers holds one fewer.
    assert compat.cache_bytes(cache) == (kept - (window < 24)) * KEYS
