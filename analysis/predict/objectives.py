"""`predict --rank` by objectives: the largest batch of each method that meets them, and its rate.

A PredictRequest with --ttft-ms, --tpot-ms, --latency-ms or --throughput gives a ServingChoice: for
each method and sparsity the batch, both times, tokens a second and device, memory, and whether the
named engine runs the format. Those that it runs come first.

Prompts arrive at a rate or at once. At a rate, `batch` sequences decode at any time, and for each
that ends a prompt is read: a step then takes its own time and its share of a prompt, and a prompt
waits for one step. At once, all prompts of the batch are read together, then all decode. There is
no queue in either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

from prunescope.analysis.predict.answers import (
    Answer,
    answer_memory,
    answer_uncertainty,
    predict_answer,
    prompt_of,
    step_bytes,
)
from prunescope.analysis.predict.assumptions import list_assumptions
from prunescope.analysis.predict.constants import Constants
from prunescope.analysis.predict.engine_formats import engine_runs
from prunescope.analysis.predict.predict_request import (
    PredictRequest,
    command_of,
    options_of_request,
)
from prunescope.analysis.predict.rank import serving_workload
from prunescope.analysis.predict.request_points import check_options, methods, sparsities
from prunescope.analysis.predict.setting import (
    Setting,
    find_named_family,
    read_model_on_device,
    resolve,
)
from prunescope.analysis.schema.prediction import Memory, ServedPoint, ServingChoice
from prunescope.taxonomy.engines import CHECKED
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import pruning_families

MOST_BATCH = 4096
_SPARSITIES = (0.25, 0.5)
_ARRIVALS = {
    "rate": "prompts arrive at a rate: as many sequences decode at any time as the batch says, a "
    "step takes its own time and its share of a prompt, and a prompt waits for one step",
    "once": "prompts arrive at once: all of a batch are read together, then all decode",
}


@dataclass(frozen=True, slots=True)
class Objectives:
    """What a request must meet: ms, and new tokens a second and device; None: no such objective."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    latency_ms: float | None = None
    throughput: float | None = None

    @classmethod
    def of(cls, request: PredictRequest) -> Objectives:
        """Return the objectives of a request."""
        return cls(request.ttft_ms, request.tpot_ms, request.latency_ms, request.throughput)

    def times_met(self, served: Served) -> bool:
        """Return whether a batch meets the objectives that a larger one may miss."""
        c = served.constants
        wanted = (
            (self.ttft_ms, served.ttft_ns(c)),
            (self.tpot_ms, served.tpot_ns(c)),
            (self.latency_ms, served.latency_ns(c)),
        )
        return all(most is None or ns <= most * 1e6 for most, ns in wanted)

    def rate_met(self, served: Served) -> bool:
        """Return whether a batch meets the objective that a smaller one may miss."""
        return self.throughput is None or served.rate(served.constants) >= self.throughput


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """One side at a batch: the answers of the batch, and one prompt alone where they arrive so."""

    whole: Answer
    one_prompt: Answer | None  # None: all prompts at once

    @property
    def constants(self) -> Constants:
        """The constants of the setting."""
        return self.whole.setting.constants

    @property
    def devices(self) -> int:
        """The devices that serve together."""
        setting = self.whole.setting
        return max(setting.tp, setting.ep) * setting.pp

    def ttft_ns(self, c: Constants) -> float:
        """Return the time to the first token."""
        if self.one_prompt is None:
            return self.whole.ttft_ns(c)
        return self.one_prompt.ttft_ns(c) + self.whole.tpot_ns(c)

    def tpot_ns(self, c: Constants) -> float:
        """Return the time per output token after the first."""
        step = self.whole.tpot_ns(c)
        if self.one_prompt is None:
            return step
        return step + self.whole.work.batch / self.whole.new_tokens * self.one_prompt.ttft_ns(c)

    def latency_ns(self, c: Constants) -> float:
        """Return the time to the last token."""
        return self.ttft_ns(c) + (self.whole.new_tokens - 1) * self.tpot_ns(c)

    @property
    def prompt_bytes(self) -> float:
        """The bytes that the prompts of a forward allocate: all at once, or one prompt."""
        return step_bytes((self.one_prompt or self.whole).prompt)

    @property
    def decode_bytes(self) -> float:
        """The bytes that a decode step allocates."""
        return step_bytes(self.whole.steps[-1])

    def memory_bytes(self, memory: Memory) -> int:
        """Return the bytes of a device, of which weights and cache are those of `memory`."""
        fixed = memory.weight_bytes + memory.overhead_bytes + memory.kv_bytes
        return round(fixed + max(self.prompt_bytes, self.decode_bytes))

    def rate(self, c: Constants) -> float:
        """Return the new tokens of a device per second."""
        return 1e9 / self.token_ns(c)

    def token_ns(self, c: Constants) -> float:
        """Return the time that one device spends per new token, the inverse of its rate.

        A pipeline is taken as full.
        """
        whole = self.whole
        tokens = whole.work.batch * whole.new_tokens
        batches = whole.work.batch * (whole.setting.ep if whole.setting.tp == 1 else 1)
        taken = whole.total_ns(c) if self.one_prompt is None else whole.new_tokens * self.tpot_ns(c)
        paced = whole.paced_ns(c) / whole.total_ns(c)
        return taken * paced / tokens * whole.work.batch / batches * self.devices


