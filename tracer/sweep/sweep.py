"""`prunescope sweep`: models x sparsities x phases x batches x lengths, each result a run folder.

In: a SweepRequest. Out: a folder with runs/, quality/ and sweep.json. The same request again
resumes: finished results are neither lost nor repeated.
"""

from __future__ import annotations

import importlib
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

from prunescope.taxonomy.arguments import home_path
from prunescope.taxonomy.atomic_write import clean_termination
from prunescope.taxonomy.dtypes import ITEMSIZE
from prunescope.taxonomy.dtypes import dtype as dtype_name
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import families
from prunescope.taxonomy.family import SELECTIONS, read_selection
from prunescope.taxonomy.formats import plain
from prunescope.taxonomy.option import as_path, check_options
from prunescope.taxonomy.plan import Workload
from prunescope.taxonomy.presets import preset_config, preset_names
from prunescope.taxonomy.scrub import scrub_values
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.sweep_files import DONE, FAILED, PENDING, PLAN, RUNNING, PlanFile, Planned
from prunescope.taxonomy.theory import dense_plan, forward
from prunescope.tracer.capture.progress import Progress, Silent
from prunescope.tracer.sweep.config import read_configs
from prunescope.tracer.sweep.plan import (
    SweepConfig,
    SweepPlan,
    is_checkpoint,
    make_plan,
    model_name,
    read_shard,
    request_of,
    shard_of,
)
from prunescope.tracer.sweep.request import SweepRequest
from prunescope.tracer.sweep.state import SweepFolder, read_json

if TYPE_CHECKING:
    from prunescope.tracer.sweep.job import Job


def sweep(request: SweepRequest, progress: Progress | None = None) -> Path:
    """Run what is not done yet of a sweep, and return its folder.

    Raises PrunescopeError on a bad request; a result that fails is recorded in sweep.json.
    """
    return run_plan(request, plan_of(request), progress)


def run_plan(request: SweepRequest, plan: SweepPlan, progress: Progress | None = None) -> Path:
    """Run what is not done yet of the plan of a request, and return its folder."""
    progress = progress or Silent()
    shard = read_shard(request.shard)
    folder = SweepFolder(request.folder)
    with clean_termination():
        # Kineto writes to standard error at every start and stop, unless this is set beforehand.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        folder.start(plan)
        with folder.claimed(shard):
            mine = shard_of(plan, shard)
            states = {result: folder.state(result) for result in mine}
            # What failed or hung before comes last: it must not stand in the way of the others.
            order = (PENDING, FAILED)
            left = [r for state in order for r in mine if states[r] == state]
            if left:
                engine = importlib.import_module(
                    f"prunescope.tracer.sweep.engines.{request.engine}"
                )
                engine.run(_jobs(request, plan, left), _reporter(progress, left))
        folder.refresh()
    return request.folder


def plan_of(request: SweepRequest) -> SweepPlan:
    """The plan of a request, checked. Raises PrunescopeError on the first mistake in it."""
    check_options(request)
    read_shard(request.shard)  # a mistake in these comes before the work of a plan
    folder = request.folder
    asked = request.config
    configs = read_configs(asked if isinstance(asked, Mapping) else as_path(asked), request.preset)
    for config in configs:
        unknown = [way for way in config.selections if read_selection(way) not in SELECTIONS]
        if unknown:
            raise PrunescopeError(
                f"select: {unknown[0]!r} is no selection", hint=" or ".join(SELECTIONS)
            )
    configs = tuple(_named_as_stored(config, folder) for config in configs)
    for model in dict.fromkeys([configs[0].model, *filter(is_checkpoint, configs[0].families)]):
        _check_model(model)
    plan = make_plan(configs, _shape(configs[0].model))
    _check(plan)
    return plan


def _named_as_stored(config: SweepConfig, folder: Path) -> SweepConfig:
    """The config with the names of selections that the folder has: they stand in the names of its
    results. A folder of a version before 0.2 has older ones."""
    before = read_json(folder / PLAN, PlanFile)
    stored = (before.config.get("select") if before else None) or ()
    stored = (stored,) if isinstance(stored, str) else tuple(stored)
    names = {read_selection(name): name for name in stored}
    ways = tuple(names.get(read_selection(way), read_selection(way)) for way in config.selections)
    return replace(config, select=ways if isinstance(config.select, tuple) else ways[0])


