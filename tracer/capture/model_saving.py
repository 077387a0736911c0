"""`--save-model` of a capture: weights before anything is timed, the card when all is measured.

In: the variants of a capture while they are in memory, and its manifests at the end. Out: a folder
that appears whole or not at all. A model that no checkpoint holds is refused before it is timed.
"""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from prunescope.taxonomy.allocations.allocation_plan import read_plan
from prunescope.taxonomy.atomic_write import (
    claimed,
    clean_termination,
    partial_folder,
    put_in_place,
)
from prunescope.taxonomy.engines import engine_answers, layouts_of
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import family
from prunescope.taxonomy.runs.run import PhaseRun, Run
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.student_t import interval_quantile
from prunescope.taxonomy.timings import part
from prunescope.taxonomy.words import significant
from prunescope.tracer.capture.judge import Judge
from prunescope.tracer.capture.progress import Progress
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.capture.runs import Capture
from prunescope.tracer.capture.variants import Variant, make_variants
from prunescope.tracer.export.card import Card, PhaseSpeed, base_licence, render
from prunescope.tracer.export.checkpoint import (
    SavedModel,
    base_folder,
    check_space,
    check_target,
    stored_bytes,
    write_checkpoint,
)
from prunescope.tracer.export.holding import find_holding
from prunescope.tracer.machine.device import pick_device, thread_count
from prunescope.tracer.model.model_shape import model_shape


class ModelSaver:
    """The pruned model of a capture on its way to a folder."""

    def __init__(
        self, request: TraceRequest, partial: Path, judge: Judge, progress: Progress
    ) -> None:
        self.request, self.partial, self.judge = request, partial, judge
        self.progress = progress
        self.saved: SavedModel | None = None
        self.text = ""  # of the card
        self._card: Card | None = None

    def on_models(self, variants: Sequence[Variant]) -> None:
        """Write the weights of the pruned model, once it is there, and measure its loss."""
        pruned = next((v for v in variants if v.name == "pruned"), None)
        if pruned is not None and self.saved is None:
            self._save(pruned, next((v for v in variants if v.name == "dense"), None))
        self.judge.on_models(variants)

    @part("write")
    def _save(self, pruned: Variant, dense: Variant | None) -> None:
        """Write the weights, after their size was announced and found to fit."""
        target, size = Path(self.request.save_model or ""), stored_bytes(pruned.model)
        self.progress.stage(f"save {significant(size / 1e9)} GB to {target.name}")
        check_space(target, size)
        holding = find_holding(pruned.model, allow_code=self.request.allow_code)
        self.saved = write_checkpoint(
            self.partial, pruned.model, pruned.loaded, holding, pruned.adapter
        )
        self._card = _describe(self.request, pruned, dense, self.saved)
        if pruned.pruning is not None:
            answers = [
                {"engine": a.engine, "runs": a.runs, "faster": a.faster, "reason": a.reason}
                for a in self._card.engines
            ]
            pruned.pruning.saved = {**self.saved.record, "engines": answers}

    @part("write")
    def finish(self, captures: Mapping[str, Capture], manifest_sha256: str) -> None:
        """Write the card, with what the capture measured."""
        run = captures["pruned"].run
        speeds: list[PhaseSpeed] = []
        if "dense" in captures:
            speeds = [
                phase_speed(phase, captures["dense"].run.phases[phase], entry, run)
                for phase, entry in run.phases.items()
            ]
        self.write_card(
            speeds=speeds,
            machine=machine_of(run),
            run=manifest_sha256,
            command=shlex.join(["prunescope", *run.argv]) if run.argv else "",
        )

    def write_card(self, **facts: Any) -> None:
        """Write README.md with what is known of the saved model, and these fields of its card."""
        if self._card is None:
            raise PrunescopeError(
                "no pruned model was there to save", hint="leave out --save-model"
            )
        card = replace(self._card, **{"quality": self.judge.quality.get("pruned"), **facts})
        self.text = render(card)
        (self.partial / "README.md").write_text(self.text, encoding="utf-8")


@contextmanager
def saving(request: TraceRequest, judge: Judge, progress: Progress) -> Iterator[ModelSaver | None]:
    """Make a saver for a request that saves its model; its folder appears at the end.

    Raises:
        PrunescopeError: The folder holds something.
    """
    if request.save_model is None:
        yield None
        return
    target = Path(request.save_model)
    check_target(target)
    with claimed(target), partial_folder(target) as partial:
        yield ModelSaver(request, partial, judge, progress)
        check_target(target)
        put_in_place(partial, target)


@part("write")
def save_pruned(
    request: TraceRequest,
    progress: Progress,
    *,
    facts: Mapping[str, Any] | None = None,
    check: Callable[[Variant], None] | None = None,
) -> SavedModel:
    """Prune a model and save it, without timing anything.

    Args:
        request: The model, the method, and where to save it.
        progress: The display of progress.
        facts: Fields of the card, such as what a plan expects.
        check: Called with the pruned model before it is saved, to refuse it.

    Returns:
        What was saved.

    Raises:
        PrunescopeError: No checkpoint holds the model, or the folder holds something.
    """
    request.check()
    judge = Judge(request, progress)
    with clean_termination(), saving(request, judge, progress) as saver:
        assert saver is not None
        device = pick_device(request.device)
        progress.stage(f"load {request.model}")
        with thread_count(request.threads):
            variants = make_variants(request, device, ("dense", "pruned"))
            if check is not None:
                check(variants[-1])
            saver.on_models(variants)
        saver.write_card(**(facts or {}))
        assert saver.saved is not None
        return saver.saved


