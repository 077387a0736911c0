"""Which family, here? Every family on one model, device and workload, side by side.

In: a PredictRequest with `rank`. Out: a Ranking: families by expected speed-up of the whole
workload at equal FLOPs and at equal parameters, with ranges, and which of them tie with the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from prunescope.analysis.predict.answers import prompt_of, speed_of
from prunescope.analysis.predict.generation import Answer, answer
from prunescope.analysis.predict.grid import sparsities
from prunescope.analysis.predict.setting import PredictRequest, Setting, resolve, runnable
from prunescope.analysis.schema.prediction import Ranked, Ranking
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import families
from prunescope.taxonomy.family import Family
from prunescope.taxonomy.match import MATCHES, removed_shares, solve
from prunescope.taxonomy.plan import Workload


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
    """Every family that the model allows, by the expected speed-up of the whole workload.

    Raises PrunescopeError where the model, the device or the workload is not known.
    """
    load = load_of(request)
    warnings: list[str] = []
    share = _share(request)
    base, _ = resolve(replace(request, knobs={}), None, None, warnings)
    work = prompt_of(base, batch=load.batch, prompt_len=load.prompt_len, logits=request.logits)
    dense = answer(base, work, new_tokens=load.new_tokens, chunk=request.chunk, pruned=False)
    tables: dict[str, list[Ranked]] = {}
    left_out: dict[str, str] = {}
    for by in BY:
        rows: list[Ranked] = []
        for one in families():
            if one.dynamics and one.id != "dense":
                try:
                    rows.append(_row(base, one, by, share, dense))
                except PrunescopeError as error:
                    left_out.setdefault(one.id, error.problem)
        rows.sort(key=lambda row: -row.speedup)
        for row in rows:
            row.ties = row.range[1] >= rows[0].range[0]
        tables[by] = rows
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
        dense=dense.told(),
        by=tables,
        left_out=left_out,
        warnings=list(dict.fromkeys(warnings)),
    )


def _share(request: PredictRequest) -> float:
    shares = [s for s in sparsities(request.sparsity) if s is not None]
    if len(shares) > 1:
        raise PrunescopeError("a ranking is at one share", hint="--sparsity 0.25")
    return shares[0] if shares else 0.25


def _row(base: Setting, one: Family, by: str, share: float, dense: Answer) -> Ranked:
    """A family where it removes `share` of the parameters, or of the FLOPs of what takes longer:
    the prompt, or a step in the middle of its answer."""
    chosen = runnable(one, base.device, []) or one
    knobs = chosen.point(0.0).knobs
    c = base.constants
    long_prompt = dense.ttft_ns(c) >= dense.total_ns(c) / 2
    at = dense.work if long_prompt else dense.steps[1].work
    own = one.only or _own(chosen, share, by, base, at, knobs)
    setting = replace(base, family=chosen, sparsity=own, knobs=knobs)
    pruned = answer(
        setting,
        dense.work,
        new_tokens=dense.new_tokens,
        chunk=dense.chunk.work.prompt_len if dense.chunk else None,
    )
    speed = speed_of(dense, pruned)
    gone = removed_shares(chosen, own, shape=base.shape, work=at, knobs=knobs)
    if gone[by] <= 1e-5:
        raise PrunescopeError(f"{chosen.id} removes no {MATCHES[by]}", hint="")
    return Ranked(
        family=chosen.id,
        extension=chosen.extension,
        sparsity=own,
        removed=gone,
        speedup=speed.speedup,
        range=speed.range,
        answer=pruned.told(),
        weight_bytes=round(pruned.prompt.forward.weight_bytes),
        kv_bytes=round(pruned.steps[-1].forward.kv_bytes),
        ties=False,
    )


def _own(
    one: Family, share: float, by: str, base: Setting, at: Workload, knobs: Mapping[str, Any]
) -> float:
    return solve(one, share, by=by, shape=base.shape, work=at, knobs=knobs).own
