"""Convolutions that moved: along which axes, how many went, and what is then not said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.comparison.convolutions import Convolution
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Phase
from tests.chrome import chrome, k, op, save, step

IMAGE = (2, 64, 8, 8)


@pytest.mark.parametrize(
    ("dense", "pruned", "axis"),
    [
        ((IMAGE, (128, 64, 1, 1)), (IMAGE, (128, 64, 1, 1)), "none"),
        ((IMAGE, (128, 64, 1, 1)), (IMAGE, (96, 64, 1, 1)), "channels out"),
        ((IMAGE, (128, 64, 1, 1)), ((2, 48, 8, 8), (128, 48, 1, 1)), "channels in"),
        # One filter for each of 64 channels, then of 48: no other grouping.
        ((IMAGE, (64, 1, 3, 3)), ((2, 48, 8, 8), (48, 1, 3, 3)), "channels in and channels out"),
        ((IMAGE, (64, 32, 3, 3)), (IMAGE, (64, 16, 3, 3)), "groups"),
        ((IMAGE, (64, 64, 3, 3)), (IMAGE, (64, 64, 1, 1)), "kernel"),
        ((IMAGE, (64, 64, 3, 3)), ((4, 64, 8, 8), (64, 64, 3, 3)), "batch"),
    ],
)
def test_the_axis_of_a_convolution(dense: Any, pruned: Any, axis: str) -> None:
    assert Convolution(dense, pruned).axis == axis


def network(*widths: int) -> Any:
    """Return five equal steps of 1×1 convolutions of 8×8 pixels, and a head."""
    ops = []
    for channels, filters in zip((64, *widths[:-1]), widths, strict=True):
        image, weight = [2, channels, 8, 8], [filters, channels, 1, 1]
        shapes = {"concrete": ["", "", "", "[0, 0]", "[1, 1]", "[1, 1]", "1"]}
        ops.append(op("aten::mkldnn_convolution", image, weight, kernels=[k(us=20)], **shapes))
    head = op("aten::mm", [2, 16], [16, 10], kernels=[k(us=10)])
    return chrome(*(step(i, *ops, head) for i in range(5)))


def compared(tmp_path: Path, dense: Any, pruned: Any) -> Phase:
    one, two = save(dense, tmp_path / "d.json"), save(pruned, tmp_path / "p.json")
    [phase] = analyze(two, baseline=one).report.phases.values()
    return phase


def test_halved_channels_are_no_unmoved_shape(tmp_path: Path) -> None:
    """64 → 128 → 128 → 64 against 64 → 64 → 64 → 64: the second moves in both of its axes."""
    phase = compared(tmp_path, network(128, 128, 64), network(64, 64, 64))
    assert {moved.axis: (moved.count, moved.of) for moved in phase.moved} == {
        "channels out": (1, 3), "channels in and channels out": (1, 3), "channels in": (1, 3),
    }  # fmt: skip
    assert "3 of 3 convolutions have other shapes" in phase.summary
    assert not phase.nothing_moved
    assert "no gain is to be expected" not in phase.summary


def test_convolutions_that_went_are_counted_and_the_others_pair(tmp_path: Path) -> None:
    """Two of five are gone; the other three are as they were."""
    phase = compared(tmp_path, network(128, 64, 64, 96, 64), network(64, 96, 64))
    assert [(moved.axis, moved.count, moved.of) for moved in phase.moved] == [("gone", 2, 5)]
    assert "2 of 5 convolutions are gone" in phase.summary
    assert "no gain is to be expected" not in phase.summary
