"""Speedups of one GEMM alone over the share of N or K that is gone: what the paper's study of GEMM
shapes plots, and what its published numbers stand beside. Times in ns a call; null: not known.
"""

from __future__ import annotations

import msgspec

from prunescope.taxonomy.replays import StepCurve


class SpeedupPoint(msgspec.Struct, kw_only=True):
    """A size of a curve. `gone`: the share of the largest size that is missing; `speedup`: time of
    the largest size over its own; `roofline`: that ratio by FLOPs, bytes and peaks."""

    size: int
    gone: float
    ns: float
    ci95: list[float] | None
    speedup: float
    speedup_ci95: list[float] | None
    roofline: float | None


class SpeedupCurve(msgspec.Struct, kw_only=True):
    """A curve, its points from the smallest size to the largest, and how it was measured.
    `disturbed`: by what, where its times are not valid."""

    curve: StepCurve
    points: list[SpeedupPoint]
    device: str | None
    placements: int
    repeats: int
    disturbed: list[str]

    @property
    def timing_valid(self) -> bool:
        """Whether its times are evidence."""
        return not self.disturbed
