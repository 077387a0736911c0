"""Whether serving engines run what a pruning leaves as it is predicted.

In: the setting of a point. Out: an answer of each engine, by the dated table of
taxonomy/engines.py, and `EngineRuns` for the one of --runtime, with the version that was read. An
engine that takes a checkpoint and runs its zeros like other weights does not run it as predicted
where the prediction counts on fewer.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from prunescope.analysis.predict.setting import Setting
from prunescope.taxonomy.engines import CHECKED, NAMES, EngineAnswer, engine_answers, layouts_of
from prunescope.taxonomy.family import FamilyPoint
from prunescope.taxonomy.plan import Workload
from prunescope.taxonomy.shape import ModelShape

_NAMES = {"hf": "transformers", "trtllm": "tensorrt-llm"}  # of --runtime, in the table


def table_name(engine: str | None) -> str:
    """Return the name in the table of an engine that `--runtime` takes; "" for None."""
    return "" if engine is None else _NAMES.get(engine, engine)


class EngineRuns(Struct, frozen=True):
    """Whether an engine runs a format: None where it is not known, with the reason and a source.

    `version` says what was read.
    """

    runs: bool | None
    why: str
    source: str | None = None
    version: str | None = None


def pruned_shape_of(setting: Setting) -> ModelShape:
    """Return the dimensions that a point leaves, padded if an engine is to take them."""
    shape = setting.pruned_shape or setting.shape
    if setting.family is not None:
        point = FamilyPoint(sparsity=setting.sparsity, knobs=setting.knobs, removed=setting.removed)
        shape = setting.family.plans(shape, Workload(phase="prefill"), point)[0].shape
    return shape if setting.legal is None or not setting.prunes else setting.legal.padded(shape)


def answers_for(setting: Setting) -> list[EngineAnswer]:
    """Return whether each engine runs the checkpoint of a point, at its tensor parallelism."""
    families = [] if setting.family is None else [setting.family]
    shape = pruned_shape_of(setting)
    if shape.parts:
        return []  # the table was read for decoders alone
    tp = setting.tp if setting.legal is None else max(setting.tp, setting.legal.tp)
    layouts = layouts_of(families, shape, setting.knobs, dense=setting.shape)
    return engine_answers(layouts, shape, tp)


def engine_runs(engine: str | None, setting: Setting) -> EngineRuns:
    """Return whether an engine runs what a point leaves as it is predicted.

    Args:
        engine: The name that `--runtime` takes; None: no engine is named.
        setting: The setting of the point.
    """
    if engine is None:
        return EngineRuns(None, "no engine is named: --runtime")
    answers = {answer.engine: answer for answer in answers_for(setting)}
    if not answers:
        return EngineRuns(None, "engines were read for decoders alone")
    answer, family = answers[table_name(engine)], setting.family
    runs: bool | None = answer.runs
    if runs and family is not None and family.without_sparse_units:  # predicted with its kernels
        runs = answer.faster
    return EngineRuns(runs, answer.reason, answer.source, answer.version)


def warn_of_engine(engine: str | None, setting: Setting) -> str:
    """Say that the engine of a prediction does not run the point; "" if it does or is unknown."""
    if engine is None or not setting.prunes:
        return ""
    runs = engine_runs(engine, setting)
    if runs.runs is not False:
        return ""
    what = setting.family.id if setting.family is not None else "the pruned model"
    name = NAMES[table_name(engine)]
    read = f"version {runs.version}, read on {CHECKED}: {runs.source}"
    return f"{name} does not run {what} as predicted: {runs.why} ({read})"


def name_versions(engine: str | None, versions: Iterable[str | None]) -> list[str]:
    """Say from which versions of an engine the answers about it were read; nothing without any."""
    read = ", ".join(filter(None, dict.fromkeys(versions)))
    if engine is None or not read:
        return []
    return [f"what {NAMES[table_name(engine)]} runs was read from version {read} on {CHECKED}"]
