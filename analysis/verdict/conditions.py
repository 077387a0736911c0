"""How two sides ran, beside the pruning: device, code, phase, inputs, settings, model, window.

In: a phase of both sides. Out: every Difference. The verdict stops at the first one that decides,
for no shape tells of pruning then; the finding `not-comparable` names all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl

from prunescope.analysis.inputs.subject import Side, SidePhase
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.kernels.phase_kind import rows_of_linears, trained_tokens
from prunescope.analysis.verdict.evidence import Reason
from prunescope.analysis.verdict.reasons import Difference
from prunescope.taxonomy.run import PhaseRun

# What a manifest says of a phase; of other inputs, the shapes are others without any pruning.
_SETTINGS = ("batch", "prompt_len", "logits", "attention", "mode", "cache", "context")
_INPUTS = ("batch", "prompt_len", "context")


def differences(dense: SidePhase, pruned: SidePhase) -> tuple[Difference, ...]:
    """All that differs between the sides beside the model's dimensions."""
    return tuple(_differences(dense, pruned))


def _differences(dense: SidePhase, pruned: SidePhase) -> Iterator[Difference]:
    old, new = _device(dense.side), _device(pruned.side)
    if old and new and old != new:
        yield Difference("device", old, new)
    ranks = [_rank(one.side) for one in (dense, pruned)]
    if None not in ranks and ranks[0] != ranks[1]:
        yield Difference("rank", ranks[0], ranks[1])
    if dense.kernels.compiled != pruned.kernels.compiled:
        code = {True: "compiled", False: "eager"}
        yield Difference(
            "code", code[dense.kernels.compiled], code[pruned.kernels.compiled], decides=True
        )
    if dense.run is None or pruned.run is None:
        yield from _phases(dense, pruned)
        return
    yield from _settings(dense.run, pruned.run)
    assert dense.side.run is not None and pruned.side.run is not None
    if dense.side.run.dtype != pruned.side.run.dtype:
        yield Difference("dtype", dense.side.run.dtype, pruned.side.run.dtype)
    shapes = _shape(dense.side), _shape(pruned.side)
    types = [shape.get("model_type") for shape in shapes]
    if all(types) and types[0] != types[1]:
        yield Difference("model type", types[0], types[1], decides=True)
    yield from _windows(*shapes, length=max(pruned.run.positions, default=0))


def _device(side: Side) -> str | None:
    """The device that a side ran on, as the profiler names it."""
    if side.run is not None:
        return side.run.device.name or None
    return side.bare.device_name if side.bare is not None else None


def _rank(side: Side) -> int | None:
    """The rank whose trace a bare side is, as the profiler writes it."""
    info = side.bare.source.meta.get("distributedInfo") if side.bare and not side.ranks else None
    rank = info.get("rank") if isinstance(info, dict) else None
    return rank if isinstance(rank, int) else None


def _phases(dense: SidePhase, pruned: SidePhase) -> Iterator[Difference]:
    """Prefill against decode, or training against a forward pass, as bare traces may be by mistake;
    and training with another batch or length, in which K of the weights' gradients moves."""
    kinds = [one.name if one.kind is None else one.kind["kind"] for one in (dense, pruned)]
    if "training" in kinds:
        if kinds[0] != kinds[1] and set(kinds) <= {"training", "forward", "prefill", "decode"}:
            yield Difference("phase", kinds[0], kinds[1], decides=True)
        tokens = [trained_tokens(one.kernels) for one in (dense, pruned)]
        if kinds[0] == kinds[1] and None not in tokens and tokens[0] != tokens[1]:
            yield Difference("tokens a step", tokens[0], tokens[1], decides=True)
        return
    if set(kinds) != {"prefill", "decode"}:
        return
    rows = [rows_of_linears(one.kernels) for one in (dense, pruned)]
    if rows[0] is None or rows[0] != rows[1]:  # else attention alone looks otherwise
        yield Difference("phase", kinds[0], kinds[1], decides=True)


def _settings(dense: PhaseRun, pruned: PhaseRun) -> Iterator[Difference]:
    for name in _SETTINGS:
        old, new = getattr(dense, name), getattr(pruned, name)
        decides = name in _INPUTS
        if old != new and (decides or None not in (old, new)):
            yield Difference(name, old, new, decides=decides)


def _shape(side: Side) -> dict[str, Any]:
    """What the manifest says of the model's shape; empty where it says nothing."""
    return (side.run.model.shape if side.run is not None else None) or {}


def _windows(dense: dict[str, Any], pruned: dict[str, Any], *, length: int) -> Iterator[Difference]:
    """Layers that attend to other windows of a context of `length` tokens."""
    old, new = (
        shape.get("window") if shape.get("sliding_layers") else None for shape in (dense, pruned)
    )
    reach_d, reach_p = (min(w, length) if isinstance(w, int) else length for w in (old, new))
    if not dense or not pruned or reach_d == reach_p:
        return
    if None in (old, new) and dense.get("layers") != pruned.get("layers"):
        return  # the layers with a window may be those that are gone
    said = [f"{w} tokens" if w else "all tokens" for w in (old, new)]
    yield Difference("window", said[0], said[1], decides=True)


def other_activation(dense: Kernels, pruned: Kernels) -> Reason | None:
    """The ops that stand in the place of the activation, where they are others."""
    old, new = (
        {
            str(op).rstrip("_")
            for op in kernels.frame.filter(pl.col("role") == "activation")["op"]
            if op is not None
        }
        for kernels in (dense, pruned)
    )
    gone, fresh = sorted(old - new), sorted(new - old)
    if not gone or not fresh:
        return None
    text = f"the activation is another op: {', '.join(fresh)} instead of {', '.join(gone)}"
    return Reason(kind="activation", lines=(text,), numbers={"dense": gone, "pruned": fresh})
