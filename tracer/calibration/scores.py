"""How parts are chosen: by scores of weights, heads and channels, or at random from a seed.

In: weights [N, K] and the mean squares [K] of their inputs, or a seed. Out: float32 scores (parts
with larger scores are kept) and indices. K is the number of input features, N that of output
features.
"""

from __future__ import annotations

import random

import torch


def weight_scores(weight: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """Return |w|·‖x‖ for every weight [N, K] (Wanda, arXiv 2306.11695).

    Args:
        weight: The weight [N, K].
        squares: The mean x² of each input feature [K].
    """
    return weight.float().abs() * squares.to(weight.device).sqrt()


def input_scores(weight: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """Return the mean square that each input feature adds to the output: ‖W[:, k]‖²·E[x_k²].

    Args:
        weight: The weight [N, K].
        squares: The mean x² of each input feature [K].

    Returns:
        The scores [K].
    """
    return weight.float().square().sum(0) * squares.to(weight.device)


def best(scores: torch.Tensor, count: int) -> list[int]:
    """Return the indices of the `count` largest scores, ascending."""
    return sorted(scores.topk(count).indices.tolist())


def random_scores(shape: torch.Size, *, seed: int, what: str) -> torch.Tensor:
    """Return uniform scores in [0, 1), which are the same on every machine for a seed and a name.

    Args:
        shape: The shape of the scores.
        seed: The seed of the pruning.
        what: The name of the part to score. Different names give independent scores.
    """
    return torch.rand(shape, generator=seeded(seed, what))


def seeded(seed: int, what: str) -> torch.Generator:
    """Return a CPU generator for a seed and a name. Different names give independent numbers."""
    return torch.Generator().manual_seed(random.Random(f"{seed}:{what}").getrandbits(62))


def sample_indices(total: int, count: int, *, seed: int, what: str) -> list[int]:
    """Sample `count` indices below `total`, ascending. They are the same on every machine.

    Args:
        total: The number of indices to choose from.
        count: The number of indices to choose.
        seed: The seed of the pruning.
        what: The name of the part to sample. Different names give independent samples.
    """
    return sorted(random.Random(f"{seed}:{what}").sample(range(total), count))
