"""Routers of rows: which tokens go through a sublayer, and how their rows are put back.

In: hidden states. Out: Rows. Shapes: B batch, T tokens, k active tokens of each sequence, L keys, h
hidden. In decode, T = 1, the rows are sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from prunescope.taxonomy.keep import kept_count
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.calibration.requests import Request, current_request
from prunescope.tracer.model.static_step import static_step
from prunescope.tracer.routing.decisions import Sampler, flat_positions, score_weight
from prunescope.tracer.routing.learning import straight_through

# The step of a tracked threshold, as a share of the standard deviation of a prompt's scores.
_GAIN = 0.5


@dataclass(frozen=True)
class Rows:
    """The active rows of a forward.

    `positions` [B, k] are in each sequence, and `flat` are in [B·T], sorted. `mask` [B, 1, k, L] is
    that of the attention; in decode, where the rows are sequences, it is None, or [k, 1, 1, L] in a
    static step. `gate` [B·k, 1] is one in training, where the router's weight gets a gradient
    through it; otherwise it is zero for rows that only fill a sequence up to the k of the longest.
    """

    flat: Tensor
    positions: Tensor
    mask: Tensor | None
    gate: Tensor | None = None

    def gated(self, output: Tensor) -> Tensor:
        """Multiply a sublayer's output for these rows by the gate, if there is one."""
        if self.gate is None:
            return output
        return output * self.gate.view(*output.shape[:-1], 1).to(output.dtype)


