"""Which family, here? Every family on one model, device and workload, side by side.

In: a PredictRequest with `rank`. Out: a Ranking: families by expected speedup of the whole
workload at equal FLOPs, at equal parameters and, where a sweep has judged them, at equal loss, with
ranges, and which of them tie with the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from prunescope.analysis.predict.answers import answer_memory, prompt_of, speed_of
from prunescope.analysis.predict.asked import check_knobs
from prunescope.analysis.predict.generation import Answer, answer
from prunescope.analysis.predict.grid import sparsities
from prunescope.analysis.predict.losses import Curve, SweepLosses, read_losses
from prunescope.analysis.predict.request import PredictRequest
from prunescope.analysis.predict.setting import (
    Setting,
    resolve,
    runnable,
    take_kernel,
)
from prunescope.analysis.predict.together import check_together
from prunescope.analysis.schema.pareto import MOST_RATIO
from prunescope.analysis.schema.prediction import Ranked, Ranking
from prunescope.taxonomy.applies import check_applies
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import families, family
from prunescope.taxonomy.family import Family
from prunescope.taxonomy.match import MATCHES, removed_shares, solve
from prunescope.taxonomy.plan import Workload
from prunescope.taxonomy.words import percent


@dataclass(frozen=True, slots=True)
class Load:
    """A workload that people have: sequences at a time, tokens of a prompt and of its answer."""

    batch: int
    prompt_len: int
    new_tokens: int
    text: str


WORKLOADS = {
    "chat": Load(8, 1024, 256, "several people talk to it: answers of 256 tokens at 1,024"),
    "rag": Load(4, 8192, 128, "long prompts, short answers"),
    "batch": Load(64, 1024, 512, "many sequences at a time, for throughput"),
    "long": Load(1, 32768, 512, "one long document"),
    "agent": Load(1, 4096, 1024, "one sequence, long answers"),
}
BY = ("flop", "param")


def load_of(request: PredictRequest) -> Load:
    """The named workload of a request, or the one that its sizes make."""
    if request.workload is None:
        return Load(request.batch, request.prompt_len, request.new_tokens or 1, "as given")
    if request.workload not in WORKLOADS:
        raise PrunescopeError(
            f"no workload is called {request.workload!r}", hint=f"one of {', '.join(WORKLOADS)}"
        )
    return WORKLOADS[request.workload]


def rank(request: PredictRequest) -> Ranking:
    """Every family that the model allows, by the expected speedup of the whole workload.

    Raises PrunescopeError where the model, the device or the workload is not known.
    """
    check_together(replace(request, rank=True))
    load = load_of(request)
    warnings: list[str] = []
    share = _share(request)
    judged, loss = _judged(request)
    known = [one for one in families() if one.dynamics and one.id != "dense"]
    check_knobs(request.knobs, [one.id for one in known])
    kernel, knobs = take_kernel(request.knobs)
    base, _ = resolve(replace(request, knobs={"kernel": kernel}), None, None, warnings)
    work = prompt_of(base, batch=load.batch, prompt_len=load.prompt_len, logits=request.logits)
    dense = answer(base, work, new_tokens=load.new_tokens, chunk=request.chunk, pruned=False)
    if answer_memory(base, dense, pruned=False).fits is False:
        warnings.append(f"dense it does not fit into the memory of {base.device.name}")
    left_out: dict[str, str] = {}
    tables: dict[str, list[Ranked]] = {}
    for by in BY:
        asked = {one.id: _at_share(base, one, by, share, dense, knobs) for one in known}
        tables[by] = _table(asked, left_out)
    if judged is not None and loss is not None:
        usable = judged.usable()
        left_out |= _too_far(judged, usable)
        tables["loss"] = _table(_at_loss(base, usable, loss, dense), left_out)
        warnings += [*_whose(judged, request.model), *_few(usable)]
    return Ranking(
        subject={"model": request.model, "dtype": base.dtype, "device": base.device.name},
        workload={
            "name": request.workload,
            "batch": load.batch,
            "prompt_len": load.prompt_len,
            "new_tokens": load.new_tokens,
            "text": load.text,
        },
        share=share,
        loss=loss,
        dense=dense.as_schema(),
        by=tables,
        left_out=left_out,
        warnings=list(dict.fromkeys(warnings)),
    )


def _share(request: PredictRequest) -> float:
    shares = [s for s in sparsities(request.sparsity) if s is not None]
    if len(shares) > 1:
        raise PrunescopeError("a ranking is at one share", hint="--sparsity 0.25")
    return shares[0] if shares else 0.25


Ask = Callable[[], Ranked]


def _table(asked: Mapping[str, Ask], left_out: dict[str, str]) -> list[Ranked]:
    """The rows that exist, the fastest first."""
    rows: list[Ranked] = []
    for name, ask in asked.items():
        try:
            rows.append(ask())
        except PrunescopeError as error:
            left_out.setdefault(name, error.problem)
    rows.sort(key=lambda row: -row.speedup)
    for row in rows:
        row.ties = row.range[1] >= rows[0].range[0]
    return rows


def _at_share(  # noqa: PLR0913 - what is held equal, of what
    base: Setting, one: Family, by: str, share: float, dense: Answer, given: Mapping[str, Any]
) -> Ask:
    """A family where it removes `share` of the parameters, or of the FLOPs of what takes longer:
    the prompt, or a step in the middle of its answer."""

    def ask() -> Ranked:
        chosen = runnable(one, base.device, []) or one
        if base.traits is not None:
            check_applies(chosen.id, chosen.applies, base.traits)
        knobs = chosen.point(0.0, {k: v for k, v in given.items() if k in chosen.knobs}).knobs
        at = _longer(base, dense)
        own = one.only or solve(chosen, share, by=by, shape=base.shape, work=at, knobs=knobs).own
        row = _row(replace(base, family=chosen, sparsity=own, knobs=knobs), dense)
        if row.removed[by] <= 1e-5:
            raise PrunescopeError(f"{chosen.id} removes no {MATCHES[by]}", hint="")
        return row

    return ask


def _at_loss(base: Setting, judged: SweepLosses, loss: float, dense: Answer) -> dict[str, Ask]:
    """Each judged family at the sparsity that loses `loss`, chosen the way that allows most."""

    def ask(name: str) -> Ranked:
        mine = [curve for curve in judged.curves if curve.family == name]
        ways = [(curve.sparsities_at(loss), curve) for curve in mine]
        found = [(at, curve) for at, curve in ways if at is not None]
        if not found:
            most = max(curve.most for _, curve in ways)
            raise PrunescopeError(
                f"{name} was judged up to a loss of {percent(most, 1)} alone", hint=""
            )
        at, curve = max(found, key=lambda one: one[0][0])
        return _judged_row(base, curve, at, dense)

    return {curve.family: partial(ask, curve.family) for curve in judged.curves}


def _judged_row(
    base: Setting, curve: Curve, at: tuple[float, float, float], dense: Answer
) -> Ranked:
    """The row at the sparsity in the middle; its range holds those of the ends too."""
    chosen = runnable(family(curve.family), base.device, []) or family(curve.family)
    if base.traits is not None:
        check_applies(chosen.id, chosen.applies, base.traits)
    known = {k: v for k, v in curve.knobs.items() if k in chosen.knobs}

    def row(sparsity: float) -> Ranked:
        own = chosen.only or sparsity
        knobs = chosen.point(own, known).knobs
        return _row(replace(base, family=chosen, sparsity=own, knobs=knobs), dense)

    middle = row(at[0])
    ends = sorted(math.log(row(end).speedup / middle.speedup) for end in at[1:])
    low, high = (math.log(end / middle.speedup) for end in middle.range)
    middle.range = [
        middle.speedup * math.exp(-math.hypot(low, min(0.0, ends[0]))),
        middle.speedup * math.exp(math.hypot(high, max(0.0, ends[1]))),
    ]
    middle.select = curve.select
    return middle


def _judged(request: PredictRequest) -> tuple[SweepLosses | None, float | None]:
    """The losses of a sweep, and the one at which families are compared."""
    asked = request.loss
    if request.losses is None:
        if asked is not None:
            raise PrunescopeError("--loss needs the losses of a sweep", hint="--losses FOLDER")
        return None, None
    if asked is not None and not 0 < asked < math.inf:
        raise PrunescopeError(f"{asked:g} is no loss", hint="a share more perplexity: --loss 0.1")
    if asked is not None and 1 + asked > MOST_RATIO:
        raise PrunescopeError(
            f"--loss {asked:g} is more than anyone would use",
            hint=f"at most {MOST_RATIO - 1:g}: {MOST_RATIO:g}× the perplexity of the dense model",
        )
    judged = read_losses(request.losses)
    return judged, judged.usable().common() if asked is None else asked


def _too_far(judged: SweepLosses, usable: SweepLosses) -> dict[str, str]:
    """Families of which no point is near enough to the dense model."""
    left = {one.family for one in usable.curves}
    return {
        one.family: f"{one.family} was judged at losses alone that nobody would use"
        for one in judged.curves
        if one.family not in left
    }


def _few(usable: SweepLosses) -> list[str]:
    """A line from the dense model to one point is said."""
    most: dict[str, int] = {}
    for one in usable.curves:
        most[one.family] = max(len(one.points), most.get(one.family, 0))
    few = [family for family, count in most.items() if count == 1]
    if not few:
        return []
    return [
        f"{', '.join(few)}: one judged point each below {MOST_RATIO:g}× the dense perplexity, so "
        "that equal loss is on a line from dense to it: judge more sparsities"
    ]


def _whose(judged: SweepLosses, model: str | None) -> list[str]:
    """Losses of another model are said."""
    others = [name for name in judged.models if name != model]
    return [f"the losses are those of {', '.join(others)}"] if others else []


def _longer(base: Setting, dense: Answer) -> Workload:
    c = base.constants
    long_prompt = dense.ttft_ns(c) >= dense.total_ns(c) / 2
    return dense.work if long_prompt else dense.steps[1].work


def _row(setting: Setting, dense: Answer) -> Ranked:
    """A family at its own sparsity."""
    chosen = setting.family
    assert chosen is not None
    pruned = answer(
        setting,
        dense.work,
        new_tokens=dense.new_tokens,
        chunk=dense.chunk.work.prompt_len if dense.chunk else None,
    )
    speed = speed_of(dense, pruned)
    at = _longer(setting, dense)
    return Ranked(
        family=chosen.id,
        extension=chosen.extension,
        sparsity=setting.sparsity,
        removed=removed_shares(
            chosen, setting.sparsity, shape=setting.shape, work=at, knobs=setting.knobs
        ),
        speedup=speed.speedup,
        range=speed.range,
        answer=pruned.as_schema(),
        weight_bytes=round(pruned.prompt.forward.weight_bytes),
        kv_bytes=round(pruned.steps[-1].forward.kv_bytes),
        ties=False,
        fits=answer_memory(setting, pruned, pruned=True).fits,
    )
