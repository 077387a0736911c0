"""The optimisation problem of `allocate`: costs, the target, and what each layer keeps.

An AllocateRequest gives a Problem without the model, as costs come from a dense run or a device.
The losses of every size of every layer then give a Choice, with one option per layer. A target that
cannot be reached is refused before a model is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from prunescope.analysis.predict.allocation_request import AllocateRequest
from prunescope.analysis.predict.layer_costs import (
    Costs,
    LayerCosts,
    costs_of,
    layer_costs,
    workload_request,
)
from prunescope.analysis.predict.predict_request import PredictRequest
from prunescope.analysis.predict.scaled_times import DensePhase
from prunescope.taxonomy.allocations.allocation import PARTS, Allocation, LayerOption
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
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.option import as_path
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.words import plural, significant, spread, when

_POINTS = 24  # how many points of the frontier a plan has
_TRIES = 20  # budgets that are tried for a choice whose layers cost more together
_NAMED = 3  # how many parts that hold a target back are named
_ROUNDING = 1e-9  # a share of a cost that is rounding


@dataclass(kw_only=True)
class Problem:
    """A request as a problem, without the model.

    It has the costs of every size of every layer, and the cost that has to be reached, both less
    those of the dense model.
    """

    request: AllocateRequest
    costs: Costs
    sizes: list[Candidates]
    layer_costs: list[LayerCosts]
    target: Target
    cost: float

    @property
    def memory(self) -> bool:
        """Whether costs are bytes."""
        return self.request.memory_gb is not None

    @property
    def dense_cost(self) -> float:
        """The cost of a request to the dense model: ns, or bytes."""
        return self.costs.cost(self.costs.shape, memory=self.memory)

    def shown(self, change: float) -> str:
        """Return a change of the cost as the speedup, the time or the memory that it gives."""
        cost = self.dense_cost + change
        if self.memory:
            return f"{significant(cost / 1e9)} GB"
        if self.request.latency_ms is not None:
            return f"{significant(cost / 1e6)} ms"
        return f"{self.dense_cost / cost:.2f}×"


def build_cost_request(request: AllocateRequest) -> tuple[PredictRequest, int | None]:
    """Return the `predict` request that gives the costs, and the number of tokens of an answer.

    That number is None where only one phase counts.
    """
    cost_request = PredictRequest(
        request.model,
        device=request.device,
        from_run=as_path(request.from_run),
        phase=request.phase,
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
    """Return the costs and the target of a request.

    Args:
        request: The request.
        measured: The phases of its dense run; None: the execution model gives the times.
        notes: What is to be noted of the run.

    Returns:
        The problem.

    Raises:
        PrunescopeError: No allocation reaches the target, or the dense model has reached it.
    """
    cost_request, new_tokens = build_cost_request(request)
    costs = costs_of(cost_request, new_tokens, measured=measured, notes=list(notes))
    sizes = [
        candidates(costs.shape, number, low_rank=request.low_rank)
        for number in range(costs.shape.layers)
    ]
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
    check_reachable(problem, problem.sizes)
    return problem


def _target_cost(request: AllocateRequest, dense: float) -> float:
    """Return the cost that a request asks for: ns, or bytes."""
    if request.speedup is not None:
        return dense / request.speedup
    if request.latency_ms is not None:
        return request.latency_ms * 1e6
    return float(request.memory_gb or 0) * 1e9


def check_reachable(problem: Problem, sizes: Sequence[Candidates]) -> None:
    """Raise PrunescopeError for a target beyond the cheapest allocation of all.

    The hint names the parts that keep most of its time or memory.
    """
    tables = _tables(problem, sizes, None)
    cheapest = Allocation([table.options() for table in tables]).cheapest()
    least = sum(option.cost for option in cheapest)
    if least <= problem.cost + _ROUNDING * problem.dense_cost:
        return
    target = problem.shown(problem.cost)
    where = when(not problem.memory, f" in {problem.target.phase}")
    shape = allocated_shape(problem.costs.shape, cheapest)
    together = problem.costs.cost(shape, memory=problem.memory) - problem.dense_cost
    limit = "most" if problem.request.speedup is not None else "least"
    raise PrunescopeError(
        f"no allocation of {problem.request.model_name} reaches {target}{where}: "
        f"{problem.shown(max(least, together))} is the {limit}, with "
        f"{_describe_cheapest(cheapest, len(problem.sizes))}",
        hint=_explain_limit(problem, shape),
    )


def _describe_cheapest(options: Sequence[LayerOption], layers: int) -> str:
    """Describe the cheapest plan: `1 of 32 layers left, of 1 KV head, of 448 channels`."""
    left = [option for option in options if not option.dropped]
    words = [f"{len(left)} of {layers} layers left"]
    for name, unit in (("kv_heads", "KV head"), ("channels", "channel")):
        sizes = {size for option in left if (size := option.sizes.get(name)) is not None}
        if sizes:
            words.append(f"of {spread(min(sizes), max(sizes))} {unit}{plural(max(sizes))}")
    return ", ".join(words)


def _explain_limit(problem: Problem, shape: ModelShape) -> str:
    """Name the parts that keep most of the cheapest model's time, or memory."""
    if problem.memory:
        outside = problem.costs.outside_bytes(shape) / 1e9
        return f"embeddings and lm_head stay, {significant(outside)} GB of it"
    held = list(problem.costs.ns_by_part(shape).items())[:_NAMED]
    return "what holds it: " + ", ".join(f"{name} {significant(ns / 1e6)} ms" for name, ns in held)


