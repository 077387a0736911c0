"""The point of a run in a comparison of speed and loss.

In: a result of a sweep, its manifest and the report of its phase. Out: a SweepPoint.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from prunescope.analysis.ledger.dynamic_overhead import weigh_added_work
from prunescope.analysis.schema.pareto import Loss, RecoveryLoss, SweepPoint, TextLoss
from prunescope.analysis.schema.report import Phase
from prunescope.taxonomy.families import known
from prunescope.taxonomy.family import read_selection
from prunescope.taxonomy.runs.run import Run
from prunescope.taxonomy.runs.run_blocks import HeldOut, ModuleCounts, Pruning, Recovered
from prunescope.taxonomy.runs.run_quality import Quality
from prunescope.taxonomy.runs.sweep_files import SweepResult
from prunescope.taxonomy.words import percent, plural


def point_of(
    entry: SweepResult,
    run: Run,
    phase: Phase,
    controls: Iterable[Recovered] = (),
    display_name: str | None = None,
) -> SweepPoint:
    """Return the point of a result.

    Args:
        entry: The result.
        run: The manifest of its run.
        phase: The report of its phase.
        controls: The trainings of the dense model in the sweep.
        display_name: The name of the method in the sweep; None: the one in its run, if any.
    """
    ladder = phase.ladder
    assert ladder is not None
    bounds = {"flop": ladder.flop, "coverage": ladder.coverage, "roofline": ladder.roofline}
    dense = phase.baseline.bound if phase.baseline else {}
    classes = {name: dense.get(name) or 0.0 for name in ("compute", "memory", "latency")}
    known = sum(classes.values())
    ran = _shares_that_ran(run, entry.phase)
    recovery = run.pruning.recovery if run.pruning else None
    return SweepPoint(
        id=entry.id,
        family=entry.family,
        display_name=display_name or (run.pruning.display_name if run.pruning else None),
        sparsity=entry.sparsity,
        select=entry.select and read_selection(entry.select),
        sparsities=list(entry.sparsities) or ([] if entry.sparsity is None else [entry.sparsity]),
        draws=[entry.id],
        realised=ladder.realised,
        realised_ci95=ladder.realised_ci95,
        bounds=dict(bounds),
        shares={name: ladder.realised / b if b else None for name, b in bounds.items()},
        loss=None
        if (unscored := why_unscored(entry, run.pruning, ran))
        else loss_in(run.quality, entry.phase),
        unscored=unscored,
        flop_sparsity=phase.sparsity.get("flop"),
        parameter_sparsity=phase.sparsity.get("parameters"),
        memory_bound=classes["memory"] / known if known else None,
        ledger={row.row: row.ns for row in phase.ledger or [] if row.ns is not None},
        overhead=weigh_added_work(phase.ledger, phase.overhead),
        simulated=simulated_by(
            run.pruning or Pruning(), decides=bool(run.census and run.census.dynamic)
        ),
        categories=phase.categories,
        recovery=recovery_loss(recovery, controls),
        training_stopped=recovery.stopped if recovery else None,
        timing_valid=not phase.invalid_times,
        peak_memory_bytes=phase.peak_memory_bytes,
        dense_peak_memory_bytes=phase.baseline.peak_memory_bytes if phase.baseline else None,
        samples=len(phase.unprofiled_ns.samples) if phase.unprofiled_ns else None,
        placements=len(phase.unprofiled_ns.placements or ()) or None
        if phase.unprofiled_ns
        else None,
        set=list(entry.set),
        closure=phase.closure,
        dimensions=_dimensions(run, entry.phase),
        ran=ran,
        **msgspec.structs.asdict(entry.setting),
    )


def _counts(run: Run, phase: str) -> dict[str, ModuleCounts]:
    """Return the counts that modules of a dynamic family recorded in a phase."""
    return run.census.counts_in(phase) if run.census else {}


def _dimensions(run: Run, phase: str) -> dict[str, list[list[int]]]:
    """Return the sizes of the weights by role, and those of what is chosen at run time."""
    weights = Counter(
        (matrix.role, tuple(matrix.shape))
        for matrix in (run.census.matrices if run.census else ())
        if matrix.role is not None and matrix.shape
    )
    dimensions: dict[str, list[list[int]]] = {}
    for (role, shape), count in sorted(weights.items()):
        dimensions.setdefault(role, []).append([*shape, count])
    channels = {
        pair
        for counts in _counts(run, phase).values()
        if counts.unit == "channels"
        for pair in zip(counts.active, counts.total, strict=False)
    }
    if channels:
        dimensions["channels"] = [list(pair) for pair in sorted(channels)]
    return dimensions


def _shares_that_ran(run: Run, phase: str) -> dict[str, float]:
    """Return the share of units that ran, by the name of a module in its layer."""
    sums: dict[str, list[int]] = {}
    for name, counts in _counts(run, phase).items():
        both = sums.setdefault(f"{counts.unit} of {name.rpartition('.')[2]}", [0, 0])
        both[0], both[1] = both[0] + sum(counts.active), both[1] + sum(counts.total)
    return {name: active / total for name, (active, total) in sums.items() if total}


def why_unscored(
    entry: SweepResult, pruning: Pruning | None, ran: Mapping[str, float]
) -> str | None:
    """Return why the model that was scored differs from the one that was timed.

    A step of fixed shapes (mode compile or graph) whose rows are chosen at random runs max(1,
    int(p·B)) of its B rows. The model that was scored runs each row with probability p.

    Args:
        entry: The result.
        pruning: The record of the pruning.
        ran: The share of units that ran, by module.

    Returns:
        The reason; None if both models are the same.
    """
    if entry.mode == "eager" or entry.phase != "decode" or pruning is None:
        return None
    shares = [share for unit, share in ran.items() if unit.startswith("rows")]
    parts = _parts_by_count(pruning)
    wanted = [1 - part.sparsity for part in parts if part.sparsity is not None]
    if not shares or not wanted or all(math.isclose(share, wanted[0]) for share in shares):
        return None
    if min(shares) == 1:
        rows = f"{entry.batch} row{plural(entry.batch)}"
        return f"a {entry.mode} step of {rows} always runs: this point is the dense model"
    return (
        f"each {entry.mode} step runs {percent(max(shares))} of its {entry.batch} rows, the model "
        f"that was scored {percent(wanted[0])} on average"
    )


def _parts_by_count(pruning: Pruning) -> list[Pruning]:
    """Return the parts whose fixed decode steps run a number of rows given by the batch.

    With a threshold, fitted or trained, all rows are computed, and those that do not pass are
    multiplied by 0.
    """
    recovery = pruning.recovery
    if recovery is not None and any(router.trained for router in recovery.routers):
        return []
    return [
        part
        for part in pruning.parts or [pruning]
        if part.selection == "random" and (part.knobs or {}).get("choose") == "rank"
    ]


def loss_in(quality: Quality | None, phase: str) -> Loss | None:
    """Return the losses of a run's quality in a phase; None if the run was not judged in it."""
    if quality is None or not quality.is_compared or quality.phase not in (None, phase):
        return None
    tasks, other_text = quality.tasks_change, quality.other_text
    shared = {*Quality.__struct_fields__} & {*Loss.__struct_fields__} - {
        *TextLoss.__struct_fields__
    }
    return Loss(
        **_text_losses(quality),
        **{name: getattr(quality, name) for name in shared - {"other_text"}},
        other_text=None if other_text is None else TextLoss(**_text_losses(other_text)),
        tasks_signed=msgspec.UNSET if tasks is None else tasks.signed,
        tasks_signed_ci95=msgspec.UNSET if tasks is None else tasks.signed_ci95,
        tasks_absolute=msgspec.UNSET if tasks is None else tasks.absolute,
        tasks_points=_task_points(quality),
    )


