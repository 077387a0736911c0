"""`prunescope allocate`: which parts of each layer to keep, for a target and the least loss.

In: an AllocateRequest. Out: plan.json, its picture, and the measured losses next to it. Costs and
the choice come from analysis/predict, losses from tracer/allocation (the model with each part
removed); here the two meet.
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from prunescope.analysis.predict.allocation_problem import (
    Choice,
    Problem,
    build_cost_request,
    build_problem,
    choose,
    frontier,
    reached,
)
from prunescope.analysis.predict.allocation_request import AllocateRequest
from prunescope.analysis.predict.allocation_solver import GAP
from prunescope.analysis.predict_from import dense_phases
from prunescope.analysis.report.allocation_figure import plan_files
from prunescope.taxonomy.allocations.allocation import LayerOption
from prunescope.taxonomy.allocations.allocation_candidates import (
    allocated_shape,
    changed_layer,
    layer_ranks,
    removals_of,
)
from prunescope.taxonomy.allocations.allocation_plan import (
    KIND,
    MOST_NATS,
    Additivity,
    KeptLayer,
    PlanEstimate,
    PlanOfLayers,
    Uniform,
)
from prunescope.taxonomy.atomic_write import write_file
from prunescope.taxonomy.engines import NAMES
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.option import as_path, options_of
from prunescope.taxonomy.scrub import scrub, scrub_all
from prunescope.taxonomy.timings import part
from prunescope.tracer.allocation.losses import (
    SCREENED,
    SEQUENCES,
    ModelLosses,
    differing_source,
    losses_nearby,
)
from prunescope.tracer.calibration.collect import calibration_of, text_calibration
from prunescope.tracer.capture.progress import Progress, Silent
from prunescope.tracer.export.checkpoint import check_target
from prunescope.tracer.machine.device import pick_device
from prunescope.tracer.model.load import load_model, load_tokenizer

_SHORT_S = 20.0  # a shorter wait needs no estimate


def read_problem(request: AllocateRequest) -> Problem:
    """Return the problem of a request, and read its dense run.

    Raises:
        PrunescopeError: The request cannot be met, the plan exists, or `build_problem` refuses it.
    """
    if request.path.exists() and not request.overwrite:
        raise PrunescopeError(
            f"{request.path.name} exists", hint="--overwrite replaces it, or name another --out"
        )
    request.check()
    if request.save_model is not None:
        check_target(Path(request.save_model))
    cost_request, _ = build_cost_request(request)
    notes: list[str] = []
    measured = None if cost_request.from_run is None else dense_phases(cost_request, notes)[1]
    return build_problem(request, measured, notes)


def count_evaluations(problem: Problem) -> dict[str, Any]:
    """Return the numbers of `--dry-run`.

    They say how many removals are screened, and of how many a loss is known.
    """
    shape, request = problem.costs.shape, problem.request
    layers = [shape.layer(number) for number in range(shape.layers)]
    wanted = removals_of(problem.sizes, [(layer.kv_heads, layer.intermediate) for layer in layers])
    keys = {removal.key for removal in wanted}
    measured, losses = 0, request.losses_path
    other_source: str | None = None
    for path, known in losses_nearby(request.losses_path):
        difference = differing_source(known, model=request.model_name, text=as_path(request.text))
        if not difference:
            screened = known.screened.removed if known.screened else {}
            measured = len(keys & (known.removed.keys() | screened.keys()))
            losses, other_source = path, None
            break
        if path == request.losses_path:
            other_source = difference
    return {
        "removals": len(wanted),
        "measured": measured,
        "losses_of": other_source,  # those that the file has, where they are of no use here
        "sequences": SEQUENCES,
        "screened_sequences": SCREENED,
        "losses": losses.name,
        "layers": shape.layers,
        "target": problem.text,
        "costs": problem.costs.source,
    }


def allocate(
    request: AllocateRequest,
    progress: Progress | None = None,
    pictures: Sequence[str] = ("png",),
) -> PlanOfLayers:
    """Decide and write the plan.

    Args:
        request: The model, the target, and where the plan goes.
        progress: What shows each stage; None: nothing does.
        pictures: The formats of the picture next to the plan.

    Returns:
        The plan.

    Raises:
        PrunescopeError: The request cannot be met, which is known before a model is loaded, or the
            target cannot be reached.
    """
    problem = read_problem(request)
    shown = progress or Silent()
    losses = _measure_losses(problem, shown)
    choice = _confirmed_choice(problem, losses, shown)
    shown.stage("pairs of removals")
    additivity = losses.additivity(choice.options, shown.advance)
    plan = _describe_plan(problem, losses, choice, additivity)
    _write(request, plan, pictures)
    if request.save_model is not None:
        _save_model(request, shown)
    return plan


def _confirmed_choice(problem: Problem, losses: ModelLosses, progress: Progress) -> Choice:
    """Return the best choice, once the screened losses that it rests on are confirmed.

    A confirmed loss may make another choice the best one. Each round confirms at least one loss, so
    that the rounds end.
    """
    while True:
        choice = choose(problem, losses.sizes, losses.layers())
        unsure = losses.unsure(choice.options)
        if not unsure:
            return choice
        name = problem.request.losses_path.name
        remaining = _Remaining(progress, len(unsure), name, "loss on the whole text")
        progress.stage(remaining.what, len(unsure))
        losses.confirm(unsure, remaining.advance)


def _save_model(request: AllocateRequest, progress: Progress) -> None:
    """Prune the model by the plan that was written, and save it."""
    from prunescope.tracer.capture.model_saving import save_planned

    assert request.save_model is not None
    save_planned(
        request.model,
        request.path,
        Path(request.save_model),
        progress,
        allow_code=request.allow_code,
        text=request.text,
        legal=request.legal,
        legal_tp=request.legal_tp,
    )


def _legal_notes(problem: Problem, choice: Choice) -> list[str]:
    """Say what the sizes of an engine cost, where layers could not differ."""
    if problem.request.legal is None:
        return []
    engine, costs = NAMES[problem.request.legal], problem.costs
    note = f"all layers that stay have one size, as {engine} reads one for all of them"
    if choice.free is None:
        return [note]
    even, free = (allocated_shape(costs.shape, x) for x in (choice.options, choice.free))
    loss = choice.loss - sum(option.loss for option in choice.free)
    milliseconds = (costs.ns(even) - costs.ns(free)) / 1e6
    megabytes = (costs.memory_bytes(even) - costs.memory_bytes(free)) / 1e6
    return [
        f"{note}: beside layers of their own sizes that costs {loss:+.4f} nats, "
        f"{milliseconds:+.3g} ms and {megabytes:+.3g} MB at these targets"
    ]


def _measure_losses(problem: Problem, progress: Progress) -> ModelLosses:
    """Screen every removal of which the file next to the plan has no loss yet."""
    request = problem.request
    request.losses_path.parent.mkdir(parents=True, exist_ok=True)
    progress.stage("loading the model")
    device = pick_device("auto")
    loaded = load_model(request.model, dtype="auto", device=device, attn="sdpa")
    tokenizer, text = load_tokenizer(loaded), as_path(request.text)
    if tokenizer is None and text is not None:
        raise PrunescopeError(
            f"{loaded.id} has no tokenizer to read --text with",
            hint="remove --text: losses are measured on random token ids then",
        )
    calibration = (
        calibration_of(loaded.model, None, seed=0)
        if tokenizer is None
        else text_calibration(loaded.model, tokenizer, text)
    )
    losses = ModelLosses(
        model=loaded.model,
        calibration=calibration,
        sizes=problem.sizes,
        path=request.losses_path,
        name=request.model_name,
    )
    count = len(removals_of(losses.sizes, losses.dense_sizes))
    remaining = _Remaining(progress, count, request.losses_path.name)
    progress.stage(remaining.what, count)
    losses.screen(remaining.advance)
    return losses


@dataclass
class _Remaining:
    """The time that evaluations of the model still take, said from the first ones on."""

    progress: Progress
    count: int
    name: str  # of the file that keeps them
    what: str = "loss by ablating each part"
    _done: int = 0
    _begun: float = field(default_factory=time.monotonic)

    def advance(self) -> None:
        """Note that one evaluation is done, and say how long the others take at this pace."""
        self._done += 1
        self.progress.advance()
        spent = time.monotonic() - self._begun
        left = (self.count - self._done) * spent / self._done
        if left > _SHORT_S:
            self.progress.describe(
                f"{self.what}: {self._done} of {self.count}, about "
                f"{left / 60:.0f} min left, kept in {self.name}"
            )


@part("analyze")
def _describe_plan(
    problem: Problem, losses: ModelLosses, choice: Choice, additivity: Additivity
) -> PlanOfLayers:
    """Return the plan of a choice, with what it is expected to give."""
    costs, chosen, uniform = problem.costs, choice.options, choice.uniform
    together, needed = losses.together(chosen), losses.measured_for(chosen)
    shape = allocated_shape(costs.shape, chosen)
    phases = costs.expected(shape)
    weighed = [(phase.weight, phase) for phase in phases.values()]
    notes = [*costs.notes, *losses.parts.notes, *problem.notes, *_legal_notes(problem, choice)]
    dense_ns = sum(weight * phase.dense_ns for weight, phase in weighed)

    def speedup_at(ns: Sequence[float]) -> float:
        return dense_ns / sum(weight * t for (weight, _), t in zip(weighed, ns, strict=True))

    speedup = speedup_at([phase.ns for _, phase in weighed])
    low, high = (
        speedup_at([phase.dense_ns / phase.range[i] for _, phase in weighed]) for i in (0, 1)
    )
    if losses.calibration.record.get("text") is None:
        notes.append(
            "losses are measured on random token ids, as the model has no tokenizer: they rank "
            "layers but do not predict the loss on a text"
        )
    return PlanOfLayers(
        kind=KIND,
        model=problem.request.model_name,
        weights=losses.file.weights,
        target=problem.goal.target,
        further_targets=[goal.target for goal in problem.goals[1:]],
        expected=PlanEstimate(
            speedup=speedup,
            range=[low, high],
            phases=phases,
            memory_bytes=costs.memory_bytes(shape),
            dense_memory_bytes=costs.memory_bytes(costs.shape),
            loss=choice.loss,
            loss_measured=together,
            perplexity_rel=math.expm1(min(together, MOST_NATS)),
        ),
        layers=_kept_layers(problem, losses, chosen),
        frontier=frontier(problem, choice.program),
        uniform=None
        if uniform is None
        else Uniform(
            family=uniform.family,
            kept=uniform.kept,
            loss=uniform.loss,
            **reached(problem.goal, uniform.cost),
        ),
        additivity=additivity,
        costs={
            "source": costs.source,
            "solver": f"scipy.optimize.milp (HiGHS), relative gap {GAP:g}",
            "in": "bytes" if problem.goal.memory else "ns",
        },
        text={
            **losses.file.text,
            "dense_nats": losses.file.dense,
            "screened_sequences": SCREENED,
            "removals": len(needed),
            "confirmed": sum(removal.key in losses.file.removed for removal in needed),
        },
        notes=scrub_all(notes),
        command=_command_line(problem.request),
    )


def _kept_layers(
    problem: Problem, losses: ModelLosses, chosen: Sequence[LayerOption]
) -> list[KeptLayer]:
    """Return what each layer keeps, with its loss and the ns that it saves alone."""
    dense = problem.costs.shape
    kept: list[KeptLayer] = []
    alone: dict[Any, dict[str, float]] = {}
    for number, option in enumerate(chosen):
        layer, parts = dense.layer(number), losses.parts.layers[number]
        changed = changed_layer(dense, number, option)
        after = changed.layer(number)
        key = dense.layout[number], layer, after
        if key not in alone:
            alone[key] = {
                name: phase.dense_ns - phase.ns(changed)
                for name, phase in problem.costs.phases.items()
            }
        cut_heads = None if option.kv_heads is None else parts.kv_heads
        cut_channels = None if option.channels is None else parts.channels
        kept.append(
            KeptLayer(
                layer=number,
                dropped=option.dropped,
                heads=after.heads or None,
                kv_heads=after.kv_heads or None,
                channels=after.intermediate or None,
                dense_kv_heads=layer.kv_heads or None,
                dense_channels=layer.intermediate or None,
                kept_kv_heads=cut_heads.kept(option.kv_heads or 1) if cut_heads else None,
                kept_channels=cut_channels.kept(option.channels or 1) if cut_channels else None,
                ranks=layer_ranks(dense, number, option),
                attention_lowrank=option.attention_lowrank,
                mlp_lowrank=option.mlp_lowrank,
                loss=option.loss,
                saves_ns=alone[key],
            )
        )
    return kept


def _command_line(request: AllocateRequest) -> str:
    """Return the command line of a request.

    It has the options that differ from their defaults, and only the last part of paths.
    """
    words = ["prunescope", "allocate"]
    for option in options_of(AllocateRequest):
        value = getattr(request, option.name)
        if value == option.default or value is None:
            continue
        if isinstance(value, Mapping):
            for name, number in value.items():
                words += [option.flags[0], f"{name}={number:g}"]
            continue
        text = f"{value:g}" if isinstance(value, float) else str(value)
        words += [option.flags[0]] if value is True else [option.flags[0], scrub(text)]
    return shlex.join(words)


@part("write")
def _write(request: AllocateRequest, plan: PlanOfLayers, formats: Sequence[str]) -> None:
    """Write the plan as JSON, and its picture next to it."""
    request.path.parent.mkdir(parents=True, exist_ok=True)
    files = plan_files(plan, request.path.stem, formats)
    write_file(request.path, msgspec.json.format(msgspec.json.encode(plan), indent=1) + b"\n")
    for name, data in files.items():
        write_file(request.path.with_name(name), data)
