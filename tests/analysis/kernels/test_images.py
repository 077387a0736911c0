"""How many images a step of a trace is given, by the convolution that reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from tests.chrome import chrome, k, op, save, step


def conv(batch: int, colours: int) -> Any:
    shapes = [batch, colours, 224, 224], [64, colours, 16, 16]
    return op("aten::cudnn_convolution", *shapes, kernels=[k(us=90, name="implicit_gemm")])


LINEAR = op("aten::mm", [788, 64], [64, 64], kernels=[k(us=10, name="gemm")])
TOKENS = op("aten::embedding", [1000, 64], [4, 12], kernels=[k(us=1, name="indexSelect")])


@pytest.mark.parametrize(
    ("items", "images"),
    [
        ([conv(4, 3), LINEAR], 4),
        ([conv(4, 3), LINEAR] * 2, 8),  # in two calls
        ([conv(4, 4), LINEAR], None),  # latents
        ([LINEAR], None),
        ([conv(4, 3), TOKENS, LINEAR], None),  # images and tokens
    ],
)
def test_images_a_second(items: list[Any], images: int | None, tmp_path: Path) -> None:
    path = save(chrome(step(0, *items), step(1, *items)), tmp_path / "t.json")
    (phase,) = analyze(path).report.phases.values()
    assert phase.tokens_per_s is None
    wanted = None if images is None else pytest.approx(images * 1e9 / phase.wall_ns)
    assert phase.items_per_s == wanted
