"""Routers of rows: which tokens go through a sublayer, and their way out of the others and back.

In: hidden states. Out: Rows. Shapes: B batch, T tokens, k active tokens of each sequence, L keys, h
hidden. In decode, T = 1, the rows are sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from prunescope.taxonomy.keep import kept_count
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.routing.routing import Draws, flat_places, score_weight


@dataclass(frozen=True)
class Rows:
    """The active rows of a forward. `places`: in each sequence, [B, k]; `flat`: in [B·T], sorted.
    `mask`: additive [B, 1, k, L], None in decode, where the rows are sequences."""

    flat: torch.Tensor
    places: torch.Tensor
    mask: torch.Tensor | None


class RowRouter(nn.Module):
    """Scores [h] → 1 for every token, and the rows that go through."""

    def __init__(self, point: Point, draws: Draws, what: str, like: torch.Tensor) -> None:
        super().__init__()
        self.sparsity, self.draws = point.sparsity, draws.own(point, what)
        self.weight = score_weight(1, like.shape[-1], like=like, seed=point.seed, what=what)
        self.threshold: float | None = None  # of a fitted router: the score that a row needs
        self.last: Rows | None = None  # the rows of the forward at hand

    def forward(
        self,
        x: torch.Tensor,
        *,
        past: int,
        masked: bool,
        given: torch.Tensor | None = None,
    ) -> Rows | None:
        """[B, T, h] to Rows; None where no row goes through. `masked`: attention follows; `given`:
        its mask [1 or B, 1, T, L], None for a causal one."""
        self.last = self._rows(x, past=past, masked=masked, given=given)
        return self.last

    def _rows(
        self, x: torch.Tensor, *, past: int, masked: bool, given: torch.Tensor | None
    ) -> Rows | None:
        batch, tokens, _ = x.shape
        scores = self.draws.instead_of(linear(x, self.weight).squeeze(-1))  # [B, T]
        if tokens == 1:
            flat = self._of_step(scores.view(-1))
            return None if flat is None else Rows(flat, flat.unsqueeze(-1), None)
        count = kept_count(tokens, self.sparsity)
        places = scores.topk(count).indices.sort().values
        flat, mask = flat_places(places, tokens), None
        if given is not None:
            every = given.expand(batch, -1, -1, -1)
            mask = every.gather(2, places[:, None, :, None].expand(-1, -1, -1, given.shape[-1]))
        elif masked:
            mask = self._mask(places, past, tokens, x)
        return Rows(flat.flatten(), places, mask)

    def _of_step(self, scores: torch.Tensor) -> torch.Tensor | None:
        """Of the scores [B] of a decode step the rows that go through, None for none."""
        if self.threshold is not None:
            # Their number depends on the data: the host waits for the device.
            flat = (scores >= self.threshold).nonzero().view(-1)
            return flat if flat.numel() else None
        count = self.draws.successes(len(scores), 1 - self.sparsity)
        return scores.topk(count).indices.sort().values if count else None

    def _mask(self, places: torch.Tensor, past: int, tokens: int, x: torch.Tensor) -> torch.Tensor:
        keys = torch.arange(past + tokens, device=x.device)
        future = keys > (places + past).unsqueeze(-1)
        return x.new_zeros(future.shape).masked_fill_(future, float("-inf")).unsqueeze(1)


class SameRows(nn.Module):
    """In the place of a router: the rows that one before it in the layer has taken."""

    def __init__(self, router: Any) -> None:
        super().__init__()
        self.of = (router,)  # a child of one module alone

    @property
    def last(self) -> Rows | None:
        """The rows of the forward at hand."""
        return self.of[0].last

    def forward(self, _x: torch.Tensor, **_: Any) -> Rows | None:
        """[B, T, h] to Rows."""
        return self.last


def scattered(residual: torch.Tensor, flat: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The residual stream [B, T, h] with `rows` added at the flat indices."""
    width = residual.shape[-1]
    summed = residual.reshape(-1, width).clone()
    return summed.index_add_(0, flat, rows.reshape(-1, width)).view(residual.shape)


def spread(like: torch.Tensor, flat: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Zeros of the shape of `like` [B, T, h], with `rows` at the flat indices."""
    width = like.shape[-1]
    zeros = torch.zeros_like(like).view(-1, width)
    return zeros.index_copy_(0, flat, rows.reshape(-1, width)).view(like.shape)