def limits_here(plan: SweepPlan) -> list[str]:
    """What this machine cannot do of a sweep, in sentences; empty where it can do all of it."""
    from prunescope.tracer.machine.device import free_bytes, pick_device, total_bytes

    device = pick_device("auto")
    left = [result for result in plan.results if result.problem is None]
    found = [
        f"{one.id}: no units for 2:4 here: zeros in dense tensors run instead"
        for one in families()
        if one.without_sparse_units and one.id in plan.config.families and device.type == "cpu"
    ]
    graphs = sum(result.mode == "graph" for result in left)
    if graphs and device.type == "cpu":
        found.append(
            f"{graphs} of {len(plan.results)} results record CUDA graphs (mode: graph), and this "
            "machine has no GPU: they will fail; mode: compile runs on a CPU"
        )
    needed = _weight_bytes(plan.config)
    memory = total_bytes() if device.type == "cpu" else free_bytes(device)
    if needed is not None and needed > memory:
        found.append(
            f"{plan.config.model} and a pruned copy need {needed / 1e9:.1f} GB for their weights, "
            f"and this machine has {memory / 1e9:.1f} GB"
        )
    return [f"this machine: {text}" for text in found]


def _weight_bytes(config: SweepConfig) -> float | None:
    """Bytes of the dense weights and of half as many; None where they are not known."""
    shape = _shape(config.model)
    if shape is None:
        return None
    ops = forward([dense_plan(shape, Workload(phase="prefill", prompt_len=1))])
    size = ITEMSIZE.get(dtype_name(config.dtype) or "bf16", 2)
    return 1.5 * size * sum(op.layers * op.parameters for op in ops)


class Duration(TypedDict):
    """What is left of a sweep, roughly; null: not known.

    `seconds` rests on the best of `peaks_measured` measurements of this machine, `seconds_most` on
    the worst, which other work made slow.
    """

    seconds: float | None  # in all
    seconds_most: float | None
    peaks_measured: int
    peaks_disturbed: list[str]
    recovery_seconds: float | None  # of them for training
    decode_scoring_seconds: float | None  # of them to score models one token after another
    trainings: int


class Counts(Duration):
    """A request's part of a sweep."""

    results: int
    models: int
    done: int
    failed: int
    pending: int
    running: int
    impossible: int
    notes: list[str]


class Summary(TypedDict):
    """sweep.json, and what is left to do."""

    schema: int
    out: str
    plan: Counts
    results: list[dict[str, Any]]  # rows of sweep.json


def summary(request: SweepRequest, plan: SweepPlan, *, estimate: bool = False) -> Summary:
    """sweep.json as it stands, or will stand, and `plan`: counts of this request's part of it.

    `estimate`: with the seconds that what is left will take, roughly (null: not known).
    """
    folder = SweepFolder(request.folder)
    mine = shard_of(plan, read_shard(request.shard))
    results = folder.entries(plan)
    state_of = {entry.id: entry.state for entry in results}
    states = [state_of[result.id] for result in mine]
    left = [r for r, state in zip(mine, states, strict=True) if state != DONE and not r.problem]
    counts: Counts = {
        "results": len(mine),
        "models": len({model_name(result) for result in mine}),
        "done": states.count(DONE),
        "failed": states.count(FAILED),
        "pending": states.count(PENDING),
        "running": states.count(RUNNING),
        "impossible": sum(result.problem is not None for result in mine),
        **_estimate(request.folder, left, plan.config, estimate=estimate),
        "notes": scrub_values([*plan.notes, *(limits_here(plan) if estimate else ())]),
    }
    rows = [scrub_values(plain(entry)) for entry in results]
    return {"schema": 1, "out": str(request.folder), "plan": counts, "results": rows}


def _estimate(
    folder: Path, left: Sequence[Planned], config: SweepConfig, *, estimate: bool
) -> Duration:
    from prunescope.tracer.sweep.estimate import num_trainings

    unknown: Duration = {
        "seconds": None,
        "seconds_most": None,
        "peaks_measured": 0,
        "peaks_disturbed": [],
        "recovery_seconds": None,
        "decode_scoring_seconds": None,
        "trainings": num_trainings(left, config),
    }
    if not left and estimate:  # the peaks of this machine take seconds to measure
        names = ("seconds", "seconds_most", "recovery_seconds", "decode_scoring_seconds")
        return cast(Duration, {**unknown, **dict.fromkeys(names, 0.0)})
    shape = _shape(config.model) if estimate else None
    if shape is None:
        return unknown
    from prunescope.tracer.machine.peaks import better_peaks
    from prunescope.tracer.sweep.estimate import (
        decode_scoring_s,
        estimate_s,
        peaks_here,
        training_s,
    )

    dtype = dtype_name(config.dtype) or dtype_name(str(_config_of(config.model).get("dtype")))
    dtype = dtype or "fp32"
    each, itemsize = peaks_here(folder, config, dtype), ITEMSIZE[dtype]
    best = reduce(better_peaks, each)
    trained = training_s(left, config, shape, peaks=best, itemsize=itemsize)
    rest = [estimate_s(left, config, shape, peaks=one, itemsize=itemsize) for one in (best, *each)]
    most = [training_s(left, config, shape, peaks=one, itemsize=itemsize) for one in each]
    return {
        **unknown,
        "seconds": rest[0] + trained,
        "seconds_most": max(map(sum, zip(rest[1:], most, strict=True))),
        "peaks_measured": len(each),
        "peaks_disturbed": best.disturbed,
        "recovery_seconds": trained,
        "decode_scoring_seconds": decode_scoring_s(
            left, config, shape, peaks=best, itemsize=itemsize
        ),
    }


