"""The optimisation problem of `allocate`: costs, targets, and what each layer keeps.

An AllocateRequest gives a Problem without the model, as costs come from a dense run or a device.
The losses of every size of every layer then give a Choice, with one option per layer. A target that
cannot be reached, and targets that exclude one another, are refused before a model is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from prunescope.analysis.predict.allocation_request import AllocateRequest
from prunescope.analysis.predict.allocation_solver import FRONTIER_GAP, Program
from prunescope.analysis.predict.layer_costs import (
    Costs,
    LayerCosts,
    costs_of,
    layer_costs,
    workload_request,
)
from prunescope.analysis.predict.predict_request import PredictRequest
from prunescope.analysis.predict.scaled_times import DensePhase
from prunescope.taxonomy.allocations.allocation import PARTS, LayerOption
from prunescope.taxonomy.allocations.allocation_candidates import (
    Candidates,
    LayerLosses,
    LayerTable,
    UniformChoice,
    allocated_shape,
    candidates,
    uniform_choices,
)
from prunescope.taxonomy.allocations.allocation_plan import Target, TradeOff
from prunescope.taxonomy.engines import NAMES, TABLE, Legal, legal_sizes
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.option import as_path
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.timings import part
from prunescope.taxonomy.words import plural, significant, spread, when

_POINTS = 24  # how many points of the frontier a plan has
_TRIES = 20  # budgets that are tried for a choice whose layers cost more together
_NAMED = 3  # how many parts that hold a target back are named
_ROUNDING = 1e-9  # a share of a cost that is rounding


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One target: the costs that count for it, and how much they have to change.

    `dense`: the cost of a request to the dense model, in ns or bytes; `change`: what is wanted,
    less that; `layers`: the cost of each size of each layer, less that of the dense layer.
    """

    target: Target
    costs: Costs
    layers: list[LayerCosts]
    dense: float
    change: float

    @property
    def memory(self) -> bool:
        """Whether costs are bytes."""
        return self.target.memory_gb is not None

    @property
    def where(self) -> str:
        """The phase of a target of time, as ` in prefill`."""
        return when(not self.memory, f" in {self.target.phase}")

    @property
    def text(self) -> str:
        """The target in words."""
        return f"{self.shown(self.change)}{self.where}"

    def excess(self, shape: ModelShape) -> float:
        """Return the cost of a model beyond the target."""
        return self.costs.cost(shape, memory=self.memory) - self.dense - self.change

    def shown(self, change: float) -> str:
        """Return a change of the cost as the speedup, the time or the memory that it gives."""
        cost = self.dense + change
        if self.memory:
            return f"{significant(cost / 1e9)} GB"
        if self.target.latency_ms is not None:
            return f"{significant(cost / 1e6)} ms"
        return f"{self.dense / cost:.2f}×"


@dataclass(kw_only=True)
class Problem:
    """A request as a problem, without the model.

    The first goal is the one by which frontier and uniform cuts are measured. `even`: all layers
    that stay get one size, which an engine needs; `dense`: whether attention and MLP may stay as
    they are.
    """

    request: AllocateRequest
    costs: Costs
    sizes: list[Candidates]
    goals: list[Goal]
    even: bool = False
    dense: tuple[bool, bool] = (True, True)
    notes: list[str] = field(default_factory=list)

    @property
    def goal(self) -> Goal:
        """The first goal."""
        return self.goals[0]

    @property
    def limits(self) -> list[float]:
        """The most of the cost of each goal, less the dense one."""
        return [goal.change for goal in self.goals]

    @property
    def text(self) -> str:
        """All targets in words."""
        return " and ".join(goal.text for goal in self.goals)

    def program(self, losses: Sequence[LayerLosses], *, even: bool | None = None) -> Program:
        """Return the program that chooses sizes of known losses."""
        costs = [goal.layers for goal in self.goals]
        return Program(losses, costs, even=self.even if even is None else even, dense=self.dense)


def build_cost_request(request: AllocateRequest) -> tuple[PredictRequest, int | None]:
    """Return the `predict` request that gives the costs, and the number of tokens of an answer.

    That number is None where no workload weighs the phases.
    """
    named = request.phases
    cost_request = PredictRequest(
        request.model,
        device=request.device,
        from_run=as_path(request.from_run),
        phase="both" if len(named) > 1 else named[0],
        batch=request.batch,
        prompt_len=request.prompt_len,
        dtype=request.dtype,
    )
    if request.workload is None:
        return cost_request, None
    return workload_request(cost_request, request.workload)


