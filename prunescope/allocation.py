"""`prunescope allocate`: which parts of each layer to keep, for a target and the least loss.

In: an AllocateRequest. Out: plan.json, its picture, and the measured losses beside it. Costs come
from analysis/ (a dense run, or a device), losses from tracer/ (the model with each part removed),
and taxonomy/allocation.py decides. A target that cannot be reached is refused before a model is
loaded. The request is light: the command line imports it.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.option import (
    Batch,
    Option,
    Phase,
    PromptLen,
    as_path,
    check_options,
    fill_missing,
)
from prunescope.tracer.capture.progress import Progress, Silent

if TYPE_CHECKING:
    from prunescope.analysis.predict.allocation import Costs, LayerCosts
    from prunescope.taxonomy.allocation import Allocation, LayerOption
    from prunescope.taxonomy.allocation_candidates import Candidates, LayerTable, UniformChoice
    from prunescope.taxonomy.allocation_plan import (
        Additivity,
        PlanOfLayers,
        Target,
        TradeOff,
    )
    from prunescope.tracer.allocation.losses import LayerLosses, ModelLosses

_POINTS = 24  # of the frontier, in a plan
_TRIES = 20
_NAMED = 3  # parts that hold a target back
_ROUNDING = 1e-9  # of a cost
_MOST_NATS = 700.0  # the largest whose exponential is a number


@dataclass(kw_only=True)
class AllocateRequest:
    """A dense model, what it costs, and a target: one of speedup, latency and memory."""

    model: Annotated[
        str,
        Option(
            help="Dense model whose layers are cut: a Hugging Face folder, a hub id, a GGUF file "
            "or a preset.",
            metavar="MODEL",
            complete="models",
        ),
    ] = field(kw_only=False)
    from_run: Annotated[
        Path | str | None,
        Option(
            help="Dense run of this model whose measured times are scaled; without it, give "
            "--device.",
            metavar="RUN",
        ),
    ] = None
    device: Annotated[
        str | None,
        Option(
            help="Device by a name from `prunescope devices`, whose times are predicted; without "
            "it, give --from-run.",
            metavar="NAME",
            complete="devices",
        ),
    ] = None
    speedup: Annotated[
        float | None,
        Option(
            help="Target: dense time over pruned time, above 1; or give --latency-ms or "
            "--memory-gb.",
            metavar="X",
        ),
    ] = None
    latency_ms: Annotated[
        float | None,
        Option(
            help="Target: time of a forward of the phase, or of a request of the workload, in "
            "milliseconds.",
            metavar="MS",
        ),
    ] = None
    memory_gb: Annotated[
        float | None,
        Option(
            help="Target: weights and KV cache together in GB (10^9 bytes).",
            metavar="GB",
        ),
    ] = None
    phase: Annotated[
        Phase, Option(help="Phase that the target is for: prefill, or a step of decode.")
    ] = "prefill"
    workload: Annotated[
        Literal["chat", "rag", "batch", "long", "agent"] | None,
        Option(
            help="Workload whose prompt and answer the target is for, so that both phases count; "
            "without it, --phase alone."
        ),
    ] = None
    batch: Batch = 1
    prompt_len: PromptLen = 512
    dtype: Annotated[
        str | None,
        Option(
            help="Number format whose times --device predicts, such as bf16; without it, that of "
            "the model.",
            metavar="NAME",
        ),
    ] = None
    text: Annotated[
        Path | str | None,
        Option(
            help="UTF-8 text whose first half measures the losses; without it, prose of Python's "
            "own documentation.",
            metavar="FILE",
        ),
    ] = None
    out: Annotated[
        Path | str,
        Option(
            help="File to write the plan to; its picture and the measured losses, from which the "
            "same command resumes, are next to it.",
            metavar="PLAN.json",
        ),
    ] = "plan.json"
    overwrite: Annotated[
        bool, Option(help="Replace the plan if it exists; without it, that is an error.")
    ] = False
    progress: Progress | None = None

    def __post_init__(self) -> None:
        fill_missing(self)

    def check(self) -> None:
        """Raises PrunescopeError for options that leave nothing to do or contradict each other."""
        check_options(self)
        targets = {
            "--speedup": self.speedup, "--latency-ms": self.latency_ms,
            "--memory-gb": self.memory_gb,
        }  # fmt: skip
        given = [name for name, value in targets.items() if value is not None]
        if len(given) != 1:
            raise PrunescopeError(
                f"allocate needs one target, and {' and '.join(given) or 'none'} was given",
                hint="for example --speedup 1.4",
            )
        if not 0 < (targets[given[0]] or 0) < 1e9:
            raise PrunescopeError(
                f"{given[0]} {targets[given[0]]} is no target", hint="for example --speedup 1.4"
            )
        if (self.from_run is None) == (self.device is None):
            raise PrunescopeError(
                "allocate takes --from-run or --device, one of the two",
                hint="trace the dense model first, or name a device of `prunescope devices`",
            )
        if Path(self.out).suffix.lower() != ".json":
            raise PrunescopeError(
                f"{Path(self.out).name} is no .json file", hint="for example --out plan.json"
            )

    @property
    def path(self) -> Path:
        """Where the plan goes."""
        return Path(self.out)

    @property
    def losses_path(self) -> Path:
        """Where the measured losses are kept."""
        return self.path.with_name(f"{self.path.stem}.losses.json")


@dataclass(kw_only=True)
class Problem:
    """What a request asks, without the model: costs of every size of every layer, and the cost that
    has to be reached, both less those of the dense model."""

    request: AllocateRequest
    costs: "Costs"
    sizes: "list[Candidates]"
    layer_costs: "list[LayerCosts]"
    target: "Target"
    cost: float

    @property
    def memory(self) -> bool:
        """Whether costs are bytes."""
        return self.request.memory_gb is not None

    @property
    def dense_cost(self) -> float:
        """ns of a request, or bytes."""
        return self.costs.cost(self.costs.shape, memory=self.memory)

    def shown(self, change: float) -> str:
        """A change of the cost in words: the speedup, or the memory, that it gives."""
        cost = self.dense_cost + change
        if self.memory:
            return f"{cost / 1e9:.3g} GB"
        if self.request.latency_ms is not None:
            return f"{cost / 1e6:.3g} ms"
        return f"{self.dense_cost / cost:.2f}×"


def problem_of(request: AllocateRequest) -> Problem:
    """The costs and the target of a request. Raises PrunescopeError for a target that no allocation
    reaches, or that the dense model has reached."""
    from prunescope.analysis.predict.allocation import costs_of, layer_costs, workload_request
    from prunescope.analysis.predict.request import PredictRequest
    from prunescope.taxonomy.allocation_candidates import candidates
    from prunescope.taxonomy.allocation_plan import Target

    request.check()
    asked = PredictRequest(
        request.model,
        device=request.device,
        from_run=as_path(request.from_run),
        phase=request.phase,
        batch=request.batch,
        prompt_len=request.prompt_len,
        dtype=request.dtype,
    )
    new_tokens = None
    if request.workload is not None:
        asked, new_tokens = workload_request(asked, request.workload)
    notes: list[str] = []
    measured = None
    if asked.from_run is not None:
        from prunescope.analysis.predict_from import dense_phases

        _, measured = dense_phases(asked, notes)
    costs = costs_of(asked, new_tokens, measured=measured, notes=notes)
    sizes = [candidates(costs.shape, number) for number in range(costs.shape.layers)]
    memory = request.memory_gb is not None
    dense = costs.cost(costs.shape, memory=memory)
    problem = Problem(
        request=request,
        costs=costs,
        sizes=sizes,
        layer_costs=layer_costs(costs, sizes, memory=memory),
        target=Target(
            phase=request.workload or request.phase,
            speedup=request.speedup,
            latency_ms=request.latency_ms,
            memory_gb=request.memory_gb,
        ),
        cost=_target_cost(request, dense) - dense,
    )
    if problem.cost >= 0:
        raise PrunescopeError(
            f"the dense model has {problem.shown(0.0)} already: there is nothing to remove",
            hint="give a target beyond it",
        )
    _check_reachable(problem, problem.sizes)
    return problem


def _target_cost(request: AllocateRequest, dense: float) -> float:
    if request.speedup is not None:
        return dense / request.speedup
    if request.latency_ms is not None:
        return request.latency_ms * 1e6
    return float(request.memory_gb or 0) * 1e9


def _check_reachable(problem: Problem, sizes: "list[Candidates]") -> None:
    """Raises PrunescopeError, which says what keeps the time, for a target beyond the cheapest
    allocation of all."""
    from prunescope.taxonomy.allocation import Allocation
    from prunescope.taxonomy.allocation_candidates import allocated_shape

    tables = _tables(problem, sizes, None)
    cheapest = Allocation([table.options() for table in tables]).cheapest()
    least = sum(one.cost for one in cheapest)
    if least <= problem.cost + _ROUNDING * problem.dense_cost:
        return
    asked = problem.shown(problem.cost)
    where = f" in {problem.target.phase}" * (not problem.memory)
    raise PrunescopeError(
        f"no allocation of {Path(problem.request.model).name} reaches {asked}{where}: "
        f"{problem.shown(least)} is the most",
        hint=_what_holds(problem, allocated_shape(problem.costs.shape, cheapest)),
    )


def _what_holds(problem: Problem, shape: Any) -> str:
    """The parts that keep most of the cheapest model's time, or memory."""
    if problem.memory:
        outside = shape.outside_parameters() * 2 / 1e9
        return f"embeddings and lm_head stay, {outside:.3g} GB in 16 bits"
    held = list(problem.costs.holds(shape).items())[:_NAMED]
    return "what holds it: " + ", ".join(f"{name} {ns / 1e6:.3g} ms" for name, ns in held)


