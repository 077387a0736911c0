"""Mixed steps of a serving engine, split: what of them prompts take, and what single tokens take.

In: the kernels of steps whose annotation counts the tokens of both. Out: `TokenSplit`, a step,
and a sentence. Linears are split by their tokens; attention where the names of its kernels tell.
"""

from __future__ import annotations

import polars as pl

from prunescope.analysis.kernels.frame import ATTENTION, MATMUL, Kernels
from prunescope.analysis.schema.sides import OfTokens, TokenSplit
from prunescope.analysis.shapes.workload import annotated
from prunescope.analysis.timeline.engines import engine_step
from prunescope.analysis.timeline.iterations import attention_phase


def split_of(kernels: Kernels) -> TokenSplit | None:
    """None where a step is not mixed, or its annotation does not count the tokens of both."""
    names = kernels.windows.names
    if any(engine_step(name) != "mixed" for name in names):
        return None
    tokens = [annotated(name, replayed=False) for name in names]
    prompts = [one.prompt for one in tokens if one.prompt is not None and one.rows is not None]
    rows = [one.rows for one in tokens if one.prompt is not None and one.rows is not None]
    if not names or len(prompts) < len(names):
        return None
    of_prompts = [prompt / every for prompt, every in zip(prompts, rows, strict=True)]
    times = _linear_ns(kernels)
    linear = sum(times.get(step, 0) * share for step, share in enumerate(of_prompts))
    steps, single = len(names), sum(rows) - sum(prompts)
    split = TokenSplit(
        tokens=OfTokens(prompts=sum(prompts) / steps, single=single / steps),
        linear_ns=OfTokens(prompts=linear / steps, single=(sum(times.values()) - linear) / steps),
    )
    took = _attention_ns(kernels)
    if took is not None:
        split["attention_ns"] = OfTokens(
            prompts=took["prefill"] / steps, single=took["decode"] / steps
        )
    return split


def _linear_ns(kernels: Kernels) -> dict[int, int]:
    """Busy time of the GEMMs of each step; the head of the model runs a row a sequence."""
    rows = kernels.frame.filter((pl.col("class") == MATMUL) & (pl.col("role") != "lm_head"))
    return dict(rows.group_by("step").agg(pl.col("busy").sum()).iter_rows())


def _attention_ns(kernels: Kernels) -> dict[str, int] | None:
    """Busy time of attention by the phase that its kernels are made for; None where one of them may
    serve both."""
    took = {"prefill": 0, "decode": 0}
    rows = kernels.frame.filter(pl.col("class") == ATTENTION).group_by("name")
    for name, ns in rows.agg(pl.col("busy").sum()).iter_rows():
        phase = attention_phase(name or "")
        if phase is None:
            return None
        took[phase] += ns
    return took if all(took.values()) else None


def written(split: TokenSplit) -> str:
    """For a person."""
    tokens, linear = split["tokens"], split["linear_ns"]
    each = tokens["prompts"] + tokens["single"]
    said = (
        f"{tokens['prompts']:,.0f} of {each:,.0f} tokens of a mixed step are of prompts: by tokens "
        f"linears take {linear['prompts'] / 1e3:,.0f} µs for them and "
        f"{linear['single'] / 1e3:,.0f} µs for single tokens"
    )
    if "attention_ns" not in split:
        return f"{said}; attention is not split, its kernels serve both"
    took = split["attention_ns"]
    return (
        f"{said}; attention, by its kernels, {took['prompts'] / 1e3:,.0f} µs and "
        f"{took['single'] / 1e3:,.0f} µs"
    )