def choose(request: PredictRequest) -> ServingChoice:
    """Return every method and sparsity at the largest batch that meets the objectives.

    Raises:
        PrunescopeError: The model, the device or an option is unknown, or no method applies.
    """
    check_options(request)
    warnings: list[str] = []
    target = read_model_on_device(request, warnings)
    load = serving_workload(request)
    objectives = Objectives.of(request)
    rows: list[ServedPoint] = []
    left_out: dict[str, str] = {}
    dense: Served | None = None
    assumed: list[str] = []
    for method, sparsity in _points(request):
        try:
            setting, _ = resolve(_without_foreign(request), method, sparsity, warnings, target)
            key = (setting.family.id if setting.family else "dense"), setting.sparsity
            if any((row.method, row.sparsity) == key for row in rows):
                continue
            serve = partial(_serve, setting, request, load.prompt_len, load.new_tokens)
            memory_batch = _batch_in_memory(serve(1), pruned=setting.prunes)
            served = _largest(serve, objectives, memory_batch)
            if served is not None and not objectives.rate_met(served):  # less at smaller batches
                served = None
            if not setting.prunes:
                dense = served
            rows.append(_row(setting, request, serve, served, dense))
        except PrunescopeError as error:
            left_out[str(method)] = error.problem
            continue
        assumed += list_assumptions(setting)
    if len(rows) < 2 and left_out:
        raise PrunescopeError(
            f"no method can be ranked: {next(iter(left_out.values()))}",
            hint="`prunescope families --architecture MODEL` lists those that apply",
        )
    rows.sort(key=lambda row: (_place(row), -(row.tokens_per_s_per_device or 0.0)))
    return ServingChoice(
        subject={
            "model": request.model,
            "dtype": target.dtype,
            "device": target.device.name,
            "runtime": request.runtime,
            "devices": max(request.tp, request.ep) * request.pp,
        },
        workload={
            "prompt_len": load.prompt_len,
            "new_tokens": load.new_tokens,
            "arrivals": request.arrivals,
        },
        objectives={name: getattr(objectives, name) for name in Objectives.__slots__},
        rank=rows,
        left_out=left_out,
        assumed=list(dict.fromkeys([_ARRIVALS[request.arrivals], *assumed])),
        engine_formats_of=CHECKED,
        warnings=list(dict.fromkeys(warnings)),
        options=options_of_request(request),
        command=command_of(request),
    )


def _points(request: PredictRequest) -> Iterable[tuple[str | None, float | None]]:
    """Yield the methods and sparsities to try, the dense model first."""
    yield None, None
    named = [name for name in methods(request.method) if name]
    names = named or [family.id for family in pruning_families()]
    shares = [s for s in sparsities(request.sparsity) if s is not None] or _SPARSITIES
    for name in names:
        only = find_named_family(name)[0].only
        for share in [only] if only else shares:
            yield name, share


