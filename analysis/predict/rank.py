"""`predict --rank`: every family on one model, device and workload, side by side.

A PredictRequest with `rank` gives a Ranking: families by expected speedup of the whole workload at
equal FLOPs, at equal parameters and, with the losses of a sweep, at equal loss, with ranges, and
which of them tie with the first.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from msgspec.structs import replace

from prunescope.analysis.predict.answers import (
    Answer,
    answer_memory,
    predict_answer,
    prompt_of,
    speed_of,
)
from prunescope.analysis.predict.engine_formats import engine_runs
from prunescope.analysis.predict.evidence import largest_tried
from prunescope.analysis.predict.loss_curves import SweepLosses, read_losses
from prunescope.analysis.predict.predict_request import (
    PredictRequest,
    command_of,
    options_of_request,
)
from prunescope.analysis.predict.request_points import (
    check_knobs,
    check_options,
    sized_for_model,
    sparsities,
)
from prunescope.analysis.predict.setting import Setting, as_runnable, resolve, split_library
from prunescope.analysis.schema.pareto import MOST_RATIO
from prunescope.analysis.schema.prediction import Ranked, Ranking
from prunescope.taxonomy.applies import check_applies
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import families, family
from prunescope.taxonomy.family import Family
from prunescope.taxonomy.match import MATCHES, removed_shares, solve
from prunescope.taxonomy.words import percent


@dataclass(frozen=True, slots=True)
class ServingWorkload:
    """A workload of people: sequences at a time, tokens of a prompt and of its answer."""

    batch: int
    prompt_len: int
    new_tokens: int
    text: str


WORKLOADS = {
    "chat": ServingWorkload(8, 1024, 256, "several users: prompts of 1,024, answers of 256 tokens"),
    "rag": ServingWorkload(4, 8192, 128, "long prompts, short answers"),
    "batch": ServingWorkload(64, 1024, 512, "many sequences at a time, for throughput"),
    "long": ServingWorkload(1, 32768, 512, "one long document"),
    "agent": ServingWorkload(1, 4096, 1024, "one sequence, long answers"),
}
_BY = ("flop", "param")


def find_workload(name: str) -> ServingWorkload:
    """Find one of WORKLOADS; raise PrunescopeError for an unknown name."""
    if name not in WORKLOADS:
        raise PrunescopeError(
            f"no workload is called {name!r}", hint=f"one of {', '.join(WORKLOADS)}"
        )
    return WORKLOADS[name]


def serving_workload(request: PredictRequest) -> ServingWorkload:
    """Return the named workload of a request, or the one of its sizes."""
    if request.workload is None:
        return ServingWorkload(
            request.batch, request.prompt_len, request.new_tokens or 1, "as given"
        )
    return find_workload(request.workload)


def rank(request: PredictRequest) -> Ranking:
    """Rank every family that applies to the model by the speedup of the whole workload.

    Args:
        request: The request.

    Returns:
        The ranking.

    Raises:
        PrunescopeError: The model, the device or the workload is unknown, or an option
            contradicts another.
    """
    check_options(dataclasses.replace(request, rank=True))
    warnings: list[str] = []
    share = _requested_share(request)
    losses, loss = _read_losses(request)
    known = [family for family in families() if family.dynamics and family.id != "dense"]
    check_knobs(request.knobs, [family.id for family in known])
    library, knobs = split_library(request.knobs)
    base, _ = resolve(dataclasses.replace(request, knobs={"kernel": library}), None, None, warnings)
    load = serving_workload(sized_for_model(request, base.shape))
    work = prompt_of(base, batch=load.batch, prompt_len=load.prompt_len, logits=request.logits)
    dense = predict_answer(
        base, work, new_tokens=load.new_tokens, chunk=request.chunk, pruned=False
    )
    if answer_memory(dense, pruned=False).fits is False:
        warnings.append(f"the dense model does not fit into the memory of {base.device.name}")
    left_out: dict[str, str] = {}
    tables: dict[str, list[Ranked]] = {}
    for by in _BY:
        at_share = {
            family.id: partial(_row_at_share, base, family, by, share, dense, knobs)
            for family in known
        }
        tables[by] = _rank_rows(at_share, left_out)
    if losses is not None and loss is not None:
        usable = losses.usable()
        kept = {curve.family for curve in usable.curves}
        left_out |= {
            curve.family: f"every measured loss of {curve.family} is too large for any use"
            for curve in losses.curves
            if curve.family not in kept
        }
        at_loss = {
            curve.family: partial(_row_at_loss, base, usable, curve.family, loss, dense)
            for curve in usable.curves
        }
        tables["loss"] = _rank_rows(at_loss, left_out)
        warnings += _loss_warnings(losses, usable, request.model)
    return Ranking(
        subject={"model": request.model, "dtype": base.dtype, "device": base.device.name},
        workload={
            "name": request.workload,
            "batch": load.batch,
            "prompt_len": load.prompt_len,
            "new_tokens": load.new_tokens,
            "text": load.text,
            "image_tokens": base.shape.image_tokens or None,
            "one_pass": base.shape.is_one_pass or None,
        },
        share=share,
        loss=loss,
        dense=dense.as_schema(),
        by=tables,
        left_out=left_out,
        warnings=list(dict.fromkeys(warnings)),
        options=options_of_request(request),
        command=command_of(request),
    )


def _requested_share(request: PredictRequest) -> float:
    """Return the share to remove, by default 0.25; raise PrunescopeError for several."""
    shares = [s for s in sparsities(request.sparsity) if s is not None]
    if len(shares) > 1:
        raise PrunescopeError("--rank needs one sparsity", hint="for example --sparsity 0.25")
    return shares[0] if shares else 0.25


def _rank_rows(
    rows_by_family: Mapping[str, Callable[[], Ranked]], left_out: dict[str, str]
) -> list[Ranked]:
    """Return the rows that exist, the fastest first; `left_out` gets the reasons of the others.

    A row whose sparsity is larger than any that was tried follows those that were.
    """
    rows: list[Ranked] = []
    for name, make in rows_by_family.items():
        try:
            rows.append(make())
        except PrunescopeError as error:
            left_out.setdefault(name, error.problem)
    rows.sort(key=lambda row: (row.is_beyond_tried, -row.speedup))
    for row in rows:
        is_behind = row.is_beyond_tried and not rows[0].is_beyond_tried
        row.ties = not is_behind and row.range[1] >= rows[0].range[0]
    return rows


def _row_at_share(
    base: Setting, family: Family, by: str, share: float, dense: Answer, given: Mapping[str, Any]
) -> Ranked:
    """Return the row of a family where it removes `share` of the parameters, or of the FLOPs.

    FLOPs are those of what takes longer: the prompt, or a step in the middle of its answer.
    """
    chosen = _applicable(base, family)
    knobs = chosen.point(0.0, {k: v for k, v in given.items() if k in chosen.knobs}).knobs
    work = dense.longer_forward.work
    sparsity = family.only
    if not sparsity:
        sparsity = solve(chosen, share, by=by, shape=base.shape, work=work, knobs=knobs).own
    row = _rank_family(replace(base, family=chosen, sparsity=sparsity, knobs=knobs), dense)
    if row.removed[by] <= 1e-5:
        raise PrunescopeError(f"{chosen.id} removes no {MATCHES[by]}", hint="")
    return row


def _row_at_loss(
    base: Setting, losses: SweepLosses, name: str, loss: float, dense: Answer
) -> Ranked:
    """Return the row of a family at the sparsity that loses `loss`.

    Of its curves, the one that allows the largest sparsity counts; the range includes the ends of
    that sparsity.
    """
    curves = [curve for curve in losses.curves if curve.family == name]
    at_loss = [(at, curve) for curve in curves if (at := curve.sparsities_at(loss)) is not None]
    if not at_loss:
        most = percent(max(curve.most for curve in curves), 1)
        raise PrunescopeError(f"the largest measured loss of {name} is {most}", hint="")
    (sparsity, *ends), curve = max(at_loss, key=lambda item: item[0][0])
    chosen = _applicable(base, family(name))
    known = {k: v for k, v in curve.knobs.items() if k in chosen.knobs}

    def row_at(sparsity: float) -> Ranked:
        """Return the row at a sparsity."""
        at = chosen.only or sparsity
        knobs = chosen.point(at, known).knobs
        return _rank_family(replace(base, family=chosen, sparsity=at, knobs=knobs), dense)

    row = row_at(sparsity)
    slower, faster = sorted(math.log(row_at(end).speedup / row.speedup) for end in ends)
    low, high = (math.log(end / row.speedup) for end in row.range)
    row.range = [
        row.speedup * math.exp(-math.hypot(low, min(0.0, slower))),
        row.speedup * math.exp(math.hypot(high, max(0.0, faster))),
    ]
    row.select = curve.select
    row.tried = max(row.tried or 0.0, row.sparsity)  # by the sweep
    return row


def _applicable(base: Setting, family: Family) -> Family:
    """Return the family as the device runs it; raise PrunescopeError where it does not apply."""
    chosen = as_runnable(family, base.device, []) or family
    if base.traits is not None:
        check_applies(chosen.id, chosen.applies, base.traits)
    return chosen


def _read_losses(request: PredictRequest) -> tuple[SweepLosses | None, float | None]:
    """Return the losses of a sweep, and the one at which families are compared."""
    loss = request.loss
    if request.losses is None:
        if loss is not None:
            raise PrunescopeError("--loss needs --losses", hint="--losses FOLDER of a sweep")
        return None, None
    if loss is not None and not 0 < loss < math.inf:
        raise PrunescopeError(
            f"invalid --loss {loss:g}", hint="a relative perplexity increase: --loss 0.1"
        )
    if loss is not None and 1 + loss > MOST_RATIO:
        raise PrunescopeError(
            f"--loss {loss:g} is too large for any use",
            hint=f"at most {MOST_RATIO - 1:g}: {MOST_RATIO:g}× the perplexity of the dense model",
        )
    losses = read_losses(request.losses)
    return losses, losses.usable().common() if loss is None else loss


def _loss_warnings(losses: SweepLosses, usable: SweepLosses, model: str | None) -> list[str]:
    """Warn of losses of another model, and of families with a single usable point."""
    warnings = []
    foreign = [name for name in losses.models if name != model]
    if foreign:
        warnings.append(f"the losses were measured on {', '.join(foreign)}")
    most: dict[str, int] = {}
    for curve in usable.curves:
        most[curve.family] = max(len(curve.points), most.get(curve.family, 0))
    single = [name for name, count in most.items() if count == 1]
    if single:
        warnings.append(
            f"{', '.join(single)}: only one run each below {MOST_RATIO:g}× the dense perplexity, "
            "so equal loss lies on a line from dense to it: evaluate more sparsities"
        )
    return warnings


def _rank_family(setting: Setting, dense: Answer) -> Ranked:
    """Return the row of a family at its own sparsity."""
    chosen = setting.family
    assert chosen is not None
    pruned = predict_answer(
        setting,
        dense.work,
        new_tokens=dense.new_tokens,
        chunk=dense.chunk.work.prompt_len if dense.chunk else None,
    )
    speed = speed_of(dense, pruned)
    return Ranked(
        family=chosen.id,
        extension=chosen.extension,
        sparsity=setting.sparsity,
        removed=removed_shares(
            chosen,
            setting.sparsity,
            shape=setting.shape,
            work=dense.longer_forward.work,
            knobs=setting.knobs,
        ),
        speedup=speed.speedup,
        range=speed.range,
        answer=pruned.as_schema(),
        weight_bytes=round(pruned.prompt.forward.weight_bytes),
        kv_bytes=round(pruned.steps[-1].forward.kv_bytes),
        ties=False,
        fits=answer_memory(pruned, pruned=True).fits,
        tried=largest_tried(setting),
        runs=engine_runs(setting.runtime.name if setting.runtime else None, setting).runs,
    )
