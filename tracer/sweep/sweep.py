"""The command `prunescope sweep`: each model, sparsity, phase, batch and length is a run folder.

In: a SweepRequest. Out: a folder with runs/, quality/ and sweep.json. The same request again
resumes: finished results are neither lost nor repeated.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from prunescope.taxonomy.arguments import home_path
from prunescope.taxonomy.atomic_write import clean_termination
from prunescope.taxonomy.dtypes import ITEMSIZE
from prunescope.taxonomy.dtypes import dtype as dtype_name
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.family import SELECTIONS, read_selection
from prunescope.taxonomy.formats import plain
from prunescope.taxonomy.option import as_path, check_options
from prunescope.taxonomy.presets import preset_names
from prunescope.taxonomy.runs.sweep_files import (
    DONE,
    FAILED,
    PENDING,
    PLAN,
    RUNNING,
    PlanFile,
    Planned,
)
from prunescope.taxonomy.scrub import scrub_values
from prunescope.tracer.capture.progress import Progress, Silent
from prunescope.tracer.sweep.budget import Budget, decisive_first, fit_budget
from prunescope.tracer.sweep.config import read_configs
from prunescope.tracer.sweep.limits import (
    check_possible,
    check_together,
    config_without_weights,
    limits_here,
    limits_of_fixed_steps,
    shape_without_weights,
)
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
    from prunescope.tracer.sweep.estimate import ForwardTimes
    from prunescope.tracer.sweep.job import Job


def sweep(request: SweepRequest, progress: Progress | None = None) -> Path:
    """Run what is not done yet of a sweep.

    Args:
        request: The sweep, and the folder that it fills.
        progress: The Progress to report to, or None.

    Returns:
        The folder of the sweep. A result that fails is recorded in its sweep.json.

    Raises:
        PrunescopeError: The request is invalid.
    """
    return run_plan(request, plan_of(request), progress)


def run_plan(request: SweepRequest, plan: SweepPlan, progress: Progress | None = None) -> Path:
    """Run what is not done yet of the plan of a request.

    Args:
        request: The sweep, and the folder that it fills.
        plan: The plan of the request, by `plan_of`.
        progress: The Progress to report to, or None.

    Returns:
        The folder of the sweep.

    Raises:
        PrunescopeError: No result can run on this machine, or the folder is in use or holds other
            data.
    """
    progress = progress or Silent()
    shard = read_shard(request.shard)
    folder = SweepFolder(request.folder)
    if request.engine == "local":
        check_possible([result for result in shard_of(plan, shard) if folder.state(result) != DONE])
    with clean_termination():
        # Kineto writes to standard error at every start and stop, unless this is set beforehand.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        folder.start(plan)
        with folder.claimed(shard):
            mine = shard_of(plan, shard)
            for result in invalid_results(folder, mine) if request.retry else ():
                folder.discard(result)
            states = {result: folder.state(result) for result in mine}
            # Results that failed or hung before come last, so that they do not block the others.
            order = (PENDING, FAILED)
            remaining = [
                result
                for state in order
                for result in decisive_first(r for r in mine if states[r] == state)
            ]
            if plan.budget is not None:
                remaining = [r for r in remaining if r.problem is not None or r in plan.budget.kept]
            if remaining:
                from prunescope.tracer.sweep.engines import ENGINES  # torch

                try:
                    ENGINES[request.engine](
                        _jobs(request, plan, remaining), _make_reporter(progress, remaining)
                    )
                finally:  # also if a signal ends the sweep: sweep.json tells what is done
                    folder.refresh()
    return request.folder


def invalid_results(folder: SweepFolder, results: Sequence[Planned]) -> list[Planned]:
    """Return the results that are done and whose times are not valid."""
    done = [result for result in results if folder.state(result) == DONE]
    return [result for result in done if not folder.has_valid_times(result)]


def plan_of(request: SweepRequest) -> SweepPlan:
    """Return the plan of a request, after checking it.

    Args:
        request: The sweep, and the folder that it fills.

    Raises:
        PrunescopeError: The request is invalid; the first mistake is reported.
    """
    check_options(request)
    read_shard(request.shard)  # a mistake in it is reported before the plan is made
    folder, source = request.folder, request.config
    source = source if isinstance(source, Mapping) else as_path(source)
    configs = read_configs(source, request.preset)
    for config in configs:
        unknown = [way for way in config.selections if read_selection(way) not in SELECTIONS]
        if unknown:
            raise PrunescopeError(
                f"select: {unknown[0]!r} is no selection", hint=" or ".join(SELECTIONS)
            )
    configs = tuple(_rename_as_stored(config, folder) for config in configs)
    for model in dict.fromkeys([configs[0].model, *filter(is_checkpoint, configs[0].families)]):
        _check_model(model)
    plan = make_plan(configs, shape_without_weights(configs[0].model))
    _check_captures(plan)
    return plan if request.budget is None else replace(plan, budget=_budget(request, plan))


def _budget(request: SweepRequest, plan: SweepPlan) -> Budget:
    """Return the remaining results of a request's part of a sweep that fit into its hours."""
    assert request.budget is not None
    folder = SweepFolder(request.folder)
    mine = shard_of(plan, read_shard(request.shard))
    remaining = [
        result for result in mine if result.problem is None and folder.state(result) != DONE
    ]
    times = _estimate_durations(request.folder, plan.config) if remaining else None
    if times is None and remaining:
        raise PrunescopeError(
            f"--budget needs an estimate, and the dimensions of {plan.config.model} are not known "
            "before it is loaded",
            hint="give a folder with a config.json, or leave --budget out",
        )
    return fit_budget(remaining, request.budget, times.seconds if times else lambda _: 0.0)


