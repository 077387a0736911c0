"""A pruning request: sparsity, knobs, how parts are selected, and the calibration tokens.

It needs no torch, so that a request can be checked before torch is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prunescope.taxonomy.keep import ALIGN
from prunescope.taxonomy.runs.run_blocks import Record

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The calibration tokens, ids [1, L] each, and their source as JSON values for run.json."""

    batches: tuple[torch.Tensor, ...]
    record: Record


@dataclass(frozen=True, kw_only=True)
class Point:
    """A pruning request: nominal sparsity, knobs, selection, and the seed of random choices."""

    sparsity: float
    knobs: Mapping[str, Any] = field(default_factory=dict)
    select: str = "random"
    seed: int = 0
    calibration: Calibration | None = None  # None means random token ids from the seed

    @property
    def align(self) -> str:
        """The alignment that kept dimensions are rounded up to, one of `keep.ALIGNMENTS`."""
        return str(self.knobs.get("align", ALIGN))

    @property
    def uses_importance(self) -> bool:
        """Whether the parts to prune are chosen by their importance on calibration tokens."""
        return self.select == "importance"

    @property
    def is_random(self) -> bool:
        """Whether the parts to prune are chosen at random, from the seed."""
        return self.select == "random"
