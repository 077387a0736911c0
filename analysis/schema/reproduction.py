"""A paper's numbers next to those of a sweep, or of a prediction: schema 1 of `reproduce --json`.

Null means "not known": the sweep has no such point. Only additive changes are made.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from prunescope.analysis.schema.fields import meaning


class SetupDifference(msgspec.Struct, kw_only=True):
    """A setting in which the sweep and the paper differ."""

    name: str
    paper: str
    ours: str


class ReproducedValue(msgspec.Struct, kw_only=True):
    """One published number, and ours."""

    figure: Annotated[
        str,
        meaning(
            "Fig. 2; Fig. 2, whole step; Fig. 5; Fig. 5, all settings; Fig. 6; alignment; GEMM "
            "steps; perplexity; tasks"
        ),
    ]
    quantity: Annotated[str, meaning("what the number is of")]
    name: Annotated[str, meaning("a family, a category of the step, or N or K of a GEMM")]
    phase: str | None = None
    batch: int | None = None
    prompt_len: int | None = None
    sparsity: float | None = None
    at: Annotated[
        str | None, meaning("an alignment, the pruned share of a GEMM, lowest or highest")
    ] = None
    published: float
    ours: float | None = None
    ours_ci95: list[float] | None = None
    bound: Annotated[float | None, meaning("the roofline bound of ours, or of the prediction")] = (
        None
    )
    where: Annotated[str | None, meaning("the setting of ours; the closest one of the sweep")] = (
        None
    )
    timing_valid: Annotated[bool | None, meaning("of ours; null: none")] = None
    missing: Annotated[
        list[str] | None,
        meaning("keys of a sweep, each with the value that it lacks for this number; null: none"),
    ] = None
    predicted: Annotated[float | None, meaning("by `predict`, in the paper's setting")] = None
    predicted_range: list[float] | None = None


class Reproduction(msgspec.Struct, kw_only=True):
    """A paper's numbers, and what was measured or predicted for them here."""

    schema: int = 1
    tool: str
    against: str
    source: str
    differences: list[SetupDifference] = []
    values: list[ReproducedValue]
    notes: list[str] = []
