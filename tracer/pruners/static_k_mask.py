"""Unstructured zeros: weights are masked in dense tensors, so that no work is removed.

Every linear of the decoder layers is masked; embeddings and lm_head stay as they are. A point by
importance ranks by |w|·‖x‖ within each row (Wanda) instead of `--set score=`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.keep import floor_of
from prunescope.taxonomy.runs.run_blocks import Record
from prunescope.tracer.calibration.collect import input_squares
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.calibration.scores import random_scores, weight_scores
from prunescope.tracer.model.layers import decoder_layers
from prunescope.tracer.model.weights import weight_of
from prunescope.tracer.pruners import Applied


def prune(model: PreTrainedModel, point: Point) -> Applied:
    """Set int(s·K) weights of every row, or the share s of every matrix, to zero."""
    score = "wanda" if point.uses_importance else str(point.knobs["score"])
    if point.uses_importance and point.knobs["score"] == "random":
        raise PrunescopeError(
            "score=random contradicts --select importance",
            hint="remove one: by importance, a mask ranks weights by |w|·‖x‖",
        )
    name, layers = decoder_layers(model)
    linears = {
        path: module
        for path, module in layers.named_modules(prefix=name)
        if isinstance(module, nn.Linear | Conv1D)
    }
    if not linears:
        raise PrunescopeError(
            f"no linear modules were found in the layers of {type(model).__name__}",
            hint="this family masks the weights of nn.Linear and Conv1D modules",
        )
    record: Record = {"score": score, "matrices": len(linears)}
    squares = input_squares(model, point, names=linears.keys(), record=record)
    zeros = total = 0
    for path, module in linears.items():
        weight = weight_of(module)
        mask = _mask(weight, point, score, path, squares.get(path))
        weight.masked_fill_(mask, 0)
        zeros, total = zeros + int(mask.sum()), total + mask.numel()
    record["zeros"] = zeros / total
    return Applied(model=model, record=record)


def _mask(weight: Tensor, point: Point, score: str, path: str, squares: Tensor | None) -> Tensor:
    """Mark the weights of [N, K] that become zero."""
    if score == "random":
        scores = random_scores(weight.shape, seed=point.seed, what=path)
        return (scores < point.sparsity).to(weight.device)
    count = floor_of(weight.shape[1] * point.sparsity)
    # A linear without any input (an expert never chosen) is ranked by its weights alone.
    scores = weight.abs() if squares is None else weight_scores(weight, squares)
    smallest = scores.topk(count, dim=1, largest=False).indices
    return torch.zeros_like(weight, dtype=torch.bool).scatter_(1, smallest, value=True)