def build_problem(
    request: AllocateRequest, measured: Mapping[str, DensePhase] | None, notes: Sequence[str]
) -> Problem:
    """Return the costs and the targets of a request.

    Args:
        request: The request.
        measured: The phases of its dense run; None: the execution model gives the times.
        notes: What is to be noted of the run.

    Returns:
        The problem.

    Raises:
        PrunescopeError: No allocation reaches the targets, or the dense model has reached one.
    """
    cost_request, new_tokens = build_cost_request(request)
    costs = costs_of(cost_request, new_tokens, measured=measured, notes=list(notes))
    if costs.shape.parts:
        raise PrunescopeError(
            "an allocation gives sizes to the layers of one stack, and this model has an encoder "
            "and a decoder",
            hint="predict --method prunes both alike",
        )
    sizes = [
        candidates(costs.shape, number, low_rank=request.low_rank)
        for number in range(costs.shape.layers)
    ]
    even, dense = False, (True, True)
    if request.legal is not None:
        legal = legal_sizes(request.legal, request.legal_tp)
        sizes = [_legal(size, costs.shape, n, legal) for n, size in enumerate(sizes)]
        even = not TABLE["per-layer"][legal.engine].runs
        dense = _dense_is_legal(costs.shape, legal)
    goals = [_goal(target, costs, sizes) for target in _targets(request)]
    problem = Problem(
        request=request, costs=costs, sizes=sizes, goals=goals, even=even, dense=dense
    )
    if all(goal.change >= 0 for goal in goals):
        dense_values = " and ".join(f"{goal.shown(0.0)}{goal.where}" for goal in goals)
        raise PrunescopeError(
            f"the dense model has {dense_values} already: there is nothing to remove",
            hint="give a target beyond it",
        )
    check_reachable(problem, problem.sizes)
    return problem


def _targets(request: AllocateRequest) -> Iterator[Target]:
    """Yield the targets of a request: those of speedup first."""
    phase = request.workload or request.phase
    if isinstance(request.speedup, Mapping):
        for name, speedup in request.speedup.items():
            yield Target(phase=name, speedup=speedup)
    elif request.speedup is not None:
        yield Target(phase=phase, speedup=request.speedup)
    if request.latency_ms is not None:
        yield Target(phase=phase, latency_ms=request.latency_ms)
    if request.memory_gb is not None:
        yield Target(phase=phase, memory_gb=request.memory_gb)


def _goal(target: Target, costs: Costs, sizes: Sequence[Candidates]) -> Goal:
    """Return a target with the costs that count for it: those of its phase, or of a workload."""
    memory = target.memory_gb is not None
    if target.phase in costs.phases and not memory:
        phase = replace(costs.phases[target.phase], weight=1.0)
        costs = replace(costs, phases={target.phase: phase})
    dense = costs.cost(costs.shape, memory=memory)
    if target.speedup is not None:
        wanted = dense / target.speedup
    elif target.latency_ms is not None:
        wanted = target.latency_ms * 1e6
    else:
        wanted = float(target.memory_gb or 0) * 1e9
    layers = layer_costs(costs, sizes, memory=memory)
    return Goal(target=target, costs=costs, layers=layers, dense=dense, change=wanted - dense)


def _legal(sizes: Candidates, shape: ModelShape, number: int, legal: Legal) -> Candidates:
    """Return the sizes of a layer that an engine takes."""
    layer = shape.layer(number)
    group = layer.heads // layer.kv_heads if layer.kv_heads else 1
    return replace(
        sizes,
        kv_heads=tuple(n for n in sizes.kv_heads if legal.takes_kv_heads(n, n * group)),
        channels=tuple(n for n in sizes.channels if n % legal.channel_step == 0),
        attention_lowrank=(),
        mlp_lowrank=(),
    )


def _dense_is_legal(shape: ModelShape, legal: Legal) -> tuple[bool, bool]:
    """Return whether an engine takes the attention, and the MLP, of every dense layer."""
    layers = [shape.layer(number) for number in range(shape.layers)]
    heads = all(legal.takes_kv_heads(x.kv_heads, x.heads) for x in layers if x.kv_heads)
    return heads, all(x.intermediate % legal.channel_step == 0 for x in layers)


