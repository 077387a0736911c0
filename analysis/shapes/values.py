"""What `fill` takes and gives: apart from it, for most traces need neither it nor what it imports.

In: nothing. Out: ModelConfig or AutoModel (in), Filled (out).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl

from prunescope.analysis.ops.call import OpCall, Work
from prunescope.analysis.shapes.workload import GivenWorkload
from prunescope.taxonomy.shape import ModelShape


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A model's dimensions, what it is called, its number format, and the workload of the steps."""

    shape: ModelShape
    name: str
    dtype: str | None = None
    workload: GivenWorkload = field(default_factory=GivenWorkload)


@dataclass(frozen=True, kw_only=True)
class AutoModel:
    """No model: which of the presets it would be is to be said."""

    workload: GivenWorkload = field(default_factory=GivenWorkload)
    name: str = "auto"


@dataclass
class Filled:
    """`calls` and `works` go on after those of the trace. `known`: N and K of calls whose M is not
    known. `source`: where roles come from."""

    frame: pl.DataFrame
    source: str
    calls: list[OpCall] = field(default_factory=list)
    works: list[Work | None] = field(default_factory=list)
    known: dict[int, tuple[int, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    tokens: float | None = None  # a step, where all steps are known