class RowRouter(nn.Module):
    """A router that scores every token, [h] → 1, and decides which rows go through.

    Args:
        point: The point with the sparsity, the seed and the knobs.
        sampler: The sampler of the family.
        purpose: The name of this router's random stream, such as "mlp 3".
        like: A tensor [.., h] with the device and dtype of the layer.
    """

    def __init__(self, point: Point, sampler: Sampler, purpose: str, like: Tensor) -> None:
        super().__init__()
        self.sparsity, self.sampler = point.sparsity, sampler.stream_for(point, purpose)
        self.weight = score_weight(1, like.shape[-1], like=like, seed=point.seed, purpose=purpose)
        self.threshold: float | None = None  # the lowest score that passes a fitted router
        self.last: Rows | None = None  # the rows of the current forward
        self.learns = False  # in training: the weight gets a gradient
        # Decide each token of a prompt alone, by the threshold, as in decode.
        self.causal = point.knobs.get("choose") == "threshold"
        # A trained router tracks, for each sequence [B], the lowest score that passes in decode and
        # the step by which it moves, so that the share of active rows is kept in any text.
        self.tracks = False
        self.tracked: tuple[Tensor, Tensor] | None = None
        self._tracked_for: Request | None = None  # a request of one token has no prompt to track

    def forward(
        self, x: Tensor, *, past: int, masked: bool, given: Tensor | None = None
    ) -> Rows | None:
        """Choose the active rows of x [B, T, h]; None if no row goes through.

        `masked` tells whether attention follows. `given` is its mask [1 or B, 1, T, L], and None
        for a causal one.
        """
        self.last = self._choose(x, past=past, masked=masked, given=given)
        return self.last

    def _choose(self, x: Tensor, *, past: int, masked: bool, given: Tensor | None) -> Rows | None:
        """Choose the rows, and build the mask of the attention to which they go."""
        batch, tokens, _ = x.shape
        scores = linear(x.to(self.weight.dtype), self.weight).squeeze(-1)  # [B, T]
        scores = self.sampler.replace(scores)
        if tokens == 1:
            return self._choose_in_decode(scores.view(-1), given)
        positions, gate = self._choose_in_prompt(scores)
        if not positions.shape[1]:
            return None
        flat, mask = flat_positions(positions, tokens), None
        if given is not None:
            every = given.expand(batch, -1, -1, -1)
            mask = every.gather(2, positions[:, None, :, None].expand(-1, -1, -1, given.shape[-1]))
        elif masked:
            keys = torch.arange(past + tokens, device=x.device)
            future = keys > (positions + past).unsqueeze(-1)
            mask = x.new_zeros(future.shape).masked_fill_(future, float("-inf")).unsqueeze(1)
        return Rows(flat.flatten(), positions, mask, gate)

    def _choose_in_prompt(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        """Choose the active positions [B, k] by scores [B, T], ascending, and their gate."""
        if self.causal and self.sparsity and not self.learns:
            return self._choose_by_threshold(scores)
        best = scores.topk(kept_count(scores.shape[1], self.sparsity))
        positions = best.indices.sort().values
        if self.tracks:
            self._track(best.values[:, -1], _GAIN * scores.std(-1))
        if not self.learns:
            return positions, None
        # The gradient is that of the distance from the lowest score that goes through.
        distance = scores - best.values[:, -1:].detach()
        return positions, straight_through(distance.gather(1, positions)).flatten().unsqueeze(-1)

    def _choose_by_threshold(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        """Choose the positions whose score reaches the threshold; of random numbers in [0, 1), s.

        A sequence with fewer of them than the others is filled up with its first other tokens,
        whose gate is zero. Their number depends on the data, so the host waits for the device. A
        static step takes all positions, with a gate of zero for those that do not pass.
        """
        self.tracked = None  # decode goes on with the same threshold
        passes = scores >= (self.sparsity if self.threshold is None else self.threshold)
        if static_step() is not None:
            every = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
            return every, passes.flatten().unsqueeze(-1).float()
        counts = passes.sum(1)
        most = int(counts.max())
        order = passes.to(torch.int8).argsort(dim=1, descending=True, stable=True)
        positions = order[:, :most].sort().values
        if len(scores) == 1 or bool((counts == most).all()):
            return positions, None
        return positions, passes.gather(1, positions).flatten().unsqueeze(-1).float()

    def _choose_in_decode(self, scores: Tensor, given: Tensor | None) -> Rows | None:
        """Choose the active rows of a decode step by scores [B]; `given` is its mask."""
        if static_step() is not None:
            return self._choose_in_static_step(scores, given)
        if self.threshold is not None:
            # The number of rows depends on the data: the host waits for the device.
            flat = self._passes(scores, self.threshold).nonzero().view(-1)
            return Rows(flat, flat.unsqueeze(-1), None) if flat.numel() else None
        count = self.sampler.count_successes(len(scores), 1 - self.sparsity)
        if not count:
            return None
        flat = scores.topk(count).indices.sort().values
        return Rows(flat, flat.unsqueeze(-1), None)

    def _choose_in_static_step(self, scores: Tensor, given: Tensor | None) -> Rows:
        """Choose max(1, int(p·B)) of the B rows, p = 1 − s.

        By a threshold all rows are taken, with a gate of zero for those below it.
        """
        gate = None
        if self.threshold is None:
            count = kept_count(len(scores), self.sparsity)
            flat = scores.topk(count).indices.sort().values
        else:
            flat = torch.arange(len(scores), device=scores.device)
            gate = self._passes(scores, self.threshold).unsqueeze(-1).float()
        if given is not None and len(given) > 1:
            given = given.index_select(0, flat)
        return Rows(flat, flat.unsqueeze(-1), given, gate)

    def _track(self, least: Tensor, gain: Tensor) -> None:
        """Set the thresholds [B] of sequences for decode, and the step by which they move.

        The tensors of a static step keep their addresses, so it writes into those of the step
        before.
        """
        if static_step() is None:
            self.tracked, self._tracked_for = (least, gain), current_request()
        elif self.tracked is None or self.tracked[0].shape != least.shape:
            self.tracked = least.clone(), gain
        else:
            self.tracked[0].copy_(least)
            self.tracked[1].copy_(gain)

    def _passes(self, scores: Tensor, threshold: float) -> Tensor:
        """Return a mask [B] of the rows that go through.

        A tracked threshold rises by g·s with each row that does, and falls by g·(1−s) with each
        that does not. The share over t tokens is then off by at most the threshold's total change /
        (g·t): online quantile tracking (Gibbs and Candès, arXiv 2106.00193).
        """
        is_static = static_step() is not None
        is_current = is_static or self._tracked_for is current_request()
        if self.tracked is None or not is_current or len(self.tracked[0]) != len(scores):
            return scores >= threshold
        least, gain = self.tracked
        passes = scores >= least
        moved = least + gain * (passes.to(gain.dtype) - (1 - self.sparsity))
        if is_static:
            least.copy_(moved)
        else:
            self.tracked = moved, gain
        return passes


class SameRows(nn.Module):
    """The stand-in for a router that takes the rows of an earlier router in the same layer."""

    def __init__(self, router: Any) -> None:
        super().__init__()
        self._router = (
            router,
        )  # the tuple keeps it from being registered: it is a child elsewhere

    @property
    def last(self) -> Rows | None:
        """The rows of the current forward."""
        return self._router[0].last

    def forward(self, _x: Tensor, **_: Any) -> Rows | None:
        """Return the rows of the earlier router."""
        return self.last


def add_rows(residual: Tensor, flat: Tensor, rows: Tensor) -> Tensor:
    """Return the residual stream [B, T, h] with `rows` added at the flat indices."""
    width = residual.shape[-1]
    summed = residual.reshape(-1, width).clone()
    return summed.index_add_(0, flat, rows.reshape(-1, width)).view(residual.shape)


def place_rows(like: Tensor, flat: Tensor, rows: Tensor) -> Tensor:
    """Return zeros of the shape of `like` [B, T, h], with `rows` at the flat indices."""
    width = like.shape[-1]
    zeros = torch.zeros_like(like).view(-1, width)
    return zeros.index_copy_(0, flat, rows.reshape(-1, width)).view(like.shape)
