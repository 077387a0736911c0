"""The optimisation problem of `allocate`: costs, the target, and what each layer keeps.

In: an AllocateRequest, without the model: costs come from a dense run or a device. Then the losses
of every size of every layer. Out: a Problem, and a Choice, an option a layer. A target that cannot
be reached is refused before a model is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from prunescope.analysis.predict.allocation import (
    Costs,
    LayerCosts,
    costs_of,
    layer_costs,
    workload_request,
)
from prunescope.analysis.predict.allocation_request import AllocateRequest
from prunescope.analysis.predict.measured import DensePhase
from prunescope.analysis.predict.request import PredictRequest
from prunescope.taxonomy.allocation import PARTS, Allocation, LayerOption
from prunescope.taxonomy.allocation_candidates import (
    Candidates,
    LayerLosses,
    LayerTable,
    UniformChoice,
    allocated_shape,
    candidates,
    uniform_choices,
)
from prunescope.taxonomy.allocation_plan import Target, TradeOff
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.option import as_path
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.words import significant, spread

_POINTS = 24  # of the frontier, in a plan
_TRIES = 20
_NAMED = 3  # parts that hold a target back
_ROUNDING = 1e-9  # of a cost


@dataclass(kw_only=True)
class Problem:
    """A request as a problem, without the model: costs of every size of every layer, and the cost
    that has to be reached, both less those of the dense model."""

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
        """ns of a request, or bytes."""
        return self.costs.cost(self.costs.shape, memory=self.memory)

    def shown(self, change: float) -> str:
        """A change of the cost in words: the speedup, or the memory, that it gives."""
        cost = self.dense_cost + change
        if self.memory:
            return f"{significant(cost / 1e9)} GB"
        if self.request.latency_ms is not None:
            return f"{significant(cost / 1e6)} ms"
        return f"{self.dense_cost / cost:.2f}×"


def predicted(request: AllocateRequest) -> tuple[PredictRequest, int | None]:
    """The `predict` request that gives the costs, and the tokens of an answer where both phases
    count."""
    asked = PredictRequest(
        request.model,
        device=request.device,
        from_run=as_path(request.from_run),
        phase=request.phase,
        batch=request.batch,
        prompt_len=request.prompt_len,
        dtype=request.dtype,
    )
    if request.workload is None:
        return asked, None
    return workload_request(asked, request.workload)


def problem_of(
    request: AllocateRequest, measured: Mapping[str, DensePhase] | None, notes: Sequence[str]
) -> Problem:
    """The costs and the target of a request. `measured`: the phases of its dense run, with what is
    to be noted of them. Raises PrunescopeError for a target that no allocation reaches, or that the
    dense model has reached."""
    asked, new_tokens = predicted(request)
    costs = costs_of(asked, new_tokens, measured=measured, notes=list(notes))
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
    if request.speedup is not None:
        return dense / request.speedup
    if request.latency_ms is not None:
        return request.latency_ms * 1e6
    return float(request.memory_gb or 0) * 1e9


def check_reachable(problem: Problem, sizes: Sequence[Candidates]) -> None:
    """Raises PrunescopeError, which says what keeps the time, for a target beyond the cheapest
    allocation of all."""
    tables = _tables(problem, sizes, None)
    cheapest = Allocation([table.options() for table in tables]).cheapest()
    least = sum(one.cost for one in cheapest)
    if least <= problem.cost + _ROUNDING * problem.dense_cost:
        return
    asked = problem.shown(problem.cost)
    where = f" in {problem.target.phase}" * (not problem.memory)
    shape = allocated_shape(problem.costs.shape, cheapest)
    together = problem.costs.cost(shape, memory=problem.memory) - problem.dense_cost
    limit = "most" if problem.request.speedup is not None else "least"
    raise PrunescopeError(
        f"no allocation of {problem.request.model_name} reaches {asked}{where}: "
        f"{problem.shown(max(least, together))} is the {limit}, with "
        f"{_smallest(cheapest, len(problem.sizes))}",
        hint=_what_holds(problem, shape),
    )


def _smallest(options: Sequence[LayerOption], layers: int) -> str:
    """The cheapest plan in words: `1 of 32 layers left, of 1 KV head, of 448 channels`."""
    left = [one for one in options if not one.dropped]
    words = [f"{len(left)} of {layers} layers left"]
    for name, unit in (("kv_heads", "KV head"), ("channels", "channel")):
        sizes = {size for one in left if (size := one.sizes.get(name)) is not None}
        if sizes:
            words.append(f"of {spread(min(sizes), max(sizes))} {unit}{'s' * (max(sizes) > 1)}")
    return ", ".join(words)


def _what_holds(problem: Problem, shape: ModelShape) -> str:
    """The parts that keep most of the cheapest model's time, or memory."""
    if problem.memory:
        outside = problem.costs.outside_bytes(shape) / 1e9
        return f"embeddings and lm_head stay, {significant(outside)} GB of it"
    held = list(problem.costs.holds(shape).items())[:_NAMED]
    return "what holds it: " + ", ".join(f"{name} {significant(ns / 1e6)} ms" for name, ns in held)