def _tables(
    problem: Problem, sizes: Sequence[Candidates], losses: Sequence[LayerLosses] | None
) -> list[LayerTable]:
    """Return costs and losses of every size of every layer; without losses they are 0."""
    tables = []
    for number, (candidate, cost) in enumerate(zip(sizes, problem.layer_costs, strict=True)):
        loss = losses[number] if losses else None
        parts = {
            part: {
                n: (cost.parts[part][n], loss.parts[part][n] if loss else 0.0)
                for n in candidate.of(part)
            }
            for part in PARTS
        }
        dropped = None
        if candidate.may_go and cost.dropped is not None:
            dropped = cost.dropped, (loss.dropped or 0.0) if loss else 0.0
        tables.append(LayerTable(parts=parts, dropped=dropped))
    return tables


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The option of each layer, and the table that it is from.

    `uniform` is the best uniform choice that reaches the target, too; None: none does.
    """

    options: list[LayerOption]
    table: Allocation
    uniform: UniformChoice | None

    @property
    def loss(self) -> float:
        """The sum of the losses over layers, in nats per token."""
        return sum(option.loss for option in self.options)


def choose(problem: Problem, sizes: Sequence[Candidates], losses: Sequence[LayerLosses]) -> Choice:
    """Return the choice with the least loss that reaches the target.

    Args:
        problem: The problem.
        sizes: The sizes of each layer whose losses are known.
        losses: The losses of these sizes.

    Returns:
        The choice; it is a uniform one where that loses less.

    Raises:
        PrunescopeError: The target is out of reach.
    """
    check_reachable(problem, sizes)
    tables = _tables(problem, sizes, losses)
    table = Allocation([layer.options() for layer in tables])
    choices = uniform_choices(problem.costs.shape, tables)
    fitting = [choice for choice in choices if choice.cost <= problem.cost]
    uniform = min(fitting, key=lambda choice: (choice.loss, choice.cost), default=None)
    best = Choice(options=_best_options(problem, table), table=table, uniform=uniform)
    # Costs are rounded up: a uniform choice may fit by less than that.
    if uniform is not None and uniform.loss < best.loss:
        return replace(best, options=list(uniform.options))
    return best


def _best_options(problem: Problem, table: Allocation) -> list[LayerOption]:
    """Return the options that reach the target with all of their layers together.

    Their cost together may differ from the sum by what does not add up (a host that sets the pace).
    The budget shrinks until it is met. Raises PrunescopeError where it is not.
    """
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
    target = problem.shown(problem.cost)
    raise PrunescopeError(
        f"no allocation reaches {target}: what layers save does not add up",
        hint="give a smaller target",
    )


def reached(problem: Problem, change: float) -> dict[str, float]:
    """Return the target value that a change of the cost reaches, by its key.

    It is the speedup, or the bytes of memory.
    """
    cost = problem.dense_cost + change
    return {"memory_bytes": cost} if problem.memory else {"speedup": problem.dense_cost / cost}


def frontier(problem: Problem, table: Allocation) -> list[TradeOff]:
    """Return the least loss at some targets, evenly spread over those that can be reached."""
    trades = [(reached(problem, point.cost), point.loss) for point in table.frontier()]
    values = [next(iter(target.values())) for target, _ in trades]
    least, most = min(values), max(values)
    steps = [least + (most - least) * i / (_POINTS - 1) for i in range(_POINTS)]
    nearest = {min(range(len(values)), key=lambda i: abs(values[i] - step)) for step in steps}
    return [TradeOff(**trades[i][0], loss=trades[i][1]) for i in sorted(nearest)]
