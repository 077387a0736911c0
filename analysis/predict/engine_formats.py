"""Whether a serving engine runs what a pruning leaves as it is predicted.

In: the engine of --runtime, a family and its knobs. Out: `EngineRuns`, by the dated table of
taxonomy/engines.py. An engine that takes a checkpoint and runs its zeros like other weights does
not run it as predicted where the prediction counts on fewer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunescope.taxonomy.engines import engine_answers, layouts_of
from prunescope.taxonomy.family import Family
from prunescope.taxonomy.shape import ModelShape

_NAMES = {"hf": "transformers", "trtllm": "tensorrt-llm"}  # of --runtime, in the table


@dataclass(frozen=True, slots=True)
class EngineRuns:
    """Whether an engine runs a format: None where it is not known, with the reason and a source."""

    runs: bool | None
    why: str
    source: str | None = None


def engine_runs(
    engine: str | None,
    family: Family | None,
    knobs: Mapping[str, Any],
    shape: ModelShape,
    tp: int = 1,
) -> EngineRuns:
    """Return whether an engine runs what a family leaves.

    Args:
        engine: The name that `--runtime` takes; None: no engine is named.
        family: The family; None: the dense model.
        knobs: Its options.
        shape: The shape after pruning.
        tp: The degree of tensor parallelism.
    """
    if engine is None:
        return EngineRuns(None, "no engine is named: --runtime")
    if family is not None and "stream" in family.cuts:  # maps between two bases, which nobody tried
        return EngineRuns(None, "not looked up")
    layouts = layouts_of([family] if family else [], shape)
    if family is not None and family.skips_layers and knobs.get("unit", "layer") != "layer":
        layouts = (*(name for name in layouts if name != "uniform"), "missing")
    named = _NAMES.get(engine, engine)
    answers = {answer.engine: answer for answer in engine_answers(layouts, shape, tp)}
    answer, runs = answers[named], answers[named].runs
    if runs and family is not None and family.without_sparse_units:  # predicted with its kernels
        return EngineRuns(answer.faster, answer.reason, answer.source)
    return EngineRuns(runs, answer.reason, answer.source)