def _jobs(request: SweepRequest, plan: SweepPlan, left: Sequence[Planned]) -> list[Job]:
    from prunescope.tracer.sweep.job import Job

    groups = replace(plan, results=tuple(left)).groups().values()
    out = request.folder.resolve()  # a worker may stand elsewhere
    call = secrets.token_hex(8)
    return [
        Job(
            config=plan.config,
            folder=out,
            results=tuple(group),
            argv=tuple(request.argv),
            call=call,
        )
        for group in groups
    ]


def _reporter(progress: Progress, left: Sequence[Planned]) -> Callable[..., None]:
    """Shows each result when it begins, and later how its training goes."""
    number = {result.id: i for i, result in enumerate(left, 1)}

    def report(result: Planned, text: str = "") -> None:
        line = f"{number[result.id]}/{len(left)} {result.id}"
        describe = getattr(progress, "describe", None)
        if not text:
            progress.stage(line)
        elif describe is not None:
            describe(f"{line}: {text}")

    return report


def _check(plan: SweepPlan) -> None:
    """Refuse, before the first capture, options that would make every capture fail: texts and
    functions of the user's own are read and imported as the captures will. Infeasible points are
    recorded as failed instead."""
    from prunescope.tracer.calibration.texts import read_text
    from prunescope.tracer.capture.variants import check_method
    from prunescope.tracer.sweep.trial import check_together

    config = plan.config
    trained_on = None if config.recover is None else config.recover.text
    for text in (config.text, trained_on):
        if text is not None:
            read_text(text)
    if config.tasks:
        from prunescope.tracer.quality.tasks import check_installed

        check_installed()
    if config.other_text is not None:
        from prunescope.tracer.recovery.examples import check_unseen

        check_unseen([trained_on, config.text], config.other_text)
    possible = {r.family: r for r in reversed(plan.results) if r.problem is None}
    for family in config.families:
        if family in possible:
            request = request_of(config, possible[family], out=Path())
            request.check()
            check_method(request)
            if request.parts and len(request.parts) > 1:
                check_together(family)
        elif "+" in family and not is_checkpoint(family):
            result = next(r for r in plan.results if r.family == family)
            request_of(config, result, out=Path()).check()  # a better reason, where there is one
            raise PrunescopeError(
                f"{family} is not possible at any sparsity of this sweep: {result.problem}",
                hint="give each part a sparsity of its own, FAMILY:0.25+FAMILY:0.5, or remove it",
            )


def _check_model(model: str) -> None:
    """Raises PrunescopeError where there is no such folder with a model, file or preset, and no
    such hub id."""
    path, name, is_folder = home_path(model), model.lower(), False
    with suppress(OSError):  # no name that a file can have
        is_folder = path.is_dir()
    if name in preset_names() and not is_folder:
        return
    from prunescope.tracer.model.load import DEMO, check_folder, check_gguf, check_hub_id

    if is_folder:
        check_folder(path)
    elif name.endswith(".gguf"):
        check_gguf(path)
    elif name != DEMO:
        check_hub_id(model)


def _shape(model: str) -> ModelShape | None:
    """The dense dimensions, or None where they are not known before the model is loaded."""
    try:
        return ModelShape.from_config(_config_of(model))
    except PrunescopeError:
        return None


def _config_of(model: str) -> dict[str, Any]:
    """A model's config without its weights; empty where only loading it would tell."""
    name = model.lower()
    if name in preset_names():
        return preset_config(name)
    folder = home_path(model)
    if name.endswith(".gguf") or not folder.is_dir():
        from prunescope.tracer.model.load import DEMO, demo_file

        if name == DEMO:
            folder = demo_file()
        if folder.suffix != ".gguf" or not folder.is_file():
            return {}
        from prunescope.tracer.model.load import gguf_folder

        folder = gguf_folder(folder)
    try:
        plain: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return plain