def _tables(
    problem: Problem, sizes: "list[Candidates]", losses: "list[LayerLosses] | None"
) -> "list[LayerTable]":
    """Costs and losses of every size of every layer; losses of 0 without any."""
    from prunescope.taxonomy.allocation_candidates import LayerTable

    found = []
    for number, (one, cost) in enumerate(zip(sizes, problem.layer_costs, strict=True)):
        loss = losses[number] if losses else None
        gone = cost.gone if one.may_go else None
        found.append(
            LayerTable(
                kv_heads={
                    n: (cost.kv_heads[n], loss.kv_heads[n] if loss else 0.0) for n in one.kv_heads
                },
                channels={
                    n: (cost.channels[n], loss.channels[n] if loss else 0.0) for n in one.channels
                },
                gone=None if gone is None else (gone, (loss.gone or 0.0) if loss else 0.0),
            )
        )
    return found


def evaluations(problem: Problem) -> dict[str, Any]:
    """What `--dry-run` says: how often the model is evaluated, and how many of these are known."""
    import msgspec

    from prunescope.taxonomy.allocation_candidates import removals_of
    from prunescope.tracer.allocation.losses import PAIRS, SEQUENCES, LossFile

    shape = problem.costs.shape
    layers = [shape.layer(number) for number in range(shape.layers)]
    wanted = removals_of(problem.sizes, [(one.kv_heads, one.intermediate) for one in layers])
    known: set[str] = set()
    if problem.request.losses_path.is_file():
        known = set(
            msgspec.json.decode(problem.request.losses_path.read_bytes(), type=LossFile).removed
        )
    return {
        "evaluations": len(wanted) + PAIRS + 2,  # the dense model, and the planned one
        "measured": len(known & {one.key for one in wanted}),
        "sequences": SEQUENCES,
        "losses": str(problem.request.losses_path.name),
        "layers": shape.layers,
        "target": problem.shown(problem.cost),
        "costs": problem.costs.source,
    }