def _text_losses(quality: Quality) -> dict[str, Any]:
    """Return the fields of a TextLoss."""
    return {
        "perplexity_rel": quality.perplexity_rel,
        "ci95": quality.perplexity_rel_ci95,
        "perplexity_rel_recovered": quality.perplexity_rel_recovered,
        "recovered_ci95": quality.perplexity_rel_recovered_ci95,
    }


def _task_points(quality: Quality) -> float | None:
    """Return the mean change of the tasks' scores, pruned − dense.

    The dense score d follows from the pruned score p and the relative change r = (p − d) / d.

    Returns:
        The mean; None if a score is not a share of right answers, or d does not follow.
    """
    changes = []
    for name, relative in (quality.tasks_change.by_task if quality.tasks_change else {}).items():
        score = quality.tasks.get(name)
        value = score.value if score and score.higher_is_better is not False else None
        if value is None or relative is None or relative <= -1 or not 0 <= value <= 1:
            return None
        changes.append(value - value / (1 + relative))
    return sum(changes) / len(changes) if changes else None


def simulated_by(pruning: Pruning, *, decides: bool) -> str | None:
    """Return which part of a point is simulated, such as masks instead of a sparse kernel.

    Args:
        pruning: The record of the pruning.
        decides: Whether something is decided at run time.

    Returns:
        The description; None if nothing is simulated.
    """
    parts = pruning.parts or [pruning]
    if any(part.backend == "masked" for part in parts):
        return "2:4 zeros in dense tensors on dense kernels: no sparse kernels on this device"
    routers = pruning.recovery.routers if pruning.recovery else []
    trained = any(router.trained for router in routers)  # then their scores decide
    if decides and not trained and any(_decides_at_random(part) for part in parts):
        return "random decisions, at the full cost of making them"
    return None


