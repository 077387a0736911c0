"""Static vocabulary: lm_head keeps its first rows, the most common tokens of most vocabularies."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from prunescope.taxonomy.keep import kept_count
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.pruners import Applied


def prune(model: PreTrainedModel, point: Point) -> Applied:
    """Keep max(1, int(V·p)) rows."""
    head: Any = model.get_output_embeddings()
    kept = kept_count(head.out_features, point.sparsity)
    narrow = torch.nn.Linear(head.in_features, kept, bias=False, device="meta")
    narrow.weight = torch.nn.Parameter(head.weight[:kept].clone(), requires_grad=False)
    model.config.tie_word_embeddings = False
    model.set_output_embeddings(narrow)
    return Applied(model=model, record={"kept": {"vocabulary": kept}, "notes": []})
