"""Intervals of means over the tokens of a text, by a bootstrap over blocks of neighbours.

In: a value for each token [n]. Out: [low, high] of 95 %, or None for fewer than two blocks or for
values that are not finite.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_NUM_SAMPLES, _SEED = 2000, 0


@dataclass(frozen=True)
class Blocks:
    """The block of each token [n], and the blocks of each bootstrap sample [samples, blocks]."""

    block_of: torch.Tensor
    sampled: torch.Tensor

    @classmethod
    def of(cls, positions: torch.Tensor, size: int) -> Blocks:
        """Group ascending positions [n] into blocks of `size` neighbouring positions."""
        _, block_of = torch.unique(positions // size, return_inverse=True)
        count = int(block_of.max()) + 1
        generator = torch.Generator().manual_seed(_SEED)
        return cls(block_of, torch.randint(count, (_NUM_SAMPLES, count), generator=generator))

    @property
    def count(self) -> int:
        """The number of blocks."""
        return self.sampled.shape[1]

    def means(self, values: torch.Tensor) -> torch.Tensor:
        """Return the mean over the tokens in the blocks of each bootstrap sample, [samples]."""
        sums = torch.zeros(self.count, dtype=torch.float64)
        sums.index_add_(0, self.block_of, values.double())
        sizes = torch.bincount(self.block_of, minlength=self.count).double()
        return sums[self.sampled].sum(1) / sizes[self.sampled].sum(1)


def mean_ci95(blocks: Blocks, values: torch.Tensor) -> list[float] | None:
    """Return the interval of the mean of `values` [n]."""
    return _interval(blocks, blocks.means(values))


def perplexity_ci95(blocks: Blocks, nats: torch.Tensor) -> list[float] | None:
    """Return the interval of exp(mean of `nats`)."""
    return _interval(blocks, blocks.means(nats).exp())


def relative_ci95(blocks: Blocks, nats: torch.Tensor, dense: torch.Tensor) -> list[float] | None:
    """Return the interval of exp(mean of nats − mean of dense nats) − 1, over the same blocks."""
    return _interval(blocks, blocks.means(nats - dense).expm1())


def _interval(blocks: Blocks, means: torch.Tensor) -> list[float] | None:
    if blocks.count < 2 or not bool(means.isfinite().all()):
        return None
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return [low, high]