def _tables(
    problem: Problem, sizes: Sequence[Candidates], losses: Sequence[LayerLosses] | None
) -> list[LayerTable]:
    """Costs and losses of every size of every layer; losses of 0 without any."""
    found = []
    for number, (one, cost) in enumerate(zip(sizes, problem.layer_costs, strict=True)):
        loss = losses[number] if losses else None
        dropped = cost.dropped if one.may_go else None
        found.append(
            LayerTable(
                parts={
                    part: {
                        n: (cost.parts[part][n], loss.parts[part][n] if loss else 0.0)
                        for n in one.of(part)
                    }
                    for part in PARTS
                },
                dropped=None
                if dropped is None
                else (dropped, (loss.dropped or 0.0) if loss else 0.0),
            )
        )
    return found


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An option a layer, the table that it is from, and the best uniform choice that reaches the
    target too; None: none does."""

    options: list[LayerOption]
    table: Allocation
    uniform: UniformChoice | None

    @property
    def loss(self) -> float:
        """The sum over layers, nats a token."""
        return sum(one.loss for one in self.options)


def choose(problem: Problem, sizes: Sequence[Candidates], losses: Sequence[LayerLosses]) -> Choice:
    """The least loss that reaches the target; of `sizes`, whose losses these are. Raises
    PrunescopeError where the target is out of reach."""
    check_reachable(problem, sizes)
    tables = _tables(problem, sizes, losses)
    table = Allocation([one.options() for one in tables])
    found = Choice(
        options=_chosen(problem, table), table=table, uniform=_best_uniform(problem, tables)
    )
    # Costs are rounded up: a uniform choice may fit by less than that.
    if found.uniform is not None and found.uniform.loss < found.loss:
        return replace(found, options=list(found.uniform.options))
    return found


def _best_uniform(problem: Problem, tables: list[LayerTable]) -> UniformChoice | None:
    choices = uniform_choices(problem.costs.shape, tables)
    fitting = [one for one in choices if one.cost <= problem.cost]
    return min(fitting, key=lambda one: (one.loss, one.cost), default=None)


def _chosen(problem: Problem, table: Allocation) -> list[LayerOption]:
    """The choice that reaches the target with all of its layers together, whose cost may differ
    from the sum by what does not add (a host that sets the pace)."""
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


def reached(problem: Problem, change: float) -> dict[str, float]:
    """The target value that a change of the cost reaches: the speedup, or the bytes of memory, by
    its key."""
    cost = problem.dense_cost + change
    return {"memory_bytes": cost} if problem.memory else {"speedup": problem.dense_cost / cost}


def frontier(problem: Problem, table: Allocation) -> list[TradeOff]:
    """The least loss at some targets, evenly spread over those that can be reached."""
    trades = [(reached(problem, one.cost), one.loss) for one in table.frontier()]
    values = [next(iter(reached.values())) for reached, _ in trades]
    least, most = min(values), max(values)
    steps = [least + (most - least) * i / (_POINTS - 1) for i in range(_POINTS)]
    nearest = {min(range(len(values)), key=lambda i: abs(values[i] - step)) for step in steps}
    return [TradeOff(**trades[i][0], loss=trades[i][1]) for i in sorted(nearest)]