def _without_foreign(request: PredictRequest) -> PredictRequest:
    """Return the request as one of several methods, which need not all have its options."""
    return replace(request, method=("a", "b"))


def _serve(
    setting: Setting, request: PredictRequest, prompt_len: int, new_tokens: int, batch: int
) -> Served:
    """Return a side at a batch."""

    def answer(batch: int) -> Answer:
        """Return the answers of a batch."""
        work = prompt_of(setting, batch=batch, prompt_len=prompt_len, logits=request.logits)
        return predict_answer(
            setting, work, new_tokens=new_tokens, chunk=request.chunk, pruned=setting.prunes
        )

    return Served(answer(batch), answer(1) if request.arrivals == "rate" else None)


def _batch_in_memory(single: Served, *, pruned: bool) -> int:
    """Return the largest batch whose weights, cache and prompts fit into a device."""
    memory = answer_memory(single.whole, pruned=pruned)
    if memory.device_bytes is None:
        return MOST_BATCH
    room = memory.device_bytes - memory.weight_bytes - memory.overhead_bytes
    cache, prompt = memory.kv_bytes, single.prompt_bytes
    # A prompt alone is as large at each batch; all prompts together grow with it, as a step does.
    fixed, growing = (prompt, 0.0) if single.one_prompt is not None else (0.0, prompt)
    fits = [
        (room - held) // (cache + each) if cache + each else MOST_BATCH
        for held, each in ((fixed, growing), (0.0, single.decode_bytes))
    ]
    return min(MOST_BATCH, max(0, int(min(fits))))


def _largest(serve: Callable[[int], Served], objectives: Objectives, most: int) -> Served | None:
    """Return the side at the largest batch up to `most` that meets the objectives in time.

    Times grow with the batch, so that halving finds it. None where no batch meets them.
    """
    if most < 1 or not objectives.times_met(serve(1)):
        return None
    low, high = 1, most + 1  # `low` meets them; `high` does not, or is too large
    step = 1
    while low + step < high:
        if not objectives.times_met(serve(low + step)):
            high = low + step
            break
        low, step = low + step, 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        if objectives.times_met(serve(middle)):
            low = middle
        else:
            high = middle
    return serve(low)


def _row(
    setting: Setting,
    request: PredictRequest,
    serve: Callable[[int], Served],
    served: Served | None,
    dense: Served | None,
) -> ServedPoint:
    """Return the row of a side; where no batch meets the objectives, with times of one sequence."""
    at = served or serve(1)
    c = at.constants
    memory = answer_memory(at.whole, pruned=setting.prunes)
    fits = engine_runs(request.runtime, setting)
    speed = None
    if served is not None and dense is not None and setting.prunes:
        sides = {id(side.whole): side for side in (dense, served)}
        value, spread = answer_uncertainty(
            dense.whole, served.whole, lambda answer, c: sides[id(answer)].token_ns(c)
        )
        speed = value, spread.range_of(value)
    return ServedPoint(
        method=setting.family.id if setting.family else "dense",
        sparsity=setting.sparsity if setting.family else 0.0,
        batch=None if served is None else served.whole.work.batch,
        ttft_ms=at.ttft_ns(c) / 1e6,
        tpot_ms=at.tpot_ns(c) / 1e6,
        latency_ms=at.latency_ns(c) / 1e6,
        tokens_per_s_per_device=None if served is None else served.rate(c),
        speedup=speed[0] if speed else None,
        range=speed[1] if speed else None,
        weight_bytes=memory.weight_bytes,
        kv_bytes=memory.kv_bytes,
        memory_bytes=at.memory_bytes(memory),
        runs=fits.runs,
        why=fits.why,
        source=fits.source,
    )


def _place(row: ServedPoint) -> int:
    """Return the group of a row: what the engine runs first, what meets no objective last."""
    if row.batch is None:
        return 3
    return {True: 0, None: 1, False: 2}[row.runs]
