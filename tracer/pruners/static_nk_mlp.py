"""Static NK, MLP alone: channels of gate and up (N) and of down (K) are cut."""

from __future__ import annotations

from transformers import PreTrainedModel

from prunescope.tracer.calibration.point import Point
from prunescope.tracer.pruners import Applied
from prunescope.tracer.pruners.static_nk import prune_width


def prune(model: PreTrainedModel, point: Point) -> Applied:
    """Keep int(f·p) of the f channels of each layer, aligned, p = 1 − s."""
    return prune_width(model, point, heads=False, mlp=True)
