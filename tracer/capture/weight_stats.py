"""Weight statistics: zeros and their pattern in each matrix, and the counts of dynamic modules.

A model comes in; WeightStats go out, which are `census` of run.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from prunescope.taxonomy.roles import locate
from prunescope.taxonomy.runs.run_blocks import Matrix, ModuleCounts, WeightStats
from prunescope.tracer.capture.weight_zeros import weight_rows
from prunescope.tracer.model.calls import inner


def weight_stats(model: nn.Module) -> WeightStats:
    """Count the zeros of each weight of two or more dimensions."""
    return WeightStats(matrices=[matrix(row) for row in weight_rows(inner(model))])


def matrix(row: dict[str, Any]) -> Matrix:
    """Add to a row of `weight_zeros` the layer and the role of its name."""
    place = locate(row["name"])
    return Matrix(**row, layer=place.layer, role=place.role)


def dynamic_stats(model: nn.Module) -> dict[str, ModuleCounts]:
    """Return the counts since the last call, by module name; see `tracer.pruners.Counting`."""
    return {
        name: module.prunescope_stats()
        for name, module in model.named_modules()
        if callable(getattr(module, "prunescope_stats", None))
    }


def add_stats(counted: dict[str, ModuleCounts], stats: Mapping[str, ModuleCounts]) -> None:
    """Add the counts of further steps to `counted`."""
    for name, new in stats.items():
        counts = counted.setdefault(name, ModuleCounts(unit=new.unit))
        counts.active += new.active
        counts.total += new.total


def skips_no_block(stats: Mapping[str, ModuleCounts]) -> bool:
    """Return whether, by `dynamic_stats`, there are blocks and all of them were read."""
    blocks = [counts for counts in stats.values() if counts.unit == "blocks"]
    return bool(blocks) and all(counts.active == counts.total for counts in blocks)


def fixed_shares(phase: str, stats: Mapping[str, ModuleCounts]) -> list[str]:
    """Say which share of units the recorded steps of a phase work on, by `dynamic_stats`."""
    shares: dict[str, tuple[int, int]] = {}
    for counts in stats.values():
        unit = counts.unit or "units"
        active, total = shares.get(unit, (0, 0))
        shares[unit] = (active + sum(counts.active), total + sum(counts.total))
    return [
        f"{phase}: each recorded step works on {active / total:.0%} of its {unit}"
        for unit, (active, total) in shares.items()
        if total
    ]
