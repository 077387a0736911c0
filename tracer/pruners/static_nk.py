"""Static NK: KV-head groups and MLP channels are cut: N of one GEMM, K of the next."""

from __future__ import annotations

from transformers import PreTrainedModel

from prunescope.tracer.calibration.point import Point
from prunescope.tracer.pruners import Applied
from prunescope.tracer.pruners.width import prune_width


def prune(model: PreTrainedModel, point: Point) -> Applied:
    """max(1, round(n_kv·p)) KV groups and up16(int(f·p)) channels a layer."""
    return prune_width(model, point, heads=True, mlp=True)