def save_planned(
    model: str, plan: Path, target: Path, progress: Progress, **options: Any
) -> SavedModel:
    """Prune a model by a plan of `allocate`, and save it.

    Args:
        model: The dense model.
        plan: The file of the plan, whose expectations are on the card.
        target: The folder to save to.
        progress: The display of progress.
        options: Further fields of the TraceRequest.

    Returns:
        What was saved.

    Raises:
        PrunescopeError: The plan is none, or `save_pruned` refuses the model.
    """
    planned = read_plan(plan)
    request = TraceRequest(model, method=str(plan), save_model=target, **options)
    expected = {"speedup": planned.expected.speedup, "loss": planned.expected.loss}
    return save_pruned(request, progress, facts={"expected": expected, "command": planned.command})


def _describe(
    request: TraceRequest, pruned: Variant, dense: Variant | None, saved: SavedModel
) -> Card:
    """Return the card of a saved model, without what the capture will measure."""
    shape = _shape_or_none(pruned.model)
    families = [family(part.family) for part in request.parts or ()]
    layers: list[dict[str, Any]] = []
    answers = []
    if shape is not None:
        layers = _layers_of(shape)
        held = saved.holding.kind
        answers = engine_answers(layouts_of(families, shape), shape, request.legal_tp, held=held)
    before = None if dense is None else _shape_or_none(dense.model)
    record = pruned.pruning
    notes = list((record.notes if record else None) or ())
    if record is not None and record.recovery is not None:
        trained = record.recovery
        merged = "merged" if pruned.adapter is None else "saved as an adapter; times are merged"
        notes.append(
            f"recovered by {trained.steps_done} steps of LoRA training on {trained.text}, {merged}"
        )
    if saved.packed is not None:
        notes.append(saved.packed or "2:4 weights are in sparse-24-bitmask/ too, packed")
    count = None if dense is None else sum(p.numel() for p in dense.model.parameters())
    return Card(
        name=Path(request.save_model or "").name,
        base=pruned.loaded.id,
        licence=base_licence(base_folder(pruned.loaded)),
        method=Path(request.method or "").name,
        sparsity=record.sparsity if record else None,
        parameters=(saved.checked.parameters, count),
        layers=layers,
        layer_map=pruned.layer_map,
        checked=saved.checked,
        kind=saved.holding.kind,
        has_adapter=pruned.adapter is not None,
        dense_layers=[] if before is None else _layers_of(before),
        versions={"transformers": transformers.__version__, "torch": torch.__version__},
        engines=answers,
        tp=request.legal_tp,
        notes=notes,
        padded=record.padded if record else None,
        weights=saved.weights,
    )


def _layers_of(shape: ModelShape) -> list[dict[str, Any]]:
    """Return the dimensions of each layer."""
    return [shape.layer(number).to_dict() for number in range(shape.layers)]


def _shape_or_none(model: Any) -> ModelShape | None:
    """Return the shape of a model; None for an architecture that is not known."""
    try:
        return model_shape(model)
    except PrunescopeError:
        return None


def machine_of(run: Run) -> str:
    """Describe the machine of a run: device, threads, library."""
    device = run.device
    threads = f", {device.threads} threads" if device.threads else ""
    return (
        f"{device.name or device.kind or 'an unknown device'}{threads}, torch {torch.__version__}"
    )


def phase_speed(name: str, dense: PhaseRun, pruned: PhaseRun, run: Run) -> PhaseSpeed:
    """Return the speed of a phase, with the t interval over placements.

    Args:
        name: The phase.
        dense: Its entry in the dense run.
        pruned: Its entry in the pruned run.
        run: The pruned run, whose notes on timing count.

    Returns:
        The geometric mean over placements of the ratio of medians, and its interval.
    """
    sides = (dense.samples_by_placement, pruned.samples_by_placement)
    medians = [[statistics.median(samples) for samples in side if samples] for side in sides]
    logs = [math.log(a / b) for a, b in zip(*medians, strict=False)]
    mean, interval = statistics.fmean(logs), None
    if len(logs) > 1:
        quantile = interval_quantile(len(logs) - 1, sequential=pruned.is_sequential)
        half = quantile * statistics.stdev(logs) / math.sqrt(len(logs))
        interval = (math.exp(mean - half), math.exp(mean + half))
    troubles = list((run.timing.notes if run.timing else None) or ())
    if dense.has_disturbed_samples or pruned.has_disturbed_samples:
        troubles.append("other work disturbed samples")
    return PhaseSpeed(
        phase=name,
        dense_ms=math.exp(statistics.fmean(map(math.log, medians[0]))) / 1e6,
        pruned_ms=math.exp(statistics.fmean(map(math.log, medians[1]))) / 1e6,
        speedup=math.exp(mean),
        ci95=interval,
        placements=len(logs),
        workload=f"batch {pruned.batch}, prompt of {pruned.prompt_len} tokens",
        trouble="; ".join(troubles),
    )
