"""The parts of all routers: random decisions, the rows that they keep, and counts of what ran.

A router, its top-k, index building, gather and scatter always run at their real sizes. A random
decision replaces the scores alone, by one addition. Shapes: B batch, T tokens, h hidden.
"""

from __future__ import annotations

import copy
import functools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import family
from prunescope.taxonomy.runs.run_blocks import ModuleCounts
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.calibration.requests import Request, current_request
from prunescope.tracer.calibration.scores import seeded
from prunescope.tracer.model.static_step import StaticStep, static_step

_TABLE = 1 << 16


def refuse_calibration(point: Point, family_id: str) -> None:
    """Check that the family can select by importance, if the point asks for it.

    Raises:
        PrunescopeError: The family can only choose its parts at random.
    """
    if point.uses_importance and family(family_id).calibration is None:
        raise PrunescopeError(
            f"{family_id} cannot select by importance: its routers are not trained",
            hint="use --select random; the routers still run at their full size",
        )


class Sampler:
    """A source of random decisions from a seed, the same on every machine.

    Counts are sampled on the host. Scores are views of one table of random numbers, which all
    streams share, so that sampling launches no kernel. While a request is scored, decisions follow
    from its tokens (`calibration.requests`).

    Args:
        point: The point whose seed and selection count.
        purpose: What the decisions are for. Each purpose has a stream of its own.
        shared: Another sampler, whose table is used; None makes a table.
    """

    def __init__(self, point: Point, purpose: str, shared: Sampler | None = None) -> None:
        self.seed, self.is_random = point.seed, point.select == "random"
        self._name = f"{point.seed}:{purpose}"
        self._stream = self._request_stream = random.Random(self._name)
        self._request: Request | None = None
        self._root: Sampler = shared._root if shared is not None else self
        self._table: Tensor | None = None
        # In a static step each sampler has random numbers of its own, by number.
        self._count = 0
        self._root._count += 1
        self.number = self._root._count
        self._leader: Sampler | None = None

    @property
    def stream(self) -> random.Random:
        """The stream of the request being scored, from its start.

        Outside of scoring it is one stream that goes on from forward to forward.
        """
        if self._leader is not None:
            return self._leader.stream
        request = current_request()
        if request is None:
            return self._stream
        if request is not self._request:
            self._request = request
            self._request_stream = random.Random(f"{self._name}:{request.name}")
        return self._request_stream

    def stream_for(self, point: Point, purpose: str) -> Sampler:
        """Make a sampler with an independent stream over the same table."""
        return Sampler(point, purpose, self)

    def share_stream(self) -> Sampler:
        """Make a sampler that takes turns with this one: both continue the same stream."""
        partner = copy.copy(self)
        self._root._count += 1
        partner.number, partner._leader = self._root._count, self
        return partner

    def replace(self, scores: Tensor) -> Tensor:
        """Return uniform numbers in place of `scores`, or `scores` if parts are not random."""
        if not self.is_random:
            return scores
        step = static_step()
        numbers = self._sample_now(scores) if step is None else self._sampled_before(step, scores)
        return torch.add(numbers, scores, alpha=0)

    def _sample_now(self, like: Tensor) -> Tensor:
        """Return random numbers of the shape of `like`, from the host's stream."""
        count = like.numel()
        table = self._root._uniform(count, like.device)
        # The range is never a power of two, for which the stream would use another number of bits.
        start = self.stream.randrange(table.numel() - max(1, count))
        return table[start : start + count].view(like.shape)

    def _sampled_before(self, step: StaticStep, like: Tensor) -> Tensor:
        """Return the random numbers of a static step, which were sampled before it."""
        # A prompt of another length, which no graph holds, needs numbers of its own.
        if self.number not in step.random_numbers or step.held(self.number).shape != like.shape:
            step.hold(self.number, functools.partial(self._sample_now, torch.empty_like(like)))
        return step.held(self.number)

    def count_successes(self, trials: int, share: float) -> int:
        """Return how many of `trials` succeed, each with probability `share`."""
        return sum(self.stream.random() < share for _ in range(trials))

    def _uniform(self, count: int, device: torch.device) -> Tensor:
        """Return the table of random numbers, at least twice as long as `count`."""
        table = self._table
        if table is None or table.numel() < 2 * count or table.device != device:
            size = max(_TABLE, 1 << math.ceil(math.log2(2 * count + 1)))
            generator = torch.Generator().manual_seed(self.seed % 2**63)
            # Every model gets fp32: half precision has too few numbers, and ties are not random.
            table = self._table = torch.rand(size, generator=generator).to(device)
        return table


@dataclass
class Tally:
    """The counts of one module: a pair for each forward since `take`."""

    unit: str
    active: list[int | Tensor] = field(default_factory=list)
    total: list[int] = field(default_factory=list)

    def add(self, active: int | Tensor, total: int) -> None:
        """Count one forward.

        A compiled forward counts nothing, since it does what its eager form does.
        """
        if torch.compiler.is_compiling():
            return
        self.active.append(active)
        self.total.append(total)

    def take(self) -> ModuleCounts:
        """Return the counts so far, and restart them; see `tracer.pruners.Counting`."""
        active = [int(count) for count in self.active]
        taken = ModuleCounts(unit=self.unit, active=active, total=self.total)
        self.active, self.total = [], []
        return taken


class Counted:
    """A module that counts what it did in a Tally; see `tracer.pruners.Counting`."""

    tally: Tally

    def prunescope_stats(self) -> ModuleCounts:
        """Return the counts since the last call."""
        return self.tally.take()


def score_weight(
    outputs: int, inputs: int, *, like: Tensor, seed: int, purpose: str
) -> nn.Parameter:
    """Make a random router weight [outputs, inputs] from the seed."""
    weight = torch.randn(outputs, inputs, generator=seeded(seed, purpose)) / math.sqrt(inputs)
    return nn.Parameter(weight.to(like.device, like.dtype))


def flat_positions(positions: Tensor, length: int) -> Tensor:
    """Turn positions [B, k] in sequences of `length` into positions among all B·length tokens."""
    batch = positions.shape[0]
    if batch == 1:
        return positions
    first = torch.arange(0, batch * length, length, device=positions.device)
    return positions + first.unsqueeze(-1)


def flat_key_rows(index: Tensor, length: int) -> Tensor:
    """Turn positions [B, n, m] in sequences of `length` into rows of [B·n·length, d], flat."""
    batch, heads = index.shape[:2]
    first = torch.arange(0, batch * heads * length, length, device=index.device)
    return (index + first.view(batch, heads, 1)).flatten()


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Return the rows of x [B, n, L, d] that `flat_key_rows` numbered, as [B, n, m, d]."""
    batch, heads, _, width = x.shape
    return x.reshape(-1, width).index_select(0, rows).view(batch, heads, -1, width)


def with_first(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a module's output with its tensor changed: the first of a tuple, or all of it."""
    if isinstance(output, tuple):
        return (change(output[0]), *output[1:])
    return change(output)
