"""Unstructured zeros: the weights are masked and stay dense, so that nothing is removed.

Every linear of the decoder layers; embeddings and lm_head stay as they are.
"""

from __future__ import annotations

import random

import torch
from torch import nn
from transformers import PreTrainedModel

from taxonomy.keep import floor_of
from tracer.layers import decoder_layers
from tracer.pruners import Applied, Point


def prune(model: PreTrainedModel, point: Point) -> Applied:
    """Set int(s·K) weights of every row, or the share s of every matrix, to zero."""
    score = str(point.knobs["score"])
    name, layers = decoder_layers(model)
    zeros: dict[str, int] = {}
    for path, module in layers.named_modules(prefix=name):
        if isinstance(module, nn.Linear):
            mask = _mask(module.weight.detach(), point, score, path)
            module.weight.data.masked_fill_(mask, 0)
            zeros[path] = int(mask.sum())
    share = sum(zeros.values()) / sum(model.get_submodule(p).weight.numel() for p in zeros)
    return Applied(model=model, record={"score": score, "zeros": share, "matrices": len(zeros)})


def _mask(weight: torch.Tensor, point: Point, score: str, path: str) -> torch.Tensor:
    """True where a weight of [N, K] goes."""
    if score == "random":
        number = random.Random(f"{point.seed}:{path}").getrandbits(62)
        generator = torch.Generator().manual_seed(number)
        drawn = torch.rand(weight.shape, generator=generator)
        return (drawn < point.sparsity).to(weight.device)
    count = floor_of(weight.shape[1] * point.sparsity)
    smallest = weight.abs().topk(count, dim=1, largest=False).indices
    return torch.zeros_like(weight, dtype=torch.bool).scatter_(1, smallest, value=True)
