"""What a pruner is asked for: sparsity, knobs, how parts are selected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunescope.tracer.calibration.collect import Calibration


@dataclass(frozen=True, kw_only=True)
class Point:
    """Where in a family's space: nominal sparsity, every knob, selection and its seed."""

    sparsity: float
    knobs: Mapping[str, Any] = field(default_factory=dict)
    select: str = "random"
    seed: int = 0
    calibration: Calibration | None = None  # token ids; None: random ones from the seed

    @property
    def by_importance(self) -> bool:
        """Whether the parts to prune are chosen by their importance, measured on an input."""
        return self.select == "importance"
