"""What the routers of dynamic families share: drawn decisions, kept rows and blocks, and counts.

A router, its top-k, index building, gather and scatter always run at their own sizes; a drawn
decision replaces the scores alone, by one addition. Shapes: B batch, T tokens, h hidden.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import torch
from torch import nn

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import family
from prunescope.taxonomy.run_blocks import ModuleCounts
from prunescope.tracer.calibration.point import Point

_TABLE = 1 << 16


def refuse_calibration(point: Point, family_id: str) -> None:
    """Raises PrunescopeError where the family's parts can be drawn alone."""
    if point.by_importance and family(family_id).calibration is None:
        raise PrunescopeError(
            f"{family_id} cannot be chosen by importance: its routers are not trained",
            hint="use --select random; the routers run at their full size all the same",
        )


class Draws:
    """Random decisions from a seed: counts on the host, and scores read as views of one table, so
    that a draw costs no kernel. The same on every machine; `own` streams share the table."""

    def __init__(self, point: Point, what: str, shared: Draws | None = None) -> None:
        self.seed, self.is_random = point.seed, point.select == "random"
        self.stream = random.Random(f"{point.seed}:{what}")
        self._root: Draws = shared._root if shared is not None else self
        self._table: torch.Tensor | None = None

    def own(self, point: Point, what: str) -> Draws:
        """A stream of its own over the same table."""
        return Draws(point, what, self)

    def instead_of(self, scores: torch.Tensor) -> torch.Tensor:
        """Uniform numbers in place of `scores`; `scores` themselves where nothing is drawn."""
        if not self.is_random:
            return scores
        count = scores.numel()
        table = self._root._uniform(count, scores.device)
        # Never the whole table: a power of two takes another number of bits from the stream.
        start = self.stream.randrange(table.numel() - max(1, count))
        return torch.add(table[start : start + count].view(scores.shape), scores, alpha=0)

    def successes(self, trials: int, share: float) -> int:
        """How many of `trials` happen, each with probability `share`."""
        return sum(self.stream.random() < share for _ in range(trials))

    def _uniform(self, count: int, device: torch.device) -> torch.Tensor:
        table = self._table
        if table is None or table.numel() < 2 * count or table.device != device:
            size = max(_TABLE, 1 << math.ceil(math.log2(2 * count + 1)))
            generator = torch.Generator().manual_seed(self.seed % 2**63)
            # fp32 whatever the model: half precision has too few numbers, and ties are no draw.
            table = self._table = torch.rand(size, generator=generator).to(device)
        return table


@dataclass
class Tally:
    """Counts of one module: a pair for every forward since they were last taken."""

    unit: str
    active: list[int] = field(default_factory=list)
    total: list[int] = field(default_factory=list)

    def add(self, active: int, total: int) -> None:
        """One forward."""
        self.active.append(active)
        self.total.append(total)

    def take(self) -> ModuleCounts:
        """As `tracer.pruners.Counting` says, and start anew."""
        taken = ModuleCounts(unit=self.unit, active=self.active, total=self.total)
        self.active, self.total = [], []
        return taken


class Counted:
    """A module that counts in a Tally what it did, see `tracer.pruners.Counting`."""

    tally: Tally

    def prunescope_stats(self) -> ModuleCounts:
        """The counts since they were last taken."""
        return self.tally.take()


def score_weight(
    outputs: int, inputs: int, *, like: torch.Tensor, seed: int, what: str
) -> nn.Parameter:
    """A router's weight [outputs, inputs] drawn from the seed: any decision needs some."""
    generator = torch.Generator().manual_seed(random.Random(f"{seed}:{what}").getrandbits(62))
    weight = torch.randn(outputs, inputs, generator=generator) / math.sqrt(inputs)
    return nn.Parameter(weight.to(like.device, like.dtype))


def flat_places(places: torch.Tensor, length: int) -> torch.Tensor:
    """Places [B, k] in sequences of `length` as places among all B·length tokens, [B, k]."""
    batch = places.shape[0]
    if batch == 1:
        return places
    return places + torch.arange(0, batch * length, length, device=places.device).unsqueeze(-1)


def token_rows(index: torch.Tensor, length: int) -> torch.Tensor:
    """Places [B, n, m] in sequences of `length` to rows of [B·n·length, d], flat."""
    batch, heads = index.shape[:2]
    first = torch.arange(0, batch * heads * length, length, device=index.device)
    return (index + first.view(batch, heads, 1)).flatten()


def taken(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Of [B, n, L, d] the rows that `token_rows` made, [B, n, m, d]."""
    batch, heads, _, width = x.shape
    return x.reshape(-1, width).index_select(0, rows).view(batch, heads, -1, width)
