"""Layers of a static cache that hold fewer keys than there were tokens, or know more of them.

In: the keys of a prompt, then one token after the other. Out: all places of the layer, and which of
them hold a key that queries see. All decisions are tensors: no length is read back from the device.
Shapes: B batch, n cached heads, L places, d head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import StaticLayer

from prunescope.tracer.attention.blocks import budget


class _Evicting(StaticLayer):
    """A layer that holds at most `budgets[t]` keys after t tokens."""

    is_croppable = False  # evicted keys cannot be restored

    def __init__(self, budgets: Sequence[int]) -> None:
        super().__init__(max(budgets))
        self._budgets = torch.tensor(budgets)
        self._count = torch.tensor(0)  # the keys that were added (queue) or are held (mass)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the tensors, on the device of the keys."""
        super().lazy_initialization(key_states, value_states)
        self._budgets = self._budgets.to(self.device)
        self._count = self._count.to(self.device)

    def _fill(self, k: Tensor, v: Tensor, tokens: int) -> None:
        """Store the keys and values that stay of a prompt of `tokens`."""
        if not self.is_initialized:
            self.lazy_initialization(k, v)
        self.keys[:, :, : k.shape[2]].copy_(k)
        self.values[:, :, : k.shape[2]].copy_(v)
        self._count.fill_(k.shape[2])
        self.cumulative_length.fill_(tokens)

    def _budget(self, ahead: int = 0) -> Tensor:
        """Return the budget [1] after the tokens so far, or after `ahead` more."""
        return self._budgets.index_select(0, (self.cumulative_length + ahead).view(1))


