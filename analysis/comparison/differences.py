"""Settings in which two runs differ other than the pruning, and what they leave comparable.

In: a phase of both sides and its GEMM pairs. Out: every Difference, and the PairComparison of the
phase. Code reads kinds and values; `analysis/wording/comparison.py` words a Difference.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from prunescope.analysis.comparison.convolutions import Convolution
from prunescope.analysis.comparison.fewer_keys import is_context_of_fewer_keys
from prunescope.analysis.comparison.other_inputs import other_inputs
from prunescope.analysis.comparison.parallelism import parallelism
from prunescope.analysis.comparison.solved_inputs import leading_sizes, solve_inputs
from prunescope.analysis.inputs.side import Side, SidePhase
from prunescope.analysis.kernels.frame import PRODUCTS
from prunescope.analysis.kernels.phase_kind import rows_of_linears, trained_tokens
from prunescope.analysis.ledger.call import Call
from prunescope.analysis.ledger.gemms import Pair
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
from prunescope.taxonomy.roles import LINEARS, MLP_ROLES, QKV_ROLES
from prunescope.taxonomy.runs.run import PhaseRun

# Fields of a phase in run.json. Other inputs change the shapes without any pruning.
_INPUTS = ("batch", "prompt_len", "context", "only")
_SETTINGS = (*_INPUTS, "logits", "attention", "mode", "cache", "flush", "warmup")
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
    """Decide whether two sides compare.

    Args:
        differences: The settings that differ.
        inputs: The other batch or length that shapes show (`other_inputs`), where no pruning
            explains
            them; else None.
        one_sided: What only one side recorded.
        formats: The number formats of GEMMs, dense and pruned, where they differ; else None.
    """
    hidden = any(difference.hides_pruning for difference in differences)
    every = [*differences, *([] if inputs is None else [inputs])]
    return PairComparison(
        is_speedup=not every,
        shows_pruning=not hidden and inputs is None,
        has_bounds=not hidden,  # with other inputs alone, all work is still paired and has bounds
        differences=every,
        formats=formats,
        one_sided=list(one_sided),
    )


def find_differences(
    dense: SidePhase,
    pruned: SidePhase,
    pairs: list[Pair],
    convolutions: Sequence[Convolution] = (),
) -> tuple[Difference, ...]:
    """Find all settings that differ between the sides, other than the dimensions of the model.

    Args:
        dense: A phase of the baseline.
        pruned: The same phase of the candidate.
        pairs: The pairs of their GEMMs.
        convolutions: The pairs of their convolutions.
    """
    every = [
        *_compare_files(dense, pruned),
        *_compare_steps(dense, pruned),
        *_compare_machines(dense, pruned),
    ]
    if dense.run is None or pruned.run is None:
        every += _compare_phases(dense, pruned)
    else:
        evicted = is_context_of_fewer_keys(dense, pruned, pairs)
        every += [
            difference
            for difference in _compare_settings(dense.run, pruned.run)
            if not (evicted and difference.kind == "context")
        ]
        every += _compare_models(
            dense.side, pruned.side, length=max(pruned.run.positions, default=0)
        )
    # A manifest names the number format of parameters; packed weights are not parameters.
    if all(difference.kind != DTYPE for difference in every) and (
        formats := other_formats(formats_of(pairs))
    ):
        every.append(Difference(DTYPE, *formats))
    listed = dense.run is not None and pruned.run is not None  # batch and length, in run.json
    if not listed and other_inputs(pairs, convolutions) is None:
        leading = leading_sizes(dense.kernels), leading_sizes(pruned.kernels)
        every += filter(None, [solve_inputs(pairs, convolutions, leading)])
    models = find_other_model(pairs)
    return (*every, *([] if models is None else [models]))


def _compare_files(dense: SidePhase, pruned: SidePhase) -> Iterator[Difference]:
    """Yield a Difference where the file of a side ends before its trace does."""
    old, new = ("cut off" if side.kernels.linked.cut else "whole" for side in (dense, pruned))
    if "cut off" in (old, new):
        yield Difference(CUT, old, new, hides_pruning=True)


def _compare_steps(dense: SidePhase, pruned: SidePhase) -> Iterator[Difference]:
    """Yield a Difference where one side has several steps, and the whole trace of the other is one.

    That one may hold the time and the layers of several steps.
    """
    whole = [side.kernels.is_whole_trace for side in (dense, pruned)]
    counts = [side.kernels.num_steps for side in (dense, pruned)]
    if whole[0] != whole[1] and max(counts) > 1:
        texts = [
            f"{count} (whole trace)" if is_whole else str(count)
            for count, is_whole in zip(counts, whole, strict=True)
        ]
        yield Difference(STEPS, texts[0], texts[1], hides_pruning=True)


def _compare_machines(dense: SidePhase, pruned: SidePhase) -> Iterator[Difference]:
    """Yield differences in graphs, first calls, device, rank, parallelism and compiled code."""
    whole = [side.kernels.replays.hide_kernels for side in (dense, pruned)]
    if whole[0] != whole[1]:
        texts = ["one interval a launch" if is_whole else "their kernels" for is_whole in whole]
        yield Difference(GRAPHS, texts[0], texts[1], hides_pruning=True)
    if (cold := _unequal_first_calls(dense, pruned)) is not None:
        yield cold
    old, new = _device(dense.side), _device(pruned.side)
    if old and new and old != new:
        yield Difference("device", old, new)
    threads = _threads(dense.side), _threads(pruned.side)
    if None not in threads and threads[0] != threads[1]:
        yield Difference("threads", *threads)
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
    """Return the device that a side ran on, as the profiler names it."""
    if side.run is not None:
        return side.run.device.name or None
    return side.bare.device_name if side.bare is not None else None


def _threads(side: Side) -> int | None:
    """Return how many threads of the host computed; None where a device did."""
    on_host = side.run is not None and side.run.device.kind == "cpu"
    return side.run.device.threads if side.run is not None and on_host else None


def _rank(side: Side) -> int | None:
    """Return the rank of a trace without run.json, as the profiler recorded it."""
    info = side.bare.source.meta.get("distributedInfo") if side.bare and not side.ranks else None
    rank = info.get("rank") if isinstance(info, dict) else None
    return rank if isinstance(rank, int) else None


def _compare_phases(dense: SidePhase, pruned: SidePhase) -> Iterator[Difference]:
    """Yield a Difference where traces without run.json are of two kinds of step.

    Prefill was then compared with decode, or training with a forward pass, by mistake. Training
    with another batch or length differs too, because it changes K of the gradients of weights.
    """
    kinds = [side.name if side.kind is None else side.kind["kind"] for side in (dense, pruned)]
    if "training" in kinds:
        if kinds[0] != kinds[1] and set(kinds) <= {"training", "forward", "prefill", "decode"}:
            yield Difference("phase", kinds[0], kinds[1], hides_pruning=True)
        tokens = [trained_tokens(side.kernels) for side in (dense, pruned)]
        if kinds[0] == kinds[1] and None not in tokens and tokens[0] != tokens[1]:
            yield Difference("tokens a step", tokens[0], tokens[1], hides_pruning=True)
        return
    if set(kinds) != {"prefill", "decode"}:
        return
    rows = [rows_of_linears(side.kernels) for side in (dense, pruned)]
    if rows[0] is None or rows[0] != rows[1]:  # equal rows: only their attention differs
        yield Difference("phase", kinds[0], kinds[1], hides_pruning=True)


def _compare_settings(dense: PhaseRun, pruned: PhaseRun) -> Iterator[Difference]:
    """Yield the fields of a phase in run.json that differ.

    An unknown field differs only if it is one of the inputs.
    """
    for name in _SETTINGS:
        old, new = getattr(dense, name), getattr(pruned, name)
        is_input = name in _INPUTS
        if old != new and (is_input or None not in (old, new)):
            yield Difference(name, old, new, hides_pruning=is_input)


def _compare_models(dense: Side, pruned: Side, *, length: int) -> Iterator[Difference]:
    """Yield differences in number format, model type and the window of attention.

    `length` is the number of tokens in the context.
    """
    assert dense.run is not None and pruned.run is not None
    if dense.run.dtype != pruned.run.dtype:
        yield Difference(DTYPE, dense.run.dtype, pruned.run.dtype)
    old, new = dense.run.model.shape or {}, pruned.run.model.shape or {}
    types = old.get("model_type"), new.get("model_type")
    if all(types) and types[0] != types[1]:
        yield Difference("model type", *types, hides_pruning=True)
    if old and new:
        yield from _compare_windows(old, new, length=length)


def _compare_windows(
    dense: dict[str, Any], pruned: dict[str, Any], *, length: int
) -> Iterator[Difference]:
    """Yield a Difference where layers attend to another window of a context of `length` tokens."""
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
    """Return the formats, dense and pruned, of all GEMMs whose format differs."""
    return {(dense, pruned) for dense, pruned in formats_of(pairs) if dense != pruned}


def formats_of(pairs: Iterable[Pair]) -> set[tuple[str, str]]:
    """Return the formats, dense and pruned, of all GEMMs of which both are known."""
    both = [(p.dense, p.pruned) for p in pairs if p.dense is not None and p.pruned is not None]
    return {(d.dtype, p.dtype) for d, p in both if d.dtype and p.dtype}


def other_formats(every: set[tuple[str, str]]) -> tuple[str, str] | None:
    """Return the formats, dense and pruned, if they differ by a setting; else None.

    A library picks TF32 or FP32 by shape, so that these are a setting only where all GEMMs changed
    in the same way.

    Args:
        every: The formats of all GEMMs (`formats_of`).
    """
    chosen = {
        formats
        for formats in every
        if formats[0] != formats[1] and not _OF_FP32.issuperset(formats)
    }
    if not chosen and len(every) == 1:
        chosen = {(dense, pruned) for dense, pruned in every if dense != pruned}
    return min(chosen, default=None)


def find_other_model(pairs: list[Pair]) -> Difference | None:
    """Return a Difference if the linears of the two sides are of two models.

    Pruning only narrows, and no linear of two models has the same size. A linear of the pruned side
    is larger than every one of its role on the dense side in one dimension and smaller in the
    other, or hidden size, attention and MLP all differ, and one of them grew or layers came.
    """
    dense, pruned = _collect_sizes(p.dense for p in pairs), _collect_sizes(p.pruned for p in pairs)
    if set().union(*dense.values()) & set().union(*pruned.values()):
        return None
    for role in LINEARS:
        old, new = dense.get(role), pruned.get(role)
        if not old or not new:
            continue
        if all((n > a) != (k > b) and n != a and k != b for a, b in old for n, k in new):
            texts = [f"{role} of N {n:g}, K {k:g}" for n, k in (max(old), max(new))]
            return Difference("linears", texts[0], texts[1], hides_pruning=True)
    widths = other_widths(pairs)
    if widths is None:
        return None
    old_layers, new_layers = (
        len({call.layer for call in calls if call is not None} - {None})
        for calls in ([p.dense for p in pairs], [p.pruned for p in pairs])
    )
    if new_layers > old_layers:
        widths["layers"] = old_layers, new_layers
    elif not any(new > old for old, new in widths.values()):
        return None
    texts = [", ".join(f"{name} {of[i]:g}" for name, of in widths.items()) for i in range(2)]
    return Difference("widths", texts[0], texts[1], hides_pruning=True)


_WIDTHS = {
    "hidden size": (1, (*QKV_ROLES, *MLP_ROLES[:-1])),  # K of what reads the residual stream
    "attention": (1, ("o",)),
    "MLP": (1, ("down",)),
}


def other_widths(pairs: list[Pair]) -> dict[str, tuple[float, float]] | None:
    """Return hidden size and widths of attention and MLP of both sides, if all three differ.

    None where a side has several of a kind, or none that is known.
    """
    sides = [_collect_sizes(p.dense for p in pairs), _collect_sizes(p.pruned for p in pairs)]
    widths: dict[str, tuple[float, float]] = {}
    for name, (axis, roles) in _WIDTHS.items():
        old, new = ({size[axis] for role in roles for size in of.get(role, ())} for of in sides)
        if len(old) != 1 or len(new) != 1 or old == new:
            return None
        widths[name] = old.pop(), new.pop()
    return widths


def find_unpaired(units: Units) -> Difference | None:
    """Return a Difference if no matrix product has a layer and role of the other side.

    Layers and roles of a side are then unknown, or the models have nothing in common.
    """
    keys = [
        [key for key, is_present in zip(units.keys, side.present, strict=True) if is_present]
        for side in (units.dense, units.pruned)
    ]
    places = [{key[:2] for key in of_side} for of_side in keys]
    products = [{key[:2] for key in of_side if key[2] in PRODUCTS} for of_side in keys]
    if not all(products) or products[0] & places[1] or products[1] & places[0]:
        return None
    return Difference(UNPAIRED, len(products[0]), len(products[1]), hides_pruning=True)


def _collect_sizes(calls: Iterable[Call | None]) -> _Sizes:
    """Collect N and K of the linears by role."""
    sizes: _Sizes = defaultdict(set)
    for call in calls:
        if call is not None and call.role in LINEARS and call.n and call.k:
            sizes[call.role].add((call.n, call.k))
    return sizes


def _unequal_first_calls(dense: SidePhase, pruned: SidePhase) -> Difference | None:
    """Return a Difference if the sides spend unequal parts of a step in first calls.

    They must differ by more than two captures do. Equal first calls on both sides, as of a trace
    and an edited copy, leave them comparable. Runs of `prunescope trace` are warmed up.
    """
    if dense.run is not None and pruned.run is not None:
        return None
    held = [side.kernels.host.first_call_ns / side.kernels.num_steps for side in (dense, pruned)]
    walls = [side.kernels.wall / side.kernels.num_steps for side in (dense, pruned)]
    differs = abs(held[0] - held[1]) > _MOVES_A_STEP * min(walls)
    return Difference(FIRST_CALLS, held[0], held[1]) if differs else None