def _rename_as_stored(config: SweepConfig, folder: Path) -> SweepConfig:
    """Return the config with the names of selections that the folder uses.

    These are part of the names of results, and a folder of a version before 0.2 has older ones.
    """
    before = read_json(folder / PLAN, PlanFile)
    stored = (before.config.get("select") if before else None) or ()
    stored = (stored,) if isinstance(stored, str) else tuple(stored)
    names = {read_selection(name): name for name in stored}
    ways = tuple(names.get(read_selection(way), read_selection(way)) for way in config.selections)
    return replace(config, select=ways if isinstance(config.select, tuple) else ways[0])


def before_it_starts(plan: SweepPlan) -> list[str]:
    """Return notes on a plan before it runs.

    They name results that this machine cannot run, that steps of fixed shapes cannot show, or that
    the budget leaves out.

    Args:
        plan: The plan of the sweep.
    """
    return [
        *limits_here(plan),
        *limits_of_fixed_steps(plan),
        *(plan.budget.lines() if plan.budget else ()),
    ]


class Duration(TypedDict):
    """A rough estimate of the remaining time of a sweep, in seconds; null means unknown.

    `seconds` rests on the best of `peaks_measured` measurements of this machine, `seconds_most` on
    the worst, which other work made slow.
    """

    seconds: float | None  # of the whole rest
    seconds_most: float | None
    peaks_measured: int
    peaks_disturbed: list[str]
    recovery_seconds: float | None  # the part for training
    decode_scoring_seconds: float | None  # the part to score models token by token
    trainings: int


class Counts(Duration):
    """The numbers of results in a request's part of a sweep, by their state."""

    results: int
    models: int
    done: int
    failed: int
    pending: int
    running: int
    impossible: int
    invalid: int  # done, and their times are no evidence
    again: int  # of `pending`: done before, and a call would measure them again
    left_out: int  # possible results that are not done, and that --budget leaves out of this call
    notes: list[str]


class Summary(TypedDict):
    """The content of sweep.json, and what is left to do."""

    schema: int
    out: str
    plan: Counts
    results: list[dict[str, Any]]  # rows of sweep.json


def summary(request: SweepRequest, plan: SweepPlan, *, estimate: bool = False) -> Summary:
    """Return sweep.json as it stands or will stand, and counts of this request's part.

    Args:
        request: The sweep, and the folder that it fills.
        plan: The plan of the request.
        estimate: Whether to estimate the seconds that the rest will take, which may measure the
            peaks of this machine.
    """
    folder = SweepFolder(request.folder)
    mine = shard_of(plan, read_shard(request.shard))
    results = folder.entries(plan)
    state_of = {entry.id: entry.state for entry in results}
    done = [result for result in mine if state_of[result.id] == DONE]
    invalid = [result for result in done if not folder.has_valid_times(result)]
    repeats = estimate and request.retry is not None
    if repeats:
        state_of |= dict.fromkeys((result.id for result in invalid), PENDING)
    states = [state_of[result.id] for result in mine]
    remaining = [
        r for r, state in zip(mine, states, strict=True) if state != DONE and not r.problem
    ]
    left_out = plan.budget.left_out if plan.budget else ()
    remaining = [r for r in remaining if r not in left_out]
    counts: Counts = {
        "results": len(mine),
        "models": len({model_name(result) for result in mine}),
        "done": states.count(DONE),
        "failed": states.count(FAILED),
        "pending": states.count(PENDING),
        "running": states.count(RUNNING),
        "impossible": sum(result.problem is not None for result in mine),
        "invalid": 0 if repeats else len(invalid),
        "again": len(invalid) if repeats else 0,
        "left_out": len(left_out),
        **_estimate(request.folder, remaining, plan.config, estimate=estimate),
        "notes": scrub_values([*plan.notes, *(before_it_starts(plan) if estimate else ())]),
    }
    rows = [scrub_values(plain(entry)) for entry in results]
    return {"schema": 1, "out": str(request.folder), "plan": counts, "results": rows}


