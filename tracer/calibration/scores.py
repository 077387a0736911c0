"""How parts are chosen: scores of weights, heads and channels, or random choices from a seed.

In: weights [N, K] and mean squares [K] of their inputs, or a seed. Out: float32 scores (the larger,
the sooner kept) and indices. K is input features, N output features.
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


def best(scores: torch.Tensor, count: int) -> list[int]:
    """The indices of the `count` largest scores, ascending."""
    return sorted(scores.topk(count).indices.tolist())


def random_scores(shape: torch.Size, *, seed: int, what: str) -> torch.Tensor:
    """Uniform scores in [0, 1), the same on every machine for a seed and a name `what`."""
    return torch.rand(shape, generator=seeded(seed, what))


def seeded(seed: int, what: str) -> torch.Generator:
    """A CPU generator for a seed and a name `what`; other names give independent numbers."""
    return torch.Generator().manual_seed(random.Random(f"{seed}:{what}").getrandbits(62))


def sample_indices(total: int, count: int, *, seed: int, what: str) -> list[int]:
    """`count` of range(total), ascending: the same on every machine for a seed and a `what`."""
    return sorted(random.Random(f"{seed}:{what}").sample(range(total), count))
