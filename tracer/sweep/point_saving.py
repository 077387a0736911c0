"""A point of a sweep as a checkpoint: `pareto --save-model`.

In: the folder of a sweep, the id of a result that is done, and the dense model. Out: the point,
pruned and trained again as the sweep did, found to be the same weights, and saved. Trainings that
the folder holds are not repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from prunescope.taxonomy.errors import PrunescopeError, nearest
from prunescope.taxonomy.option import as_path
from prunescope.taxonomy.runs.run import MANIFEST, Run, read_run, sha256_of
from prunescope.taxonomy.runs.sweep_files import DONE, PLAN, PlanFile, Planned
from prunescope.tracer.capture.model_saving import machine_of, phase_speed, save_pruned
from prunescope.tracer.capture.progress import Progress
from prunescope.tracer.capture.variants import Variant
from prunescope.tracer.export.checkpoint import SavedModel
from prunescope.tracer.model.weights import weights_fingerprint
from prunescope.tracer.recovery.settings import read_recovery
from prunescope.tracer.recovery.storage import trainings_stored
from prunescope.tracer.sweep.plan import SweepConfig, is_checkpoint, model_name, request_of
from prunescope.tracer.sweep.request import SavePoint
from prunescope.tracer.sweep.state import SweepFolder, read_json

_PATHS = ("model", "text", "other_text", "tasks", "recover", "logits")  # plan.json has their names


def save_point(wanted: SavePoint, progress: Progress) -> SavedModel:
    """Save a point of a sweep.

    Args:
        wanted: The sweep, the point, and where it goes.
        progress: The display of progress.

    Returns:
        What was saved.

    Raises:
        PrunescopeError: There is no such point that is done, it is a checkpoint already, or what
            was pruned now has other weights than the model that was timed.
    """
    folder = SweepFolder(Path(wanted.folder))
    plan = read_json(folder.path / PLAN, PlanFile)
    if plan is None:
        raise PrunescopeError(
            f"{folder.path.name} is no folder of a sweep", hint="give the --out of a sweep"
        )
    point = _find_point(folder, plan, wanted.point)
    config = _config(plan, point, wanted)
    request = request_of(config, point, out=folder.run(point))
    request.save_model, request.allow_code = wanted.out, wanted.allow_code
    run = read_run(folder.run(point) / "pruned")
    _check_text(run, plan, wanted)
    timed = run.quality.weights_fingerprint if run.quality is not None else None

    def check(pruned: Variant) -> None:
        """Refuse a model with other weights than the one that was timed."""
        if timed != weights_fingerprint(pruned.model):
            raise PrunescopeError(
                f"{point.id} has other weights now than when it was timed",
                hint="give the same --model and --text as in the sweep, on the same machine and "
                "with the same versions",
            )

    facts: dict[str, Any] = {
        "quality": run.quality,
        "speeds": list(_speeds(folder, plan, point)),
        "machine": machine_of(run),
        "run": sha256_of(folder.run(point) / "pruned" / MANIFEST),
        "command": wanted.command,
        "name": Path(wanted.out).name,
    }
    with trainings_stored(folder.path / "recovery", progress):
        return save_pruned(request, progress, facts=facts, check=check)


def _find_point(folder: SweepFolder, plan: PlanFile, name: str) -> Planned:
    """Return the planned result of a name, which is done and was pruned here."""
    by_id = {point.id: point for point in plan.results}
    point = by_id.get(name)
    if point is None:
        raise PrunescopeError(
            f"no point of {folder.path.name} is called {name[:120]!r}",
            hint=f"nearest: {nearest(name, by_id)}; sweep.json lists all",
        )
    if folder.state(point) != DONE:
        raise PrunescopeError(
            f"{name} is {folder.state(point)}, so that nothing of it was timed",
            hint="run the sweep to its end first",
        )
    if point.sparsity is None or is_checkpoint(point.family):
        raise PrunescopeError(
            f"{name} is a checkpoint or a plan, which the sweep did not choose",
            hint="a checkpoint is saved already; of a plan, use trace --method PLAN --save-model",
        )
    return point


def _config(plan: PlanFile, point: Planned, wanted: SavePoint) -> SweepConfig:
    """Return the settings of the sweep, with the paths that plan.json does not hold."""
    stored = plan.config
    recover = stored.get("recover")
    read = stored.get("text") or (recover or {}).get("text")
    if read is not None and wanted.text is None:
        raise PrunescopeError(
            f"the sweep read the text {read}, and none was given",
            hint=f"add --text with the path of {read}",
        )
    names = {field.name for field in fields(SweepConfig)} - set(_PATHS)
    values = {key: value for key, value in stored.items() if key in names and value is not None}
    for key in ("knobs", "select"):
        if isinstance(values.get(key), list):
            values[key] = tuple(values[key])
    text = None if wanted.text is None else Path(wanted.text)
    if recover is not None:
        values["recover"] = read_recovery({**recover, "text": recover.get("text") and str(text)})
    return SweepConfig(
        model=wanted.model or str(stored.get("model")),
        families=(point.family,),
        text=None if stored.get("text") is None else text,
        **values,
    )


def _check_text(run: Run, plan: PlanFile, wanted: SavePoint) -> None:
    """Raise PrunescopeError for another text, by which the stored training would be replaced."""
    read = run.quality.text.sha256 if run.quality is not None and run.quality.text else None
    path = as_path(wanted.text)
    if plan.config.get("text") is None or read is None or path is None or not path.is_file():
        return
    if sha256_of(path) != read:
        raise PrunescopeError(
            f"{path.name} is not the text that the sweep read",
            hint=f"give {plan.config['text']} as it was then",
        )


def _speeds(folder: SweepFolder, plan: PlanFile, point: Planned) -> Iterator[Any]:
    """Yield the speed of every result that is done of the same model."""
    for result in plan.results:
        if model_name(result) == model_name(point) and folder.state(result) == DONE:
            dense, pruned = (read_run(folder.run(result) / name) for name in ("dense", "pruned"))
            yield phase_speed(
                result.phase, dense.phases[result.phase], pruned.phases[result.phase], pruned
            )
