"""Points of a sweep built by hand."""

from __future__ import annotations

from typing import Any

from prunescope.analysis.schema.pareto import Loss, SweepPoint

MS = 1e6


def point(family: str, speed: float, loss: float | None, **more: Any) -> SweepPoint:
    """A point with intervals of ±2 % of speed and ±0.01 of loss, at s = 0.25."""
    plain: dict[str, Any] = {
        "id": f"{family}-{speed}-{loss}", "family": family, "sparsity": 0.25, "sparsities": [0.25],
        "batch": 1, "prompt_len": 512, "realised": speed,
        "realised_ci95": [0.98 * speed, 1.02 * speed],
        "bounds": {"flop": 1.4, "coverage": 1.3, "roofline": 1.2},
        "shares": {"flop": speed / 1.4, "coverage": speed / 1.3, "roofline": speed / 1.2},
        "loss": None, "flop_sparsity": 0.2,
        "ledger": {"dense": 10 * MS, "promised": 7.5 * MS, "coverage": 1.0 * MS,
                   "roofline_shift": 0.1 * MS, "shape": 0.0, "kernel_efficiency": -0.4 * MS,
                   "added_work": 0.2 * MS, "launch_idle": 0.1 * MS, "pruned": 8.5 * MS},
    }  # fmt: skip
    if loss is not None:
        plain["loss"] = Loss(perplexity_rel=loss, ci95=[loss - 0.01, loss + 0.01])
    return SweepPoint(**{**plain, **more})
