"""Settings in which two runs differ other than the pruning, and what they leave comparable.

In: a phase of both sides and its GEMM pairs. Out: every Difference, and the PairComparison of the
phase. Code reads kinds and values; `analysis/wording/comparison.py` words a Difference.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from prunescope.analysis.comparison.fewer_keys import is_context_of_fewer_keys
from prunescope.analysis.comparison.parallelism import parallelism
from prunescope.analysis.inputs.side import Side, SidePhase
from prunescope.analysis.kernels.frame import PRODUCTS
from prunescope.analysis.kernels.phase_kind import rows_of_linears, trained_tokens
from prunescope.analysis.ledger.gemms import Call, Pair
from prunescope.analysis.ledger.pairing import Units
from prunescope.analysis.schema.pair_comparison import (
    CODE,
    CUT,
    DTYPE,
    FIRST_CALLS,
    GRAPHS,
    STEPS,
    UNPAIRED,
    Difference,
    OneSided,
    PairComparison,
)
from prunescope.taxonomy.dtypes import THREE_TF32
from prunescope.taxonomy.roles import LINEARS
from prunescope.taxonomy.runs.run import PhaseRun

# Fields of a phase in run.json. Other inputs change the shapes without any pruning.
_SETTINGS = ("batch", "prompt_len", "logits", "attention", "mode", "cache", "context")
_INPUTS = ("batch", "prompt_len", "context")
_OF_FP32 = {"fp32", "tf32", THREE_TF32}  # a library may pick either for a shape
# Of the shorter step: two captures of one model differ by 1.4 % on a quiet machine.
_MOVES_A_STEP = 0.014
_Sizes = dict[str, set[tuple[float, float]]]  # (N, K) by role


def pair_comparison(
    differences: Sequence[Difference],
    *,
    inputs: Difference | None = None,
    one_sided: Sequence[OneSided] = (),
    formats: tuple[str, str] | None = None,
) -> PairComparison:
    """Whether two sides compare. `inputs`: the other batch or length that shapes show
    (`other_inputs`), where no pruning explains them; else None. `formats`: of GEMMs,
    dense and pruned, where they differ."""
    hidden = any(one.hides_pruning for one in differences)
    found = [*differences, *([] if inputs is None else [inputs])]
    return PairComparison(
        is_speedup=not found,
        shows_pruning=not hidden and inputs is None,
        has_bounds=not hidden,  # with other inputs alone, all work is still paired and has bounds
        differences=found,
        formats=formats,
        one_sided=list(one_sided),
    )


def differences(dense: SidePhase, pruned: SidePhase, pairs: list[Pair]) -> tuple[Difference, ...]:
    """All settings that differ between the sides, other than the dimensions of the model."""
    found = [*_cut_off(dense, pruned), *_steps(dense, pruned), *_ran_on(dense, pruned)]
    if dense.run is None or pruned.run is None:
        found += _phases(dense, pruned)
    else:
        evicted = is_context_of_fewer_keys(dense, pruned, pairs)
        found += [
            one
            for one in _settings(dense.run, pruned.run)
            if not (evicted and one.kind == "context")
        ]
        found += _models(dense.side, pruned.side, length=max(pruned.run.positions, default=0))
    # A manifest names the number format of parameters; packed weights are not parameters.
    if all(one.kind != DTYPE for one in found) and (formats := other_formats(formats_of(pairs))):
        found.append(Difference(DTYPE, *formats))
    other = other_model(pairs)
    return (*found, *([] if other is None else [other]))


def _cut_off(dense: SidePhase, pruned: SidePhase) -> Iterator[Difference]:
    """A file that ends before its trace does, of one side or both."""
    old, new = ("cut off" if one.kernels.linked.cut else "whole" for one in (dense, pruned))
    if "cut off" in (old, new):
        yield Difference(CUT, old, new, hides_pruning=True)


def _steps(dense: SidePhase, pruned: SidePhase) -> Iterator[Difference]:
    """Several steps on one side, while the whole trace of the other counts as one: that one may
    hold the time and the layers of several steps."""
    sides = [one.kernels for one in (dense, pruned)]
    whole = [one.is_whole_trace for one in sides]
    counts = [one.num_steps for one in sides]
    if whole[0] != whole[1] and max(counts) > 1:
        texts = [
            f"{count} (whole trace)" if is_whole else str(count)
            for count, is_whole in zip(counts, whole, strict=True)
        ]
        yield Difference(STEPS, texts[0], texts[1], hides_pruning=True)


def _ran_on(dense: SidePhase, pruned: SidePhase) -> Iterator[Difference]:
    """Device, rank, whether the code was compiled, and whether one side is cold."""
    whole = [one.kernels.replays.hide_kernels for one in (dense, pruned)]
    if whole[0] != whole[1]:
        texts = ["one interval a launch" if is_whole else "their kernels" for is_whole in whole]
        yield Difference(GRAPHS, texts[0], texts[1], hides_pruning=True)
    if (cold := _unequal_first_calls(dense, pruned)) is not None:
        yield cold
    old, new = _device(dense.side), _device(pruned.side)
    if old and new and old != new:
        yield Difference("device", old, new)
    ranks = _rank(dense.side), _rank(pruned.side)
    if None not in ranks and ranks[0] != ranks[1]:
        yield Difference("rank", *ranks)
    if (ranks_differ := parallelism(dense, pruned)) is not None:
        yield ranks_differ
    if dense.kernels.host.is_compiled != pruned.kernels.host.is_compiled:
        code = {True: "compiled", False: "eager"}
        yield Difference(
            CODE,
            code[dense.kernels.host.is_compiled],
            code[pruned.kernels.host.is_compiled],
            hides_pruning=True,
        )


def _device(side: Side) -> str | None:
    """The device that a side ran on, as the profiler names it."""
    if side.run is not None:
        return side.run.device.name or None
    return side.bare.device_name if side.bare is not None else None


def _rank(side: Side) -> int | None:
    """The rank of a trace without run.json, as the profiler recorded it."""
    info = side.bare.source.meta.get("distributedInfo") if side.bare and not side.ranks else None
    rank = info.get("rank") if isinstance(info, dict) else None
    return rank if isinstance(rank, int) else None


def _phases(dense: SidePhase, pruned: SidePhase) -> Iterator[Difference]:
    """Prefill compared with decode, or training with a forward pass, by mistake in traces without
    run.json; and training with another batch or length, which changes K of the gradients of
    weights."""
    kinds = [one.name if one.kind is None else one.kind["kind"] for one in (dense, pruned)]
    if "training" in kinds:
        if kinds[0] != kinds[1] and set(kinds) <= {"training", "forward", "prefill", "decode"}:
            yield Difference("phase", kinds[0], kinds[1], hides_pruning=True)
        tokens = [trained_tokens(one.kernels) for one in (dense, pruned)]
        if kinds[0] == kinds[1] and None not in tokens and tokens[0] != tokens[1]:
            yield Difference("tokens a step", tokens[0], tokens[1], hides_pruning=True)
        return
    if set(kinds) != {"prefill", "decode"}:
        return
    rows = [rows_of_linears(one.kernels) for one in (dense, pruned)]
    if rows[0] is None or rows[0] != rows[1]:  # equal rows: only their attention differs
        yield Difference("phase", kinds[0], kinds[1], hides_pruning=True)


def _settings(dense: PhaseRun, pruned: PhaseRun) -> Iterator[Difference]:
    for name in _SETTINGS:
        old, new = getattr(dense, name), getattr(pruned, name)
        is_input = name in _INPUTS
        if old != new and (is_input or None not in (old, new)):
            yield Difference(name, old, new, hides_pruning=is_input)


def _models(dense: Side, pruned: Side, *, length: int) -> Iterator[Difference]:
    """Number format, model type, and the window of attention in a context of `length` tokens."""
    assert dense.run is not None and pruned.run is not None
    if dense.run.dtype != pruned.run.dtype:
        yield Difference(DTYPE, dense.run.dtype, pruned.run.dtype)
    old, new = dense.run.model.shape or {}, pruned.run.model.shape or {}
    types = old.get("model_type"), new.get("model_type")
    if all(types) and types[0] != types[1]:
        yield Difference("model type", *types, hides_pruning=True)
    if old and new:
        yield from _windows(old, new, length=length)


def _windows(dense: dict[str, Any], pruned: dict[str, Any], *, length: int) -> Iterator[Difference]:
    """Layers that attend to another window of a context of `length` tokens."""
    windows = [
        shape.get("window") if shape.get("sliding_layers") else None for shape in (dense, pruned)
    ]
    reach = [min(w, length) if isinstance(w, int) else length for w in windows]
    if reach[0] == reach[1]:
        return
    if None in windows and dense.get("layers") != pruned.get("layers"):
        return  # the layers with a window may be those that were removed
    texts = [f"{w} tokens" if w else "all tokens" for w in windows]
    yield Difference("window", texts[0], texts[1], hides_pruning=True)


def gemm_formats(pairs: Iterable[Pair]) -> set[tuple[str, str]]:
    """The formats that GEMMs of both sides multiply in, dense and pruned, where they differ."""
    return {(dense, pruned) for dense, pruned in formats_of(pairs) if dense != pruned}


def formats_of(pairs: Iterable[Pair]) -> set[tuple[str, str]]:
    """The formats that GEMMs of both sides multiply in, dense and pruned, where both are known."""
    both = [(p.dense, p.pruned) for p in pairs if p.dense is not None and p.pruned is not None]
    return {(d.dtype, p.dtype) for d, p in both if d.dtype and p.dtype}


def other_formats(every: set[tuple[str, str]]) -> tuple[str, str] | None:
    """The formats, dense and pruned, if they differ by a setting; `every`: `formats_of` all GEMMs.
    None where they are equal or a library may have picked them: it picks TF32 or FP32 by shape, so
    that these are a setting only where all GEMMs changed in the same way."""
    chosen = {one for one in every if one[0] != one[1] and not _OF_FP32.issuperset(one)}
    if not chosen and len(every) == 1:
        chosen = {(dense, pruned) for dense, pruned in every if dense != pruned}
    return min(chosen, default=None)


def other_model(pairs: list[Pair]) -> Difference | None:
    """Two models: a linear of the pruned side that is larger than every one of its role on the
    dense side in one dimension and smaller in the other. Pruning only narrows; if any linear has
    the same size on both sides, it is one model."""
    dense, pruned = _sizes(p.dense for p in pairs), _sizes(p.pruned for p in pairs)
    if set().union(*dense.values()) & set().union(*pruned.values()):
        return None
    for role in LINEARS:
        old, new = dense.get(role), pruned.get(role)
        if not old or not new:
            continue
        if all((n > a) != (k > b) and n != a and k != b for a, b in old for n, k in new):
            texts = [f"{role} of N {n:g}, K {k:g}" for n, k in (max(old), max(new))]
            return Difference("linears", texts[0], texts[1], hides_pruning=True)
    return None


def unpaired(units: Units) -> Difference | None:
    """A Difference if no matrix product of one side has a layer and role of the other side: layers
    and roles of a side are not known, or the models have nothing in common."""
    places = [
        {key[:2] for key, on in zip(units.keys, side.present, strict=True) if on}
        for side in (units.dense, units.pruned)
    ]
    products = [
        {
            key[:2]
            for key, on in zip(units.keys, side.present, strict=True)
            if on and key[2] in PRODUCTS
        }
        for side in (units.dense, units.pruned)
    ]
    if not all(products) or products[0] & places[1] or products[1] & places[0]:
        return None
    return Difference(UNPAIRED, len(products[0]), len(products[1]), hides_pruning=True)


def _sizes(calls: Iterable[Call | None]) -> _Sizes:
    found: _Sizes = defaultdict(set)
    for call in calls:
        if call is not None and call.role in LINEARS and call.n and call.k:
            found[call.role].add((call.n, call.k))
    return found


def _unequal_first_calls(dense: SidePhase, pruned: SidePhase) -> Difference | None:
    """A Difference if one side spends more of a step in first calls than two captures differ by.
    Equal first calls on both sides, as of a trace and an edited copy, leave them comparable. Runs
    of `prunescope trace` are warmed up."""
    if dense.run is not None and pruned.run is not None:
        return None
    held = [one.kernels.host.first_call_ns / one.kernels.num_steps for one in (dense, pruned)]
    walls = [one.kernels.wall / one.kernels.num_steps for one in (dense, pruned)]
    apart = abs(held[0] - held[1]) > _MOVES_A_STEP * min(walls)
    return Difference(FIRST_CALLS, held[0], held[1]) if apart else None