def _estimate(
    folder: Path, remaining: Sequence[Planned], config: SweepConfig, *, estimate: bool
) -> Duration:
    from prunescope.tracer.sweep.estimate import num_trainings

    # If nothing is left, do not measure the peaks of this machine, which takes seconds.
    seconds = 0.0 if estimate and not remaining else None
    unknown: Duration = {
        "seconds": seconds,
        "seconds_most": seconds,
        "peaks_measured": 0,
        "peaks_disturbed": [],
        "recovery_seconds": seconds,
        "decode_scoring_seconds": seconds,
        "trainings": num_trainings(remaining, config),
    }
    if seconds is not None:
        return unknown
    times = _estimate_durations(folder, config) if estimate else None
    if times is None:
        return unknown
    from prunescope.tracer.sweep.estimate import scoring_s, training_s

    return {
        **unknown,
        "seconds": times.seconds(remaining),
        "seconds_most": max(times.seconds(remaining, forward) for forward in times.each),
        "peaks_measured": len(times.each),
        "peaks_disturbed": times.disturbed,
        "recovery_seconds": training_s(remaining, config, times.best),
        "decode_scoring_seconds": scoring_s(remaining, config, times.best, "decode"),
    }


@dataclass(frozen=True)
class _Durations:
    """The estimated times of results, by the best measurement of the peaks here and by each.

    `disturbed` tells what disturbed the best measurement.
    """

    config: SweepConfig
    best: ForwardTimes
    each: list[ForwardTimes]
    disturbed: list[str]

    def seconds(self, results: Sequence[Planned], forward: ForwardTimes | None = None) -> float:
        """Return the seconds of results, with their trainings."""
        from prunescope.tracer.sweep.estimate import estimate_s, training_s

        times = forward or self.best
        return estimate_s(results, self.config, times) + training_s(results, self.config, times)


def _estimate_durations(folder: Path, config: SweepConfig) -> _Durations | None:
    """Return the times of forwards; None if the dimensions of the model are unknown yet."""
    shape = shape_without_weights(config.model)
    if shape is None:
        return None
    from prunescope.tracer.machine.peaks import better_peaks
    from prunescope.tracer.sweep.estimate import ForwardTimes, peaks_here

    dtype = dtype_name(config.dtype) or dtype_name(
        str(config_without_weights(config.model).get("dtype"))
    )
    dtype = dtype or "fp32"
    each, itemsize = peaks_here(folder, config, dtype), ITEMSIZE[dtype]
    best = reduce(better_peaks, each)
    return _Durations(
        config,
        ForwardTimes(shape, best, itemsize),
        [ForwardTimes(shape, peaks, itemsize) for peaks in each],
        best.disturbed,
    )


def _jobs(request: SweepRequest, plan: SweepPlan, remaining: Sequence[Planned]) -> list[Job]:
    from prunescope.tracer.sweep.job import Job

    groups = replace(plan, results=tuple(remaining)).groups().values()
    folder = request.folder.resolve()  # a worker may run in another directory
    call = secrets.token_hex(8)
    return [
        Job(
            config=plan.config,
            folder=folder,
            results=tuple(group),
            argv=tuple(request.argv),
            call=call,
        )
        for group in groups
    ]


def _make_reporter(progress: Progress, remaining: Sequence[Planned]) -> Callable[..., None]:
    """Return a function that shows each result when it begins, and later how its training goes."""
    number = {result.id: i for i, result in enumerate(remaining, 1)}

    def report(result: Planned, text: str = "") -> None:
        line = f"{number[result.id]}/{len(remaining)} {result.id}"
        describe = getattr(progress, "describe", None)
        if not text:
            progress.stage(line)
        elif describe is not None:
            describe(f"{line}: {text}")

    return report


def _check_captures(plan: SweepPlan) -> None:
    """Refuse, before the first capture, options that would make every capture fail.

    Texts and functions of the user's own are read and imported as the captures will do. Infeasible
    points are recorded as failed instead.

    Raises:
        PrunescopeError: An option is invalid, or a method is not possible at any sparsity.
    """
    from prunescope.tracer.calibration.texts import read_text
    from prunescope.tracer.capture.variants import check_method

    config = plan.config
    trained_on = None if config.recover is None else config.recover.text
    for text in (config.text, trained_on):
        if text is not None:
            read_text(text)
    if config.tasks:
        from prunescope.tracer.model.load import lacks_tokenizer
        from prunescope.tracer.quality.tasks import check_installed, no_tokenizer

        check_installed()
        if lacks_tokenizer(config.model):
            raise no_tokenizer()
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
            request_of(config, result, out=Path()).check()  # raises a better reason if there is one
            raise PrunescopeError(
                f"{family} is not possible at any sparsity of this sweep: {result.problem}",
                hint="give each part a sparsity of its own, FAMILY:0.25+FAMILY:0.5, or remove it",
            )


def _check_model(model: str) -> None:
    """Check that there is such a folder with a model, file, preset or hub id.

    Raises:
        PrunescopeError: There is none.
    """
    path, name, is_folder = home_path(model), model.lower(), False
    with suppress(OSError):  # no file can have this name
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