def check_reachable(problem: Problem, sizes: Sequence[Candidates]) -> None:
    """Raise PrunescopeError for a target beyond the cheapest allocation of all.

    The hint names the parts that keep most of its time or memory; of targets that exclude one
    another, the one that has to give, and how far.
    """
    program = problem.program([_lossless(size) for size in sizes])
    for number, goal in enumerate(problem.goals):
        cheapest = program.cheapest(number)
        if cheapest is None:
            raise PrunescopeError(
                f"no allocation of {problem.request.model_name} has sizes that "
                f"{NAMES[problem.request.legal or 'vllm']} takes",
                hint="use a smaller --legal-tp, or leave --legal out",
            )
        least = program.cost(cheapest, number)
        if least > goal.change + _ROUNDING * goal.dense:
            _refuse_unreachable(problem, goal, cheapest, least)
    if len(problem.goals) > 1 and program.best(problem.limits) is None:
        _refuse_conflict(problem, program)


def _refuse_unreachable(
    problem: Problem, goal: Goal, cheapest: Sequence[LayerOption], least: float
) -> None:
    """Raise PrunescopeError for a target that no allocation reaches, whatever the others are."""
    shape = allocated_shape(problem.costs.shape, cheapest)
    together = goal.excess(shape) + goal.change
    limit = "most" if goal.target.speedup is not None else "least"
    raise PrunescopeError(
        f"no allocation of {problem.request.model_name} reaches {goal.text}: "
        f"{goal.shown(max(least, together))} is the {limit}, with "
        f"{_describe_cheapest(cheapest, len(problem.sizes))}",
        hint=_explain_limit(problem, goal, shape),
    )


def _refuse_conflict(problem: Problem, program: Program) -> None:
    """Raise PrunescopeError for targets that cannot be met together.

    Each is loosened alone, as far as the others need.
    """
    ways = []
    for number, goal in enumerate(problem.goals):
        rest = [math.inf if i == number else most for i, most in enumerate(problem.limits)]
        options = program.cheapest(number, rest)
        if options is not None:
            change = program.cost(options, number)
            ways.append(f"{goal.shown(change)}{goal.where} in place of {goal.text}")
    raise PrunescopeError(
        f"no allocation of {problem.request.model_name} reaches {problem.text} together",
        hint=f"one of them has to give: {'; or '.join(ways)}" if ways else "loosen two of them",
    )


def _lossless(sizes: Candidates) -> LayerLosses:
    """Return losses of 0 for all sizes of a layer."""
    parts = {part: dict.fromkeys(sizes.of(part), 0.0) for part in PARTS}
    return LayerLosses(parts=parts, dropped=0.0 if sizes.may_go else None)


def _describe_cheapest(options: Sequence[LayerOption], layers: int) -> str:
    """Describe the cheapest plan: `1 of 32 layers left, of 1 KV head, of 448 channels`."""
    left = [option for option in options if not option.dropped]
    words = [f"{len(left)} of {layers} layers left"]
    for name, unit in (("kv_heads", "KV head"), ("channels", "channel")):
        sizes = {size for option in left if (size := option.sizes.get(name)) is not None}
        if sizes:
            words.append(f"of {spread(min(sizes), max(sizes))} {unit}{plural(max(sizes))}")
    return ", ".join(words)


def _explain_limit(problem: Problem, goal: Goal, shape: ModelShape) -> str:
    """Name the parts that keep most of the cheapest model's time, or memory."""
    if goal.memory:
        outside = problem.costs.outside_bytes(shape) / 1e9
        return f"embeddings and lm_head stay, {significant(outside)} GB of it"
    held = list(goal.costs.ns_by_part(shape).items())[:_NAMED]
    return "what holds it: " + ", ".join(f"{name} {significant(ns / 1e6)} ms" for name, ns in held)


