"""A processor without bf16 is given fp32: what takes less time, not what is smaller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


@pytest.mark.parametrize(
    ("bf16", "fp32", "faster"),
    [(1.0, 2.0, "bf16"), (4.0, 1.0, "fp32"), (1.0, 1.0, "bf16"), (1.0, 0.97, "bf16")],
)
def test_the_faster_of_two(
    bf16: float, fp32: float, faster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunescope.tracer.machine import peaks

    asked: list[Any] = []

    def times(
        product: Callable[[], Any], _device: object, *, deadline: float, most: int
    ) -> list[float]:
        assert deadline > 0 and most > 0
        asked.append(product().dtype)
        least = {torch.bfloat16: bf16, torch.float32: fp32}[asked[-1]]
        # Something else runs beside the first turns of bf16, and beside most of every turn.
        return [9.0, 8.0] if len(asked) in (1, 3) else [9.0, least, 8.0]

    monkeypatch.setattr(peaks, "times_ns", times)
    assert peaks.faster_dtype(torch.device("cpu"), "bf16", "fp32") == faster
    assert asked == 3 * [torch.bfloat16, torch.float32]  # in turns
