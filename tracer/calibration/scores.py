"""Scores of weights, heads and channels from activations: the larger, the sooner kept.

In: weights [N, K] and Statistics. Out: float32 tensors. K is input, N output features.
"""

from __future__ import annotations

import random

import torch


def weight_scores(weight: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """|w|·‖x‖ of every weight [N, K], with squares [K] the mean x² (Wanda, arXiv 2306.11695)."""
    return weight.float().abs() * squares.to(weight.device).sqrt()


def input_scores(weight: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """[K]: the mean square that each input feature adds to the output, ‖W[:, k]‖²·E[x_k²]."""
    return weight.float().square().sum(0) * squares.to(weight.device)


def random_scores(shape: torch.Size, *, seed: int, what: str) -> torch.Tensor:
    """Uniform scores in [0, 1), the same on every machine for a seed and a `what`."""
    return torch.rand(shape, generator=seeded(seed, what))


def seeded(seed: int, what: str) -> torch.Generator:
    """A CPU generator of its own for each seed and each thing that is drawn."""
    return torch.Generator().manual_seed(random.Random(f"{seed}:{what}").getrandbits(62))


def best(scores: torch.Tensor, count: int) -> list[int]:
    """The indices of the `count` largest scores, in ascending order."""
    return sorted(scores.topk(count).indices.tolist())