def _tables(problem: Problem, losses: Sequence[LayerLosses]) -> list[LayerTable]:
    """Return the cost in the first goal, and the loss, of every size of every layer."""
    tables = []
    for loss, cost in zip(losses, problem.goal.layers, strict=True):
        parts = {
            part: {n: (cost.parts[part][n], value) for n, value in sizes.items()}
            for part, sizes in loss.parts.items()
        }
        dropped = None
        if loss.dropped is not None and cost.dropped is not None:
            dropped = cost.dropped, loss.dropped
        tables.append(LayerTable(parts=parts, dropped=dropped))
    return tables


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The option of each layer, and the program that it is from.

    `uniform` is the best uniform choice that reaches the targets, too; None: none does. `free`: the
    options of the choice whose layers may differ, where an engine needs even ones.
    """

    options: list[LayerOption]
    program: Program
    uniform: UniformChoice | None
    free: list[LayerOption] | None = None

    @property
    def loss(self) -> float:
        """The sum of the losses over layers, in nats per token."""
        return sum(option.loss for option in self.options)


@part("analyze")
def choose(problem: Problem, sizes: Sequence[Candidates], losses: Sequence[LayerLosses]) -> Choice:
    """Return the choice with the least loss that reaches all targets.

    Args:
        problem: The problem.
        sizes: The sizes of each layer whose losses are known.
        losses: The losses of these sizes.

    Returns:
        The choice.

    Raises:
        PrunescopeError: A target is out of reach.
    """
    check_reachable(problem, sizes)
    program = problem.program(losses)
    fitting = [
        choice
        for choice in uniform_choices(problem.costs.shape, _tables(problem, losses))
        if all(
            program.cost(choice.options, number) <= most
            for number, most in enumerate(problem.limits)
        )
    ]
    uniform = min(fitting, key=lambda choice: (choice.loss, choice.cost), default=None)
    options = _best_options(problem, program)
    free = None
    if problem.even:
        free = problem.program(losses, even=False).best(problem.limits)
    return Choice(options=options, program=program, uniform=uniform, free=free)


def _best_options(problem: Problem, program: Program) -> list[LayerOption]:
    """Return the options that reach every target with all of their layers together.

    Their cost together may differ from the sum by what does not add up (a host that sets the pace).
    The budget of a goal shrinks until it is met. Raises PrunescopeError where it is not.
    """
    budgets = list(problem.limits)
    for _ in range(_TRIES):
        chosen = program.best(budgets)
        if chosen is None:
            break
        shape = allocated_shape(problem.costs.shape, chosen)
        over = [goal.excess(shape) for goal in problem.goals]
        missed = [
            excess > _ROUNDING * goal.dense
            for excess, goal in zip(over, problem.goals, strict=True)
        ]
        if not any(missed):
            return chosen
        budgets = [
            budget - excess if is_missed else budget
            for budget, excess, is_missed in zip(budgets, over, missed, strict=True)
        ]
    raise PrunescopeError(
        f"no allocation reaches {problem.text}: what layers save does not add up",
        hint="give a smaller target",
    )


def reached(goal: Goal, change: float) -> dict[str, float]:
    """Return the target value that a change of the cost reaches, by its key.

    It is the speedup, or the bytes of memory.
    """
    cost = goal.dense + change
    return {"memory_bytes": cost} if goal.memory else {"speedup": goal.dense / cost}


def frontier(problem: Problem, program: Program) -> list[TradeOff]:
    """Return the least loss at some values of the first target, evenly spread over the reachable.

    A point that another one beats, or equals, in cost and loss is left out.
    """
    goal = problem.goal
    cheapest = program.cheapest(0)
    if cheapest is None:
        return []
    least = program.cost(cheapest, 0)
    points: list[tuple[float, float]] = []
    for step in range(_POINTS):
        share = step / (_POINTS - 1)
        if goal.memory:
            change = least * (1 - share)
        else:  # evenly by speedup
            most = goal.dense / (goal.dense + least)
            change = goal.dense / (most + (1 - most) * share) - goal.dense
        limits = [change, *[math.inf] * (len(problem.goals) - 1)]
        options = program.best(limits, gap=FRONTIER_GAP)
        if options is not None:
            loss = sum(option.loss for option in options)
            if not points or loss < points[-1][1]:
                cost = program.cost(options, 0)
                # Within the solver's gap a harder point may lose more and cost as much.
                points = [*(point for point in points if point[0] < cost), (cost, loss)]
    return [TradeOff(**reached(goal, cost), loss=loss) for cost, loss in points]