def _decides_at_random(part: Pruning) -> bool:
    """Return whether a part of a composite decides at random at run time.

    Keeping the latest keys and the first is a rule, and not random.
    """
    families = known([part.method or ""])
    by_rule = (part.knobs or {}).get("keep") in ("recent", "sinks")
    is_dynamic = not families or families[0].is_dynamic  # a function of the user's own may decide
    return part.selection == "random" and is_dynamic and not by_rule


_NUM_SAMPLES, _SEED = 2000, 0  # as of perplexities


def recovery_loss(own: Recovered | None, controls: Iterable[Recovered]) -> RecoveryLoss | None:
    """Return the loss on the held-out tokens of a recovery training, before and after it.

    It is exp(mean nats of the pruned model − mean nats of the dense one) − 1 over the same tokens.
    Intervals of 95 % are percentiles of a bootstrap over blocks of neighbouring tokens, which are
    the same blocks for both models.

    Args:
        own: The training of the pruned model.
        controls: The trainings of the dense model, of which one must be judged on the same tokens.

    Returns:
        The losses; None if there is no such training.
    """
    if own is None or own.eval_sha256 is None:
        return None
    dense = next((run for run in controls if run.eval_sha256 == own.eval_sha256), None)
    pruned, plain = _held_out(own), _held_out(dense)
    if pruned is None or plain is None:
        return None
    tokens = np.array(pruned.block_tokens, float)
    if pruned.block_tokens != plain.block_tokens or (tokens <= 0).any():
        tokens = tokens[:0]
    return RecoveryLoss(
        before_rel=math.expm1((pruned.before or 0.0) - (plain.before or 0.0)),
        after_rel=math.expm1((pruned.after or 0.0) - (plain.after or 0.0)),
        tokens=pruned.tokens,
        before_ci95=_ci95(pruned.before_by_block, plain.before_by_block, tokens),
        after_ci95=_ci95(pruned.after_by_block, plain.after_by_block, tokens),
        blocks=len(tokens) or None,
    )


def _held_out(training: Recovered | None) -> HeldOut | None:
    """Return the losses before and after a training; None if one of them is unknown."""
    losses = training.losses.held_out if training and training.losses else None
    if losses is None or losses.before is None or losses.after is None:
        return None
    return losses


def _ci95(
    pruned: list[float], plain: list[float], tokens: NDArray[np.float64]
) -> list[float] | None:
    """Return the interval of exp(difference of mean nats) − 1, by blocks of `tokens` [n].

    Returns:
        The interval; None for a single block, or if some blocks have no losses.
    """
    count = len(tokens)
    if count < 2 or not len(pruned) == len(plain) == count:
        return None
    apart = (np.array(pruned) - np.array(plain)) * tokens
    sampled = np.random.default_rng(_SEED).integers(count, size=(_NUM_SAMPLES, count))
    means = apart[sampled].sum(1) / tokens[sampled].sum(1)
    low, high = np.expm1(np.quantile(means, [0.025, 0.975])).tolist()
    return [low, high]