def allocate(request: AllocateRequest, progress: Progress | None = None) -> "PlanOfLayers":
    """Decide and write the plan. Raises PrunescopeError for a bad request, before a model is
    loaded, and for a target that cannot be reached."""
    if request.path.exists() and not request.overwrite:
        raise PrunescopeError(
            f"{request.path.name} exists", hint="--overwrite replaces it, or name another --out"
        )
    problem = problem_of(request)
    shown = progress or Silent()
    losses = _measured(problem, shown)
    _check_reachable(problem, list(losses.sizes))
    plan = _plan(problem, losses, shown)
    _write(request, plan)
    return plan


def _measured(problem: Problem, progress: Progress) -> "ModelLosses":
    """The losses of every removal, from the file beside the plan as far as it has them."""
    from prunescope.taxonomy.allocation_candidates import removals_of
    from prunescope.tracer.allocation.losses import ModelLosses
    from prunescope.tracer.calibration.collect import calibration_of, text_calibration
    from prunescope.tracer.machine.device import pick_device
    from prunescope.tracer.model.load import load_model, load_tokenizer

    request = problem.request
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
    path = request.losses_path
    losses = ModelLosses(
        model=loaded.model, calibration=calibration, sizes=problem.sizes, path=path
    )
    count = len(removals_of(losses.sizes, losses.dense_sizes))
    progress.stage("loss without each part", count)
    losses.measure(progress.advance)
    return losses


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was chosen, and what it was held against."""

    chosen: "list[LayerOption]"
    table: "Allocation"
    uniform: "UniformChoice | None"
    additivity: "Additivity"
    together: float  # the loss of all that was chosen, measured


def _plan(problem: Problem, losses: "ModelLosses", progress: Progress) -> "PlanOfLayers":
    from prunescope.taxonomy.allocation import Allocation

    tables = _tables(problem, list(losses.sizes), losses.layers())
    table = Allocation([one.options() for one in tables])
    uniform = _best_uniform(problem, tables)
    chosen = _chosen(problem, table)
    # Costs are rounded up: a uniform choice may fit by less than that.
    if uniform is not None and uniform.loss < sum(one.loss for one in chosen):
        chosen = list(uniform.options)
    progress.stage("pairs of removals")
    decision = Decision(
        chosen=chosen,
        table=table,
        uniform=uniform,
        additivity=losses.additivity(progress.advance),
        together=losses.together(chosen),
    )
    return _described(problem, losses, decision)


def _best_uniform(problem: Problem, tables: "list[LayerTable]") -> "UniformChoice | None":
    from prunescope.taxonomy.allocation_candidates import uniform_choices

    choices = uniform_choices(problem.costs.shape, tables)
    fitting = [one for one in choices if one.cost <= problem.cost]
    return min(fitting, key=lambda one: (one.loss, one.cost), default=None)


def _chosen(problem: Problem, table: "Allocation") -> "list[LayerOption]":
    """The choice that reaches the target with all of its layers together, whose cost may differ
    from the sum by what does not add (a host that sets the pace)."""
    from prunescope.taxonomy.allocation_candidates import allocated_shape

    budget, dense = problem.cost, problem.dense_cost
    for _ in range(_TRIES):
        chosen = table.best(budget)
        if chosen is None:
            break
        shape = allocated_shape(problem.costs.shape, chosen)
        over = problem.costs.cost(shape, memory=problem.memory) - dense - problem.cost
        if over <= _ROUNDING * dense:
            return chosen
        budget -= max(over, table.step)
    raise PrunescopeError(
        f"no allocation reaches {problem.shown(problem.cost)}: what layers save does not add up",
        hint="give a smaller target",
    )


def _described(problem: Problem, losses: "ModelLosses", decision: Decision) -> "PlanOfLayers":
    from prunescope.taxonomy.allocation_candidates import allocated_shape
    from prunescope.taxonomy.allocation_plan import KIND, Expected, PlanOfLayers, Uniform
    from prunescope.taxonomy.scrub import scrub_all

    costs, chosen, uniform = problem.costs, decision.chosen, decision.uniform
    shape = allocated_shape(costs.shape, chosen)
    phases = costs.expected(shape)
    weighed = [(one.weight, one) for one in phases.values()]
    dense_ns = sum(weight * one.dense_ns for weight, one in weighed)

    def speedup_at(ns: "list[float]") -> float:
        return dense_ns / sum(weight * t for (weight, _), t in zip(weighed, ns, strict=True))

    speedup = speedup_at([one.ns for _, one in weighed])
    low, high = (speedup_at([one.dense_ns / one.range[i] for _, one in weighed]) for i in (0, 1))
    notes = [*costs.notes, *losses.parts.notes]
    if losses.calibration.record.get("text") is None:
        notes.append(
            "losses are measured on random token ids, as the model has no tokenizer: they rank "
            "layers, and say nothing of a text"
        )
    return PlanOfLayers(
        kind=KIND,
        model=Path(problem.request.model).name,
        weights=losses.file.weights,
        target=problem.target,
        expected=Expected(
            speedup=speedup,
            range=[low, high],
            phases=phases,
            memory_bytes=costs.memory_bytes(shape),
            dense_memory_bytes=costs.memory_bytes(costs.shape),
            loss=sum(one.loss for one in chosen),
            loss_measured=decision.together,
            perplexity_rel=math.expm1(min(decision.together, _MOST_NATS)),
        ),
        layers=_kept_layers(problem, losses, chosen),
        frontier=_frontier(problem, decision.table),
        uniform=None
        if uniform is None
        else Uniform(
            family=uniform.family,
            kept=uniform.kept,
            loss=uniform.loss,
            **_reached(problem, uniform.cost),
        ),
        additivity=decision.additivity,
        costs={
            "source": costs.source,
            "unit": decision.table.step,
            "in": "bytes" if problem.memory else "ns",
        },
        text={**losses.file.text, "dense_nats": losses.file.dense},
        notes=scrub_all(notes),
        command=_command(problem.request),
    )


def _reached(problem: Problem, change: float) -> dict[str, float]:
    cost = problem.dense_cost + change
    return {"memory_bytes": cost} if problem.memory else {"speedup": problem.dense_cost / cost}


def _frontier(problem: Problem, table: "Allocation") -> "list[TradeOff]":
    """The least loss at some targets, evenly spread over those that can be reached."""
    from prunescope.taxonomy.allocation_plan import TradeOff

    trades = [(_reached(problem, one.cost), one.loss) for one in table.frontier()]
    values = [next(iter(reached.values())) for reached, _ in trades]
    least, most = min(values), max(values)
    steps = [least + (most - least) * i / (_POINTS - 1) for i in range(_POINTS)]
    nearest = {min(range(len(values)), key=lambda i: abs(values[i] - step)) for step in steps}
    return [TradeOff(**trades[i][0], loss=trades[i][1]) for i in sorted(nearest)]


def _kept_layers(problem: Problem, losses: "ModelLosses", chosen: "list[LayerOption]") -> Any:
    from prunescope.taxonomy.allocation_candidates import changed_layer
    from prunescope.taxonomy.allocation_plan import KeptLayer

    dense, found = problem.costs.shape, []
    alone: dict[Any, dict[str, float]] = {}
    for number, one in enumerate(chosen):
        layer, parts = dense.layer(number), losses.parts.layers[number]
        changed = changed_layer(dense, number, one)
        after = changed.layer(number)
        key = dense.layout[number], layer, after
        if key not in alone:
            alone[key] = {
                name: phase.dense_ns - phase.ns(changed)
                for name, phase in problem.costs.phases.items()
            }
        cut_heads = None if one.kv_heads is None else parts.kv_heads
        cut_channels = None if one.channels is None else parts.channels
        found.append(
            KeptLayer(
                layer=number,
                dropped=one.gone,
                heads=after.heads or None,
                kv_heads=after.kv_heads or None,
                channels=after.intermediate or None,
                dense_kv_heads=layer.kv_heads or None,
                dense_channels=layer.intermediate or None,
                kept_kv_heads=cut_heads.kept(one.kv_heads or 1) if cut_heads else None,
                kept_channels=cut_channels.kept(one.channels or 1) if cut_channels else None,
                loss=one.loss,
                saves_ns=alone[key],
            )
        )
    return found


def _command(request: AllocateRequest) -> str:
    """The command line of a request: the options that differ from their defaults; of paths the
    last part."""
    import shlex

    from prunescope.taxonomy.option import options_of
    from prunescope.taxonomy.scrub import scrub

    words = ["prunescope", "allocate"]
    for option in options_of(AllocateRequest):
        value = getattr(request, option.name)
        if value == option.default or value is None:
            continue
        text = f"{value:g}" if isinstance(value, float) else str(value)
        words += [option.flags[0]] if value is True else [option.flags[0], scrub(text)]
    return shlex.join(words)


def _write(request: AllocateRequest, plan: "PlanOfLayers") -> None:
    import msgspec

    from prunescope.analysis.report.allocation_figure import plan_figure
    from prunescope.taxonomy.atomic_write import write_file

    request.path.parent.mkdir(parents=True, exist_ok=True)
    picture = plan_figure(plan, "png")
    write_file(request.path, msgspec.json.format(msgspec.json.encode(plan), indent=1) + b"\n")
    write_file(request.path.with_suffix(".png"), picture)
