"""Static NK, attention alone: KV-head groups with their query heads, and columns of o, are cut."""

from __future__ import annotations

from transformers import PreTrainedModel

from prunescope.tracer.calibration.point import Point
from prunescope.tracer.pruners import Applied
from prunescope.tracer.pruners.static_nk import prune_width


def prune(model: PreTrainedModel, point: Point) -> Applied:
    """Keep max(1, round(n_kv·p)) KV groups of each layer, p = 1 − s."""
    return prune_width(model, point, heads=True, mlp=False)