class QueueLayer(_Evicting):
    """A queue of keys, whose oldest leaves first; the first `pinned` keys stay."""

    pinned = 0

    def fill(self, k: Tensor, v: Tensor, *, tokens: int, pinned: int) -> None:
        """Store the keys and values [B, n, k, d] that stay of a prompt of `tokens`.

        The pinned ones come first, and the others follow in the order in which they leave.
        """
        self.pinned = pinned
        self._fill(k, v, tokens)

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Put one token in the place of the oldest, and return all places [B, n, L, d]."""
        room = self.max_cache_len - self.pinned
        place = ((self._count - self.pinned) % room + self.pinned).view(1)
        self.keys.index_copy_(2, place, key_states)
        self.values.index_copy_(2, place, value_states)
        self._count.add_(1)
        self.cumulative_length.add_(1)
        return self.keys, self.values

    def seen(self) -> Tensor:
        """Return a mask [1, 1, L] of the places that a query sees: the pinned and newest ones."""
        places = torch.arange(self.max_cache_len, device=self.device)
        age = (self._count - 1 - places) % (self.max_cache_len - self.pinned)
        return ((places < self.pinned) | (age < self._budget() - self.pinned)).view(1, 1, -1)


class MassLayer(_Evicting):
    """A layer in which the key leaves that got the least attention so far.

    `budgets` go one token further than the tokens, since each step makes room for the next.
    """

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the tensors, on the device of the keys."""
        super().lazy_initialization(key_states, value_states)
        shape = self.keys.shape[:3]
        self.mass = torch.zeros(shape, device=self.device)
        self.order = torch.full(
            shape, -1, device=self.device
        )  # the position of each key; -1 is an empty place

    def fill(self, k: Tensor, v: Tensor, mass: Tensor, *, tokens: int) -> None:
        """Store the keys and values [B, n, k, d] that stay of a prompt of `tokens`, in their order.

        `mass` [B, n, k] is the attention that they got.
        """
        self._fill(k, v, tokens)
        count = k.shape[2]
        self.mass.zero_()
        self.mass[..., :count].copy_(mass)
        self.order.fill_(-1)
        self.order[..., :count].copy_(torch.arange(count, device=self.device).expand_as(mass))

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Put one token in an empty place of each head, and return all places [B, n, L, d]."""
        place = self.order.argmin(-1, keepdim=True)
        self.order.scatter_(2, place, self.cumulative_length.expand_as(place))
        self.mass.scatter_(2, place, 0.0)
        for held, new in ((self.keys, key_states), (self.values, value_states)):
            held.scatter_(2, place.unsqueeze(-1).expand_as(new), new)
        self._count.add_(1)
        self.cumulative_length.add_(1)
        return self.keys, self.values

    def seen(self) -> Tensor:
        """Return a mask [B, n, L] of the places that hold a key."""
        return self.order >= 0

    def evict(self, scores: Tensor) -> None:
        """Empty the place with the lowest of `scores` [B, n, L], if the budget requires it.

        The newest half of the keys stay.
        """
        stay = self._budget(ahead=1) - 1
        # Empty places come first in the order.
        rank = self.order.argsort(-1).argsort(-1) - (self.max_cache_len - self._count)
        kept = (rank < 0) | (rank >= self._count - stay // 2)
        lowest = scores.masked_fill(kept, float("inf")).argmin(-1, keepdim=True)
        over = self._count > stay
        self.order.scatter_(2, lowest, torch.where(over, -1, self.order.gather(2, lowest)))
        self._count.sub_(over.view(()).to(self._count.dtype))


class GatedLayer(StaticLayer):
    """A layer that holds a key of every token, and hides those of tokens that skipped the layer."""

    def show(self, num: int, *, ran: Tensor) -> Tensor:
        """Decide whether the next `num` tokens will be seen; return a mask [L] of the seen places.

        `ran` is 1 if the layer runs for them, else 0. The call comes before the tokens are added.
        """
        device = ran.device
        if not hasattr(self, "shown"):
            self.shown = torch.zeros(self.max_cache_len, dtype=torch.bool, device=device)
        places = torch.arange(num, device=device) + self.cumulative_length.to(device)
        self.shown.index_copy_(0, places, (ran > 0).view(1).expand(num))
        return self.shown


class BlockLayer(StaticLayer):
    """A layer that holds every key, and the sums of the keys in each block of `block` tokens."""

    block = 0
    most = 0  # the largest number of earlier blocks that a token attends to

    def fill_sums(self, keys: Tensor, block: int, sparsity: float) -> None:
        """Add up the expanded keys [B, n, S, d] of a prompt, block by block."""
        self.block = block
        if not hasattr(self, "sums"):
            number = -(-self.max_cache_len // block)
            shape = (*keys.shape[:2], number, keys.shape[3])
            self.sums = torch.zeros(shape, device=keys.device)
            counts = [budget(i, sparsity) - 1 for i in range(number)]
            self.most, self._counts = max(counts), torch.tensor(counts, device=keys.device)
        whole = self.sums.shape[2] * block
        padded = pad(keys.float(), (0, 0, 0, whole - keys.shape[2]))
        self.sums.copy_(padded.unflatten(2, (-1, block)).sum(3))

    def add_newest(self, keys: Tensor) -> Tensor:
        """Add up the block of the newest token, of all expanded keys, and return its number [1].

        The keys are [B, n, L, d]. A block that was cropped is thereby added up again.
        """
        newest = (self.cumulative_length - 1).view(1)
        own = newest // self.block
        places = own * self.block + torch.arange(self.block, device=keys.device)
        of_block = keys.index_select(2, places.clamp(max=keys.shape[2] - 1)).float()
        of_block = of_block * (places <= newest).view(1, 1, -1, 1)
        self.sums.index_copy_(2, own, of_block.sum(2, keepdim=True))
        return own

    def means(self) -> Tensor:
        """Return the mean key of each block, [B, n, blocks, d]."""
        return self.sums / self.block

    def complete(self) -> Tensor:
        """Return a mask [blocks] of the complete blocks."""
        places = torch.arange(self.sums.shape[2], device=self.sums.device)
        return places < self.cumulative_length // self.block

    def num_earlier(self, own: Tensor) -> Tensor:
        """Return how many earlier blocks a token in block `own` [1] attends to, [1]."""
        return self._counts.index_select(0, own)
