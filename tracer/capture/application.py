"""The application of a request's method to a model: one family, several in turn, or a function.

A TraceRequest and the Loaded model come in, and the model is changed. Applied goes out, and
`pruning` of run.json: the method, its sparsity, kept dimensions and realised shares.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace

from prunescope.taxonomy.allocations.allocation_plan import read_plan
from prunescope.taxonomy.engines import legal_sizes
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import family
from prunescope.taxonomy.family import Family
from prunescope.taxonomy.formats import plain, read
from prunescope.taxonomy.match import KNOB, NOMINAL, Match, RemovesNothing, removed_shares, solve
from prunescope.taxonomy.plan import PHASES, Workload
from prunescope.taxonomy.runs.run_blocks import Pruning, Record
from prunescope.taxonomy.shape import ModelShape
from prunescope.tracer.calibration.collect import calibration_of, text_calibration
from prunescope.tracer.calibration.point import Calibration, Point
from prunescope.tracer.calibration.requests import decided_by
from prunescope.tracer.capture.manifest import phase_entry
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.export.adapter import AdapterKeeper
from prunescope.tracer.export.padding import pad
from prunescope.tracer.machine.timed_calls import times_ns
from prunescope.tracer.model import compat
from prunescope.tracer.model.load import Loaded, load_tokenizer
from prunescope.tracer.model.logits import NUM_PROBED, probe
from prunescope.tracer.model.model_shape import model_shape
from prunescope.tracer.pruners import Applied, family_point, pruner
from prunescope.tracer.pruners.method import MethodPart
from prunescope.tracer.pruners.plan_method import apply_plan
from prunescope.tracer.pruners.user_method import apply_method
from prunescope.tracer.recovery.adapters import zero_shares
from prunescope.tracer.recovery.recover import recover
from prunescope.tracer.recovery.settings import training_name
from prunescope.tracer.routing.learning import Learner

_FORWARDS, _PADDING_S = 9, 10.0  # timed with and without padding, and the seconds for them
# What a family raises in layers that it does not know.
_FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError)


def apply_request(request: TraceRequest, loaded: Loaded) -> tuple[Applied, Pruning]:
    """Prune a model by a request, and train it afterwards if the request asks for that.

    Args:
        request: The request, which has a method.
        loaded: The model, which is changed in place.

    Returns:
        The result with the pruned model, and its record for run.json.

    Raises:
        PrunescopeError: This model cannot be pruned so.
    """
    assert request.method is not None
    parts = request.parts
    before = _num_parameters(loaded.model)
    zeros = zero_shares(loaded.model) if request.recovery is not None else None
    pruning: Record = {"method": request.method, "sparsity": request.sparsity}
    if request.name is not None:
        pruning["display_name"] = request.name
    if request.plan is not None:
        applied = _apply_plan(request.plan, request, loaded)
        # A plan has no single sparsity; the shapes give the removed FLOPs.
        pruning |= {"method": request.plan.name, "sparsity": None}
        pruning |= {"knobs": {}, **applied.record}
    elif parts is None:
        point = Point(sparsity=request.sparsity, select=request.select, seed=request.seed)
        applied = apply_method(request.method, loaded.model, point)
        pruning |= {"knobs": {}, **applied.record}
    elif len(parts) == 1:
        applied, record = _apply_family(parts[0], request, loaded)
        pruning |= record
    else:
        applied, records = _apply_families(parts, request, loaded)
        # A composite has no single sparsity; its theory gives the removed FLOPs.
        pruning |= {"sparsity": None, "knobs": dict(request.knobs), "parts": records}
        pruning["notes"] = [f"{r['method']}: {n}" for r in records for n in r.get("notes", ())]
    if request.recovery is not None:
        keeper = AdapterKeeper() if request.save_adapter else None
        recovered = recover(
            applied.model,
            load_tokenizer(loaded),
            request.recovery,
            name=training_name(request.method, request.sparsity, request.select, request.seed),
            seed=request.seed,
            masks=any("zeros" in r for r in (pruning, *pruning.get("parts", ()))),
            before=zeros,
            learners=applied.learners,
            keeper=keeper,
        )
        pruning["recovery"] = plain(recovered)
        applied.adapter = keeper and keeper.adapter
    if request.legal is not None:
        pruning["padded"] = _pad(request, applied.model)
    pruning["seed"] = request.seed
    pruning["realised"] = {"parameters": 1 - _num_parameters(applied.model) / before}
    return applied, read(Pruning, pruning)


def _pad(request: TraceRequest, model: Any) -> Record:
    """Pad a model to the sizes of an engine, and record what that costs in time and bytes."""
    assert request.legal is not None
    before = _forward_ns(request, model)
    record = pad(model, legal_sizes(request.legal, request.legal_tp))
    if record["parameters"]:
        after = _forward_ns(request, model)
        record["bytes"] = record["parameters"] * next(model.parameters()).element_size()
        record["ns"] = {phase: [ns, after[phase]] for phase, ns in before.items()}
    return record


@torch.inference_mode()
def _forward_ns(request: TraceRequest, model: Any) -> dict[str, float]:
    """Return the median ns of a forward of each phase, by a few calls without a profiler."""
    device = model.get_input_embeddings().weight.device
    ids = torch.ones(request.batch, request.prompt_len, dtype=torch.long, device=device)
    times: dict[str, float] = {}
    for phase in request.phases:
        step = partial(model, ids, use_cache=False)
        if phase == "decode":
            cache = compat.new_cache(model)
            compat.forward(model, ids, cache=cache, logits="last")
            step = partial(compat.forward, model, ids[:, :1], cache=cache, logits="last")
        deadline = time.perf_counter() + _PADDING_S
        times[phase] = statistics.median(times_ns(step, device, deadline=deadline, most=_FORWARDS))
    return times


def _apply_plan(path: Path, request: TraceRequest, loaded: Loaded) -> Applied:
    """Prune a model as a plan says.

    Matrices of low rank are fitted to tokens of `--text`, or of the text that `allocate` measures
    losses on.
    """
    calibration = None
    if read_plan(path).has_ranks:
        given = _read_calibration("importance", request, loaded)
        calibration = calibration_of(loaded.model, given, seed=0)
    with torch.no_grad():
        return apply_plan(path, loaded.model, calibration)


def _num_parameters(model: torch.nn.Module) -> int:
    """Count the weights of a model, shared ones once."""
    return sum(p.numel() for p in model.parameters())


def _apply_families(
    parts: list[MethodPart], request: TraceRequest, loaded: Loaded
) -> tuple[Applied, list[Record]]:
    """Apply each family to the result of the ones before it.

    Raises:
        PrunescopeError: A family cannot prune what the ones before it left, or the result does
            not run.
    """
    records: list[Record] = []
    learners: list[Learner] = []
    layer_map: list[int] | None = None
    applied = Applied(model=loaded.model, record={})
    for part in parts:
        so_far = dataclasses.replace(loaded, model=applied.model)
        try:
            applied, record = _apply_family(part, request, so_far)
        except PrunescopeError as error:
            if not records:
                raise
            done = "+".join(r["method"] for r in records)
            raise PrunescopeError(
                f"{part.family} after {done}: {error.problem}",
                hint=f"{error.hint}; or name it first: families are applied from left to right",
            ) from error
        except torch.OutOfMemoryError:
            raise
        except _FAILURES as error:
            if not records:
                raise
            raise _refuse_after(part, records, str(error)) from error
        if applied.layer_map is not None and any(family(r["method"]).is_dynamic for r in records):
            raise _refuse_after(part, records, "it removes layers that decide at run time")
        records.append(record)
        if applied.layer_map is not None:
            old = layer_map
            layer_map = applied.layer_map if old is None else [old[i] for i in applied.layer_map]
        learners += applied.learners
    applied.layer_map, applied.learners = layer_map, learners
    with decided_by(torch.arange(NUM_PROBED)):  # it takes no random numbers from what is timed
        probe(applied.model, f"pruned with {'+'.join(r['method'] for r in records)}")
    return applied, records


def _refuse_after(part: MethodPart, records: list[Record], why: str) -> PrunescopeError:
    """Build the error for a family that cannot prune what the ones before it left."""
    done = "+".join(r["method"] for r in records)
    reason = next(iter(why.splitlines()), "")[:120]
    return PrunescopeError(
        f"{part.family} after {done}: {reason}",
        hint=f"name {part.family} first: families are applied from left to right",
    )


def _apply_family(
    part: MethodPart, request: TraceRequest, loaded: Loaded
) -> tuple[Applied, Record]:
    """Apply one family, and return its record {"method", "sparsity", "knobs", "selection", ...}."""
    chosen, match = family(part.family), None
    sparsity = part.sparsity
    if part.match != NOMINAL:
        match = _solve_match(chosen, part, request, loaded.model)
        sparsity = match.own
    given = Point(sparsity=sparsity, knobs=part.knobs, select=part.select, seed=request.seed)
    point = family_point(part.family, given)
    shape = _shape_or_none(loaded.model)
    works = {phase: _workload(request, phase, loaded.model) for phase in request.phases}
    with torch.no_grad():
        calibration = _read_calibration(part.select, request, loaded)
        applied = pruner(part.family).prune(
            loaded.model, dataclasses.replace(point, calibration=calibration)
        )
    removed = applied.record.get("removed", {})
    theory = _theoretical_shares(chosen, point, shape, works, removed)
    record: Record = {
        "method": part.family,
        "sparsity": part.sparsity,
        "knobs": dict(point.knobs),
        "selection": part.select,
        "theory": theory,
        **applied.record,
    }
    random_text = record.get("calibration", {}).get("note")
    if random_text:  # no text was tokenised
        record["notes"] = [*record.get("notes", ()), f"{part.select} measured on {random_text}"]
    if match is not None:
        if (
            theory is not None and removed
        ):  # `match` was solved for the mean over layers, before they were chosen
            match = replace(match, removed=theory[match.phase])
        record["knobs"][KNOB], record["match"] = part.match, match.to_dict()
        record["notes"] = [match.note, *record.get("notes", ())]
    return applied, record


def _shape_or_none(model: Any) -> ModelShape | None:
    """Return the shape of a model; None for an architecture that is not known."""
    try:
        return model_shape(model)
    except PrunescopeError:
        return None


def _workload(request: TraceRequest, phase: str, model: Any) -> Workload:
    """Return the workload of a phase, by which FLOPs and bytes are counted."""
    entry = phase_entry(request, phase, logits=request.logits, attention="", flush_bytes=None)
    return Workload.from_sizes(phase, entry, itemsize=next(model.parameters()).element_size())


def _solve_match(chosen: Family, part: MethodPart, request: TraceRequest, model: Any) -> Match:
    """Solve for the family's sparsity that removes the requested share, in a requested phase.

    If both phases run, that is prefill, or decode if nothing is removed in prefill.
    """
    phases = PHASES if request.phase == "both" and part.match != "param" else request.phases[:1]
    for phase in phases:
        try:
            return solve(
                chosen,
                part.sparsity,
                by=part.match,
                shape=model_shape(model),
                work=_workload(request, phase, model),
                knobs=part.knobs,
            )
        except RemovesNothing:
            if phase == phases[-1]:
                raise
    raise AssertionError("a request has a phase")


def _theoretical_shares(
    chosen: Family,
    point: Point,
    shape: ModelShape | None,
    works: Mapping[str, Workload],
    removed: Mapping[str, list[int]],
) -> dict[str, dict[str, float]] | None:
    """Return the removed shares of FLOPs, parameters and bytes by phase; None without a theory."""
    if shape is None:
        return None
    try:
        return {
            phase: removed_shares(
                chosen, point.sparsity, shape=shape, work=work, knobs=point.knobs, removed=removed
            )
            for phase, work in works.items()
        }
    except PrunescopeError:  # the theory does not cover these layers
        return None


def _read_calibration(select: str, request: TraceRequest, loaded: Loaded) -> Calibration | None:
    """Return tokens of the calibration text; None for random selection or without a tokenizer.

    Raises:
        PrunescopeError: `--text` was given, and the model has no tokenizer.
    """
    if select == "random":
        return None
    tokenizer = load_tokenizer(loaded)
    if tokenizer is not None:
        return text_calibration(loaded.model, tokenizer, request.text_path)
    if request.text is not None:
        raise PrunescopeError(
            f"{loaded.id} has no tokenizer to read --text with",
            hint="remove --text: random token ids are used then, which the run notes",
        )
    return None
