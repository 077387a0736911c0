"""A tiny model and one capture of each kind, made once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.capture.trace import trace
from prunescope.tracer.model.load import load_model
from tests.small_capture import PEAKS, set_aside


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that spin beside other work are slower than none."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny() -> Any:
    """A tiny Llama for each test: 2 layers (`four_layers`), 8 heads, 4 KV heads, f 352."""
    return load_model("tiny-llama", dtype="auto", device=torch.device("cpu"), attn="sdpa").model


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Capture tiny-llama with few samples and steps; options as in TraceRequest."""
    small = TraceRequest(
        model="tiny-llama",
        out=Path(),
        prompt_len=16,
        decode_steps=3,
        warmup=1,
        repeats=2,
        steps=2,
        placements=1,
    )

    def run(**options: Any) -> Path:
        out = options.pop("out", None) or tmp_path_factory.mktemp("runs") / "run"
        set_aside()
        return trace(replace(small, out=out, **options), peaks=PEAKS)

    return run


@pytest.fixture(scope="session")
def static_m(quick: Callable[..., Path]) -> Path:
    """F of a static-m capture at s = 0.5: F/dense and F/pruned."""
    return quick(method="static-m", sparsity=0.5, argv=["trace", "--out", "/somewhere/else/run"])
